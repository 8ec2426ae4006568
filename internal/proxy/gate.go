package proxy

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/traffic"
)

// Limits on connections that have not authenticated yet. An address from which a bridge came lately is exempt from the
// limit per address: a bridge opens several connections at once, and two may share a NAT.
const (
	maxStrangers       = 128
	maxPerAddress      = 8
	rememberAddress    = 24 * time.Hour
	rememberedMost     = 4096
	reportStrangersPer = time.Minute
)

// gate bounds what strangers can hold of the link port. When it is full, or an address has as many as it may, the oldest
// unfinished connection there goes: silent ones never lock a bridge out, which needs only a few round trips, not even from its own
// address.
type gate struct {
	mu       sync.Mutex
	waiting  *list.List           // *pass, oldest first; guarded by mu, as all below
	per      map[netip.Prefix]int // how many of waiting
	known    map[netip.Prefix]time.Time
	refused  int
	reported time.Time
	closed   bool
}

type pass struct {
	gate *gate
	conn net.Conn
	from netip.Prefix
	at   *list.Element // nil: left
}

func newGate() *gate {
	return &gate{waiting: list.New(), per: make(map[netip.Prefix]int), known: make(map[netip.Prefix]time.Time)}
}

// network is the address block that counts as one.
func network(a net.Addr) netip.Prefix { return traffic.Block(traffic.AddrPort(a).Addr()) }

// enter admits a connection to authentication; nil: the proxy stops.
func (g *gate) enter(conn net.Conn) *pass {
	p := &pass{gate: g, conn: conn, from: network(conn.RemoteAddr())}
	g.mu.Lock()
	defer g.mu.Unlock()
	at, known := g.known[p.from]
	known = known && time.Since(at) <= rememberAddress
	if g.closed {
		return nil
	}
	if !known && g.per[p.from] >= maxPerAddress {
		g.evictLocked(func(old *pass) bool { return old.from == p.from })
	}
	if g.waiting.Len() >= maxStrangers {
		g.evictLocked(func(*pass) bool { return true })
	}
	p.at = g.waiting.PushBack(p)
	g.per[p.from]++
	return p
}

// evictLocked ends the oldest connection of those that which chooses.
func (g *gate) evictLocked(which func(*pass) bool) {
	for e := g.waiting.Front(); e != nil; e = e.Next() {
		if old := e.Value.(*pass); which(old) {
			old.removeLocked()
			old.conn.Close() // which its authentication reports
			return
		}
	}
}

func (p *pass) removeLocked() {
	if p.at == nil {
		return
	}
	p.gate.waiting.Remove(p.at)
	p.at = nil
	if p.gate.per[p.from]--; p.gate.per[p.from] == 0 {
		delete(p.gate.per, p.from)
	}
}

// leave ends the time before authentication; known says that it succeeded.
func (p *pass) leave(known bool) {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	p.removeLocked()
	if !known {
		return
	}
	now := time.Now()
	if len(g.known) >= rememberedMost {
		for from, at := range g.known {
			if now.Sub(at) > rememberAddress || len(g.known) >= rememberedMost {
				delete(g.known, from)
			}
		}
	}
	g.known[p.from] = now
}

// errCrowd is why evictLocked ended a connection.
var errCrowd = fmt.Errorf("said nothing while others came: %d may wait, %d of one address", maxStrangers, maxPerAddress)

// report logs failed authentications, at most once in reportStrangersPer: the internet scans every port. Who leaves before a
// hello has said nothing wrong and is neither counted nor worth a line: a scan, a load balancer's check, or an attempt that a
// bridge gives up because another one was faster.
func (g *gate) report(log *slog.Logger, from net.Addr, err error) {
	if errors.Is(err, auth.ErrHungUp) {
		return
	}
	if errors.Is(err, net.ErrClosed) {
		err = errCrowd
	}
	g.mu.Lock()
	if g.closed { // everybody was sent away
		g.mu.Unlock()
		return
	}
	g.refused++
	count, now := g.refused, time.Now()
	say := now.Sub(g.reported) >= reportStrangersPer
	if say {
		g.reported, g.refused = now, 0
	}
	g.mu.Unlock()
	if say {
		log.Warn("connections to the link port that were no bridge with a valid key", "count", count, "last_remote", from.String(), "last_err", err)
	}
}

// closeAll ends what is unfinished.
func (g *gate) closeAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for e := g.waiting.Front(); e != nil; e = e.Next() {
		e.Value.(*pass).conn.Close()
	}
}
