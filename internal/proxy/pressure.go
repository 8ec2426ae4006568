package proxy

import (
	"reverser/internal/status"
	"reverser/internal/sys"
)

// pressure lists what runs short, for a snapshot in which links and services stand already.
func (p *Proxy) pressure(snap *status.Snapshot) []status.Pressure {
	list := p.port.short.AppendTo(p.conns.Pressure(nil))
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
	if used, size := p.port.budget.Used(), p.port.budget.Size(); used >= size-size/16 {
		list = append(list, status.Pressure{
			What: "memory for bytes in flight", Used: used, Limit: size,
			Hint: "bytes for users who read slowly fill it; new ones get the least that works",
		})
	}
	return list
}

// linkPressure describes who has how many connections of the link port.
func (p *Proxy) linkPressure() status.Pressure {
	pool := p.port.descriptors
	used := pool.Taken(sys.ForLinks)
	var links []status.Link
	for _, s := range p.registry.Sessions() {
		links = append(links, status.Link{Key: s.KeyName, Carriers: linkOf(s.Way).Snapshot(s.KeyName, "", false).Carriers})
	}
	return status.Pressure{
		What: "descriptors for bridges", Used: int64(used), Limit: int64(used + pool.Free(sys.ForLinks)),
		Largest: largest(links, func(l status.Link) (string, int) { return l.Key, 1 + l.Carriers }),
		Hint:    "raise the limit (ulimit -n, LimitNOFILE=)",
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
