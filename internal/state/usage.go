package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reverser/internal/access"
)

// usageFile is not written as the others are: it is a database, which has a lock of its own, since a process that is stopping and its
// successor both add to it.
const (
	usageFile  = "usage.db"
	usageAside = usageFile + ".damaged-"
	mostAside  = 3
)

// Usage is the file of what was counted, in a state directory.
type Usage struct {
	dir   *Dir
	close func() error
}

// Usage is the file of the directory that this process holds, or held.
func (d *Dir) Usage() *Usage { return &Usage{dir: d, close: func() error { return nil }} }

// OpenUsage is the file of a directory that nobody may hold. The directory is not changed. Trusted users are those of Open.
func OpenUsage(dir string, trusted ...int) (*Usage, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", abs, plain(err))
	}
	d := &Dir{path: abs, root: root, rules: access.Rules{Trusted: trusted}}
	if err := d.judge(); err != nil {
		root.Close()
		return nil, err
	}
	return &Usage{dir: d, close: root.Close}, nil
}

// Close is for what OpenUsage returned.
func (u *Usage) Close() error { return u.close() }

// Name is the path of the file.
func (u *Usage) Name() string { return filepath.Join(u.dir.path, usageFile) }

// Stat describes the file.
func (u *Usage) Stat() (fs.FileInfo, error) { return u.dir.root.Stat(usageFile) }

// Open opens the file. One that others can change is refused.
func (u *Usage) Open(flag int) (_ *os.File, err error) {
	if info, err := u.Stat(); err == nil && !info.Mode().IsRegular() { // to open a named pipe would wait for whoever writes it
		return nil, &fault{fmt.Errorf("%s is no regular file (%s)", u.Name(), info.Mode()), "remove it"}
	}
	f, err := u.dir.root.OpenFile(usageFile, flag, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", u.Name(), plain(err))
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := u.dir.checkFile(f, u.Name()); err != nil {
		return nil, err
	}
	if flag&os.O_CREATE != 0 {
		if err := u.dir.owner.give(f); err != nil {
			return nil, fmt.Errorf("open %s: %w", u.Name(), plain(err))
		}
	}
	return f, nil
}

// errOther says that the file is another one than it was.
var errOther = errors.New("another process has replaced it meanwhile")

func (u *Usage) same(file fs.FileInfo) error {
	info, err := u.Stat()
	if err != nil {
		return plain(err)
	}
	if !os.SameFile(file, info) {
		return errOther
	}
	return nil
}

// PutAside gives the file another name, which it returns, if it still is the one that is meant. Of those that were put aside before, the
// latest ones are kept.
func (u *Usage) PutAside(file fs.FileInfo, now time.Time) (string, error) {
	if err := u.same(file); err != nil {
		return "", err
	}
	to := usageAside + now.UTC().Format("20060102-150405")
	if err := u.dir.root.Rename(usageFile, to); err != nil {
		return "", plain(err)
	}
	u.forget(to)
	return to, nil
}

// forget removes all files that were put aside but for the latest ones.
func (u *Usage) forget(last string) {
	entries, err := fs.ReadDir(u.dir.root.FS(), ".")
	if err != nil {
		return // they stay
	}
	var aside []string
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, usageAside) && name != last {
			aside = append(aside, name)
		}
	}
	slices.Sort(aside)
	for len(aside) > mostAside-1 {
		u.dir.root.Remove(aside[0])
		aside = aside[1:]
	}
}

// Remove removes the file, if it still is the one that is meant.
func (u *Usage) Remove(file fs.FileInfo) error {
	if err := u.same(file); err != nil {
		return err
	}
	return plain(u.dir.root.Remove(usageFile))
}

// Unlock takes back the lock that the database has of its file, where closing the file does not.
func (u *Usage) Unlock(f *os.File) error { return unlock(f) }
