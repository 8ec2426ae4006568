package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/windows"

	"reverser/internal/access"
)

var errLocked = errors.New("locked by another process")

// lockExclusive locks one byte far behind the content, because a locked range
// cannot be read by others and the process id should be. The system drops the
// lock when the process ends, however it ends.
func lockExclusive(f *os.File) error { return lock(f, windows.LOCKFILE_EXCLUSIVE_LOCK) }

// lockShared takes a lock that others may have too, but not beside an exclusive one.
func lockShared(f *os.File) error { return lock(f, 0) }

func lock(f *os.File, how uint32) error {
	err := windows.LockFileEx(windows.Handle(f.Fd()), how|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, lockedByte())
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return errLocked
	}
	return err
}

func lockedByte() *windows.Overlapped { return &windows.Overlapped{OffsetHigh: 1 << 30} }

// protectNew closes a new directory: what it inherits lets others read files there, outside of a user's profile.
func protectNew(path string) error {
	err := access.Protect(path)
	if errors.Is(err, windows.ERROR_NOT_SUPPORTED) || errors.Is(err, windows.ERROR_INVALID_FUNCTION) {
		return nil // a volume without access lists, such as FAT, of which the log has a warning
	}
	return err
}

// owner has no meaning here: a new file inherits the rights of its directory.
type owner struct{}

func ownerOf(fs.FileInfo) owner { return owner{} }

func (owner) give(*os.File) error { return nil }

func (owner) like(*os.Root, string, fs.FileInfo) error { return nil }

// links is how many names a file has.
func links(f *os.File, _ fs.FileInfo) uint64 {
	var info windows.ByHandleFileInformation
	if windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &info) != nil {
		return 1 // a file system that does not count them
	}
	return uint64(info.NumberOfLinks)
}

func linksRemedy(full string) string {
	return fmt.Sprintf("`fsutil hardlink list %s` shows them: remove all others", full)
}

// syncDir does nothing: a directory cannot be flushed on Windows.
func (d *Dir) syncDir(string) error { return nil }

// mayWrite says nothing: what access lists allow is seen when a file is made.
func mayWrite(string) error { return nil }

func unlock(f *os.File) error {
	return windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, lockedByte())
}

// rename puts a file in the place of another one. Windows refuses that while somebody has the other one open, such as a command that reads
// admin.path, or a virus scanner. That takes a moment; who may not write there for good has to hear it soon.
func rename(root *os.Root, from, to string) error {
	end := time.Now().Add(2 * time.Second)
	for tries := 1; ; tries++ {
		err := root.Rename(from, to)
		inUse := errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_SHARING_VIOLATION)
		if !inUse || tries >= 100 && time.Now().After(end) { // on a busy machine the time passes without a try
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
