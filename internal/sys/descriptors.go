package sys

import (
	"context"
	"fmt"
	"os"
	"sync"
)

// Descriptors left alone when everything that is counted has taken what it may. Nothing else takes the operator's: the admin
// socket's connections and the files that are read and written for an order.
const (
	forOperator  = 16
	forItself    = 16  // what a process has open anyway, at the least: standard files, pollers, listeners, the lock
	spareFiles   = 8   // what it opens now and then, as for a name that it looks up
	keptForLinks = 224 // what users and their sockets leave to links, unless half of all is less
	lentToHellos = 32  // of these, what those may have who have not said yet whether they are a link's, unless a quarter is less
)

// fewest is what a process can work with: the sockets and files that one has for itself, a link, and a few user connections.
const fewest = 64

// CheckDescriptors returns an error if the descriptor limit is too low to serve anybody. The process would start, but once its
// users have taken the descriptors it could not even be asked for its status.
func CheckDescriptors() error { return CheckDescriptorLimit(descriptorLimit()) }

// CheckDescriptorLimit is CheckDescriptors for the limit of any process.
func CheckDescriptorLimit(limit int) error {
	if limit < fewest {
		return fmt.Errorf("this process may have %d files and connections open, and it needs %d at least", limit, fewest)
	}
	return nil
}

// DescriptorLimit returns how many descriptors this process may hold.
func DescriptorLimit() int { return descriptorLimit() }

// Use is what a descriptor is taken for.
type Use int

// The uses that are counted.
const (
	ForUsers     Use = iota // connections of users and to targets
	ForListeners            // public sockets
	ForLinks                // connections between proxy and bridge, authenticated or not
	ForHellos               // connections that have not said yet whether they are a user's or a link's
	uses
)

// Pool shares the descriptors of a process among those who ask for one before they open it. The operator's are not in it, and users
// and listeners leave some to links. A few of these are for those who may be a link's.
type Pool struct {
	all, public int // what may be taken in all, and for users, listeners and hellos together
	lent        int // how many more hellos may have

	mu      sync.Mutex
	taken   [uses]int // guarded by mu, as all below
	waiting []func()
}

// Descriptors returns the pool of this process. The limit is read at the first call.
var Descriptors = sync.OnceValue(func() *Pool { return NewPool(descriptorLimit(), openFiles()) })

// NewPool returns a pool for a limit of which some descriptors are open.
func NewPool(limit, open int) *Pool {
	all := max(limit-forOperator-max(forItself, open+spareFiles), fewest/4)
	kept := min(keptForLinks, all/2)
	return &Pool{all: all, public: all - kept, lent: min(lentToHellos, kept/4)}
}

// Size returns how many descriptors there are for a use if no other takes any.
func (p *Pool) Size(u Use) int {
	switch u {
	case ForLinks:
		return p.all
	case ForHellos:
		return p.public + p.lent
	}
	return p.public
}

// Free returns how many descriptors may be taken for a use at present.
func (p *Pool) Free(u Use) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.freeLocked(u)
}

func (p *Pool) freeLocked(u Use) int {
	public := p.taken[ForUsers] + p.taken[ForListeners] + p.taken[ForHellos]
	free := p.all - public - p.taken[ForLinks]
	switch u {
	case ForLinks:
	case ForHellos: // users who stay must not keep bridges out
		free = min(free, p.public+p.lent-public)
	default:
		free = min(free, p.public-public)
	}
	return max(free, 0)
}

// Taken returns how many descriptors are taken for a use.
func (p *Pool) Taken(u Use) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken[u]
}

// Take takes a descriptor before it is opened; false: there is none. Give gives it back.
func (p *Pool) Take(u Use) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.freeLocked(u) == 0 {
		return false
	}
	p.taken[u]++
	return true
}

// Acquire takes a descriptor as soon as there is one. false: ctx ended first.
func (p *Pool) Acquire(ctx context.Context, u Use) bool {
	for !p.Take(u) {
		given := make(chan struct{})
		p.Await(func() { close(given) })
		if p.Take(u) { // or it was given back in between
			return true
		}
		select {
		case <-given:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// Force takes n descriptors that are open already.
func (p *Pool) Force(u Use, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken[u] += n
}

// Give gives back what Take took, once it is closed. Those who wait are called before it returns.
func (p *Pool) Give(u Use) { p.Return(u, 1) }

// Return gives back n descriptors.
func (p *Pool) Return(u Use, n int) {
	p.mu.Lock()
	p.taken[u] -= n
	if p.taken[u] < 0 {
		panic("sys: more descriptors given back than were taken")
	}
	waiting := p.waiting
	p.waiting = nil
	p.mu.Unlock()
	for _, f := range waiting {
		f()
	}
}

// Await sets f to be called, once, when a descriptor is given back.
func (p *Pool) Await(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = append(p.waiting, f)
}

// openFiles counts the descriptors that are open; 0 where it cannot be known.
func openFiles() int {
	d, err := os.Open("/dev/fd")
	if err != nil {
		return 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(4096)
	return len(names)
}
