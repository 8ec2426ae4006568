package link

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/auth"
)

// An attempt that hangs is not waited for. A SYN that got lost is repeated by the operating system at ever longer intervals;
// with a new attempt every second one is under way within a second of the path's return, however long it was gone.
const (
	callLimit = 10 * time.Second // for the socket, TLS and the handshake of one attempt
	stagger   = time.Second      // until another attempt is made beside one that hangs
	abreast   = 3                // attempts of a slot at once, at the most; later ones take the place of earlier ones
)

// call makes an authenticated connection for the slot: it makes attempts, some beside each other, until one succeeds and the
// slot may have it. It returns nil without an error when the slot's present connection spoke again.
func (k *keeper) call(ctx context.Context) (*auth.Conn, error) {
	as := newAttempts(ctx, func(ctx context.Context, connected func()) (*auth.Conn, error) {
		return k.d.prove(ctx, k.sl.index > 0, k.transfer, connected)
	})
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
		case st == good:
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
			k.vain = 0
			start()
		case <-back: // the path is there
			back = k.sl.link.back.wait()
			if as.spare == nil && !k.flaps && as.age() > stagger {
				start()
			}
		case <-next.rings:
			if as.spare == nil {
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
	prove   func(ctx context.Context, connected func()) (*auth.Conn, error)
	ctx     context.Context
	cancel  context.CancelFunc
	calling sync.WaitGroup
	under   []*attempt // under way, the oldest first
	answers chan *attempt
	spare   *auth.Conn // the first success
}

type attempt struct {
	begin     time.Time
	cancel    context.CancelFunc
	connected atomic.Bool // the socket is; the handshakes go on
	conn      *auth.Conn  // the answer: this or err
	err       error
}

func newAttempts(ctx context.Context, prove func(ctx context.Context, connected func()) (*auth.Conn, error)) *attempts {
	ctx, cancel := context.WithCancel(ctx)
	return &attempts{prove: prove, ctx: ctx, cancel: cancel, answers: make(chan *attempt)}
}

// start makes another attempt. When there are enough it takes the place of one that has no connection yet, but not of the
// first: where a round trip takes seconds that one has the time that it needs. It does nothing if all the others are connected.
func (as *attempts) start() {
	if len(as.under) == abreast {
		i := 1 + slices.IndexFunc(as.under[1:], func(a *attempt) bool { return !a.connected.Load() })
		if i == 0 {
			return
		}
		as.under[i].cancel()
		as.under = slices.Delete(as.under, i, i+1)
	}
	ctx, cancel := context.WithTimeout(as.ctx, callLimit)
	a := &attempt{begin: time.Now(), cancel: cancel}
	as.under = append(as.under, a)
	as.calling.Go(func() { as.try(ctx, a) })
}

// try makes one attempt and answers, unless the call is over.
func (as *attempts) try(ctx context.Context, a *attempt) {
	defer a.cancel()
	a.conn, a.err = as.prove(ctx, func() { a.connected.Store(true) })
	select {
	case as.answers <- a:
	case <-as.ctx.Done():
		if a.conn != nil {
			a.conn.Close()
		}
	}
}

// age is how long ago the latest attempt began that is under way.
func (as *attempts) age() time.Duration {
	if len(as.under) == 0 {
		return math.MaxInt64
	}
	return time.Since(as.under[len(as.under)-1].begin)
}

// answered takes the answer of an attempt and returns why it failed. The first success ends the others.
func (as *attempts) answered(a *attempt) error {
	i := slices.Index(as.under, a)
	switch {
	case i < 0 && a.conn != nil:
		a.conn.Close()
		return nil
	case i < 0: // it was given up
		return nil
	}
	as.under = slices.Delete(as.under, i, i+1)
	if a.conn == nil {
		return a.err
	}
	for _, other := range as.under {
		other.cancel()
	}
	as.under, as.spare = nil, a.conn
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
// of Go 1.26 crashes under the race detector when two goroutines find their timers' channels due at the same instant.
type alarm struct {
	timer *time.Timer
	rings chan struct{}
}

func newAlarm(d time.Duration) *alarm {
	rings := make(chan struct{}, 1)
	return &alarm{rings: rings, timer: time.AfterFunc(d, func() {
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
	al.timer.Reset(d)
}

// prove dials the proxy and authenticates both ends.
func (d *Dialer) prove(ctx context.Context, carrier bool, transfer uint16, connected func()) (*auth.Conn, error) {
	sock, err := d.cfg.Dial(ctx, carrier, transfer)
	if err != nil {
		return nil, err
	}
	connected()
	tune(sock)
	conn, err := auth.Client(ctx, sock, d.cfg.Auth)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fmt.Errorf("the proxy did not complete the handshake within %s", callLimit)
	}
	return conn, err
}
