package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/proxy"
	"reverser/internal/state"
)

// keyring is every key of a proxy: the ones of the state directory, which
// `reverser key` edits, and those of the configuration file. A live proxy
// offers it on its admin socket; `reverser key` uses it as it is when no
// proxy runs.
type keyring struct {
	dir    *state.Dir
	pin    [32]byte
	addr   string            // for new tokens, "" if unknown
	config []config.Key      // of the configuration file
	apply  func([]proxy.Key) // makes a live proxy honour a change; nil when none runs
	log    *slog.Logger

	mu sync.Mutex // one edit of the directory at a time
}

// active is what the proxy honours. A key may be in both places, as when
// secret_file holds a token of `reverser key add`; the file's --allow counts.
func (r *keyring) active() ([]proxy.Key, error) {
	stored, err := r.dir.Keys()
	if err != nil {
		return nil, err
	}
	keys := make([]proxy.Key, 0, len(stored)+len(r.config))
	for _, k := range r.config {
		if k.Token.Pin != r.pin {
			return nil, fmt.Errorf("key %q of the configuration: %s holds a token of another proxy (or this proxy's identity in %s is new): make a token with `reverser key add`", k.Name, k.SecretFile, r.dir.Path())
		}
		keys = append(keys, proxy.Key{Name: k.Name, ID: k.Token.KeyID, Secret: k.Token.Secret, Allow: k.Allow})
	}
	for _, k := range stored {
		i := slices.IndexFunc(r.config, func(c config.Key) bool { return c.Name == k.Name || c.Token.KeyID == k.ID })
		if i < 0 {
			keys = append(keys, proxy.Key{Name: k.Name, ID: k.ID, Secret: k.Secret, Allow: k.Allow})
			continue
		}
		if c := r.config[i]; c.Name != k.Name || c.Token.KeyID != k.ID {
			return nil, fmt.Errorf("key %q of the configuration and key %q of the state directory %s have the same name or secret, but not both: rename the former, or remove the latter with `reverser key remove %s`", c.Name, k.Name, r.dir.Path(), k.Name)
		}
	}
	return keys, nil
}

// List implements admin.Keys.
func (r *keyring) List() ([]admin.KeyInfo, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stored, err := r.dir.Keys()
	if err != nil {
		return nil, err
	}
	infos := make([]admin.KeyInfo, 0, len(stored)+len(r.config))
	for _, k := range r.config {
		infos = append(infos, admin.KeyInfo{Name: k.Name, ID: hex.EncodeToString(k.Token.KeyID[:]), Allow: rules(k.Allow), Source: admin.SourceConfig})
	}
	for _, k := range stored {
		if r.configured(k.Name) {
			continue
		}
		created := k.Created
		infos = append(infos, admin.KeyInfo{Name: k.Name, ID: hex.EncodeToString(k.ID[:]), Allow: rules(k.Allow), Created: &created, Source: admin.SourceState})
	}
	return infos, nil
}

// Add implements admin.Keys.
func (r *keyring) Add(name string, allow []string) (string, error) {
	policy, err := parsePolicy(allow)
	if err != nil {
		return "", &admin.UsageError{Err: err}
	}
	tok, err := r.add(name, policy)
	if err != nil {
		return "", err
	}
	return tok.Encode(), nil
}

func (r *keyring) add(name string, policy grammar.Policy) (grammar.Token, error) {
	tok, err := r.addKey(name, policy)
	if err == nil { // without the lock: whoever reads the log may be slow
		r.log.Info("key added", "key", name, "allow", policy.String())
	}
	return tok, err
}

func (r *keyring) addKey(name string, policy grammar.Policy) (grammar.Token, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := state.CheckKeyName(name); err != nil {
		return grammar.Token{}, &admin.UsageError{Err: err}
	}
	if r.configured(name) {
		return grammar.Token{}, &admin.UsageError{Err: fmt.Errorf("key %q %w in the proxy's configuration file: choose another name", name, state.ErrKeyExists)}
	}
	k, err := r.dir.AddKey(name, policy)
	if errors.Is(err, state.ErrKeyExists) {
		return grammar.Token{}, &admin.UsageError{Err: err}
	}
	if err != nil {
		return grammar.Token{}, err
	}
	if err := r.applied(); err != nil {
		return grammar.Token{}, err
	}
	tok := grammar.Token{KeyID: k.ID, Secret: k.Secret, Pin: r.pin}
	if r.addr != "" {
		tok.Addrs = []string{r.addr}
	}
	return tok, nil
}

// Remove implements admin.Keys.
func (r *keyring) Remove(name string) error {
	err := r.removeKey(name)
	if err == nil {
		r.log.Info("key removed", "key", name)
	}
	return err
}

func (r *keyring) removeKey(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.configured(name) {
		return &admin.UsageError{Err: fmt.Errorf("key %q comes from the proxy's configuration file: take it out there and restart the proxy", name)}
	}
	err := r.dir.RemoveKey(name)
	if errors.Is(err, state.ErrNoKey) {
		return &admin.UsageError{Err: err}
	}
	if err != nil {
		return err
	}
	return r.applied()
}

// applied hands a change to the live proxy.
func (r *keyring) applied() error {
	if r.apply == nil {
		return nil
	}
	keys, err := r.active()
	if err != nil {
		return err
	}
	r.apply(keys)
	return nil
}

func (r *keyring) configured(name string) bool {
	return slices.ContainsFunc(r.config, func(k config.Key) bool { return k.Name == name })
}

func rules(policy grammar.Policy) []string {
	list := make([]string, 0, len(policy))
	for _, a := range policy {
		list = append(list, a.String())
	}
	return list
}

func parsePolicy(list []string) (grammar.Policy, error) {
	if len(list) == 0 {
		return nil, errors.New("a key needs at least one --allow: nothing is allowed that is not listed")
	}
	var policy grammar.Policy
	for _, s := range list {
		a, err := grammar.ParseAllow(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(policy, a) {
			policy = append(policy, a)
		}
	}
	return policy, nil
}

// when is how a person reads a moment: in local time, to the second.
func when(t time.Time) string { return t.Local().Format(time.DateTime) }
