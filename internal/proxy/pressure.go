package proxy

import (
	"errors"

	"reverser/internal/registry"
	"reverser/internal/status"
	"reverser/internal/sys"
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
