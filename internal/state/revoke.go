package state

import (
	"maps"
	"slices"
	"sync"
)

// unstored is the keys that were revoked, and stand in the file still: the disk may be full.
type unstored struct {
	mu   sync.Mutex
	keys map[[16]byte]string // names; guarded by mu, as all below
	err  error               // why they are not stored
}

// Revoke takes a key out for good. It is so for this process whatever becomes of the file: with an error the file has the key still,
// and Store writes it later.
func (d *Dir) Revoke(id [16]byte, name string) error {
	u := &d.unstored
	u.mu.Lock()
	if u.keys == nil {
		u.keys = make(map[[16]byte]string)
	}
	u.keys[id] = name
	u.mu.Unlock()
	return d.Store()
}

// Store writes the keys without those that were revoked, unless the file has none of them.
func (d *Dir) Store() error {
	if len(d.unstored.ids()) == 0 {
		return nil
	}
	return d.unstored.note(d.edit(d.storeLocked))
}

func (d *Dir) storeLocked() error {
	return d.changeLocked(func(keys []Key) ([]Key, error) { return keys, nil })
}

// Unstored returns the names of the keys that were revoked and stand in the file still, and why.
func (d *Dir) Unstored() (names []string, err error) {
	u := &d.unstored
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Sorted(maps.Values(u.keys)), u.err
}

func (u *unstored) has(id [16]byte) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, in := u.keys[id]
	return in
}

func (u *unstored) ids() [][16]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Keys(u.keys))
}

func (u *unstored) forget(ids [][16]byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range ids {
		delete(u.keys, id)
	}
	if len(u.keys) == 0 {
		u.err = nil
	}
}

// note remembers why something is not stored.
func (u *unstored) note(err error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.keys) > 0 {
		u.err = err
	}
	return err
}
