package config

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

// Key is a key that is in force.
type Key struct {
	Name   string
	ID     [16]byte
	Secret [32]byte
	Next   *[32]byte // see state.Key
	Allow  grammar.Policy
	state.Limits
	Created time.Time // zero for a key of the file
	Expires time.Time // zero: never
	Table   Place     // of the file that has it; zero for a key of the state directory
	Stored  string    // of a key of the file: the name of the key of the state directory that has the same token; "": none has
}

// InFile reports whether the key comes from the configuration file.
func (k Key) InFile() bool { return k.Table.File != "" }

// String keeps the secret out of what is printed, as GoString does.
func (k Key) String() string   { return k.Name }
func (k Key) GoString() string { return k.Name }

// WithKeys returns the settings with the keys that are in force when the state directory holds these.
func (set Settings) WithKeys(stored []state.Key, pin [32]byte) (Settings, error) {
	keys, err := InForce(set.Proxy.Tables, set.Proxy.follow(stored), pin)
	if err != nil {
		return Settings{}, err
	}
	set.Proxy.Keys = keys
	return set, nil
}

// DefaultKey is the name of the key that a proxy makes at its first start.
const DefaultKey = "default"

// OfferPolicy allows what the file offers; nil: it offers nothing.
func (p Proxy) OfferPolicy() (policy grammar.Policy) {
	for _, public := range p.Offer {
		policy = append(policy, grammar.Allow{Kind: public.Kind, Host: public.Host, Low: public.Port, High: public.Port})
	}
	return policy
}

// follow has the stored key that is allowed what the file offers be allowed what it offers now.
func (p Proxy) follow(stored []state.Key) []state.Key {
	offer := p.OfferPolicy()
	if offer == nil {
		return stored
	}
	stored = slices.Clone(stored)
	for i := range stored {
		if stored[i].Offered {
			stored[i].Allow = offer
		}
	}
	return stored
}

// Unclaimable says of each public port that the file offers, and that no key may have, what to do. Of a proxy without any key it says nothing.
func (p Proxy) Unclaimable() (words []string) {
	if len(p.Keys) == 0 {
		return nil
	}
	for _, public := range p.Offer {
		if slices.ContainsFunc(p.Keys, func(k Key) bool { return k.Allow.Permits(public) }) {
			continue
		}
		name, besides := "NAME", ""
		for _, k := range p.Keys {
			if !k.InFile() && (len(p.Keys) == 1 || k.Name == DefaultKey) {
				name = k.Name
				if len(k.Allow) != 1 || k.Allow[0].Kind != grammar.KindTCP || k.Allow[0].Low != k.Allow[0].High {
					besides = fmt.Sprintf(" gives it that in the place of %s", k.Allow)
				}
			}
		}
		words = append(words, fmt.Sprintf("no key may have %s, which the configuration file offers: `reverser key edit %s --allow %s`%s", public, name, public, besides))
	}
	return words
}

// InForce decides which keys a proxy honours: those of its file's tables, and those of its state directory. A table whose token
// is that of a stored key stands in the place of that key, with its own name and rights. A name stands for one key. Tables have
// names and tokens of their own already; pin is that of the proxy's identity.
func InForce(tables []KeyTable, stored []state.Key, pin [32]byte) ([]Key, error) {
	keys := make([]Key, 0, len(tables)+len(stored))
	byID := make(map[[16]byte]int, len(tables))
	byName := make(map[string]KeyTable, len(tables))
	var errs []error
	for i, t := range tables {
		if t.Token.Pin != pin {
			errs = append(errs, t.fault("secret_file", fmt.Sprintf("%s holds a token of another proxy, or this proxy's identity is new", t.SecretFile), "make a token with `reverser key add` here"))
		}
		byID[t.Token.KeyID], byName[t.Name] = i, t
		keys = append(keys, Key{Name: t.Name, ID: t.Token.KeyID, Secret: t.Token.Secret, Allow: t.Allow, Limits: t.Limits, Expires: t.Expires, Table: Place{t.File, t.Line, "key"}})
	}
	for _, k := range stored {
		if i, ok := byID[k.ID]; ok {
			t := tables[i]
			keys[i].Stored = k.Name
			if t.Token.Secret != k.Secret && (k.Next == nil || t.Token.Secret != *k.Next) {
				errs = append(errs, t.fault("secret_file", fmt.Sprintf("%s holds another secret than the key %q of the state directory has", t.SecretFile, k.Name), "take the token that was made last for that key, or make a new key with `reverser key add`"))
			}
			continue
		}
		if t, ok := byName[k.Name]; ok {
			errs = append(errs, t.fault("name", fmt.Sprintf("the state directory has a key %q too, with another token", k.Name), fmt.Sprintf("give this one another name, or remove the other with `reverser key remove %s`", k.Name)))
			continue
		}
		keys = append(keys, Key{Name: k.Name, ID: k.ID, Secret: k.Secret, Next: k.Next, Allow: k.Allow, Limits: k.Limits, Created: k.Created, Expires: k.Expires})
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return slices.Clip(keys), nil
}

func (t KeyTable) fault(key, text, hint string) error {
	line := t.Line
	if key == "name" && t.nameLine != 0 {
		line = t.nameLine
	}
	if key == "secret_file" && t.secretLine != 0 {
		line = t.secretLine
	}
	return &Error{File: t.File, Line: line, Key: key, Text: text, Hint: hint}
}
