package usage

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Place is where the file lies.
type Place interface {
	Name() string // for people
	Stat() (fs.FileInfo, error)
	Open(flag int) (*os.File, error)
	// PutAside gives the file another name and returns that, if it still is the one that is meant.
	PutAside(file fs.FileInfo, now time.Time) (string, error)
	Remove(file fs.FileInfo) error
	// Unlock takes back the lock that bbolt has of an open file.
	Unlock(*os.File) error
}

// lockWait is how long one process waits for another one that has the file open, for the moment of a save or a question.
const lockWait = 5 * time.Second

// errNothing says that nothing was ever stored.
var errNothing = errors.New("nothing is stored yet")

// file is opened for each transaction, and closed after it: bbolt locks an open file, and a process that is stopping has a successor
// beside it, which stores what it counts in the same file. One caller at a time uses it.
type file struct {
	place   Place
	checked fs.FileInfo   // as it was left; it is checked again when something else wrote it
	older   bool          // one of its two meta pages was found damaged, maybe the newer one
	wait    time.Duration // for another process; 0: lockWait
	noSync  bool          // for tests that save very often
}

// view reads. It returns errNothing if there is nothing to read, and a *damage if the file is damaged.
func (f *file) view(read func(*bolt.Tx) error) error {
	info, err := f.place.Stat()
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return errNothing
	}
	if err != nil {
		return err
	}
	return f.with(true, func(db *bolt.DB, h *os.File) error {
		if err := f.check(h); err != nil {
			return err
		}
		return db.View(read)
	})
}

// update writes in one transaction: all of it, or nothing.
func (f *file) update(write func(*bolt.Tx) error) error {
	// The check comes before bbolt opens the file to write: it reads the list of free pages then.
	if info, err := f.place.Stat(); err != nil || !f.isChecked(info) {
		if err := f.view(func(*bolt.Tx) error { return nil }); err != nil && err != errNothing {
			return err
		}
	}
	return f.with(false, func(db *bolt.DB, h *os.File) error {
		if err := db.Update(write); err != nil {
			return err
		}
		f.checked, _ = h.Stat()
		return nil
	})
}

// check checks the file unless it is as it was left.
func (f *file) check(h *os.File) error {
	info, err := h.Stat()
	if err != nil {
		return err
	}
	if f.isChecked(info) {
		return nil
	}
	f.checked = nil
	whole, err := check(h, info.Size(), checkValue)
	if err != nil {
		return err
	}
	f.checked, f.older = info, f.older || !whole
	return nil
}

func (f *file) isChecked(info fs.FileInfo) bool {
	c := f.checked
	return c != nil && os.SameFile(c, info) && c.Size() == info.Size() && c.ModTime().Equal(info.ModTime())
}

// with opens the file for do. What bbolt panics about, or what is cut off under it, is damage.
func (f *file) with(readOnly bool, do func(*bolt.DB, *os.File) error) (err error) {
	var h *os.File
	var refused error
	defer func() {
		if h != nil { // after a panic: bbolt cannot close its file any more, and memory that stays mapped would keep it locked
			f.place.Unlock(h)
			h.Close()
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			f.checked = nil
			err = damaged("it cannot be used: %v", p)
		}
	}()
	db, err := bolt.Open(f.place.Name(), 0o600, &bolt.Options{
		ReadOnly: readOnly, Timeout: cmp.Or(f.wait, lockWait), FreelistType: bolt.FreelistMapType, NoStatistics: true, NoSync: f.noSync, NoGrowSync: f.noSync,
		OpenFile: func(_ string, flag int, _ os.FileMode) (*os.File, error) {
			h, refused = f.place.Open(flag)
			return h, refused
		},
	})
	if err != nil {
		h = nil // closed by then
		if refused != nil {
			return refused
		}
		return f.whyNot(err)
	}
	err = do(db, h)
	closing := db.Close()
	h = nil
	return errors.Join(err, closing)
}

// whyNot finds out why bbolt did not open the file.
func (f *file) whyNot(err error) error {
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("another process has the file open for more than %s", cmp.Or(f.wait, lockWait))
	}
	h, again := f.place.Open(os.O_RDONLY)
	if again != nil {
		return err
	}
	defer h.Close()
	info, again := h.Stat()
	if again != nil || info.Size() == 0 {
		return err
	}
	_, damaged := check(h, info.Size(), checkValue)
	if d, ok := errors.AsType[*damage](damaged); ok {
		return d
	}
	return err
}

// putAside makes room for a new file in the place of a damaged one. aside is "" if nothing was in it.
func (f *file) putAside(now time.Time) (aside string, err error) {
	f.checked = nil
	h, err := f.place.Open(os.O_RDONLY)
	if err != nil {
		return "", err
	}
	info, err := h.Stat()
	empty := err == nil && unborn(h, info.Size())
	h.Close()
	switch {
	case err != nil:
		return "", err
	case empty: // the disk was full when it was made, or the machine stopped
		return "", f.place.Remove(info)
	}
	return f.place.PutAside(info, now)
}
