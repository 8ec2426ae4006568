package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/registry"
	"reverser/internal/status"
	"reverser/internal/sys"
)

// Bounds of one TryPublic.
const (
	triedMost   = 32 // ports, and hosts of https/ names
	triedAtOnce = 8
)

// Limits of one TryPublic. Tests wait longer.
var (
	triedDial   = 3 * time.Second // until a port that does not answer is given up
	triedAnswer = 5 * time.Second // behind that: the kernel of a busy machine takes a connection long before the proxy does
	triedAll    = 9 * time.Second
)

// TryPublic connects to public ports of services that are up, as a user would who dials host, this proxy's own address for others. A
// service with a bind address of its own is tried there. Each connection shows a nonce, and the entrance answers it: no target sees it,
// and it is no pair. Where there are many services, a sample of them is tried. outsidenames.go has what is done for names.
//
// The host is the operator's. Of what bridges ask for, only ports count that this proxy has opened itself, and bind addresses that are
// this machine's.
func (p *Proxy) TryPublic(ctx context.Context, host string) status.PublicTry {
	ctx, cancel := context.WithTimeout(ctx, triedAll)
	defer cancel()
	result := status.PublicTry{Host: host}
	var ports, names []grammar.Public
	ways := make(wayStates)
	for _, s := range p.registry.Services() {
		public, err := grammar.ParsePublic(s.Public)
		switch {
		case err != nil || describe(&s, ways.of(s.Way)).State != status.ServiceUp || p.conns.Draining():
		case public.Kind.Named():
			names = append(names, public)
		case public.Kind == grammar.KindTCP && !slices.Contains(ports, public):
			ports = append(ports, public)
		}
	}
	slices.SortFunc(ports, func(a, b grammar.Public) int { return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Host, b.Host)) })
	chosen := sample(ports, triedMost)
	result.Left = len(ports) - len(chosen)
	tries := make([]status.PortTry, len(chosen))
	var trying sync.WaitGroup
	trying.Go(func() { p.tryNames(ctx, names, &result) })
	tryEach(ctx, len(chosen), func(i int) { tries[i] = p.tryPort(ctx, chosen[i], host) })
	trying.Wait()
	for _, t := range tries {
		if t.State == "" { // there was no time left
			result.Left++
			continue
		}
		result.Ports = append(result.Ports, t)
	}
	return result
}

// tryEach calls try for 0 to n-1, a few at once, until ctx ends, and waits.
func tryEach(ctx context.Context, n int, try func(i int)) {
	next := make(chan int)
	var trying sync.WaitGroup
	for range min(triedAtOnce, n) {
		trying.Go(func() {
			for i := range next {
				try(i)
			}
		})
	}
feed:
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	trying.Wait()
}

// sample returns at most n of all, from everywhere in it.
func sample[T any](all []T, n int) []T {
	if len(all) <= n {
		return all
	}
	some := make([]T, n)
	for i := range some {
		some[i] = all[i*len(all)/n]
	}
	return some
}

// tryPort tries one port. The State of the result is "" if the time was over before anything could be said, or the service is gone.
func (p *Proxy) tryPort(ctx context.Context, public grammar.Public, host string) status.PortTry {
	rt := p.registry.View().Find(public)
	if rt == nil {
		return status.PortTry{}
	}
	t := status.PortTry{Public: public.String(), Bridge: p.service(rt).probes.Proven()}
	where, why := p.whereTried(public.At(p.cfg.Bind).Host, host)
	if why != "" {
		t.State, t.Text = status.TryNone, why
		return t
	}
	t.Addr = net.JoinHostPort(where, strconv.Itoa(int(public.Port)))
	t.State, t.Text = p.reachItself(ctx, rt, t.Addr)
	return t
}

// whereTried returns the host at which a port is tried, or why it is not.
func (p *Proxy) whereTried(bind, host string) (where, why string) {
	ip, err := netip.ParseAddr(bind)
	at, hostErr := netip.ParseAddr(host)
	switch {
	case bind != "" && err != nil:
		return "", "its address is not known"
	case ip.IsLoopback():
		return "", "it is bound to an address that only this machine reaches"
	case bind != "" && !ip.IsUnspecified():
		// A system may let a socket have an address that is not its own.
		if !slices.Contains(p.localAddrs(), ip.Unmap()) {
			return "", "its address is none of this machine's interfaces"
		}
		return bind, ""
	case host == "":
		return "", "no address is known under which others reach this proxy"
	case bind != "" && hostErr == nil && ip.Is4() != at.Unmap().Is4():
		return "", "it is open for another family of addresses than the one that is advertised"
	}
	return host, ""
}

// interfaceAddrs are the addresses of this machine.
func interfaceAddrs() (all []netip.Addr) {
	all, _ = sys.Addrs()
	return all
}

// reachItself dials addr and says what came of it: whether this proxy answers there.
func (p *Proxy) reachItself(ctx context.Context, rt *registry.Route, addr string) (state, text string) {
	nonce, withdraw := p.service(rt).probes.ExpectOwn()
	defer withdraw()
	return p.converse(ctx, addr, func(conn net.Conn) (answered bool, n int, err error) {
		question := link.ProbeQuestion(nonce)
		if _, err := conn.Write(question[:]); err != nil {
			return false, 0, err
		}
		var answer [16]byte
		n, err = io.ReadFull(conn, answer[:])
		return err == nil && answer == link.ProbeAnswer(nonce), n, err
	})
}

// converse dials addr and has ask find out whether this proxy answers there. ask returns how much it has heard, too. The state is "" if ctx
// ended before anything could be said.
func (p *Proxy) converse(ctx context.Context, addr string, ask func(net.Conn) (answered bool, n int, err error)) (state, text string) {
	dialling, cancel := context.WithTimeout(ctx, triedDial)
	defer cancel()
	conn, err := p.dialPublic(dialling, "tcp", addr)
	var timeout net.Error
	switch {
	case err != nil && ctx.Err() != nil:
		return "", ""
	case errors.As(err, &timeout) && timeout.Timeout():
		return status.TrySilent, fmt.Sprintf("no answer within %s", triedDial)
	case err != nil:
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		return status.TryFailed, strings.TrimPrefix(err.Error(), "connect: ")
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(triedAnswer))
	answered, n, err := ask(conn)
	switch {
	case answered:
		return status.TryAnswered, ""
	case ctx.Err() != nil:
		return "", ""
	case n > 0:
		return status.TryOther, "it gives another answer than this proxy"
	case errors.As(err, &timeout) && timeout.Timeout():
		return status.TryOther, fmt.Sprintf("it took the connection and said nothing for %s", triedAnswer)
	}
	return status.TryOther, "it closed the connection without an answer"
}
