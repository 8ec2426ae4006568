package state

import (
	"maps"
	"slices"
	"sync"
	"time"

	"reverser/internal/grammar"
)

// unstored is what counts and is not in the file yet: the disk may be full.
type unstored struct {
	mu    sync.Mutex
	keys  map[[16]byte]string   // that were revoked, with their names; guarded by mu, as all below
	used  map[[16]byte][32]byte // the secrets of Key.Next that were used
	edits map[[16]byte]*edit    // what was taken away from keys; an edit is never changed
	err   error                 // why the keys that were revoked, or edited, are not stored

	stores int // how often something of it was stored
}

// edit is what of a key is another than the file has it. What is nil is not.
type edit struct {
	name                  string
	allow                 *grammar.Policy
	services, connections *int
	expires               *time.Time
}

// MarkEdited has a key be what it is after an edit that only took something away. It is so for this process whatever becomes of the file:
// Keys has it so, and Store writes it.
func (d *Dir) MarkEdited(before, after Key) {
	u := &d.unstored
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, revoked := u.keys[after.ID]; revoked { // meanwhile: of a key that is gone nothing is left to change
		return
	}
	e := edit{name: after.Name}
	if was := u.edits[after.ID]; was != nil {
		e = *was
	}
	if !slices.Equal(before.Allow, after.Allow) || before.Offered && !after.Offered {
		e.allow = &after.Allow
	}
	if before.MaxServices != after.MaxServices {
		e.services = &after.MaxServices
	}
	if before.MaxConnections != after.MaxConnections {
		e.connections = &after.MaxConnections
	}
	if !before.Expires.Equal(after.Expires) {
		e.expires = &after.Expires
	}
	if u.edits == nil {
		u.edits = make(map[[16]byte]*edit)
	}
	u.edits[after.ID] = &e
}

// applyTo has a key be as the edit says.
func (e *edit) applyTo(k *Key) {
	if e.allow != nil {
		k.Allow = slices.Clone(*e.allow)
	}
	if e.services != nil {
		k.MaxServices = *e.services
	}
	if e.connections != nil {
		k.MaxConnections = *e.connections
	}
	if e.expires != nil {
		k.Expires = *e.expires
	}
}

// UseSecret has the further secret of a key take the place of the one before. It is so for this process whatever becomes of the file: with
// an error the file has both still, and Store writes it later. Uses of one key come in their order.
func (d *Dir) UseSecret(id [16]byte, secret [32]byte) error {
	u := &d.unstored
	u.mu.Lock()
	if u.used == nil {
		u.used = make(map[[16]byte][32]byte)
	}
	u.used[id] = secret
	u.mu.Unlock()
	return d.Store()
}

// over has the keys that read returns be what they are, whatever the file says. It reads again when something was stored meanwhile: read may
// have seen the file of before, and what was stored is not known here any more.
func (u *unstored) over(read func() ([]Key, error)) ([]Key, error) {
	for {
		stores := u.stored()
		keys, err := read()
		if err != nil {
			return nil, err
		}
		if keys, ok := u.apply(keys, stores); ok {
			return keys, nil
		}
	}
}

func (u *unstored) stored() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stores
}

// apply is over for keys that were read when so many stores were done; false: there was another one since.
func (u *unstored) apply(keys []Key, stores int) ([]Key, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stores != stores {
		return nil, false
	}
	keys = slices.DeleteFunc(keys, func(k Key) bool { _, revoked := u.keys[k.ID]; return revoked })
	for i := range keys {
		k := &keys[i]
		if e := u.edits[k.ID]; e != nil {
			e.applyTo(k)
		}
		used, ok := u.used[k.ID]
		if !ok {
			continue
		}
		k.Secret = used
		if k.Next != nil && *k.Next == used { // else the key was rotated again before this was known
			k.Next = nil
		}
	}
	return keys, true
}

func (u *unstored) secrets() map[[16]byte][32]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.used)
}

// AllStored reports whether the file says all that counts.
func (d *Dir) AllStored() bool {
	u := &d.unstored
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.keys)+len(u.used)+len(u.edits) == 0
}

// MarkRevoked takes a key out for good. It is so for this process from now on, whatever becomes of the file: Keys leaves the key out, and
// Store writes that.
func (d *Dir) MarkRevoked(id [16]byte, name string) {
	u := &d.unstored
	u.mu.Lock()
	if u.keys == nil {
		u.keys = make(map[[16]byte]string)
	}
	u.keys[id] = name
	delete(u.edits, id) // it goes with the key
	u.mu.Unlock()
}

// Store writes the keys as they are, unless the file has them so.
func (d *Dir) Store() error {
	if d.AllStored() {
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

// UnstoredEdits returns the names of the keys that have fewer rights than the file says, and why.
func (d *Dir) UnstoredEdits() (names []string, err error) {
	u := &d.unstored
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, e := range u.edits {
		names = append(names, e.name)
	}
	slices.Sort(names)
	return names, u.err
}

func (u *unstored) changes() map[[16]byte]*edit {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.edits)
}

func (u *unstored) ids() [][16]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Keys(u.keys))
}

func (u *unstored) forget(ids [][16]byte, used map[[16]byte][32]byte, edits map[[16]byte]*edit) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(ids)+len(used)+len(edits) > 0 {
		u.stores++
	}
	for _, id := range ids {
		delete(u.keys, id)
	}
	for id, secret := range used {
		if u.used[id] == secret {
			delete(u.used, id)
		}
	}
	for id, e := range edits {
		if u.edits[id] == e {
			delete(u.edits, id)
		}
	}
	if len(u.keys)+len(u.edits) == 0 {
		u.err = nil
	}
}

// note remembers why something is not stored.
func (u *unstored) note(err error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.keys)+len(u.edits) > 0 {
		u.err = err
	}
	return err
}
