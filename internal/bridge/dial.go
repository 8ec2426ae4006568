package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/via"
)

// The addresses of the proxy race through the handshake: a kernel accepts for a server that hangs as well, so that TCP is
// connected says little. The link bounds an attempt as a whole and makes others beside it.
const (
	nextAddress   = 250 * time.Millisecond // until the next address is tried beside one that is not connected (RFC 8305 section 8)
	nextHandshake = time.Second            // the same beside one that is connected, or 4 times what TCP took
	preferPresent = 8 * time.Second        // until a server that does not hold the session is taken, while one that may does not answer
)

// dial makes an authenticated connection of the link.
func (u *uplink) dial(ctx context.Context, carrier bool, transfer uint16, prove link.Prove) (*auth.Conn, error) {
	targets := u.targets(carrier, transfer)
	places, err := u.places(ctx, targets)
	if len(places) == 0 {
		return nil, u.nowhere(targets, err)
	}
	conn, at, dialErr := u.race(ctx, u.paths.order(places), prove)
	switch {
	case dialErr != nil && at.way != nil:
		return nil, u.wayError(at, dialErr)
	case dialErr != nil && at.connected && err == nil:
		if len(places) > 1 {
			return nil, fmt.Errorf("the proxy at %s: %w", at.addr, dialErr)
		}
		return nil, dialErr
	case dialErr != nil && err != nil:
		return nil, fmt.Errorf("%s, at its last known address: %w, and: %w", u.dialling(targets), hinted(dialErr, dialHint(dialErr)), err)
	case dialErr != nil:
		return nil, fmt.Errorf("%s: %w", u.dialling(targets), hinted(dialErr, dialHint(dialErr)))
	}
	conn.Relayed = at.way != nil || u.b.sni() != ""
	u.b.names.reached(at.host, at.addr.Addr())
	if u.paths.proven(at.lead, at.small) {
		u.say(nil, slog.LevelWarn, "the proxy answers only when packets are small: the path to it seems to swallow larger ones without a word (MTU). "+
			"Connections to it are kept to small packets from now on. The remedy is to let ICMP \"fragmentation needed\" and \"packet too big\" through, "+
			"or to lower the MTU of this machine's interface", "remote", at.addr, "segment", smallSegment)
	}
	return conn, nil
}

// nowhere is why none of the targets, nor the way out to them, has an address.
func (u *uplink) nowhere(targets []string, err error) error {
	hint := dialHint(err)
	if u.b.wayTo(targets[0]) != nil {
		hint = u.wayHint()
	}
	return fmt.Errorf("%s: %w", u.dialling(targets), hinted(err, hint))
}

// hint is an error with the remedy behind it, in brackets.
type hint struct {
	err    error
	remedy string
}

// hinted adds a remedy to an error, unless it is "".
func hinted(err error, remedy string) error {
	if remedy == "" {
		return err
	}
	return &hint{err, remedy}
}

func (h *hint) Error() string { return h.err.Error() + " (" + h.remedy + ")" }
func (h *hint) Unwrap() error { return h.err }

// Remedy is what to do.
func (h *hint) Remedy() string { return h.remedy }

// dialling says what is dialled.
func (u *uplink) dialling(targets []string) string {
	if w := u.b.wayTo(targets[0]); w != nil {
		return fmt.Sprintf("dial %s, the way out to the proxy at %s", w, strings.Join(targets, " or "))
	}
	return "dial the proxy at " + strings.Join(targets, " or ")
}

// wayError is why a way out led to no proxy. What it said itself says where.
func (u *uplink) wayError(at way, err error) error {
	switch _, ok := errors.AsType[*via.Error](err); {
	case ok:
		return err
	case at.connected:
		return fmt.Errorf("the proxy at %s, through %s: %w", at.target, at.way, err)
	}
	return fmt.Errorf("dial %s, the way out to the proxy at %s: %w", at.way, at.target, hinted(err, u.wayHint()))
}

// wayHint is what helps where the way out itself cannot be reached.
func (u *uplink) wayHint() string {
	return fmt.Sprintf("is the way out right, which %s says? --via none dials the proxy directly", cmp.Or(u.b.via.Load().From, "--via"))
}

// backoff is the pause after n attempts that failed. A server on the way out is not tried with a wrong password over and over.
func backoff(n int, err error, streams int) time.Duration {
	if via.Lasting(err) {
		err = auth.ErrRefused
	}
	return link.Backoff(n, err, streams)
}

// targets are what may be dialled for a connection, host:port, the best first. Where the proxy has a port for carriers, its link port is
// not for them, but its further addresses are: behind a firewall they may be all that there is.
func (u *uplink) targets(carrier bool, transfer uint16) []string {
	addr := u.proxy
	switch {
	case carrier && u.transfer != "":
		addr = u.transfer
	case carrier && transfer != 0:
		host, _, _ := net.SplitHostPort(addr)
		addr = net.JoinHostPort(host, strconv.Itoa(int(transfer)))
	}
	return append([]string{addr}, u.others...)
}

// lead is what a connection is made to.
type lead struct {
	addr   netip.AddrPort // that is dialled
	target string         // that the way out there is asked for; "": there is none
}

// dialOutTime is for how long DialOut tries one address: the next one is to have its turn, whenever its caller gives up.
const dialOutTime = 10 * time.Second

// DialOut connects to something that is neither a proxy nor a target, such as a certificate authority, by the way out that the links take.
func (b *Bridge) DialOut(ctx context.Context, network, addr string) (net.Conn, error) {
	way, to := b.wayTo(addr), addr
	if way != nil {
		to = way.Addr()
	}
	d := net.Dialer{Timeout: dialOutTime}
	conn, err := d.DialContext(ctx, network, to)
	switch {
	case way == nil:
		return conn, err
	case err != nil:
		return nil, fmt.Errorf("connect to %s through %s (%s): %w", addr, way, cmp.Or(b.via.Load().From, "--via"), err)
	}
	if err := way.Connect(ctx, conn, addr); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// place is where a target is.
type place struct {
	lead
	host string   // of addr, as it was looked up
	way  *via.Way // that addr is of; nil: addr is the target's
}

// places looks up the targets, or the ways out to them, in their order. The error is why one of them, or the present addresses of one, are
// not known; there may be places all the same.
func (u *uplink) places(ctx context.Context, targets []string) (all []place, err error) {
	var hosts []string
	ways, dialled := make([]*via.Way, len(targets)), slices.Clone(targets)
	for i, t := range targets {
		if ways[i] = u.b.wayTo(t); ways[i] != nil {
			dialled[i] = ways[i].Addr()
		}
		if host, _, err := net.SplitHostPort(dialled[i]); err == nil && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	addrs, err := u.b.names.all(ctx, hosts)
	for i, t := range targets {
		host, portName, splitErr := net.SplitHostPort(dialled[i])
		if splitErr != nil {
			return nil, splitErr
		}
		port, portErr := net.DefaultResolver.LookupPort(ctx, "tcp", portName)
		if portErr != nil {
			return nil, portErr
		}
		for _, a := range addrs[host] {
			p := place{lead{addr: netip.AddrPortFrom(a, uint16(port))}, host, ways[i]}
			if p.way != nil {
				p.target = t
			}
			all = append(all, p)
		}
	}
	return all, err
}

// way is a way to the proxy that a race tries.
type way struct {
	place
	small     bool // with small segments
	connected bool // TCP was connected
}

// news is what a race hears of one of its ways.
type news struct {
	i     int
	took  time.Duration // TCP was connected after so long; the rest is to come
	conn  *auth.Conn    // the answer: this or err
	other bool
	err   error
}

// race tries the ways, each a moment after the one before it or when that failed. The first whose server is proven wins; one
// that does not hold the present session wins when no other way is left, or answers for a while. The way of the result is the
// one that won or that the error is about.
func (u *uplink) race(ctx context.Context, ways []way, prove link.Prove) (*auth.Conn, way, error) {
	ctx, cancel := context.WithCancel(ctx)
	heard := make(chan news, 2*len(ways)) // two values for each way, so that no try waits
	var trying sync.WaitGroup
	var spare news // of a server that does not hold the session
	defer func() {
		cancel()
		trying.Wait()
		close(heard)
		for late := range heard {
			if late.conn != nil {
				late.conn.Close()
			}
		}
		if spare.conn != nil {
			spare.conn.Close()
		}
	}()
	started, over, slow := 0, make([]bool, len(ways)), make([]bool, len(ways))
	next := time.NewTimer(nextAddress)
	defer next.Stop()
	settle := time.NewTimer(preferPresent)
	settle.Stop()
	defer settle.Stop()
	start := func() {
		if started == len(ways) {
			return
		}
		i := started
		started++
		trying.Go(func() { u.try(ctx, i, ways[i], prove, heard) })
		next.Reset(nextAddress)
	}
	win := func(n news) (*auth.Conn, way, error) {
		for i := range started { // the others had more time
			if !over[i] && i < n.i {
				u.paths.failed(ways[i], true)
			}
		}
		return n.conn, ways[n.i], nil
	}
	take := func() (*auth.Conn, way, error) {
		n := spare
		spare.conn = nil
		return win(n)
	}
	start()
	var first news // of the errors, the one to tell
	for left := len(ways); ; {
		select {
		case <-next.C:
			if i := started - 1; !over[i] {
				slow[i] = true
				u.paths.failed(ways[i], true)
			}
			start()
		case <-settle.C:
			return take()
		case n := <-heard:
			if n.took > 0 {
				ways[n.i].connected = true
				if n.i == started-1 {
					next.Reset(max(nextHandshake, 4*n.took))
				}
				continue
			}
			left--
			over[n.i] = true
			switch {
			case n.err == nil && !n.other:
				return win(n)
			case n.err == nil && spare.conn == nil:
				spare = n
				settle.Reset(preferPresent)
			case n.err == nil:
				n.conn.Close()
			default:
				if ctx.Err() == nil && !n.other {
					u.paths.failed(ways[n.i], slow[n.i])
				}
				if first.err == nil || worse(ways, n, first) {
					first = n
				}
			}
			if errors.Is(n.err, via.ErrAuth) { // another address is no other password
				left -= len(ways) - started
				started = len(ways)
			}
			if left == 0 && spare.conn != nil {
				return take()
			}
			if left == 0 {
				return nil, ways[first.i], first.err
			}
			start()
		}
	}
}

// worse reports whether the error of a says more than that of b. A refusal says most: it comes from the proven proxy. A wrong answer
// says more than no answer.
func worse(ways []way, a, b news) bool {
	rank := func(n news) int {
		switch {
		case errors.Is(n.err, auth.ErrRefused):
			return 2
		case ways[n.i].connected:
			return 1
		}
		return 0
	}
	return rank(a) > rank(b)
}

// try tries one way. It sends at most two values to heard.
func (u *uplink) try(ctx context.Context, i int, w way, prove link.Prove, heard chan<- news) {
	begin := time.Now()
	segment := 0
	if w.small {
		segment = smallSegment
	}
	sock, err := u.b.socket(ctx, "tcp", w.addr.String(), segment)
	if err != nil {
		heard <- news{i: i, err: err}
		return
	}
	heard <- news{i: i, took: max(time.Since(begin), 1)}
	if w.way != nil {
		if err := w.way.Connect(ctx, sock, w.target); err != nil {
			sock.Close()
			heard <- news{i: i, err: err}
			return
		}
	}
	conn, other, err := prove(ctx, sock)
	heard <- news{i: i, conn: conn, other: other, err: err}
}

func dialHint(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case sys.Refused(err):
		return "is `reverser proxy` running there, on this port?"
	case sys.Reset(err):
		return "the proxy may be busy or stopping; or is something else in between?"
	case sys.Forbidden(err):
		return "a firewall or security module of this very machine forbids it"
	case errors.As(err, &dns):
		return "is the name right, and does this machine have DNS? Where the network wants an HTTP proxy or SOCKS5 server, name it with --via"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "does a firewall or the cloud's security group block this port? Where the network wants an HTTP proxy or SOCKS5 server, name it with --via"
	}
	return ""
}
