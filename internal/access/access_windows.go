package access

import (
	"io/fs"
	"os"
)

// File is what was found out about an open file.
type File struct{}

// Look lets every file pass: a file has an access control list here, and the mode that Go reports is made up, 0666 for all that is
// writable. A file in the user's own profile is closed to other users by inheritance.
func (r Rules) Look(string, *os.File) (*File, error) { return &File{}, nil }

// Private refuses a file that others can read or write.
func (*File) Private() (notes []string, fault *Fault) { return nil, nil }

// Owned refuses a file of another user.
func (*File) Owned() (notes []string, fault *Fault) { return nil, nil }

// Unwritable refuses a file that others can write.
func (*File) Unwritable() (notes []string, fault *Fault) { return nil, nil }

// Dir is a state directory whose files are looked at.
type Dir struct{}

// Dir decides about a state directory.
func (r Rules) Dir(string, fs.FileInfo) (d Dir, note string, fault *Fault) { return Dir{}, "", nil }

// Unwritable refuses a file of the directory that others can write.
func (Dir) Unwritable(string, fs.FileInfo) *Fault { return nil }

// Private refuses a file of the directory that others can read or write.
func (Dir) Private(string, fs.FileInfo) *Fault { return nil }

// Unusable is a remedy for a directory that this user may not use, "" if there is none to name.
func Unusable(string) string { return "" }
