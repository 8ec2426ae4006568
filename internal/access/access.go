// Package access decides whether a file is safe to use: whether another user can read its secret, change it, or put another file in
// its place. The rules for token files, configuration files and the state directory are here and nowhere else.
//
// Where a platform owns the files (systemd's credentials, the secrets of Docker and Kubernetes, a bind mount), this process can neither
// change their owner nor their mode. A fault that nobody can make use of there is a note, which is logged, instead of a refusal.
//
// On Unix the rules are about owners and modes (access_unix.go), on Windows about access control lists (access_windows.go).
package access

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"
)

// Rules say whose files are taken.
type Rules struct {
	// Trusted are users, by their ids, whose files are as good as those of this user or of root. What such a user lets the group of a
	// file do is meant so. Windows has no such ids.
	Trusted []int
	// Regular refuses what is no regular file. A process that runs reads its files again: of a pipe, nothing is left then, and to open
	// one waits for whoever writes it.
	Regular bool
	// Opening, unless nil, is told of each file before it is opened: the disk may never answer.
	Opening func(path string)
}

// trusts reports whether the rules name a user.
func (r Rules) trusts(uid int) bool { return slices.Contains(r.Trusted, uid) }

// Fault is why a file is refused.
type Fault struct {
	Text string
	Hint string // the remedy
}

func (f *Fault) Error() string { return f.Text + ": " + f.Hint }

// Remedy is the end of the text that says what to do.
func (f *Fault) Remedy() string { return f.Hint }

// Open opens a file to read it. A directory is opened as well: whoever reads it gets an error.
func (r Rules) Open(path string) (*os.File, error) {
	if r.Opening != nil {
		r.Opening(path)
	}
	if !r.Regular {
		return os.Open(path)
	}
	f, err := os.OpenFile(path, ReadNow, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = &Fault{"it is no regular file, so it cannot be read a second time", "put a regular file in its place, or restart to have it read for the first time"}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ReadNow are the flags with which a file is opened to read. The opening does not wait, as that of a pipe would for a writer.
const ReadNow = os.O_RDONLY | syscall.O_NONBLOCK

// ParseOwner parses the value of --trust-owner.
func ParseOwner(s string) (uid int, err error) {
	// The last id means "no user" to the system.
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, fmt.Errorf("%q is no user id: it is a number, which `id -u NAME` prints", s)
	}
	return int(n), nil
}

// Grant is what Protect leaves to somebody else, on Windows.
type Grant struct {
	SID   string // such as S-1-5-19, which is LocalService
	Write bool   // else they may only read
}
