package admin

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/state"
	"reverser/internal/sys"
)

// KeyInfo is a key as it may be shown: no secret in it.
type KeyInfo struct {
	Name    string     `json:"name"`
	ID      string     `json:"id"`
	Allow   []string   `json:"allow"`
	Created *time.Time `json:"created,omitempty"` // nil for a key of the configuration file
	Source  string     `json:"source"`            // "state" or "config"

	// InPlaceOf is, of a key of the configuration file, the name of the key of the state directory that has the same token: while the file has
	// that, the file's name and rights count.
	InPlaceOf string `json:"in_place_of,omitempty"`

	state.Limits
	Expires *time.Time `json:"expires,omitempty"` // nil: never
	Expired bool       `json:"expired,omitempty"` // its time is over: nobody is let in with it
	Rotated bool       `json:"rotated,omitempty"` // it has a new token that was not used so far
	Drained bool       `json:"drained,omitempty"` // by an order, its services let no new users in

	Unchanged bool `json:"unchanged,omitempty"` // in the answer to an edit: the key was so before
}

// NewKey is what is asked of a key that is to be made.
type NewKey struct {
	Name  string   `json:"name"`
	Allow []string `json:"allow"`
	state.Limits
	Expires string `json:"expires,omitempty"` // as grammar.ParseExpiry has it; "": never
}

// KeyEdit is what is to become of a key. What is nil stays as it is.
type KeyEdit struct {
	Allow          *[]string `json:"allow,omitempty"`
	MaxServices    *int      `json:"max_services,omitempty"`    // 0: no limit
	MaxConnections *int      `json:"max_connections,omitempty"` // 0: no limit
	Expires        *string   `json:"expires,omitempty"`         // as grammar.ParseExpiry has it
}

// change makes the edit, which was read from what people wrote.
func (e KeyEdit) change() (func(*state.Key), error) {
	if e == (KeyEdit{}) {
		return nil, errors.New("nothing is to be changed: say what")
	}
	var allow grammar.Policy
	if e.Allow != nil {
		var err error
		if allow, err = grammar.ParsePolicy(*e.Allow); err != nil {
			return nil, err
		}
	}
	limits := func(l *state.Limits) {
		if e.MaxServices != nil {
			l.MaxServices = *e.MaxServices
		}
		if e.MaxConnections != nil {
			l.MaxConnections = *e.MaxConnections
		}
	}
	var asked state.Limits
	limits(&asked)
	if err := asked.Check(); err != nil {
		return nil, err
	}
	var expires time.Time
	if e.Expires != nil {
		var err error
		if expires, err = grammar.ParseExpiry(*e.Expires, time.Now()); err != nil {
			return nil, fmt.Errorf("expires: %w", err)
		}
	}
	return func(k *state.Key) {
		if e.Allow != nil {
			k.Allow, k.Offered = allow, false // from now on it is what somebody wants, whatever the file offers
		}
		if e.Expires != nil {
			k.Expires = expires
		}
		limits(&k.Limits)
	}, nil
}

// Sources of a key.
const (
	SourceState  = "state"  // keys.json of the state directory
	SourceConfig = "config" // the configuration file, which alone can remove it
)

// Keys is what the server needs of the proxy's keys. Errors that are the
// caller's doing are a [*UsageError].
type Keys interface {
	List() ([]KeyInfo, error)
	Add(NewKey) (token string, err error)
	Edit(name string, e KeyEdit) (KeyInfo, error)
	Rotate(name string) (token string, err error)
	Remove(name string) error
}

// KeyEditor edits the keys of a state directory, beside those of a configuration file, which it leaves alone. A live proxy
// offers it on its admin socket; `reverser key` uses it as it is when no proxy runs. It implements [Keys].
type KeyEditor struct {
	Dir     *state.Dir
	Pin     [32]byte                     // of the proxy's identity, for new tokens
	InForce func() ([]config.Key, error) // the keys that the proxy honours
	Reach   func() grammar.Reach         // for new tokens
	Drained func() map[[16]byte]bool     // the keys that are drained; nil when no proxy runs
	Edited  func() error                 // makes a live proxy honour what the directory holds now; nil when none runs
	Revoked func(id [16]byte) error      // makes a live proxy honour a key no longer, whatever the directory holds; nil when none runs
	Log     *slog.Logger                 // nil discards

	mu sync.Mutex // one edit of the directory at a time

	// Of these keys the log said that an order is not stored, and not yet that it is.
	removalsTold, changesTold told
}

// told are keys of which something was said.
type told struct {
	mu   sync.Mutex
	keys map[string]bool // by name; guarded by mu
}

func (t *told) add(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys == nil {
		t.keys = make(map[string]bool)
	}
	t.keys[key] = true
}

func (t *told) forget(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.keys, key)
}

// without forgets the keys that are not among those left, and returns them.
func (t *told) without(left []string) (gone []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.keys {
		if !slices.Contains(left, key) {
			delete(t.keys, key)
			gone = append(gone, key)
		}
	}
	slices.Sort(gone)
	return gone
}

// storeEvery is how often what could not be stored is tried again.
const storeEvery = 2 * time.Second

// List implements [Keys].
func (e *KeyEditor) List() ([]KeyInfo, error) {
	keys, err := e.InForce()
	if err != nil {
		return nil, err
	}
	infos := make([]KeyInfo, 0, len(keys))
	for _, k := range keys {
		infos = append(infos, infoOf(k))
	}
	if e.Drained != nil {
		drained := e.Drained()
		for i, k := range keys {
			infos[i].Drained = drained[k.ID]
		}
	}
	return infos, nil
}

// infoOf is what may be shown of a key.
func infoOf(k config.Key) KeyInfo {
	info := KeyInfo{Name: k.Name, ID: hex.EncodeToString(k.ID[:]), Allow: make([]string, 0, len(k.Allow)), Source: SourceConfig, InPlaceOf: k.Stored, Limits: k.Limits, Rotated: k.Next != nil}
	for _, a := range k.Allow {
		info.Allow = append(info.Allow, a.String())
	}
	if !k.InFile() {
		info.Source, info.Created = SourceState, &k.Created
	}
	if !k.Expires.IsZero() {
		info.Expires, info.Expired = &k.Expires, !time.Now().Before(k.Expires)
	}
	return info
}

// find returns a key that is honoured. done is what the order does with it: "edited".
func (e *KeyEditor) find(name, done string) (config.Key, error) {
	keys, err := e.InForce()
	if err != nil {
		return config.Key{}, err
	}
	if i := slices.IndexFunc(keys, func(k config.Key) bool { return k.Name == name }); i >= 0 {
		return keys[i], nil
	}
	if err := inPlaceOf(keys, name, done); err != nil {
		return config.Key{}, err
	}
	return config.Key{}, &UsageError{Err: fmt.Errorf("key %q: %w (`reverser key list` shows them)", name, state.ErrNoKey), Code: http.StatusNotFound}
}

// inPlaceOf refuses an order for a key of the state directory that has the token of a key of the file: it would change nothing, or let the
// token count while somebody believes that it was revoked. done is what the order does: "edited".
func inPlaceOf(keys []config.Key, name, done string) error {
	for _, k := range keys {
		if k.Stored == name {
			return &UsageError{Err: fmt.Errorf("key %q cannot be %s by command: its token is that of the key %q in %s, which counts in its place: take that out there, reload with `reverser reload`, and give the order again",
				name, done, k.Name, k.Table)}
		}
	}
	return nil
}

// Edit implements [Keys].
func (e *KeyEditor) Edit(name string, edit KeyEdit) (KeyInfo, error) {
	change, err := edit.change()
	if err != nil {
		return KeyInfo{}, &UsageError{Err: err, Code: http.StatusBadRequest}
	}
	k, err := e.find(name, "edited")
	if err != nil {
		return KeyInfo{}, err
	}
	if k.InFile() {
		return KeyInfo{}, &UsageError{Err: fmt.Errorf("key %q cannot be edited by command: it stands in %s: change it there and reload, with `reverser reload`", name, k.Table)}
	}
	marked, err := e.edit(name, change)
	unchanged := errors.Is(err, errUnchanged)
	if unchanged {
		err = nil
	}
	if errors.Is(err, state.ErrNoKey) {
		return KeyInfo{}, &UsageError{Err: err}
	}
	if err != nil && !marked {
		return KeyInfo{}, unwritten(err)
	}
	unstored := err
	if err := e.edited(); err != nil {
		return KeyInfo{}, err
	}
	if k, err = e.find(name, "edited"); err != nil { // it was removed meanwhile
		return KeyInfo{}, err
	}
	if !unchanged {
		e.log().Info("key edited", "key", name, "allow", k.Allow.String(), "limits", k.Limits.String(), "expires", expiryName(k.Expires))
	}
	if unstored != nil {
		e.log().Error("the change of a key is not stored, and tried again: a restart would give back what was taken away", "key", name, "err", unstored)
		e.changesTold.add(name)
		return KeyInfo{}, fmt.Errorf("the change of key %q is in force, but not stored: %w: make room; the proxy goes on trying, and until `reverser status` says no more of it a restart gives the key back what was taken away", name, unstored)
	}
	info := infoOf(k)
	info.Unchanged = unchanged
	info.Drained = e.Drained != nil && e.Drained()[k.ID]
	return info, nil
}

// errUnchanged says that a key is as an edit would have it.
var errUnchanged = errors.New("nothing has changed")

// edit changes a key and stores that, unless it would change nothing: that is errUnchanged, and needs no room on the disk. At a live proxy,
// a change that only takes something away counts though it cannot be stored: marked is true then, and Keep stores it later. A full disk must
// not keep a stolen token's rights alive.
func (e *KeyEditor) edit(name string, change func(*state.Key)) (marked bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var before, after state.Key
	err = e.Dir.EditKey(name, func(k *state.Key) error {
		before = *k
		change(k)
		after = *k
		if after.SameRights(before) {
			return errUnchanged
		}
		return nil
	})
	if changed, _ := e.Dir.UnstoredEdits(); errors.Is(err, errUnchanged) && slices.Contains(changed, name) { // it is asked for again
		if failed := e.Dir.Store(); failed != nil {
			return true, failed
		}
	}
	if errors.Is(err, errUnchanged) {
		return false, err
	}
	if err == nil || e.Revoked == nil || after.Name == "" || !after.Within(before) {
		return false, err
	}
	e.Dir.MarkEdited(before, after)
	return true, e.Dir.Store()
}

// Add implements [Keys].
func (e *KeyEditor) Add(k NewKey) (string, error) {
	policy, err := grammar.ParsePolicy(k.Allow)
	if err != nil {
		return "", &UsageError{Err: err, Code: http.StatusBadRequest}
	}
	if err := k.Limits.Check(); err != nil {
		return "", &UsageError{Err: err, Code: http.StatusBadRequest}
	}
	made, err := state.NewKey(k.Name, policy, k.Limits)
	if err != nil {
		return "", &UsageError{Err: err, Code: http.StatusBadRequest}
	}
	if k.Expires != "" {
		if made.Expires, err = grammar.ParseExpiry(k.Expires, time.Now()); err != nil {
			return "", &UsageError{Err: fmt.Errorf("expires: %w", err), Code: http.StatusBadRequest}
		}
	}
	tok, err := e.add(made)
	if err != nil {
		return "", err
	}
	return tok.Encode(), nil
}

// Make makes a key, stores it, and returns its token.
func (e *KeyEditor) Make(name string, policy grammar.Policy, limits state.Limits) (grammar.Token, error) {
	k, err := state.NewKey(name, policy, limits)
	if err != nil {
		return grammar.Token{}, &UsageError{Err: err, Code: http.StatusBadRequest}
	}
	return e.add(k)
}

// MakeOffered makes a key that is allowed what the proxy's file offers, now and when it offers something else.
func (e *KeyEditor) MakeOffered(name string, offer grammar.Policy) (grammar.Token, error) {
	k, err := state.NewKey(name, offer, state.Limits{})
	if err != nil {
		return grammar.Token{}, &UsageError{Err: err, Code: http.StatusBadRequest}
	}
	k.Offered = true
	return e.add(k)
}

// add stores a key and returns its token.
func (e *KeyEditor) add(k state.Key) (grammar.Token, error) {
	keys, err := e.InForce()
	if err != nil {
		return grammar.Token{}, err
	}
	if inFile(keys, k.Name) {
		return grammar.Token{}, &UsageError{Err: fmt.Errorf("key %q %w in the proxy's configuration file: choose another name", k.Name, state.ErrKeyExists)}
	}
	e.mu.Lock()
	err = e.Dir.Add(k)
	e.mu.Unlock()
	if errors.Is(err, state.ErrKeyExists) {
		return grammar.Token{}, &UsageError{Err: err}
	}
	if err != nil {
		return grammar.Token{}, unwritten(err)
	}
	if err := e.edited(); err != nil {
		return grammar.Token{}, err
	}
	e.log().Info("key added", "key", k.Name, "allow", k.Allow.String(), "expires", expiryName(k.Expires))
	at := e.Reach()
	return grammar.Token{Addrs: at.Addrs, SNI: at.SNI, KeyID: k.ID, Secret: k.Secret, Pin: e.Pin}, nil
}

// expiryName is when a key expires, for the log.
func expiryName(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return at.UTC().Format(time.RFC3339)
}

// Rotate implements [Keys].
func (e *KeyEditor) Rotate(name string) (string, error) {
	k, err := e.find(name, "rotated")
	if err != nil {
		return "", err
	}
	if k.InFile() {
		return "", &UsageError{Err: fmt.Errorf("key %q cannot be rotated by command: its token is that of the secret_file in %s: put another token there and reload, with `reverser reload`", name, k.Table)}
	}
	e.mu.Lock()
	rotated, err := e.Dir.RotateKey(name)
	e.mu.Unlock()
	if errors.Is(err, state.ErrNoKey) {
		return "", &UsageError{Err: err}
	}
	if err != nil {
		return "", unwritten(err)
	}
	if err := e.edited(); err != nil {
		return "", err
	}
	e.log().Info("key rotated: both tokens count until the new one was used", "key", name)
	at := e.Reach()
	return grammar.Token{Addrs: at.Addrs, SNI: at.SNI, KeyID: rotated.ID, Secret: *rotated.Next, Pin: e.Pin}.Encode(), nil
}

// Used stores that the new secret of a key has taken the place of the one before, which counts already.
func (e *KeyEditor) Used(id [16]byte, secret [32]byte) {
	e.mu.Lock()
	err := e.Dir.UseSecret(id, secret)
	e.mu.Unlock()
	if err != nil {
		e.log().Error("the use of a new token is not stored, and tried again: after a restart, the one before counts until the new one is used again", "err", err)
	}
	if err := e.edited(); err != nil {
		e.log().Error("the stored keys cannot be read again", "err", err)
	}
}

// Remove implements [Keys].
func (e *KeyEditor) Remove(name string) error {
	keys, err := e.InForce()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(keys, func(k config.Key) bool { return k.Name == name })
	switch {
	case i < 0:
		if err := inPlaceOf(keys, name, "removed"); err != nil {
			return err
		}
	case keys[i].InFile():
		then := ""
		if stored := keys[i].Stored; stored != "" {
			then = fmt.Sprintf("; its token is in the state directory, too, and would count from then on: end that with `reverser key remove %s`", stored)
		}
		return &UsageError{Err: fmt.Errorf("key %q comes from the proxy's configuration file: take it out there (%s) and reload, with `reverser reload`%s", name, keys[i].Table, then)}
	}
	if e.Revoked != nil && i >= 0 {
		return e.revoke(keys[i])
	}
	if names, _ := e.Dir.Unstored(); slices.Contains(names, name) { // asked again
		return e.stored(name, e.storeRevoked())
	}
	err = e.drop(name)
	if errors.Is(err, state.ErrNoKey) {
		return &UsageError{Err: err, Code: http.StatusNotFound}
	}
	if err != nil {
		return unwritten(err)
	}
	if err := e.edited(); err != nil {
		return err
	}
	e.log().Info("key removed", "key", name)
	return nil
}

// revoke has a live proxy honour a key no longer, and then stores it: a full disk must not keep a stolen token alive. The directory leaves
// the key out before that, or whoever reads it meanwhile, for another order or a reload, would have the key honoured again.
func (e *KeyEditor) revoke(k config.Key) error {
	e.Dir.MarkRevoked(k.ID, k.Name)
	e.changesTold.forget(k.Name) // the change goes with the key
	failed := e.Revoked(k.ID)
	if failed == nil {
		e.log().Info("key removed", "key", k.Name)
	}
	err := e.storeRevoked()
	if err != nil {
		e.log().Error("the removal of a key is not stored, and tried again: a restart would bring the key back", "key", k.Name, "err", err)
		e.removalsTold.add(k.Name)
	}
	if failed != nil {
		return failed
	}
	return e.stored(k.Name, err)
}

// stored is the answer to whoever removed a key.
func (e *KeyEditor) stored(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("key %q is removed and no longer honoured, but this is not stored: %w: make room; the proxy goes on trying, and until `reverser status` says no more of it a restart brings the key back", name, err)
}

// Keep stores what could not be stored when there was no room, until ctx ends, and once more then.
func (e *KeyEditor) Keep(ctx context.Context) {
	again := time.NewTicker(storeEvery)
	defer again.Stop()
	for more := true; more; {
		select {
		case <-again.C:
		case <-ctx.Done():
			more = false
		}
		var err error
		if !e.Dir.AllStored() {
			err = e.storeRevoked()
		}
		removed, _ := e.Dir.Unstored()
		changed, _ := e.Dir.UnstoredEdits()
		if now := e.removalsTold.without(removed); len(now) > 0 {
			e.log().Info("the removal of keys is stored now", "keys", strings.Join(now, ", "))
		}
		if now := e.changesTold.without(changed); len(now) > 0 {
			e.log().Info("the change of keys is stored now", "keys", strings.Join(now, ", "))
		}
		if len(removed) > 0 && err != nil && !more {
			e.log().Error("the removal of keys is not stored: the next start honours them; remove them again", "keys", strings.Join(removed, ", "), "err", err)
		}
		if len(changed) > 0 && err != nil && !more {
			e.log().Error("the change of keys is not stored: the next start gives them back what was taken away; edit them again", "keys", strings.Join(changed, ", "), "err", err)
		}
	}
}

func (e *KeyEditor) drop(name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Dir.RemoveKey(name)
}

// storeRevoked stores what was revoked and is not stored yet.
func (e *KeyEditor) storeRevoked() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Dir.Store()
}

// unwritten adds the remedy to the error of a write for which there was no room.
func unwritten(err error) error {
	if sys.DiskFull(err) {
		return fmt.Errorf("%w: make room", err)
	}
	return err
}

// inFile reports whether a key of that name comes from the configuration file.
func inFile(keys []config.Key, name string) bool {
	return slices.ContainsFunc(keys, func(k config.Key) bool { return k.Name == name && k.InFile() })
}

func (e *KeyEditor) edited() error {
	if e.Edited == nil {
		return nil
	}
	return e.Edited()
}

func (e *KeyEditor) log() *slog.Logger {
	if e.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return e.Log
}
