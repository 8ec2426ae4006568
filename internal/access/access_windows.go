package access

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// File is what was found out about an open file.
type File struct {
	seen    seen
	regular bool
	path    string
	dir     error // the directory could not be looked at
	in      seen  // the directory
}

// Look finds out about a file that was opened by this path. What it costs is one look at the list of the open file, and one at its
// directory's.
func (r Rules) Look(path string, f *os.File) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l := &File{path: path, regular: info.Mode().IsRegular()}
	if !l.regular { // a pipe
		return l, nil
	}
	if l.seen, err = look(path, f); err != nil {
		return nil, err
	}
	full, err := filepath.EvalSymlinks(path)
	if err != nil {
		full = path
	}
	if full, err = filepath.Abs(full); err != nil {
		return nil, err
	}
	if dir, err := os.Open(filepath.Dir(full)); err != nil {
		l.dir = err
	} else {
		defer dir.Close()
		l.in, l.dir = look(filepath.Dir(full), dir)
	}
	return l, nil
}

// Private refuses a file that others can read or write, for one with a secret in it.
func (l *File) Private() (notes []string, fault *Fault) {
	if !l.regular {
		return nil, nil
	}
	return l.seen.private()
}

// Owned lets every file pass: an administrator, who may do everything, owns many of a user's files here, and of a service's.
func (l *File) Owned() (notes []string, fault *Fault) { return nil, nil }

// Unwritable refuses a file that others can write or replace by another.
func (l *File) Unwritable() (notes []string, fault *Fault) {
	if !l.regular {
		return nil, nil
	}
	if notes, fault = l.seen.unwritable(); fault == nil && l.dir == nil {
		fault = l.in.keepsFiles()
	}
	return notes, fault
}

// Dir is a state directory whose files are looked at.
type Dir struct{}

// Dir decides about a state directory. The note is empty, or for the log of a process that goes on to use the directory.
func (r Rules) Dir(path string, f *os.File) (d Dir, note string, fault *Fault) {
	s, err := look(path, f)
	if err != nil {
		return d, "", &Fault{fmt.Sprintf("who can write it cannot be told: %v", err), "choose another with --state DIR"}
	}
	s.dir = true
	notes, fault := s.unwritable()
	if fault != nil {
		fault.Text += " and put files of their own into it"
		fault.Hint += ", or choose another with --state DIR"
	}
	if len(notes) > 0 {
		note = notes[0]
	}
	return d, note, fault
}

// Unwritable refuses a file of the directory that others can write.
func (d Dir) Unwritable(full string, f *os.File) *Fault {
	s, err := look(full, f)
	if err != nil {
		return &Fault{fmt.Sprintf("who can write it cannot be told: %v", err), "choose another directory with --state DIR"}
	}
	_, fault := s.unwritable() // the directory has the note
	return fault
}

// Private refuses a file of the directory that others can read or write.
func (d Dir) Private(full string, f *os.File) *Fault {
	s, err := look(full, f)
	if err != nil {
		return &Fault{fmt.Sprintf("who can read it cannot be told: %v", err), "choose another directory with --state DIR"}
	}
	_, fault := s.private()
	if fault != nil {
		fault.Text = "it holds secrets but " + fault.Text
		fault.Hint += ", and replace its keys if others could have read them"
	}
	return fault
}

// Unusable is a remedy for a directory that this user may not use, "" if there is none to name.
func Unusable(string) string { return "" }

// look asks the system about an open file or directory.
func look(path string, f *os.File) (s seen, err error) {
	s.path = path
	h := windows.Handle(f.Fd())
	var flags uint32
	if windows.GetVolumeInformationByHandle(h, nil, 0, nil, nil, &flags, nil, 0) == nil {
		s.fixed = flags&windows.FILE_READ_ONLY_VOLUME != 0
		s.plain = flags&windows.FILE_PERSISTENT_ACLS == 0
	}
	sd, err := windows.GetSecurityInfo(h, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return s, fmt.Errorf("read the access list of %s: %w", path, err)
	}
	if s.list, err = parseList(sd.String()); err != nil {
		return s, err
	}
	if s.me, err = me(); err != nil {
		return s, err
	}
	return s, nil
}

// me is the SID of this user.
func me() (string, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return "", fmt.Errorf("ask who this user is: %w", err)
	}
	return user.User.Sid.String(), nil
}

// Protect closes a file or a directory, with all that will be made in it, to everybody but this user, administrators and the system. What
// it inherits does not count any more. It is for files with a secret in them, and for what is made new: whoever had access before
// may have read it.
func Protect(path string, also ...Grant) error {
	id, err := me()
	if err != nil {
		return err
	}
	sddl, err := protection(id, also)
	if err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return fmt.Errorf("protect %s with the access list %s: %w", path, sddl, err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	err = windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
	if err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	return nil
}

// Owned reports whether a file or directory is this user's, the administrators' or the system's: its owner may always open it. owner is
// the SID.
func Owned(path string) (mine bool, owner string, err error) {
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return false, "", fmt.Errorf("ask who owns %s: %w", path, err)
	}
	sid, _, err := sd.Owner()
	if err != nil {
		return false, "", fmt.Errorf("ask who owns %s: %w", path, err)
	}
	id, err := me()
	if err != nil {
		return false, "", err
	}
	mine = sid.String() == id || sid.IsWellKnown(windows.WinLocalSystemSid) || sid.IsWellKnown(windows.WinBuiltinAdministratorsSid)
	return mine, sid.String(), nil
}
