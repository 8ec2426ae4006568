package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"reverser/internal/access"
)

// undoing remembers how to take back what an installation has done so far, and what to tidy up when it has succeeded.
type undoing struct {
	steps []func() error
	tidy  []func()
}

func (u *undoing) add(step func() error) { u.steps = append(u.steps, step) }

// all takes everything back, the last step first.
func (u *undoing) all() (err error) {
	for _, step := range slices.Backward(u.steps) {
		err = errors.Join(err, step())
	}
	u.steps = nil
	if err != nil {
		return fmt.Errorf("and not everything could be put back as it was: %w", err)
	}
	return nil
}

// unless takes everything back if err is not nil, and adds to it what could not be.
func (u *undoing) unless(err *error) {
	if *err == nil {
		for _, f := range u.tidy {
			f()
		}
		return
	}
	if failed := u.all(); failed != nil {
		*err = errors.Join(*err, failed)
	}
}

// mkdirState makes a state directory, with what is above it, if there is none.
func (u *undoing) mkdirState(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := u.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	u.add(func() error { return os.RemoveAll(path) })
	return os.Mkdir(path, 0o700)
}

// mkdir makes a directory that everybody may look into, if there is none.
func (u *undoing) mkdir(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := u.mkdirAbove(path); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	u.add(func() error {
		os.Remove(path) // unless somebody else has put something into it
		return nil
	})
	return os.Chmod(path, 0o755) // whatever the mask of this process is
}

func (u *undoing) mkdirAbove(path string) error {
	if above := filepath.Dir(path); above != path {
		return u.mkdir(above)
	}
	return nil
}

// replace writes a file whole, in place of one that may be there. That one is kept until the installation has succeeded: with its owner
// and its access list, without which its service could not read it.
func (u *undoing) replace(path, text string, mode fs.FileMode) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := access.WriteFile(path, []byte(text), mode); err != nil {
			return err
		}
		u.add(func() error { return os.Remove(path) })
		return nil
	}
	if err != nil {
		return err
	}
	old := besides(path)
	if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an installation that was killed
		return err
	}
	if os.Link(path, old) != nil { // some file systems have no links
		if err := os.Rename(path, old); err != nil {
			return err
		}
	}
	u.add(func() error {
		if same(old, path) { // nothing was written
			return os.Remove(old)
		}
		return os.Rename(old, path)
	})
	u.tidy = append(u.tidy, func() { os.Remove(old) })
	return access.WriteFile(path, []byte(text), mode)
}

// besides is where a file is kept while another one takes its place.
func besides(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".before")
}
