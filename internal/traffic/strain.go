package traffic

import (
	"encoding/hex"
	"net/netip"
	"sync"
	"time"

	"reverser/internal/status"
	"reverser/internal/sys"
)

// strain is a time in which users are refused, or wait, for want of descriptors.
type strain struct {
	mu    sync.Mutex
	since time.Time // zero: there is none. Guarded by mu, as all below
	last  time.Time // when somebody was refused or had to wait
	count uint64    // how many
}

const (
	strainWhat = "descriptors for users"
	strainHint = "raise the limit (ulimit -n, LimitNOFILE=); a key's users get half of what is free at most, and one client half of that"
)

// strained notes that a user was refused, or has to wait. The first one is logged, and the end.
func (c *Conns) strained(why error, account *Account, client netip.AddrPort) {
	s := &c.strain
	s.mu.Lock()
	first := s.since.IsZero()
	s.last = time.Now()
	if s.count++; first {
		s.since = s.last
	}
	s.mu.Unlock()
	if !first {
		return
	}
	p := c.pressure()
	c.log.Warn("descriptors for users run short: some are refused or wait", "err", why, "service", account.Service, "client", clientName(client),
		"used", p.Used, "limit", p.Limit, "largest_key", p.Largest.Key, "largest_key_has", p.Largest.Used, "largest_client", p.Largest.Client, "hint", p.Hint)
	c.later.do(strainOver, c.relax)
}

// relax ends the strain if nobody was refused lately.
func (c *Conns) relax() {
	s := &c.strain
	s.mu.Lock()
	if left := time.Until(s.last.Add(strainOver)); left > 0 {
		s.mu.Unlock()
		c.later.do(left, c.relax)
		return
	}
	count, d := s.count, s.last.Sub(s.since)
	s.since, s.count = time.Time{}, 0
	s.mu.Unlock()
	c.log.Info("there are descriptors for users again", "refused_or_waited", count, "duration", Seconds(d))
}

// Pressure returns what ran out, for status; nil: nothing did lately.
func (c *Conns) Pressure() []status.Pressure {
	c.strain.mu.Lock()
	since := c.strain.since
	c.strain.mu.Unlock()
	if since.IsZero() {
		return nil
	}
	p := c.pressure()
	p.Since = since
	return []status.Pressure{p}
}

// pressure describes who has how many of the descriptors for users.
func (c *Conns) pressure() status.Pressure {
	c.ledger.mu.Lock()
	used, limit := c.ledger.places.used, 0
	limit = used + c.ledger.places.free()
	c.ledger.mu.Unlock()
	p := status.Pressure{What: strainWhat, Used: int64(used), Limit: int64(limit), Hint: strainHint}
	keys, _ := c.ledger.all()
	var most *Account
	for _, k := range keys {
		if most == nil || k.held.Load() > most.held.Load() {
			most = k
		}
	}
	if most == nil || most.held.Load() == 0 {
		return p
	}
	p.Largest = status.Holder{Key: c.keyName(most.Key), Used: most.held.Load()}
	var client *Client
	for _, cl := range c.ledger.eachClient() {
		if cl.Account.key == most && (client == nil || cl.Admitted > client.Admitted) {
			client = &cl
		}
	}
	if client != nil && client.Admitted > 0 {
		p.Largest.Client, p.Largest.Service = blockName(client.Block), client.Account.Service
	}
	return p
}

func (c *Conns) keyName(id [16]byte) string {
	if c.name != nil {
		if n := c.name(id); n != "" {
			return n
		}
	}
	return hex.EncodeToString(id[:])
}

// poolOf returns the pool for a configuration: that of the process, unless the number of connections is given.
func poolOf(cfg Config) *sys.Pool {
	switch {
	case cfg.Descriptors != nil:
		return cfg.Descriptors
	case cfg.Max > 0:
		return sys.NewPool(2*cfg.Max+1024, 0)
	}
	return sys.Descriptors()
}
