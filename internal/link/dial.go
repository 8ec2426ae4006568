package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/wire"
)

// DialerConfig says how a bridge keeps its link.
type DialerConfig struct {
	Owner    Owner
	Log      *slog.Logger
	Budget   *Budget
	Auth     auth.ClientConfig
	Carriers int           // 0: the default
	Detach   time.Duration // 0: DetachLimit
	Name     string        // of the host, for display
	// Dial opens a socket to the proxy, for the control connection or, with the port that the proxy announced (0: none),
	// for a carrier.
	Dial func(ctx context.Context, carrier bool, transfer uint16) (net.Conn, error)
	// Failed is told of every attempt that failed and when the next one comes.
	Failed func(slot int, err error, next time.Duration)
	// Backoff returns the pause before attempt n (1, 2, …) after err.
	Backoff func(n int, err error, streams int) time.Duration
}

// Dialer is the bridge's end of one link.
type Dialer struct {
	cfg DialerConfig
}

// NewDialer returns a Dialer that has not dialled yet.
func NewDialer(cfg DialerConfig) *Dialer {
	if cfg.Carriers == 0 {
		cfg.Carriers = Carriers
	}
	if cfg.Detach == 0 {
		cfg.Detach = DetachLimit
	}
	if cfg.Budget == nil {
		cfg.Budget = NewBudget(0)
	}
	if cfg.Backoff == nil {
		cfg.Backoff = Backoff
	}
	return &Dialer{cfg: cfg}
}

// Run keeps a session with the proxy until ctx ends: it dials, dials again what breaks, and begins a new session when the
// old one is over.
func (d *Dialer) Run(ctx context.Context) error {
	for n := 1; ; n++ {
		begin := time.Now()
		err := d.session(ctx)
		if time.Since(begin) > shortLived {
			n = 1
		}
		if ctx.Err() != nil {
			return nil
		}
		pause := d.cfg.Backoff(n, err, 0)
		d.cfg.Failed(0, err, pause)
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// shortLived is how long a connection or session must have lived for the next dial to come at once again.
const shortLived = time.Second

// session serves one session from its first connection to its end.
func (d *Dialer) session(ctx context.Context) error {
	var sid [16]byte
	rand.Read(sid[:])
	l := newLink(false, d.cfg.Owner, d.cfg.Log, d.cfg.Budget, d.cfg.Carriers)
	c, at, err := d.attach(ctx, l, 0, wire.ModeNew, sid, 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Kill(errStopped) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { l.expire(d.cfg.Detach) })
	wg.Go(func() { d.keep(ctx, l, 0, at.Transfer, c) })
	for i := 1; i <= min(d.cfg.Carriers, int(at.Carriers)); i++ {
		wg.Go(func() { d.keep(ctx, l, i, at.Transfer, nil) })
	}
	<-l.Done()
	cancel()
	wg.Wait()
	return l.Err()
}

var errStopped = errors.New("stopped")

// keep serves slot i, dialling again whenever its connection breaks, until the session is over.
func (d *Dialer) keep(ctx context.Context, l *Link, i int, transfer uint16, c *carrier) {
	mode := wire.ModeJoin
	if c != nil {
		mode = wire.ModeResume
	}
	for n := 1; l.Err() == nil; n++ {
		var err error
		if c == nil {
			c, _, err = d.attach(ctx, l, i, mode, l.sid, transfer)
		}
		if c != nil {
			mode = wire.ModeResume
			begin := time.Now()
			d.cfg.Owner.Attached(l, i)
			err = c.run()
			d.cfg.Owner.Detached(l, i, err)
			c = nil
			if time.Since(begin) > shortLived {
				n = 1
			}
		}
		var r *refusal
		if errors.As(err, &r) && r.status != wire.StatusStale && r.status != wire.StatusDraining {
			l.Kill(fmt.Errorf("the proxy ended the session: %w", err))
			return
		}
		if errors.Is(err, auth.ErrRefused) { // the pin was right: it is the proxy that says so
			l.Kill(err)
			return
		}
		if ctx.Err() != nil || l.Err() != nil {
			return
		}
		sl := l.slots[i]
		sl.mu.Lock()
		streams := len(sl.core.streams)
		sl.mu.Unlock()
		pause := d.cfg.Backoff(n, err, streams)
		d.cfg.Failed(i, err, pause)
		if !sleep(ctx, pause) {
			return
		}
		mode = wire.ModeResume
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Backoff is the default pause before attempt n. Streams that wait make it short; a refusal, which time alone seldom
// mends, long. Half of it is random, so that bridges that lost the same proxy do not come back in step.
func Backoff(n int, err error, streams int) time.Duration {
	var r *refusal
	refused := errors.Is(err, auth.ErrRefused) || errors.Is(err, auth.ErrFake) || errors.Is(err, auth.ErrPin) ||
		errors.As(err, &r) && (r.status == wire.StatusDenied || r.status == wire.StatusDuplicate)
	first, most := 250*time.Millisecond, 10*time.Second
	switch {
	case refused:
		first, most = 2*time.Second, time.Minute
	case streams > 0:
		most = 2 * time.Second
	}
	if n <= 1 && !refused {
		return jitter(50 * time.Millisecond)
	}
	return jitter(min(first<<min(max(n, 1)-1, 16), most))
}

func jitter(d time.Duration) time.Duration {
	var b [2]byte
	rand.Read(b[:])
	return d/2 + d*time.Duration(uint16(b[0])<<8|uint16(b[1]))/65536
}
