package state

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reverser/internal/grammar"
)

var (
	// ErrKeyExists is what errors.Is finds when a name is taken.
	ErrKeyExists = errors.New("exists already")
	// ErrNoKey is what errors.Is finds when a name is not there.
	ErrNoKey = errors.New("there is no such key")
)

// Key is what one bridge proves itself with, and what it may then have.
type Key struct {
	Name   string
	ID     [16]byte
	Secret [32]byte
	Next   *[32]byte // counts as well, and takes the place of Secret when it was used once; nil: there is none
	Allow  grammar.Policy
	Limits
	Created time.Time
	Expires time.Time // the zero time: never
	Offered bool      // Allow is the public port that the proxy's configuration file offers, whichever that is
}

// Limits are how much a key may have at once; 0: no limit. A program that does not know a limit refuses a file with it; it reads one
// in which no key has any.
type Limits struct {
	MaxServices    int `json:"max_services,omitempty"`
	MaxConnections int `json:"max_connections,omitempty"` // of users, to all its services
}

// Check refuses what is no limit.
func (l Limits) Check() error {
	switch {
	case l.MaxServices < 0:
		return fmt.Errorf("max_services %d: a key may have 1 service or more", l.MaxServices)
	case l.MaxConnections < 0:
		return fmt.Errorf("max_connections %d: a key may have 1 connection or more", l.MaxConnections)
	}
	return nil
}

// String is the limits as people read them: "3 services, 100 connections"; "" for none.
func (l Limits) String() string {
	var words []string
	if l.MaxServices > 0 {
		words = append(words, count(l.MaxServices, "service"))
	}
	if l.MaxConnections > 0 {
		words = append(words, count(l.MaxConnections, "connection"))
	}
	return strings.Join(words, ", ")
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// within reports whether each limit is as low as that of outer, or lower.
func (l Limits) within(outer Limits) bool {
	lower := func(n, most int) bool { return most == 0 || n > 0 && n <= most }
	return lower(l.MaxServices, outer.MaxServices) && lower(l.MaxConnections, outer.MaxConnections)
}

// Within reports whether the key, which is outer after an edit, has no right that it did not have.
func (k Key) Within(outer Key) bool {
	sooner := outer.Expires.IsZero() || !k.Expires.IsZero() && !k.Expires.After(outer.Expires)
	return sooner && k.Limits.within(outer.Limits) && k.Allow.Within(outer.Allow)
}

// SameRights reports whether the key, which is before after an edit, has the rights that it had.
func (k Key) SameRights(before Key) bool {
	return k.Limits == before.Limits && k.Expires.Equal(before.Expires) && k.Offered == before.Offered && slices.Equal(k.Allow, before.Allow)
}

// LogValue and String keep the secret out of logs.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.Name) }
func (k Key) String() string       { return k.Name }

// GoString is String, for %#v.
func (k Key) GoString() string { return k.Name }

// keyJSON is a Key as the file has it.
type keyJSON struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	Secret  string    `json:"secret"`
	Allow   []string  `json:"allow"`
	Created time.Time `json:"created"`
	Limits
	// A program that does not know it refuses the file, and would honour the key for ever otherwise.
	Expires time.Time `json:"expires,omitzero"`
	Next    string    `json:"next_secret,omitempty"`
}

type keysJSON struct {
	Keys []keyJSON `json:"keys"`
}

// HasKeysFile reports whether keys were ever stored, none included. Without it a
// proxy is at its first start; with it, a removed default key stays removed.
func (d *Dir) HasKeysFile() bool {
	_, err := d.root.Lstat(keysFile)
	return err == nil
}

// Keys are the stored keys in the order they were added, without those that were revoked.
func (d *Dir) Keys() ([]Key, error) {
	all, err := d.unstored.over(d.readKeys)
	if err != nil {
		return nil, err
	}
	f, _ := d.readFollower()
	f.markOffered(all)
	return all, nil
}

// readKeys returns the keys that the file has.
func (d *Dir) readKeys() ([]Key, error) {
	full := filepath.Join(d.path, keysFile)
	b, err := d.readSecret(keysFile)
	if errors.Is(err, fs.ErrNotExist) {
		if d.hasKeys.Load() { // or a reload would reset everybody
			return nil, d.keysGone()
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := parseKeys(b)
	if err != nil {
		return nil, damaged(full, err)
	}
	d.hasKeys.Store(true)
	return all, nil
}

// Succeeded returns the keys that the file has by now, for a process that has given its directory up: a successor may have removed some. What
// a successor of a newer version has added to them is left out.
func (d *Dir) Succeeded() ([]Key, error) {
	b, err := d.readSecret(keysFile)
	if err != nil {
		return nil, err
	}
	all, err := parseKeys(b)
	if err != nil && !errors.Is(err, errNewer) {
		return nil, damaged(filepath.Join(d.path, keysFile), err)
	}
	return all, nil
}

// parseKeys reads the content of the file. With errNewer it returns what this version knows of the keys.
func parseKeys(b []byte) ([]Key, error) {
	var file keysJSON
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	strict := dec.Decode(&file)
	if errors.Is(strict, io.EOF) {
		return nil, errors.New("it is empty")
	}
	if strict != nil {
		file = keysJSON{}
		if json.Unmarshal(b, &file) != nil {
			return nil, strict
		}
	}
	keys := make([]Key, 0, len(file.Keys))
	for i, kj := range file.Keys {
		k, err := kj.key()
		if err != nil {
			return nil, cmp.Or(strict, fmt.Errorf("key %d (%q): %w", i+1, kj.Name, err))
		}
		keys = append(keys, k)
	}
	if strict != nil { // nothing is wrong but that it has more
		return keys, fmt.Errorf("%w (%w)", errNewer, strict)
	}
	return keys, nil
}

// errNewer is what errors.Is finds when the file is of a version with more in it.
var errNewer = errors.New("a newer version of the program wrote it, and this one does not know all of it")

// damaged says what to do about a file that no proxy wrote, or not to its end.
// Nothing replaces it: it may be the only copy of what the bridges' tokens hold.
func damaged(full string, err error) error {
	if errors.Is(err, errNewer) {
		return &fault{fmt.Errorf("read %s: %w", full, err), "run that version, and have it remove what is new, or import an export from before with `reverser state import FILE --replace`"}
	}
	return &fault{fmt.Errorf("read %s: %w", full, err), "restore it from a copy, or remove it: then all its keys are gone, and bridges need new tokens"}
}

// SetKeys replaces the stored keys.
func (d *Dir) SetKeys(keys []Key) error {
	return d.edit(func() error { return d.setKeys(keys) })
}

func (d *Dir) setKeys(keys []Key) error {
	b, err := formatKeys(keys)
	if err != nil {
		return err
	}
	if err := d.setFollower(keys); err != nil {
		return err
	}
	if err := d.write(keysFile, b); err != nil {
		return err
	}
	d.hasKeys.Store(true)
	return nil
}

// formatKeys is what parseKeys reads.
func formatKeys(keys []Key) ([]byte, error) {
	file := keysJSON{Keys: make([]keyJSON, 0, len(keys))}
	for _, k := range keys {
		file.Keys = append(file.Keys, toJSON(k))
	}
	b, err := json.MarshalIndent(file, "", "  ")
	return append(b, '\n'), err
}

// NewKey makes a key that is not stored anywhere yet.
func NewKey(name string, allow grammar.Policy, limits Limits) (Key, error) {
	if err := CheckKeyName(name); err != nil {
		return Key{}, err
	}
	k := Key{Name: name, Allow: allow, Limits: limits, Created: time.Now().UTC().Truncate(time.Second)}
	rand.Read(k.ID[:])
	rand.Read(k.Secret[:])
	return k, nil
}

// AddKey makes a key with a fresh secret and stores it. A name that is taken
// is ErrKeyExists.
func (d *Dir) AddKey(name string, allow grammar.Policy, limits Limits) (Key, error) {
	k, err := NewKey(name, allow, limits)
	if err == nil {
		err = d.Add(k)
	}
	if err != nil {
		return Key{}, err
	}
	return k, nil
}

// Add stores a key of NewKey. A name that is taken is ErrKeyExists.
func (d *Dir) Add(k Key) error {
	return d.change(func(keys []Key) ([]Key, error) {
		if err := d.sameIdentity(); err != nil { // its token would be worth nothing after a restart
			return nil, err
		}
		if slices.ContainsFunc(keys, func(o Key) bool { return o.Name == k.Name }) {
			return nil, fmt.Errorf("key %q %w: choose another name, or remove it first with `reverser key remove %s`", k.Name, ErrKeyExists, k.Name)
		}
		return append(keys, k), nil
	})
}

// EditKey changes a key as f does, which must leave its name, id and secrets alone. An unknown name is ErrNoKey.
func (d *Dir) EditKey(name string, f func(*Key) error) error {
	return d.change(func(keys []Key) ([]Key, error) {
		i := slices.IndexFunc(keys, func(k Key) bool { return k.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("edit key %q: %w in %s (`reverser key list` shows them)", name, ErrNoKey, d.path)
		}
		return keys, f(&keys[i])
	})
}

// RotateKey gives a key a further secret, in the place of one that was not used so far, and returns the key.
func (d *Dir) RotateKey(name string) (Key, error) {
	var next [32]byte
	rand.Read(next[:])
	var rotated Key
	err := d.EditKey(name, func(k *Key) error {
		k.Next = &next
		rotated = *k
		return nil
	})
	return rotated, err
}

// RemoveKey deletes a key for good. An unknown name is ErrNoKey.
func (d *Dir) RemoveKey(name string) error {
	return d.change(func(keys []Key) ([]Key, error) {
		i := slices.IndexFunc(keys, func(k Key) bool { return k.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("remove key %q: %w in %s (`reverser key list` shows them)", name, ErrNoKey, d.path)
		}
		return slices.Delete(keys, i, i+1), nil
	})
}

// change replaces the stored keys by what f makes of them.
func (d *Dir) change(f func([]Key) ([]Key, error)) error {
	return d.edit(func() error { return d.changeLocked(f) })
}

// changeLocked is change for whoever holds the lock.
func (d *Dir) changeLocked(f func([]Key) ([]Key, error)) error {
	revoked, used, edits := d.unstored.ids(), d.unstored.secrets(), d.unstored.changes()
	keys, err := d.Keys()
	if err != nil {
		return err
	}
	if keys, err = f(keys); err != nil {
		return err
	}
	if err := d.setKeys(keys); err != nil {
		return err
	}
	d.unstored.forget(revoked, used, edits)
	return nil
}

// CheckKeyName refuses names that would be trouble in a URL, a log line or a
// table.
func CheckKeyName(name string) error {
	if name == "" {
		return errors.New("a key needs a name, such as nas")
	}
	if len(name) > 64 {
		return fmt.Errorf("key name of %d characters: 64 are allowed", len(name))
	}
	for i, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		case i > 0 && (r == '.' || r == '_' || r == '-' || r == '@'):
		default:
			return fmt.Errorf("key name %q: letters, digits and, after the first, . _ - @ are allowed", name)
		}
	}
	return nil
}

func toJSON(k Key) keyJSON {
	kj := keyJSON{
		Name:    k.Name,
		ID:      hex.EncodeToString(k.ID[:]),
		Secret:  hex.EncodeToString(k.Secret[:]),
		Allow:   make([]string, 0, len(k.Allow)),
		Created: k.Created,

		Limits:  k.Limits,
		Expires: k.Expires,
	}
	if k.Next != nil {
		kj.Next = hex.EncodeToString(k.Next[:])
	}
	for _, a := range k.Allow {
		kj.Allow = append(kj.Allow, a.String())
	}
	return kj
}

func (kj keyJSON) key() (Key, error) {
	if err := CheckKeyName(kj.Name); err != nil {
		return Key{}, err
	}
	if err := kj.Limits.Check(); err != nil {
		return Key{}, err
	}
	k := Key{Name: kj.Name, Created: kj.Created, Limits: kj.Limits, Expires: kj.Expires}
	// hex's own error would quote the secret's character: say only which.
	if n, err := hex.Decode(k.ID[:], fit(kj.ID, len(k.ID))); err != nil || n != len(k.ID) {
		return Key{}, errors.New("id is not 32 hexadecimal digits")
	}
	if n, err := hex.Decode(k.Secret[:], fit(kj.Secret, len(k.Secret))); err != nil || n != len(k.Secret) {
		return Key{}, errors.New("secret is not 64 hexadecimal digits")
	}
	if kj.Next != "" {
		k.Next = new([32]byte)
		if n, err := hex.Decode(k.Next[:], fit(kj.Next, len(k.Next))); err != nil || n != len(k.Next) {
			return Key{}, errors.New("next_secret is not 64 hexadecimal digits")
		}
	}
	for _, s := range kj.Allow {
		a, err := grammar.ParseAllow(s)
		if err != nil {
			return Key{}, fmt.Errorf("allow: %w", err)
		}
		k.Allow = append(k.Allow, a)
	}
	return k, nil
}

// fit returns the digits if they decode to n bytes, else nothing.
func fit(digits string, n int) []byte {
	if len(digits) != 2*n {
		return nil
	}
	return []byte(digits)
}
