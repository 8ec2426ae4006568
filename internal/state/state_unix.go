//go:build unix

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

var errLocked = errors.New("locked by another process")

// lockExclusive takes a flock: it belongs to the open file, so the kernel
// drops it when the process ends, however it ends.
func lockExclusive(f *os.File) error { return flock(f, unix.LOCK_EX) }

// lockShared takes a flock that others may have too, but not beside an exclusive one.
func lockShared(f *os.File) error { return flock(f, unix.LOCK_SH) }

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return errLocked
		default:
			return err
		}
	}
}

// protectNew has nothing to do: a new directory has the mode that it was made with.
func protectNew(string) error { return nil }

// owner is who owns the directory. When root edits the state of a service
// user, the files must stay readable for that user.
type owner struct{ uid, gid int }

func ownerOf(info fs.FileInfo) owner {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{-1, -1}
	}
	return owner{int(st.Uid), int(st.Gid)}
}

func (o owner) give(f *os.File) error {
	if os.Geteuid() != 0 || o.uid <= 0 {
		return nil
	}
	if err := f.Chown(o.uid, o.gid); err != nil {
		return fmt.Errorf("give it to the directory's owner (uid %d): %w", o.uid, plain(err))
	}
	return nil
}

// like gives a file that takes the place of another one the rights of that one's group. They are there where several users of a group
// run proxy and commands (--trust-owner), and one's edit must not shut the others out.
func (o owner) like(root *os.Root, name string, before fs.FileInfo) error {
	mode := before.Mode().Perm()
	if mode&0o070 == 0 || mode&0o007 != 0 || ownerOf(before).gid != o.gid {
		return nil
	}
	if err := root.Chown(name, -1, o.gid); err != nil { // first: the mode is for that group
		return err
	}
	return root.Chmod(name, mode)
}

// links is how many names a file has.
func links(_ *os.File, info fs.FileInfo) uint64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 1
	}
	return uint64(st.Nlink)
}

func linksRemedy(full string) string {
	return fmt.Sprintf("`find / -xdev -samefile %s` shows them: remove all others", full)
}

// syncDir makes a rename in a folder durable.
func (d *Dir) syncDir(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	// Some file systems cannot sync a directory; the rename is then as durable
	// as they make it.
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

// mayWrite reports why this process may not make files in a directory.
func mayWrite(dir string) error {
	return unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
}

// unlock takes back a flock though the file stays open elsewhere: memory may be mapped to it, and a program that this process starts
// has it open until it runs.
func unlock(f *os.File) error { return flock(f, unix.LOCK_UN) }

// rename puts a file in the place of another one.
func rename(root *os.Root, from, to string) error { return root.Rename(from, to) }
