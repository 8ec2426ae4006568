//go:build unix

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// looseMode refuses a file that its group or the world can read or write.
func looseMode(file fs.FileInfo) error {
	// A pipe, as the shell's <(…) makes, has no mode that means anything.
	if !file.Mode().IsRegular() || file.Mode().Perm()&0o066 == 0 {
		return nil
	}
	err := errOpen
	switch mode := file.Mode().Perm(); {
	case mode&0o044 == 0:
		err = errWritable
	case mode&0o022 != 0:
		err = errOpenWritable
	}
	return fmt.Errorf("%w (mode %04o)", err, file.Mode().Perm())
}

// ownedByOthers says who else owns a file that was opened by this path, a symbolic link on the way to it, or its directory,
// and what to do about that; "" if nobody does. An owner can change what is theirs, whatever its mode says.
func ownedByOthers(path string, file fs.FileInfo) (text, hint string) {
	_, text, hint = owned(path, file)
	return text, hint
}

// owned is ownedByOthers and the way that it took.
func owned(path string, file fs.FileInfo) (w way, text, hint string) {
	if !file.Mode().IsRegular() {
		return w, "", ""
	}
	w, err := wayTo(path)
	if err != nil {
		return w, fmt.Sprintf("it changed while it was read (%v)", err), "look who else can write where it is, and start again"
	}
	if uid := owner(file); !w.opened && !ours(uid) {
		it := "it"
		if w.file != filepath.Clean(path) {
			it = "the file " + w.file + " behind it"
		}
		return w, fmt.Sprintf("%s belongs to another user, %s, who can change it", it, userName(uid)), "run " + chown("", w.file)
	}
	for _, l := range w.links {
		if uid := owner(l.info); !ours(uid) {
			return w, fmt.Sprintf("the symbolic link %s on the way to it belongs to another user, %s, who can lead it elsewhere", l.path, userName(uid)), "run " + chown("-h ", l.path)
		}
	}
	for _, dir := range w.dirs {
		if uid := owner(dir.info); !ours(uid) {
			return w, fmt.Sprintf("its directory %s belongs to another user, %s, who can put another file in its place", dir.path, userName(uid)), "move the file to a directory of yours, or of root"
		}
	}
	return w, "", ""
}

// writtenByOthers says who else can write a configuration file that was opened by this path, or put another in its place, and
// what to do about that; "" if nobody can.
func writtenByOthers(path string, file fs.FileInfo) (text, hint string) {
	w, text, hint := owned(path, file)
	if text != "" || !file.Mode().IsRegular() {
		return text, hint
	}
	if openTo(file) {
		return fmt.Sprintf("others on this machine can write it (mode %04o)", file.Mode().Perm()), "run chmod go-w " + w.file
	}
	for _, dir := range w.dirs {
		// In a directory with the sticky bit, such as /tmp, a file is its owner's to replace.
		if openTo(dir.info) && dir.info.Mode()&fs.ModeSticky == 0 {
			return fmt.Sprintf("others on this machine can write its directory %s (mode %04o) and put another file in its place", dir.path, dir.info.Mode().Perm()), "run chmod go-w " + dir.path
		}
	}
	return "", ""
}

// way is what the system goes through to open a file.
type way struct {
	file   string  // its path without symbolic links
	links  []place // every symbolic link
	dirs   []place // of the file, and of each link that stands for the file; not those above, where a system has its own customs
	opened bool    // by whoever started this process, as the shell's < does, and file is no more than a name for that
}

type place struct {
	path string
	info fs.FileInfo
}

// openFile is an open file of this process.
var openFile = regexp.MustCompile(fmt.Sprintf(`^/proc/(self|thread-self|%d)/fd/[0-9]+$`, os.Getpid()))

// wayTo follows a path as the system does.
func wayTo(path string) (way, error) {
	w := way{file: "."}
	for rest := path; rest != ""; {
		if filepath.IsAbs(rest) {
			w.file = "/"
		}
		name, below, _ := strings.Cut(strings.TrimLeft(rest, "/"), "/")
		rest = strings.TrimLeft(below, "/")
		next := filepath.Join(w.file, name)
		// /dev/stdin and /dev/fd/N lead here, where a link is no name of a file but the open file itself.
		if openFile.MatchString(next) && rest == "" {
			return way{file: path, links: w.links, opened: true}, nil
		}
		info, err := os.Lstat(next)
		if err != nil {
			return w, err
		}
		if link := info.Mode()&fs.ModeSymlink != 0; link || rest == "" {
			if rest == "" {
				dir, err := os.Stat(w.file)
				if err != nil {
					return w, err
				}
				w.dirs = append(w.dirs, place{w.file, dir})
			}
			if link {
				if w.links = append(w.links, place{next, info}); len(w.links) > 255 {
					return w, errors.New("too many symbolic links")
				}
				to, err := os.Readlink(next)
				if err != nil {
					return w, err
				}
				if rest != "" {
					to += "/" + rest // not cleaned: after a link, .. is not what it looks like
				}
				rest = to
				continue
			}
		}
		w.file = next
	}
	return w, nil
}

// ours is whether files of this user are as good as those of the user who runs the program. Under sudo that is who ran sudo.
func ours(uid int) bool {
	if uid == 0 || uid == os.Geteuid() {
		return true
	}
	sudo, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	return err == nil && os.Geteuid() == 0 && uid == sudo
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

// userName is how an error names a user.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("%s (uid %d)", u.Username, uid)
	}
	return fmt.Sprintf("uid %d", uid)
}

// openTo is whether others than the owner can write. A group of the owner alone, which many systems give to each user and
// number alike, is nobody else.
func openTo(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return info.Mode().Perm()&0o002 != 0 || info.Mode().Perm()&0o020 != 0 && (!ok || st.Gid != st.Uid)
}

func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
