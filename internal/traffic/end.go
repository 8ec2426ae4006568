package traffic

import (
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"

	"reverser/internal/relay"
	"reverser/internal/wire"
)

// Which says which connections an operator means. What is zero, or nil, leaves none out.
type Which struct {
	ID      string                   // as status shows it
	Service func(public string) bool // canonical PUBLIC; asked once for each
	Key     string                   // its name, or the beginning of its id, as status shows either
	Client  netip.Prefix             // where the user comes from
}

// EndThese resets the connections that an operator means, those included that are not a pair yet, and returns how many they were.
func (c *Conns) EndThese(w Which) int {
	match := c.matcher(w)
	how := &ending{relay.ReasonEnded, wire.CodeEnded}
	if w.ID == "" {
		return c.End(how.reason, how.code, match)
	}
	a := c.roster.find(w.ID)
	if a == nil || !match(a) || !a.endBy(how) {
		return 0
	}
	return 1
}

// find returns the admission with an id, as status shows it; nil: there is none.
func (l *roster) find(id string) *Admission {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != id {
		return nil
	}
	sh := &l.shards[n%uint64(len(l.shards))]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for a := range sh.all {
		if a.id == n {
			return a
		}
	}
	return nil
}

// matcher is for one walk through the connections: it remembers what it was told of services and keys.
func (c *Conns) matcher(w Which) func(*Admission) bool {
	services, keys := make(map[string]bool), make(map[[16]byte]bool)
	return func(a *Admission) bool {
		return (w.Service == nil || remember(services, a.Service(), w.Service)) &&
			(w.Key == "" || remember(keys, a.Key(), func(id [16]byte) bool { return c.isKey(id, w.Key) })) &&
			(!w.Client.IsValid() || w.Client.Contains(a.client.Addr().Unmap().WithZone("")))
	}
}

// isKey reports whether people call a key so.
func (c *Conns) isKey(id [16]byte, said string) bool {
	return c.keyName(id) == said || len(said) >= shortID && strings.HasPrefix(hex.EncodeToString(id[:]), said)
}

// shortID is how much of a key's id status shows.
const shortID = 8

func remember[K comparable, V any](known map[K]V, k K, ask func(K) V) V {
	v, ok := known[k]
	if !ok {
		v = ask(k)
		known[k] = v
	}
	return v
}
