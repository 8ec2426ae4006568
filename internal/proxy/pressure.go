package proxy

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"reverser/internal/registry"
	"reverser/internal/share"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/web"
)

// pressure lists what runs short, for a snapshot in which links and services stand already.
func (p *Proxy) pressure(snap *status.Snapshot) []status.Pressure {
	list := p.port.memory.AppendTo(p.port.short.AppendTo(p.conns.Pressure(nil)))
	list = p.balancers.gate.appendTo(p.port.gate.appendTo(list))
	for _, g := range []*gate{p.names.gate, p.web.gate} {
		if g != nil {
			list = g.appendTo(list)
		}
	}
	list = p.names.short.AppendTo(list)
	for _, pool := range slices.Sorted(maps.Keys(p.web.short)) {
		list = p.web.short[pool].AppendTo(list)
	}
	if pool := p.port.descriptors; p.registry.Short() > 0 || pool.Free(sys.ForListeners) == 0 && pool.Taken(sys.ForListeners) > 0 {
		list = append(list, status.Pressure{
			What: "descriptors for public ports", Used: int64(pool.Taken(sys.ForListeners)), Limit: int64(pool.Taken(sys.ForListeners) + pool.Free(sys.ForListeners)),
			Largest: largest(snap.Services, func(s status.Service) (string, int) {
				if s.State == status.ServiceUp {
					return s.Key, 1
				}
				return s.Key, 0
			}),
			Hint: "raise the limit (ulimit -n, LimitNOFILE=), or let fewer services be offered",
		})
	}
	if c := p.registry.Crowd(); c.Waiting > 0 {
		list = append(list, status.Pressure{
			What: "places for names", Used: int64(c.Held), Limit: int64(c.Most),
			Largest: status.Holder{Key: p.keyName(c.Largest), Used: int64(c.ByLargest)},
			Hint:    "a key without --max-services may have half of what others leave: `reverser key edit NAME --max-services N`, or give the process more memory (MemoryMax=)",
		})
	}
	return list
}

// answersPressure describes who has how much of the memory for long heads of answers.
func (p *Proxy) answersPressure() status.Pressure {
	t := p.web.server.Taken(web.PoolAnswers)
	pr := status.Pressure{
		What: "bytes of memory for long heads of answers", Used: t.Used, Limit: t.Size,
		Hint: "their users get 502: the targets of the key send very many, or heads of very many bytes; give the process more memory (MemoryMax=)",
	}
	if key, ok := t.Key.(registry.KeyID); ok {
		pr.Largest = status.Holder{Key: p.keyName(key), Used: t.ByLargest}
	}
	return pr
}

// strangersPressure describes who has how much of the memory for requests of those whom no service has let in.
func (p *Proxy) strangersPressure() status.Pressure {
	return p.requestsPressure(web.PoolStrangers, "bytes of memory for long heads of requests of strangers",
		"an address may have half of what others leave: somebody sends very many that do not end; requests with heads of 8 KiB or less are served as ever")
}

// usersPressure describes who has how much of the memory for heads of requests of HTTP/2.
func (p *Proxy) usersPressure() status.Pressure {
	return p.requestsPressure(web.PoolUsers, "bytes of memory for heads of requests of HTTP/2",
		"an address may have half of what others leave: somebody has very many requests with long heads under way. Clients whose heads hold less than 128 KiB are served; others wait until one of their requests is answered")
}

func (p *Proxy) requestsPressure(pool web.Pool, what, hint string) status.Pressure {
	return sharedPressure(p.web.server.Taken(pool).Taken, what, hint)
}

// sharedPressure describes which address has how much of what addresses share.
func sharedPressure(t share.Taken, what, hint string) status.Pressure {
	pr := status.Pressure{What: what, Used: t.Used, Limit: t.Size, Hint: hint}
	if t.ByLargest > 0 {
		pr.Largest.Client = blockName(t.Largest)
	}
	return pr
}

// blockName is how status shows a range of addresses.
func blockName(block netip.Prefix) string {
	if block.IsSingleIP() {
		return block.Addr().String()
	}
	return block.String()
}

// hellosPressure describes how much of the memory for long ClientHellos is taken.
func (p *Proxy) hellosPressure() status.Pressure {
	return sharedPressure(p.names.hellos.Taken(), "bytes of memory for ClientHellos of more than 4 KiB",
		"an address may have half of what others leave: somebody begins very many and does not go on, which takes 10 seconds each; clients with shorter ones, as browsers are, come in as ever")
}

var errWindows = errors.New("connections get smaller windows than they could use")

// memoryPressure describes who holds how much of the memory for bytes in flight.
func (p *Proxy) memoryPressure() status.Pressure {
	key, held := p.port.budget.Largest()
	pr := status.Pressure{
		What: "bytes of memory for what is in flight", Used: p.port.budget.Used(), Limit: p.port.budget.Size(),
		Hint: "nobody is cut off: connections over long paths get slower; give the process more memory (GOMEMLIMIT, MemoryMax=)",
	}
	if held > 0 {
		pr.Largest = status.Holder{Key: p.keyName(key), Used: held}
	}
	return pr
}

// linkPressure describes who has how many connections of the link port.
func (p *Proxy) linkPressure() status.Pressure {
	pool := p.port.descriptors
	used := pool.Taken(sys.ForLinks)
	return status.Pressure{
		What: "descriptors for bridges", Used: int64(used), Limit: int64(used + pool.Free(sys.ForLinks)),
		Largest: largest(p.registry.Sessions(), func(s registry.Live) (string, int) {
			return s.KeyName, 1 + linkOf(s.Way).Snapshot(s.KeyName, "", false).Carriers
		}),
		Hint: "raise the limit (ulimit -n, LimitNOFILE=)",
	}
}

// largest adds up what keys have, and returns the one with most.
func largest[T any](all []T, of func(T) (key string, n int)) (most status.Holder) {
	sum := make(map[string]int64)
	for _, x := range all {
		key, n := of(x)
		if sum[key] += int64(n); sum[key] > most.Used {
			most.Key, most.Used = key, sum[key]
		}
	}
	return most
}
