package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Tend looks at what others did to the directory while this process runs, for whoever keeps it open for long. It makes the lock file again
// where it was removed, and returns what it cannot mend, in words that say what to do. Nothing that the process serves depends on it.
func (d *Dir) Tend() (faults []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.yielded {
		return nil // it is the successor's
	}
	if !d.inPlace() {
		return []string{fmt.Sprintf("state directory %s was removed, moved or replaced: this process goes on with what it has read, and a restart would begin anew, where every bridge needs a new token: put the directory back, and restart", d.path)}
	}
	if err := d.holdLock(); err != nil {
		faults = append(faults, err.Error())
	}
	if err := d.sameIdentity(); err != nil {
		faults = append(faults, err.Error())
	}
	if d.hasKeys.Load() {
		if _, err := d.root.Lstat(keysFile); errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, d.keysGone().Error())
		}
	}
	return faults
}

// inPlace reports whether the directory is still what its path leads to.
func (d *Dir) inPlace() bool {
	f, err := os.Open(d.path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) // what cannot be known is not said
	}
	defer f.Close()
	there, err := f.Stat()
	if err != nil {
		return true
	}
	own, err := d.root.Open(".")
	if err != nil {
		return true
	}
	defer own.Close()
	here, err := own.Stat()
	return err != nil || os.SameFile(here, there)
}

// holdLock sees to it that the lock which is held is that of the file in the directory: a lock on a file that was removed keeps nobody
// out. mu is held, and so is the lock.
func (d *Dir) holdLock() error {
	if d.lock == nil {
		return nil
	}
	held, err := d.lock.Stat()
	if err != nil {
		return fmt.Errorf("look at the lock of state directory %s: %w", d.path, plain(err))
	}
	f, err := d.root.Open(lockFile)
	if err == nil {
		there, statErr := f.Stat()
		f.Close()
		if statErr != nil || os.SameFile(held, there) {
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil // out of descriptors, say: the file is not known to be another one
	}
	old := d.lock
	if err := d.takeLock(); err != nil {
		d.lock = old
		if used, ok := errors.AsType[*InUseError](err); ok {
			return fmt.Errorf("%s was removed or replaced while this process runs, and %w", filepath.Join(d.path, lockFile), used)
		}
		return fmt.Errorf("%s was removed or replaced while this process runs, so another one can start beside it: %w", filepath.Join(d.path, lockFile), err)
	}
	old.Close()
	return d.signLock()
}

// sameIdentity compares the file with what Identity returned. mu is held.
func (d *Dir) sameIdentity() error {
	if d.identity == nil {
		return nil // never asked for
	}
	full := filepath.Join(d.path, identityFile)
	info, err := d.root.Lstat(identityFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s was removed while this process runs: the next start makes another identity, and every bridge then needs a new token: put the file back from a copy", full)
	case err != nil:
		return nil
	case d.seen != nil && os.SameFile(info, d.seen) && info.ModTime().Equal(d.seen.ModTime()) && info.Size() == d.seen.Size():
		return nil
	}
	b, err := d.readSecret(identityFile)
	if err != nil {
		return err
	}
	if string(b) != string(d.identity) {
		return fmt.Errorf("%s was replaced while this process runs: the next start uses what is there now, and tokens of the identity that is in force now are then refused: put the old file back, or restart and make new tokens", full)
	}
	d.seen = info
	return nil
}

// keysGone is the error when the file of the keys was there and is not any more.
func (d *Dir) keysGone() error {
	return fmt.Errorf("%s was removed while this process runs: its keys stay in force until the process ends, and a restart has none of them: put the file back from a copy", filepath.Join(d.path, keysFile))
}
