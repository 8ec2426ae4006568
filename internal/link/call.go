package link

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/auth"
	"reverser/internal/sys"
)

// An attempt that hangs is not waited for; one that is connected, and whose handshake may be waiting for a busy proxy, is. A SYN that got
// lost is repeated by the operating system at ever longer intervals. With a new attempt every 0.75 seconds users go on within a second of
// the path's return, however long it was gone.
const (
	callLimit   = 10 * time.Second       // for the socket, TLS and the handshake of one attempt
	stagger     = 750 * time.Millisecond // until another attempt is made beside one that has no connection yet
	stalled     = 3 * time.Second        // until another attempt is made beside one that is connected, or 4 times what TCP took
	busyWait    = 4 * time.Second        // the same beside one whose bytes were all acknowledged: the proxy may be busy with others
	maxAttempts = 3                      // attempts of a slot at once, at the most; later ones take the place of earlier ones
)

// call makes an authenticated connection for the slot: it makes attempts, some beside each other, until one succeeds and the
// slot may have it. It returns nil without an error when the slot's present connection spoke again.
func (k *keeper) call(ctx context.Context) (*auth.Conn, error) {
	as := newAttempts(ctx, k.prove)
	defer as.end()
	network, back := k.d.network.wait(), k.sl.link.back.wait()
	next := newAlarm(k.pause)
	defer next.timer.Stop()
	k.pause = 0
	start := func() {
		as.start()
		next.set(stagger)
	}
	for {
		st, changed := k.sl.standing()
		switch {
		case st == good || k.sl.link.leaving.final.Load():
			return nil, nil
		case st == over && as.spare != nil:
			return as.take(), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		case <-network: // a spare, and what is under way, may be of the old one
			network = k.d.network.wait()
			as.drop()
			k.failures = 0
			start()
		case <-back: // the path is there
			back = k.sl.link.back.wait()
			if as.spare == nil && !k.brokeAtOnce && as.age() > stagger {
				start()
			}
		case <-next.rings:
			switch left := as.progress(); {
			case as.spare != nil:
			case left > 0:
				next.set(min(left, stagger))
			default:
				start()
			}
		case a := <-as.answers:
			err := as.answered(a)
			switch {
			case err == nil || ctx.Err() != nil:
			case errors.Is(err, auth.ErrRefused):
				return nil, err
			default:
				k.failed(err, false)
				next.set(max(k.pause-time.Since(a.begin), 0)) // hanging was pause enough
				k.pause = 0
			}
		}
	}
}

// attempts are those of one call.
type attempts struct {
	prove   func(ctx context.Context, connected func(net.Conn)) (*auth.Conn, error)
	ctx     context.Context
	cancel  context.CancelFunc
	calling sync.WaitGroup
	running []*attempt // under way, the oldest first
	answers chan *attempt
	spare   *auth.Conn // the first success
}

type attempt struct {
	begin     time.Time
	cancel    context.CancelFunc
	connected atomic.Int64             // when the latest socket was, after begin; 0: none is. The handshakes go on
	sock      atomic.Pointer[net.Conn] // the latest one
	conn      *auth.Conn               // the answer: this or err
	err       error
}

func newAttempts(ctx context.Context, prove func(ctx context.Context, connected func(net.Conn)) (*auth.Conn, error)) *attempts {
	ctx, cancel := context.WithCancel(ctx)
	return &attempts{prove: prove, ctx: ctx, cancel: cancel, answers: make(chan *attempt)}
}

// start makes another attempt. When there are enough it takes the place of one that has no connection yet, but not of the
// first: where a round trip takes seconds that one has the time that it needs. It does nothing if all the others are connected.
func (as *attempts) start() {
	if len(as.running) == maxAttempts {
		i := 1 + slices.IndexFunc(as.running[1:], func(a *attempt) bool { return a.connected.Load() == 0 })
		if i == 0 {
			return
		}
		as.running[i].cancel()
		as.running = slices.Delete(as.running, i, i+1)
	}
	ctx, cancel := context.WithTimeout(as.ctx, callLimit)
	a := &attempt{begin: time.Now(), cancel: cancel}
	as.running = append(as.running, a)
	as.calling.Go(func() { as.try(ctx, a) })
}

// try makes one attempt and answers, unless the call is over.
func (as *attempts) try(ctx context.Context, a *attempt) {
	defer a.cancel()
	a.conn, a.err = as.prove(ctx, func(sock net.Conn) {
		a.sock.Store(&sock)
		a.connected.Store(max(int64(time.Since(a.begin)), 1))
	})
	select {
	case as.answers <- a:
	case <-as.ctx.Done():
		if a.conn != nil {
			a.conn.Close()
		}
	}
}

// age is how long ago one of the attempts that are under way began, or was connected.
func (as *attempts) age() time.Duration {
	age := time.Duration(math.MaxInt64)
	for _, a := range as.running {
		age = min(age, time.Since(a.begin)-time.Duration(a.connected.Load()))
	}
	return age
}

// progress returns for how much longer a connected attempt may be expected to succeed, or 0 if there is none.
func (as *attempts) progress() (left time.Duration) {
	for _, a := range as.running {
		if took := time.Duration(a.connected.Load()); took > 0 {
			wait := busyWait
			if sys.HasUnacked(*a.sock.Load()) {
				wait = stalled
			}
			left = max(left, took+max(wait, 4*took)-time.Since(a.begin))
		}
	}
	return left
}

// answered takes the answer of an attempt and returns why it failed. The first success ends the others.
func (as *attempts) answered(a *attempt) error {
	i := slices.Index(as.running, a)
	switch {
	case i < 0 && a.conn != nil:
		a.conn.Close()
		return nil
	case i < 0: // it was given up
		return nil
	}
	as.running = slices.Delete(as.running, i, i+1)
	if a.conn == nil {
		return a.err
	}
	for _, other := range as.running {
		other.cancel()
	}
	as.running, as.spare = nil, a.conn
	return nil
}

// take hands the spare over.
func (as *attempts) take() *auth.Conn {
	conn := as.spare
	as.spare = nil
	return conn
}

func (as *attempts) drop() {
	if as.spare != nil {
		as.take().Close()
	}
}

// end gives up what is under way and waits for it.
func (as *attempts) end() {
	as.cancel()
	as.calling.Wait()
	as.drop()
}

// alarm is a timer that can be set anew. It has a channel of its own, and not the timer's, since a testing/synctest bubble
// of Go 1.26 crashes under the race detector when two goroutines find their timers' channels due at the same instant. So it
// does when both set a timer that is due at once: see soonest.
type alarm struct {
	timer *time.Timer
	rings chan struct{}
}

// soonest is the least time to set a timer to. A timer in a bubble that is due at once is run by the goroutine that sets it,
// and in Go 1.26 two that do so at the same time crash the race detector.
const soonest = time.Nanosecond

func newAlarm(d time.Duration) *alarm {
	rings := make(chan struct{}, 1)
	return &alarm{rings: rings, timer: time.AfterFunc(max(d, soonest), func() {
		select {
		case rings <- struct{}{}:
		default:
		}
	})}
}

func (al *alarm) set(d time.Duration) {
	al.timer.Stop()
	select {
	case <-al.rings:
	default:
	}
	al.timer.Reset(max(d, soonest))
}

// prove makes one authenticated connection. connected is called whenever a socket is connected.
func (k *keeper) prove(ctx context.Context, connected func(net.Conn)) (*auth.Conn, error) {
	return k.d.cfg.Dial(ctx, k.sl.index > 0, k.transfer, func(ctx context.Context, sock net.Conn) (*auth.Conn, bool, error) {
		connected(sock)
		conn, err := Authenticate(ctx, sock, k.d.authConfig(), callLimit)
		if err != nil {
			return nil, false, err
		}
		other, err := k.sl.link.foreign(conn)
		return conn, other, err
	})
}

// Authenticate proves both ends of a socket, which it closes on error. limit is what ctx allows for it.
func Authenticate(ctx context.Context, sock net.Conn, cfg auth.ClientConfig, limit time.Duration) (*auth.Conn, error) {
	sys.TuneLink(sock, batch)
	conn, err := auth.Client(ctx, sock, cfg)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fmt.Errorf("the proxy did not complete the handshake within %s: it may be busy, or the path to it holds packets back", limit)
	}
	return conn, err
}

// foreign reports whether the server at the other end of conn is not the one that holds the session, and has taken its place
// if that answers no more. A new process at an address that the session has connections to is no other server: it replaced
// the old one. While some connection of the session is alive a server elsewhere is of no use, and conn is closed.
func (l *Link) foreign(conn *auth.Conn) (bool, error) {
	if l.sid == ([16]byte{}) || conn.Peer == l.peer {
		return false, nil
	}
	at, alive := hostOf(conn.RemoteAddr()), false
	for _, sl := range l.slots {
		sl.mu.Lock()
		known := sl.reached == at
		up := sl.cur != nil && sl.cur.suspectSince == 0
		sl.mu.Unlock()
		if known {
			return false, nil
		}
		alive = alive || up
	}
	if alive {
		conn.Close()
		return true, fmt.Errorf("the proxy at %s is not the one that the other connections lead to", conn.RemoteAddr())
	}
	return true, nil
}

// hostOf is the address without its port.
func hostOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
