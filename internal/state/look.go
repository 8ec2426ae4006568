package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"reverser/internal/access"
)

// Looked is what Look found.
type Looked struct {
	Path    string // absolute
	Missing bool   // Open would make it
	Note    string // who else can change what is in it; mostly empty
	Held    bool   // a live process holds it
	PID     int    // of that process; 0: it is not known, or none does
}

// Look finds out whether Open would take a directory, or why not, and leaves it as it is: it writes a file and removes it, as Open does, also
// where the directory would have to be made first. A directory that a live process holds is no error. Where an error says that the directory
// cannot be used, Looked has what is known of it.
func Look(path string, trusted ...int) (l Looked, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Looked{Path: path}, fmt.Errorf("state directory %s: %w", path, err)
	}
	l.Path = abs
	root, err := os.OpenRoot(abs)
	if errors.Is(err, fs.ErrNotExist) {
		l.Missing = true
		return l, creatable(abs)
	}
	if err != nil {
		return l, unusable(abs, err)
	}
	d := &Dir{path: abs, root: root, rules: access.Rules{Trusted: trusted}}
	defer root.Close()
	l.PID, l.Held = lockHolder(abs)
	if err := d.judge(); err != nil {
		return l, err
	}
	l.Note = d.note
	if err := d.checkAll(); err != nil {
		return l, err
	}
	return l, d.tryWrite()
}

// creatable reports why a directory that is not there cannot be made, or would have no room for a file.
func creatable(abs string) error {
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir):
			continue
		case err != nil:
			return unusable(abs, err)
		case !info.IsDir():
			return unusable(abs, fmt.Errorf("%s is no directory", dir))
		}
		if err := mayWrite(dir); err != nil {
			return unusable(abs, fmt.Errorf("make it in %s: %w", dir, err))
		}
		if err := tryMake(dir); err != nil {
			return unusable(abs, err)
		}
		return nil
	}
}

// tryMake finds out whether a directory takes another one with a file in it.
func tryMake(in string) (err error) {
	dir, err := os.MkdirTemp(in, ".reverser-"+probeName+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return os.WriteFile(filepath.Join(dir, probeName), make([]byte, probeSize), 0o600)
}

// probeSize is how much is written to find out whether the disk has room: a block of it.
const probeSize = 4 << 10

// tryWrite finds out whether the disk takes a file.
func (d *Dir) tryWrite() error {
	name := tempName(probeName)
	if err := d.create(name, make([]byte, probeSize)); err != nil {
		return unusable(d.path, err)
	}
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) { // a process that starts removes what it takes for a leftover
		return unusable(d.path, err)
	}
	return nil
}

// LookAdminToken reports why AdminToken would fail in a directory. It makes none.
func LookAdminToken(dir string, trusted ...int) error {
	u, err := OpenUsage(dir, trusted...)
	if err != nil {
		return err
	}
	defer u.Close()
	b, err := u.dir.readSecret(adminTokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = parseAdminToken(filepath.Join(u.dir.path, adminTokenFile), b)
	return err
}

// LookUsage reports why a process on a directory could not store there what it counts. It makes no file.
func LookUsage(dir string, trusted ...int) error {
	u, err := OpenUsage(dir, trusted...)
	if err != nil {
		return err
	}
	defer u.Close()
	f, err := u.Open(os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}
