// Package route answers one question: where does this connection go? It holds who owns which public service, and which
// link serves it now.
//
// It opens nothing and starts no goroutine. A Destination belongs to a key; the link behind it comes and goes.
package route

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/wire"
)

// Hold is how long a new client waits for a bridge that is away, and MaxHeld how many of one service do.
const (
	Hold    = 10 * time.Second
	MaxHeld = 256
)

const lookEvery = time.Second

// Errors of Destination.Open.
var (
	ErrAway    = errors.New("the bridge is away")
	ErrRemoved = errors.New("the service was removed")
	ErrLeft    = errors.New("the client has left")
)

// TakenError says that another key holds the service.
type TakenError struct {
	Public grammar.Public
	By     string // name of the key
}

func (e *TakenError) Error() string { return fmt.Sprintf("%s is held by key %q", e.Public, e.By) }

// Table holds the destinations of a proxy.
type Table struct {
	mu   sync.Mutex
	dest map[grammar.Public]*Destination // guarded by mu
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{dest: make(map[grammar.Public]*Destination)} }

// Destination is where the connections to one public service go.
type Destination struct {
	Public  grammar.Public
	Key     [16]byte
	KeyName string

	mu      sync.Mutex
	link    *link.Link // guarded by mu, as all below
	id      uint32     // of the claim on link
	target  string
	held    int
	changed chan struct{} // closed and replaced at every change
	removed bool
}

// Claim gives the service to a key, or points it to another link of the same key. It reports whether it is new. Two claims of one
// link cannot have the same.
func (t *Table) Claim(pub grammar.Public, key [16]byte, keyName string, l *link.Link, id uint32, target string) (d *Destination, isNew bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d = t.dest[pub]
	switch {
	case d == nil:
		d = &Destination{Public: pub, Key: key, KeyName: keyName, changed: make(chan struct{})}
		t.dest[pub] = d
		isNew = true
	case d.Key != key:
		return nil, false, &TakenError{pub, d.KeyName}
	}
	if at, of, to := d.Link(); at == l && of != id {
		return nil, false, fmt.Errorf("%s leads to %s already, another service of the same bridge", pub, to)
	}
	d.mu.Lock()
	d.link, d.id, d.target = l, id, target
	d.mu.Unlock()
	d.Changed()
	return d, isNew, nil
}

// Remove takes a destination out; whoever waits for it is told. When it returns, no stream is opened to it any more.
func (t *Table) Remove(d *Destination) {
	t.mu.Lock()
	if t.dest[d.Public] == d {
		delete(t.dest, d.Public)
	}
	t.mu.Unlock()
	d.mu.Lock()
	d.removed = true
	d.mu.Unlock()
	d.Changed()
}

// Changed wakes those who wait: the state of the link behind the destination may be another.
func (d *Destination) Changed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.changed)
	d.changed = make(chan struct{})
}

// Link returns the link that served the destination last, and the claim's id and target on it.
func (d *Destination) Link() (l *link.Link, id uint32, target string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.link, d.id, d.target
}

// Open opens a stream for a new connection, whose addresses o says, and returns where it leads. While the bridge is away it waits
// up to Hold for its return, and asks now and then whether the client has left meanwhile.
func (d *Destination) Open(ctx context.Context, o wire.Open, left func() bool) (s *link.Stream, target string, err error) {
	return d.open(ctx, o, left, (*link.Link).Open)
}

func (d *Destination) open(ctx context.Context, o wire.Open, left func() bool, open func(*link.Link, wire.Open) (*link.Stream, error)) (*link.Stream, string, error) {
	for {
		l, id, target, err := d.wait(ctx, left)
		if err != nil {
			return nil, target, err
		}
		o.Service = id
		d.mu.Lock()
		if d.removed || d.link != l || d.id != id {
			d.mu.Unlock()
			continue
		}
		s, err := open(l, o)
		d.mu.Unlock()
		if errors.Is(err, link.ErrEnded) { // in this moment: the bridge is as away as it was a moment later
			continue
		}
		return s, target, err
	}
}

// wait returns the link that a new connection goes to.
func (d *Destination) wait(ctx context.Context, left func() bool) (l *link.Link, id uint32, target string, err error) {
	var late, look <-chan time.Time
	for {
		d.mu.Lock()
		l, id, target = d.link, d.id, d.target
		changed, removed := d.changed, d.removed
		if removed {
			d.mu.Unlock()
			return nil, 0, "", ErrRemoved
		}
		if l.Up() {
			d.mu.Unlock()
			return l, id, target, nil
		}
		if late == nil {
			if d.held >= MaxHeld {
				d.mu.Unlock()
				return nil, 0, target, fmt.Errorf("%w, and %d clients wait for it already", ErrAway, MaxHeld)
			}
			d.held++
			defer func() {
				d.mu.Lock()
				d.held--
				d.mu.Unlock()
			}()
			t, k := time.NewTimer(Hold), time.NewTicker(lookEvery)
			defer t.Stop()
			defer k.Stop()
			late, look = t.C, k.C
		}
		d.mu.Unlock()
		select {
		case <-changed:
		case <-look:
			if left() {
				return nil, 0, target, ErrLeft
			}
		case <-late:
			return nil, 0, target, ErrAway
		case <-ctx.Done():
			return nil, 0, target, ctx.Err()
		}
	}
}
