package proxy

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/traffic"
)

// DrainOrder says for which services nobody new is to be let in any more: those that Allow means, or all of a key.
type DrainOrder struct {
	Service grammar.Allow
	Key     string // its name; with it, Service is empty
	Undo    bool   // let them in again
}

// Drained are the services that an order was about.
type Drained struct {
	Services    []string
	Connections int // that go on
}

// DrainError says why there is nothing to drain, or to undo.
type DrainError struct {
	Text  string
	There bool // it is there, but not in a state to be drained, or undone
}

func (e *DrainError) Error() string { return e.Text }

// DrainUsers lets nobody new in to some services, or lets them in again. When it returns, that is so, and users who waited were reset.
// Connections go on. A reload does not undo it; the next process does not know of it.
func (p *Proxy) DrainUsers(ctx context.Context, o DrainOrder) (Drained, error) {
	p.applying.Lock()
	defer p.applying.Unlock()
	d, err := p.noteDrain(o)
	if err != nil {
		return Drained{}, err
	}
	p.registry.Configure(p.policy(p.settings()))
	if err := p.Settled(ctx); err != nil {
		return Drained{}, err
	}
	return p.drained(d), nil
}

// noteDrain adds an order to those that there are, or takes it out.
func (p *Proxy) noteDrain(o DrainOrder) (registry.Drain, error) {
	d := registry.Drain{Allow: o.Service}
	if o.Key != "" {
		id, ok := p.keyID(o.Key)
		if !ok {
			return d, &DrainError{Text: fmt.Sprintf("there is no key %q: `reverser key list` shows them", o.Key)}
		}
		d.Key = id
	}
	found := p.drained(d).Services
	p.mu.Lock()
	defer p.mu.Unlock()
	at := slices.Index(p.drains, d)
	switch {
	case o.Undo && at >= 0:
		p.drains = slices.Delete(slices.Clone(p.drains), at, at+1)
	case o.Undo:
		return d, p.notDrained(o)
	case at >= 0: // asked again
	case o.Key == "" && len(found) == 0:
		return d, &DrainError{Text: fmt.Sprintf("there is no service %s: `reverser status` shows those that there are", o.Service)}
	case len(p.drains) >= mostDrains:
		return d, &DrainError{Text: fmt.Sprintf("%d orders to drain are in force, which is as many as may be: undo one, or use a range or a wildcard", mostDrains), There: true}
	default:
		p.drains = append(slices.Clip(p.drains), d)
	}
	return d, nil
}

// mostDrains bounds the orders to drain that are in force: each name is compared with each of them.
const mostDrains = 100

// notDrained says why there is nothing to undo. mu is held.
func (p *Proxy) notDrained(o DrainOrder) error {
	e := &DrainError{Text: fmt.Sprintf("key %q was not drained", o.Key), There: true}
	if o.Key == "" {
		e.Text = fmt.Sprintf("%s was not drained", o.Service)
	}
	for i, d := range p.drains {
		what := d.Allow.String()
		if d.Allow == (grammar.Allow{}) {
			what = "key " + p.keys[d.Key].Name
		}
		if e.Text += ", "; i == 0 {
			e.Text += "but "
		}
		e.Text += what
	}
	return e
}

// drained are the services that an order is about.
func (p *Proxy) drained(d registry.Drain) (found Drained) {
	found.Services = []string{}
	counted := make(map[*traffic.Account]bool)
	for _, s := range p.registry.Services() {
		public, err := grammar.ParsePublic(s.Public)
		if err != nil || !d.Means(public, s.Key) {
			continue
		}
		found.Services = append(found.Services, s.Public)
		if account := p.conns.Find(s.Key, s.Public); account != nil && !counted[account] {
			counted[account] = true
			found.Connections += account.Usage().Pairs
		}
	}
	slices.Sort(found.Services)
	found.Services = slices.Compact(found.Services) // several keys may ask for one
	return found
}

// DrainedKeys are the keys about which there is an order to drain, whether they have services at present or not.
func (p *Proxy) DrainedKeys() map[[16]byte]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	keys := make(map[[16]byte]bool)
	for _, d := range p.drains {
		if d.Allow == (grammar.Allow{}) {
			keys[d.Key] = true
		}
	}
	return keys
}

// keyID finds a key by what people call it: its name, or the beginning of its id as status shows it.
func (p *Proxy) keyID(name string) (id [16]byte, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, k := range p.keys {
		if k.Name == name || hex.EncodeToString(id[:4]) == name {
			return id, true
		}
	}
	return id, false
}
