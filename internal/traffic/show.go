package traffic

import (
	"cmp"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"

	"reverser/internal/status"
)

// What status shows at the most. Totals of keys include what is left out.
const (
	mostRemoved = 100 // services, and keys
	mostClients = 20
)

// Describe writes what was counted into the status of the service. It takes no lock; a service without an account was never used.
func (a *Account) Describe(st *status.Service) {
	if a == nil {
		st.TargetState = status.TargetUnknown
		return
	}
	st.Connections, st.Total = int(a.pairs.Load()), a.total.Load()
	st.Sent, st.Received, st.Refused = a.sent.Load(), a.received.Load(), a.turnedAway.Load()
	a.target.describe(st)
}

// Show writes into a snapshot, in which the present services stand already, what was counted for keys, clients and services that are
// gone. shown are the accounts of the present services. Nothing is held up: the counters of services are atomic, and those of clients are read in small parts.
func (c *Conns) Show(snap *status.Snapshot, shown map[*Account]bool) {
	keys, services := c.ledger.all()
	place := make(map[[16]byte]int, len(keys))
	for i, k := range keys {
		place[k.Key] = i
		st := status.Key{Key: c.keyName(k.Key), ID: hex.EncodeToString(k.Key[:])}
		k.addTo(&st)
		snap.Keys = append(snap.Keys, st)
	}
	for _, a := range services {
		i, ok := place[a.Key]
		if !ok {
			continue // it came in between
		}
		a.addTo(&snap.Keys[i])
		if shown[a] || a.total.Load() == 0 {
			continue
		}
		st := status.Service{Public: a.Service, Key: snap.Keys[i].Key, State: status.ServiceRemoved}
		a.Describe(&st)
		st.TargetState, st.TargetAt, st.TargetError = "", time.Time{}, ""
		snap.Removed = append(snap.Removed, st)
	}
	snap.Keys = shownKeys(keys, snap.Keys)
	slices.SortStableFunc(snap.Removed, func(a, b status.Service) int {
		return cmp.Or(cmp.Compare(b.Connections, a.Connections), cmp.Compare(b.Sent+b.Received, a.Sent+a.Received), cmp.Compare(b.Total, a.Total))
	})
	snap.Removed = snap.Removed[:min(len(snap.Removed), mostRemoved)]
	for _, cl := range top(c.ledger.eachClient(), mostClients) {
		snap.Clients = append(snap.Clients, status.Client{
			Client: blockName(cl.Block), Service: cl.Account.Service, Key: c.keyName(cl.Account.Key), Connections: cl.Admitted,
			Total: cl.Total, Sent: cl.Sent, Received: cl.Received, Refused: cl.Refused,
		})
	}
	slices.SortFunc(snap.Keys, func(a, b status.Key) int { return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.ID, b.ID)) })
}

// shownKeys are the rows that status shows of the keys of those accounts: the present ones, and of the removed ones those that carried the
// most.
func shownKeys(keys []*Account, rows []status.Key) []status.Key {
	var shown, removed []status.Key
	for i, k := range keys {
		switch row := rows[i]; {
		case !k.removed.Load():
			shown = append(shown, row)
		case row.Connections > 0 || row.Total > 0 || row.Refused > 0:
			removed = append(removed, row)
		}
	}
	slices.SortStableFunc(removed, func(a, b status.Key) int {
		return cmp.Or(cmp.Compare(b.Connections, a.Connections), cmp.Compare(b.Sent+b.Received, a.Sent+a.Received), cmp.Compare(b.Total, a.Total))
	})
	return append(shown, removed[:min(len(removed), mostRemoved)]...)
}

// all returns the accounts that are kept.
func (l *ledger) all() (keys, services []*Account) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tenants, l.services
}

// Counted yields what the account of each service counted. Services that a key has too many of are added up as service "other". It holds
// nothing up.
func (c *Conns) Counted(yield func(status.Counted) bool) {
	keys, services := c.ledger.all()
	for _, list := range [][]*Account{services, keys} {
		for _, a := range list {
			n := status.Counted{
				Key: a.Key, Service: a.Service, Open: a.pairs.Load(), Connections: a.total.Load(),
				Sent: a.sent.Load(), Received: a.received.Load(), Refused: a.turnedAway.Load(),
			}
			if a.Service == "" {
				if n.Connections == 0 && n.Refused == 0 && n.Open == 0 {
					continue
				}
				n.Service = "other"
			}
			if !yield(n) {
				return
			}
		}
	}
}

// Tallies yields what the account of each service counted, reason by reason, in the order in which they came, which stays. Services that a
// key has too many of are added up as service "other". It holds up one account after the other.
func (c *Conns) Tallies(yield func(status.Tally) bool) {
	keys, services := c.ledger.all()
	for _, list := range [][]*Account{services, keys} {
		for _, a := range list {
			t := a.tally()
			if a.Service == "" {
				if t.Open == 0 && len(t.Ended) == 0 && len(t.Refused) == 0 {
					continue
				}
				t.Service = "other"
			}
			if !yield(t) {
				return
			}
		}
	}
}

func (a *Account) tally() status.Tally {
	t := status.Tally{Service: a.Service, Open: a.pairs.Load(), Sent: a.sent.Load(), Received: a.received.Load()}
	a.ledger.mu.Lock()
	defer a.ledger.mu.Unlock()
	if len(a.ended) > 0 {
		t.Ended = make(map[string]uint64, len(a.ended))
	}
	for why, n := range a.ended {
		t.Ended[string(why)] = n
	}
	if len(a.refusals) > 0 {
		t.Refused = make(map[string]uint64, len(a.refusals))
	}
	for why, n := range a.refusals {
		t.Refused[string(why)] = n
	}
	return t
}

func (a *Account) addTo(st *status.Key) {
	st.Connections += int(a.pairs.Load())
	st.Total += a.total.Load()
	st.Sent += a.sent.Load()
	st.Received += a.received.Load()
	st.Refused += a.turnedAway.Load()
}

// Client is what was counted for one client of a service.
type Client struct {
	Account        *Account
	Block          netip.Prefix // the addresses that count as this client
	Admitted       int          // at present
	Total, Refused uint64       // connections that were let in; those that did not become a pair
	Sent, Received uint64
}

// clientsAtOnce is how many accounts of clients are copied under the lock.
const clientsAtOnce = 64

// eachClient returns the clients that have an account of their own, in no order.
func (l *ledger) eachClient() []Client {
	var found []Client
	for i, more := 0, true; more; i += clientsAtOnce {
		found, more = l.clients(found, i)
	}
	return found
}

// clients appends some clients, and reports whether there are more.
func (l *ledger) clients(to []Client, from int) ([]Client, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := min(from+clientsAtOnce, len(l.listed))
	for ; from < end; from++ {
		to = append(to, l.listed[from].client())
	}
	return to, end < len(l.listed)
}

// client returns a copy. ledger.mu is held.
func (g *guest) client() Client {
	return Client{
		Account: g.service, Block: g.block, Admitted: g.now, Total: g.total + uint64(g.now), Refused: g.refused,
		Sent: g.sent.Load(), Received: g.received.Load(),
	}
}

// top returns the n clients with the most connections at present, and among equal ones the most bytes. It changes the order of all.
func top(all []Client, n int) []Client {
	slices.SortStableFunc(all, func(a, b Client) int {
		return cmp.Or(cmp.Compare(b.Admitted, a.Admitted), cmp.Compare(b.Sent+b.Received, a.Sent+a.Received),
			cmp.Compare(b.Total+b.Refused, a.Total+a.Refused))
	})
	return all[:min(n, len(all))]
}

// blockName is a client for people: its address, or its network in IPv6.
func blockName(b netip.Prefix) string {
	if b.IsSingleIP() {
		return b.Addr().String()
	}
	return b.String()
}
