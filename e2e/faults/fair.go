//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"reverser/e2e/attacks"
)

// flood is one way in which strangers come.
type flood struct {
	rate, addresses int
	known           bool // from each of them somebody authenticated before
	own             bool // they come from the address that the neighbour's bridge has
	far             bool // 200 ms of round trip between bridge and proxy
	beside          bool // they share the address of a bridge that is new to the proxy
	says            attacks.Words
}

func (f flood) String() string {
	from := fmt.Sprintf("%d unknown addresses", f.addresses)
	switch {
	case f.own:
		from = "the bridge's own address"
	case f.beside:
		from = "a new bridge's address"
	case f.known:
		from = fmt.Sprintf("%d known addresses", f.addresses)
	case f.addresses == 1:
		from = "an unknown address"
	}
	far := ""
	if f.far {
		far = ", 200 ms of round trip"
	}
	return fmt.Sprintf("%d strangers a second from %s, %s%s", f.rate, from, f.says, far)
}

// floods are those of a size.
func floods(b *bed) (all []flood) {
	if b.size == ci {
		return []flood{
			{rate: 5000, addresses: 1000}, {rate: 60, beside: true}, {rate: 900, addresses: 24, says: attacks.Hello},
			{rate: 900, addresses: 24, far: true}, {rate: 900, addresses: 24, known: true, far: true}, {rate: 900, own: true, far: true},
		}
	}
	says := by(b, nil, []attacks.Words{attacks.Nothing}, []attacks.Words{attacks.Nothing, attacks.Half, attacks.Hello})
	for _, w := range says {
		for _, rate := range []int{900, 5000} {
			for _, far := range []bool{false, true} {
				for _, addresses := range []int{1, 24, 1000} {
					for _, known := range []bool{false, true} {
						all = append(all, flood{rate: rate, addresses: addresses, known: known, far: far, says: w})
					}
				}
				all = append(all, flood{rate: rate, own: true, far: far, says: w})
			}
		}
		all = append(all, flood{rate: 60, beside: true, says: w})
	}
	if b.size == normal {
		all = append(all, flood{rate: 900, addresses: 24, says: attacks.Half}, flood{rate: 900, addresses: 24, says: attacks.Hello})
	}
	return all
}

// N1
func strangers(ctx context.Context, b *bed) error {
	for _, far := range []bool{false, true} {
		n, err := b.neighbour(ctx, options{lab: far})
		if err != nil {
			return err
		}
		back := time.Second
		if far {
			back = 3 * time.Second
			if err := n.delay(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		}
		for i, f := range floods(b) {
			if f.far != far {
				continue
			}
			newAddr := netip.AddrFrom4([4]byte{127, 9, byte(1 + i), 9})
			if far {
				newAddr = netip.AddrFrom4([4]byte{10, 2, 0, byte(100 + i)}) // of the lan host
				if err := n.lab.AddAddress(newAddr); err != nil {
					return err
				}
			}
			if err := n.flood(ctx, f, newAddr, back); err != nil {
				b.fail("%s: %v", f, err)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
		}
		if err := n.finish(ctx); err != nil {
			return err
		}
		if n.lab != nil {
			if err := n.lab.SetDelay(0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *neighbour) flood(ctx context.Context, f flood, newAddr netip.Addr, back time.Duration) error {
	a, at := attack{Strangers: f.rate, Says: f.says}, n.pub
	switch {
	case f.own && f.far:
		at = n.lan
	case f.own: // the relay's connections come from where all do
	case f.beside:
		a.From = []netip.Addr{newAddr}
	default:
		a.From = attacks.Blocks(f.addresses)
	}
	name := ""
	if f.known {
		name = fmt.Sprintf("known-%d", n.starts.Add(1))
	}
	var came int64
	err := n.beside(ctx, onslaught{what: f.String(), elsewhere: !f.far, begin: func(t *tunnel) (func(), error) {
		stop, err := t.attack(ctx, at, name, a)
		if err != nil {
			return nil, err
		}
		return func() {
			c := stop()
			if t == n.tunnel {
				came += c.Strangers
			}
		}, nil
	}, under: func() error {
		if err := n.cut(ctx, "under it", back); err != nil {
			return err
		}
		promised := 5 * time.Second
		if f.far { // two handshakes of some round trips each
			promised += 2 * time.Second
		}
		if err := n.newBridge(ctx, "under it", newAddr, promised); err != nil {
			return err
		}
		return n.operator(ctx, "under it")
	}})
	n.note("%d strangers came", came)
	return err
}
