// Package share says which addresses count as one, and divides memory among strangers, so that none of them has all of it.
package share

import (
	"net/netip"
	"sync"
)

// Pool is memory that many strangers share. One address may have half of what the others leave.
type Pool struct {
	Size int64 // bytes; it is set before use

	mu    sync.Mutex
	taken int64                  // guarded by mu, as all below
	by    map[netip.Prefix]int64 // by whom
}

// Block is the range of addresses that counts as one: a host in IPv4, a customer's network in IPv6. It is the zero value for the zero address.
func Block(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}

// Take reports whether an address may have n bytes more, and takes them.
func (p *Pool) Take(from netip.Addr, n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	block := Block(from)
	own := p.by[block]
	if own+n > (p.Size-(p.taken-own))/2 {
		return false
	}
	if p.by == nil {
		p.by = make(map[netip.Prefix]int64)
	}
	p.by[block] = own + n
	p.taken += n
	return true
}

// Give gives back what Take took.
func (p *Pool) Give(from netip.Addr, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	block := Block(from)
	p.taken -= n
	if p.by[block] -= n; p.by[block] == 0 {
		delete(p.by, block)
	}
}

// Taken is how much of a pool is taken.
type Taken struct {
	Used, Size int64
	Largest    netip.Prefix // the block that has most
	ByLargest  int64
}

// Taken returns how much of the pool is taken, and by whom most.
func (p *Pool) Taken() Taken {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := Taken{Used: p.taken, Size: p.Size}
	for block, n := range p.by {
		if n > t.ByLargest {
			t.Largest, t.ByLargest = block, n
		}
	}
	return t
}
