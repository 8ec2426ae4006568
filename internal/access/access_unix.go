//go:build unix

package access

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// File is what was found out about an open file and the way to it.
type File struct {
	rules Rules
	path  string
	info  fs.FileInfo // of the open file, so that nobody exchanges it for another one meanwhile
	way   way
	err   error // the way could not be followed
	fixed bool  // the file is on a read-only mount
	given bool  // the file is a credential of the service manager
}

// Look finds out about a file that was opened by this path.
func (r Rules) Look(path string, f *os.File) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l := &File{rules: r, path: path, info: info}
	if !info.Mode().IsRegular() { // a pipe, as the shell's <(…) makes, has neither a mode nor an owner that means anything
		return l, nil
	}
	if l.way, l.err = wayTo(path); l.err != nil {
		return l, nil
	}
	l.fixed = isOpenReadOnly(f)
	l.given = !l.way.opened && isCredential(l.way.file)
	return l, nil
}

// Private refuses a file that others can read or write, for one with a secret in it.
func (l *File) Private() (notes []string, fault *Fault) {
	mode := l.info.Mode().Perm()
	if !l.info.Mode().IsRegular() || mode&0o066 == 0 {
		return nil, nil
	}
	can := "read it"
	switch {
	case mode&0o044 == 0:
		can = "write it"
	case mode&0o022 != 0:
		can = "read and write it"
	}
	uid, gid := ids(l.info)
	switch {
	case l.fixed:
		return l.note("its mode %04o lets others read it", mode), nil
	case l.given && mode&0o022 == 0:
		return l.note("its mode %04o lets others read it", mode), nil
	case mode&0o006 == 0 && l.rules.trusts(uid):
		return nil, nil
	case mode&0o026 == 0 && uid == 0 && isOurGroup(gid): // root gave it to this user in the only way in which root keeps it
		return nil, nil
	}
	return nil, &Fault{fmt.Sprintf("others on this machine can %s (mode %04o)", can, mode), l.privately(uid)}
}

// privately is how the file becomes that of this user alone.
func (l *File) privately(uid int) string {
	file := l.file()
	if me := os.Geteuid(); me == uid || me == 0 {
		return "run chmod 600 " + file
	}
	return fmt.Sprintf("run %s and chmod 600 %s, or mount it read-only, as Docker and Kubernetes do with secrets", chown("", file), file)
}

// Owned refuses a file of another user, and one that lies in another's directory or is reached by another's symbolic link: an owner can
// change what is theirs, whatever its mode says.
func (l *File) Owned() (notes []string, fault *Fault) {
	if !l.info.Mode().IsRegular() {
		return nil, nil
	}
	if l.err != nil {
		return nil, &Fault{fmt.Sprintf("it changed while it was read (%v)", l.err), "look who else can write where it is, and start again"}
	}
	if uid, _ := ids(l.info); !l.way.opened && !l.rules.ours(uid) {
		if l.fixed || l.given {
			notes = append(notes, l.note("it belongs to %s", userName(uid))...)
		} else {
			it := "it"
			if l.way.file != filepath.Clean(l.path) {
				it = "the file " + l.way.file + " behind it"
			}
			return nil, &Fault{fmt.Sprintf("%s belongs to another user, %s, who can change it", it, userName(uid)),
				"run " + chown("", l.way.file) + orTrust(uid)}
		}
	}
	for _, link := range l.way.links {
		uid, _ := ids(link.info)
		switch {
		case l.rules.ours(uid):
		case isReadOnly(filepath.Dir(link.path)):
			notes = append(notes, fmt.Sprintf("the symbolic link %s on the way to it belongs to %s%s", link.path, userName(uid), allTheSame+onReadOnly))
		default:
			return nil, &Fault{fmt.Sprintf("the symbolic link %s on the way to it belongs to another user, %s, who can lead it elsewhere", link.path, userName(uid)),
				"run " + chown("-h ", link.path) + orTrust(uid)}
		}
	}
	for _, dir := range l.way.dirs {
		uid, _ := ids(dir.info)
		switch {
		case l.rules.ours(uid):
		case isReadOnly(dir.path):
			notes = append(notes, fmt.Sprintf("its directory %s belongs to %s%s", dir.path, userName(uid), allTheSame+onReadOnly))
		default:
			return nil, &Fault{fmt.Sprintf("its directory %s belongs to another user, %s, who can put another file in its place", dir.path, userName(uid)),
				"move the file to a directory of yours, or of root" + orTrust(uid)}
		}
	}
	return notes, nil
}

// Unwritable refuses what Owned refuses, and a file that others can write or replace by another.
func (l *File) Unwritable() (notes []string, fault *Fault) {
	notes, fault = l.Owned()
	if fault != nil || !l.info.Mode().IsRegular() {
		return notes, fault
	}
	if mode := l.info.Mode().Perm(); l.rules.openTo(l.info) {
		if !l.fixed {
			return nil, &Fault{fmt.Sprintf("others on this machine can write it (mode %04o)", mode), unwritable(l.info, l.way.file)}
		}
		notes = append(notes, l.note("its mode %04o lets others write it", mode)...)
	}
	for _, dir := range l.way.dirs {
		// In a directory with the sticky bit, such as /tmp, a file is its owner's to replace.
		if l.rules.openTo(dir.info) && dir.info.Mode()&fs.ModeSticky == 0 && !isReadOnly(dir.path) {
			return nil, &Fault{
				fmt.Sprintf("others on this machine can write its directory %s (mode %04o) and put another file in its place", dir.path, dir.info.Mode().Perm()),
				unwritable(dir.info, dir.path)}
		}
	}
	return notes, nil
}

// unwritable is how nobody but the owner can write a file or directory.
func unwritable(info fs.FileInfo, path string) string {
	uid, _ := ids(info)
	switch os.Geteuid() {
	case uid, 0:
		return "run chmod go-w " + path
	}
	return fmt.Sprintf("run chmod go-w %s as root, or mount it read-only", path)
}

// note is why something that would be a fault elsewhere is none.
func (l *File) note(format string, args ...any) []string {
	why := onReadOnly
	if !l.fixed {
		why = "it is a credential of the service manager ($CREDENTIALS_DIRECTORY)"
	}
	return []string{fmt.Sprintf(format, args...) + allTheSame + why}
}

const (
	allTheSame = ": it is taken all the same, since "
	onReadOnly = "it is on a read-only mount"
)

// file is the path of the file itself.
func (l *File) file() string {
	if l.way.file == "" {
		return l.path
	}
	return l.way.file
}

// Dir is a state directory whose files are looked at.
type Dir struct {
	gid   int
	group bool // what is open to its group is meant so
}

// Dir decides about a state directory. The note is empty, or for the log of a process that goes on to use the directory.
func (r Rules) Dir(path string, f *os.File) (d Dir, note string, fault *Fault) {
	info, err := f.Stat()
	if err != nil {
		return d, "", unknown(err)
	}
	uid, gid := ids(info)
	d = Dir{gid: gid, group: r.trusts(uid)}
	const elsewhere = "choose another with --state DIR"
	me, mode := os.Geteuid(), info.Mode().Perm()
	if !r.ours(uid) && me != 0 {
		return d, "", &Fault{fmt.Sprintf("it belongs to another user, %s, who can change what is in it", userName(uid)),
			fmt.Sprintf("run %s, %s, or, if it is meant so, add --trust-owner %d", chown("-R ", path), elsewhere, uid)}
	}
	who := ""
	switch {
	case mode&0o002 != 0:
		who = "others on this machine"
	case mode&0o020 != 0 && !d.group:
		who = "the members of its group"
	}
	if who != "" {
		remedies := []string{"run chmod go-w " + path}
		if me != uid && me != 0 {
			remedies = []string{"run chmod go-w " + path + " as root", "name a directory in it (--state " + filepath.Join(path, "reverser") + ")"}
		}
		if mode&0o002 == 0 {
			remedies = append(remedies, fmt.Sprintf("add --trust-owner %d if its group is meant to write there", uid))
		}
		return d, "", &Fault{fmt.Sprintf("%s can write it (mode %04o) and put files of their own into it", who, mode),
			strings.Join(remedies, ", ") + ", or " + elsewhere}
	}
	if !r.ours(uid) { // root edits the directory of a service user
		note = fmt.Sprintf("it belongs to another user, %s, who can change what is in it: run reverser as that user, or, if it is meant so, add --trust-owner %d", userName(uid), uid)
	}
	return d, note, nil
}

// Unwritable refuses a file of the directory that others can write.
func (d Dir) Unwritable(full string, f *os.File) *Fault {
	info, err := f.Stat()
	if err != nil {
		return unknown(err)
	}
	mode := info.Mode().Perm()
	_, gid := ids(info)
	switch {
	case mode&0o002 != 0:
		return &Fault{fmt.Sprintf("others on this machine can write it (mode %04o)", mode), "see that its content is yours, and " + unwritable(info, full)}
	case mode&0o020 != 0 && !(d.group && gid == d.gid):
		return &Fault{fmt.Sprintf("the members of its group can write it (mode %04o)", mode), "see that its content is yours, and " + unwritable(info, full)}
	}
	return nil
}

// Private refuses a file of the directory that others can read or write.
func (d Dir) Private(full string, f *os.File) *Fault {
	info, err := f.Stat()
	if err != nil {
		return unknown(err)
	}
	mode := info.Mode().Perm()
	_, gid := ids(info)
	if mode&0o007 == 0 && (mode&0o070 == 0 || d.group && gid == d.gid) {
		return nil
	}
	return &Fault{fmt.Sprintf("it holds secrets but others may access it (mode %04o)", mode), "run chmod 600 " + full + ", and replace its keys if others could have read them"}
}

func unknown(err error) *Fault {
	return &Fault{fmt.Sprintf("who can read and write it cannot be told: %v", err), "choose another directory with --state DIR"}
}

// Protect closes a file or a directory to everybody but its owner. Grants are for Windows: here the owner is who may use it.
func Protect(path string, _ ...Grant) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if info.IsDir() {
		mode = 0o700
	}
	return os.Chmod(path, mode)
}

// Unusable is a remedy for a directory that this user may not use, "" if the directory's owner is no reason for that.
func Unusable(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	me := os.Geteuid()
	uid, _ := ids(info)
	if uid == me || me == 0 {
		return ""
	}
	return fmt.Sprintf("it belongs to %s, and this process runs as %s: run %s, run reverser as that user, or choose another with --state DIR",
		userName(uid), userName(me), chown("-R ", path))
}

// ours reports whether files of this user are as good as those of the user who runs the program. Under sudo that is who ran sudo.
func (r Rules) ours(uid int) bool {
	if uid == 0 || uid == os.Geteuid() || r.trusts(uid) {
		return true
	}
	sudo, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	return err == nil && os.Geteuid() == 0 && uid == sudo
}

// openTo reports whether others than the owner can write. A group of the owner alone, which many systems give to each user and
// number alike, is nobody else.
func (r Rules) openTo(info fs.FileInfo) bool {
	uid, gid := ids(info)
	return info.Mode().Perm()&0o002 != 0 || info.Mode().Perm()&0o020 != 0 && gid != uid && !r.trusts(uid)
}

// isOurGroup reports whether this process is a member of the group, and not root, who needs no group to read a file.
func isOurGroup(gid int) bool {
	if os.Geteuid() == 0 {
		return false
	}
	groups, _ := os.Getgroups()
	return gid == os.Getegid() || slices.Contains(groups, gid)
}

// isCredential reports whether a file is one that the service manager made for this process alone.
func isCredential(file string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if !filepath.IsAbs(dir) {
		return false
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return strings.HasPrefix(file, filepath.Clean(dir)+"/")
}

// chown is the command that makes a file that of the user who runs the program.
func chown(flag, path string) string {
	me := os.Geteuid()
	if me == 0 {
		return fmt.Sprintf("chown %sroot %s", flag, path)
	}
	to := strconv.Itoa(me)
	if u, err := user.LookupId(to); err == nil {
		to = u.Username
	}
	return fmt.Sprintf("chown %s%s %s as root", flag, to, path)
}

// orTrust is the end of a remedy where the file cannot, or is not to be, given away.
func orTrust(uid int) string {
	return fmt.Sprintf(", mount it read-only, or, if that user may decide, add --trust-owner %d", uid)
}

// userName is how an error names a user.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("%s (uid %d)", u.Username, uid)
	}
	return fmt.Sprintf("uid %d", uid)
}

// ids are the owner and the group of a file.
func ids(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return -1, -1
}
