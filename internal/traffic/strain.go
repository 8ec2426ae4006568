package traffic

import (
	"encoding/hex"
	"log/slog"
	"sync"
	"time"

	"reverser/internal/status"
	"reverser/internal/sys"
)

// Strain says when something runs short, and when it no longer does: once each in the log, and in status for as long as it lasts.
// Make it with NewStrain.
type Strain struct {
	log      *slog.Logger
	describe func() status.Pressure // what there is of it, and who has most; called without a lock
	later    later

	mu    sync.Mutex
	since time.Time // zero: nothing is short. Guarded by mu, as all below
	last  time.Time // when somebody was refused or had to wait
	count uint64    // how many
}

// strainOver is how long no user must have been refused or made to wait until something is no longer short.
const strainOver = 10 * time.Second

// NewStrain returns a Strain of something that does not run short.
func NewStrain(log *slog.Logger, describe func() status.Pressure) *Strain {
	return &Strain{log: log, describe: describe}
}

// Note records that a user was refused, or has to wait, because it runs short.
func (s *Strain) Note(why error) {
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
	p := s.describe()
	s.log.Warn("running short, some are refused or wait", "of", p.What, "err", why, "used", p.Used, "limit", p.Limit, "largest_key", p.Largest.Key,
		"largest_key_has", p.Largest.Used, "largest_service", p.Largest.Service, "largest_client", p.Largest.Client, "hint", p.Hint)
	s.later.do(strainOver, s.relax)
}

// relax ends the strain if nothing was noted lately.
func (s *Strain) relax() {
	s.mu.Lock()
	if left := time.Until(s.last.Add(strainOver)); left > 0 {
		s.mu.Unlock()
		s.later.do(left, s.relax)
		return
	}
	count, d := s.count, s.last.Sub(s.since)
	s.since, s.count = time.Time{}, 0
	s.mu.Unlock()
	s.log.Info("no longer running short", "of", s.describe().What, "refused_or_waited", count, "duration", Seconds(d))
}

// AppendTo appends what is short at present to a list for status.
func (s *Strain) AppendTo(list []status.Pressure) []status.Pressure {
	s.mu.Lock()
	since := s.since
	s.mu.Unlock()
	if since.IsZero() {
		return list
	}
	p := s.describe()
	p.Since = since
	return append(list, p)
}

// Close lets nothing be logged any more.
func (s *Strain) Close() { s.later.close() }

const (
	usersWhat = "descriptors for users"
	usersHint = "raise the limit (ulimit -n, LimitNOFILE=): a key's users get half of what is free, and one client of a key half of what the key may still take"
)

// pressure describes who has how many of the descriptors for users.
func (c *Conns) pressure() status.Pressure {
	c.ledger.mu.Lock()
	used := c.ledger.places.used
	limit := used + c.ledger.places.free()
	c.ledger.mu.Unlock()
	p := status.Pressure{What: usersWhat, Used: int64(used), Limit: int64(limit), Hint: usersHint}
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
