package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// DialerConfig says how a bridge keeps its link.
type DialerConfig struct {
	Owner    Owner
	Say      SayFunc // nil: discard
	Budget   *Budget
	Auth     auth.ClientConfig
	Carriers int           // 0: the default
	Detach   time.Duration // 0: DetachLimit
	Name     string        // of the host, for display
	// Keepalive is how long the control connection of an idle link is silent, from LeastKeepalive to MostKeepalive; 0: Keepalive.
	Keepalive time.Duration
	// Dial makes an authenticated connection, for the control connection or, with the port that the proxy announced (0: none),
	// for a carrier. It opens a socket to each address that it knows, as many at once as it likes, and passes each one to
	// prove: an address is reached when its server is proven, not when TCP is connected.
	Dial func(ctx context.Context, carrier bool, transfer uint16, prove Prove) (*auth.Conn, error)
	// Failed is told of every attempt that failed, while the slot has no connection, and when the next one comes.
	Failed func(slot int, err error, next time.Duration)
	// Backoff returns the pause after n attempts in a row that failed (0: none did), the last one with err.
	Backoff func(n int, err error, streams int) time.Duration
}

// Prove authenticates both ends of a socket, which it closes on error. other reports that the server behind it is the right
// one by its pin, but not the one that holds the present session, which may live at another address: such a connection ends
// the session, so it is for when no other address answers.
type Prove func(ctx context.Context, sock net.Conn) (conn *auth.Conn, other bool, err error)

// Direct is a Dial for a proxy with one address, which dial opens a socket to.
func Direct(dial func(ctx context.Context, carrier bool, transfer uint16) (net.Conn, error)) func(context.Context, bool, uint16, Prove) (*auth.Conn, error) {
	return func(ctx context.Context, carrier bool, transfer uint16, prove Prove) (*auth.Conn, error) {
		sock, err := dial(ctx, carrier, transfer)
		if err != nil {
			return nil, err
		}
		conn, _, err := prove(ctx, sock)
		return conn, err
	}
}

// Dialer is the bridge's end of one link.
type Dialer struct {
	cfg     DialerConfig
	memory  *share
	network bell            // rung by Changed
	last    context.Context // ended by Last
	noMore  context.CancelFunc
	thawed  *Link // that Run begins with, see Thaw

	mu      sync.Mutex
	present *session   // guarded by mu, as leaving; nil: there is none
	leaving []*session // whose proxy is stopping, the oldest first
	auth    auth.ClientConfig
}

// NewDialer returns a Dialer that has not dialled yet.
func NewDialer(cfg DialerConfig) *Dialer {
	if cfg.Carriers == 0 {
		cfg.Carriers = Carriers
	}
	if cfg.Detach == 0 {
		cfg.Detach = DetachLimit
	}
	if cfg.Keepalive == 0 {
		cfg.Keepalive = Keepalive
	}
	if cfg.Budget == nil {
		cfg.Budget = NewBudget(0)
	}
	if cfg.Backoff == nil {
		cfg.Backoff = Backoff
	}
	d := &Dialer{cfg: cfg, memory: cfg.Budget.only(), auth: cfg.Auth}
	d.last, d.noMore = context.WithCancel(context.Background())
	return d
}

// Run keeps a session with the proxy until ctx ends: it dials, dials again what breaks, and begins a new session when the
// old one is over, or beside it when the proxy stops: whoever takes over from that proxy serves new users at once.
func (d *Dialer) Run(ctx context.Context) error {
	var ending sync.WaitGroup
	defer ending.Wait()
	for n := 0; ctx.Err() == nil; {
		lived := time.Duration(0)
		s, err := d.begin(ctx)
		if err == nil {
			select {
			case <-s.link.Done():
				lived, err = s.end()
			case <-s.link.leaving.left:
				d.beside(s)
				ending.Go(func() { s.end() })
				pause := s.link.ComeBack()
				if n++; time.Since(s.begun) > shortLived {
					n = 0
				} else if n > 1 { // who says so again and again is not to be dialled all the time
					pause = max(pause, d.cfg.Backoff(n, nil, 0))
				}
				if pause > 0 {
					d.pause(ctx, pause)
				}
				continue
			}
		}
		if ctx.Err() != nil || d.last.Err() != nil {
			break
		}
		if n++; lived > shortLived {
			n = 0
		}
		pause := d.cfg.Backoff(n, err, 0)
		d.cfg.Failed(0, err, pause)
		d.pause(ctx, pause)
	}
	return nil
}

// pause waits until the next session is to begin.
func (d *Dialer) pause(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-d.last.Done():
	case <-d.network.wait():
	case <-time.After(max(pause, soonest)):
	}
}

// Last keeps new sessions from beginning: Run returns when the present ones have ended.
func (d *Dialer) Last() { d.noMore() }

// beside keeps a session whose proxy is stopping next to the one that takes its place, which begins now. The oldest gives way
// where there are too many.
func (d *Dialer) beside(s *session) {
	d.mu.Lock()
	d.present = nil
	d.leaving = append(d.leaving, s)
	var crowded *session
	if len(d.leaving) > maxBeside {
		crowded = d.leaving[0]
	}
	d.mu.Unlock()
	if crowded != nil {
		crowded.link.Kill(ErrReplaced)
	}
}

func (d *Dialer) forget(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.present == s {
		d.present = nil
	}
	d.leaving = slices.DeleteFunc(d.leaving, func(other *session) bool { return other == s })
}

// Changed is called when the network of this machine may have changed. Every connection is asked for a sign of life at once,
// connections whose local address is gone are replaced, and the next attempt begins without a pause.
func (d *Dialer) Changed(gone func(net.Addr) bool) {
	d.mu.Lock()
	alive := slices.Clone(d.leaving)
	if d.present != nil {
		alive = append(alive, d.present)
	}
	d.mu.Unlock()
	for _, s := range alive {
		for _, sl := range s.link.slots {
			sl.networkChanged(gone)
		}
	}
	d.network.ring()
}

// SetSecret has another secret of the same key proven from now on. The control connection is replaced by one that proves it; all streams
// go on.
func (d *Dialer) SetSecret(secret [32]byte) {
	d.mu.Lock()
	d.auth.Secret = secret
	s := d.present
	d.mu.Unlock()
	if s != nil {
		s.link.slots[0].renew()
	}
}

// ErrRenewed is why a connection of a bridge ended whose place another one took that proves the present secret.
var ErrRenewed = errors.New("replaced by a connection that proves the new secret")

// renew has another connection, which proves the present secret, take the place of the slot's.
func (sl *slot) renew() {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.cur != nil {
		sl.cur.outdated = true
		sl.news.ring()
	}
}

// Proves reports whether a secret is the one that connections prove.
func (d *Dialer) Proves(secret [32]byte) bool { return d.authConfig().Secret == secret }

// authConfig is what the next connection proves.
func (d *Dialer) authConfig() auth.ClientConfig {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.auth
}

// shortLived is how long a connection or session must have lived for the next dial to come at once again.
const shortLived = time.Second

// session is one session with a proxy, from its first connection to its end.
type session struct {
	d      *Dialer
	link   *Link
	begun  time.Time
	cancel context.CancelFunc
	stop   func() bool // of what ends the session with the context of Run
	wg     sync.WaitGroup
}

// begin attaches the first connection of a new session, and keeps all of its slots connected from then on.
func (d *Dialer) begin(ctx context.Context) (*session, error) {
	if l := d.thawed; l != nil {
		d.thawed = nil
		return d.serve(ctx, l, &keeper{d: d, sl: l.slots[0]}, nil), nil
	}
	dialling, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.last, cancel)()
	l := newLink(true, d.cfg.Owner, d.cfg.Say, d.memory, d.cfg.Carriers)
	k := &keeper{d: d, sl: l.slots[0]}
	conn, err := k.next(dialling)
	if err != nil {
		return nil, err
	}
	var sid [16]byte
	rand.Read(sid[:])
	c, at, err := k.attach(dialling, wire.ModeNew, sid, conn)
	if err != nil {
		return nil, err
	}
	l.reach, l.transfer, l.limit = at.Carriers, at.Transfer, shorter(d.cfg.Detach, at.Detach)
	return d.serve(ctx, l, k, c), nil
}

// serve keeps all slots of a session connected. k is the keeper of the control connection, which is c if there is one already.
func (d *Dialer) serve(ctx context.Context, l *Link, k *keeper, c *carrier) *session {
	s := &session{d: d, link: l, begun: time.Now()}
	s.stop = context.AfterFunc(ctx, func() { l.Kill(errStopped) })
	ctx, s.cancel = context.WithCancel(ctx)
	d.mu.Lock()
	d.present = s
	d.mu.Unlock()
	s.wg.Add(1)
	l.watchOutages(s.wg.Done)
	s.wg.Go(func() { k.keep(ctx, c) })
	for _, sl := range l.slots[1:min(len(l.slots), 1+int(l.reach))] {
		k := &keeper{d: d, sl: sl, transfer: l.transfer}
		sl.mu.Lock()
		sl.resting = c != nil && sl.further() // else another process had begun the session
		sl.mu.Unlock()
		s.wg.Go(func() { k.keep(ctx, nil) })
	}
	return s
}

// end waits for the end of the session. lived is how long it lasted.
func (s *session) end() (lived time.Duration, err error) {
	<-s.link.Done()
	s.stop()
	s.cancel()
	s.wg.Wait()
	s.d.forget(s)
	return time.Since(s.begun), s.link.Err()
}

var errStopped = errors.New("stopped")

// keeper keeps one slot connected.
type keeper struct {
	d           *Dialer
	sl          *slot
	transfer    uint16
	last        *carrier  // that served the slot; nil after its end was seen
	since       time.Time // when it was attached
	failures    int       // attempts in a row that led to no connection that lasted
	pause       time.Duration
	brokeAtOnce bool // the pause is for a connection that was made and broke at once: the success of others is no news
}

// keep serves the slot until the session is over. c is its first connection, if there is one already; when it breaks or
// stays silent, another one takes its place.
func (k *keeper) keep(ctx context.Context, c *carrier) {
	l, i := k.sl.link, int(k.sl.index)
	mode := wire.ModeJoin
	k.sl.mu.Lock()
	if k.sl.attached { // in another process
		mode = wire.ModeResume
	}
	k.sl.mu.Unlock()
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		if c != nil {
			mode = wire.ModeResume
			served := c
			k.last, k.since, c = served, time.Now(), nil
			l.back.ring()
			k.d.cfg.Owner.Attached(l, i)
			if i == 0 && !k.d.Proves(served.secret) { // another one was set while this one was on its way
				k.sl.renew()
			}
			serving.Go(func() { k.d.cfg.Owner.Detached(l, i, served.run()) })
		}
		conn, err := k.next(ctx)
		if err == nil {
			c, _, err = k.attach(ctx, mode, l.sid, conn)
			serving.Wait() // the old one's end is told before the new one's beginning
			mode, k.last = wire.ModeResume, nil
		}
		r, refused := errors.AsType[*peerRefusal](err)
		switch {
		case err == nil:
		case ctx.Err() != nil || l.Err() != nil || l.leaving.final.Load():
			return
		case errors.Is(err, errOther): // what still has a connection to the old process may finish
			l.StopResuming()
			return
		case refused && r.status != wire.StatusStale && r.status != wire.StatusDraining:
			l.Kill(fmt.Errorf("the proxy ended the session: %w", err))
			return
		case errors.Is(err, auth.ErrRefused): // the pin was right: it is the proxy that says so
			l.Kill(err)
			return
		case !errors.Is(err, errHurried):
			k.failed(err, true)
		}
	}
}

// next waits until the slot needs a connection and returns one that is authenticated. While the present connection is only
// in doubt it has until then to speak.
func (k *keeper) next(ctx context.Context) (*auth.Conn, error) {
	for {
		st, changed := k.sl.standing()
		final := k.sl.link.leaving.final.Load()
		if st == good || final && st == suspect {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if final {
			k.sl.giveUp()
			return nil, ErrLeft
		}
		if err := k.sl.link.Err(); err != nil {
			return nil, err
		}
		switch ended, err := k.sl.ended(k.last); {
		case ended && errors.Is(err, ErrIdle):
			k.last, k.failures = nil, 0
		case ended:
			atOnce := time.Since(k.since) <= shortLived
			if !atOnce {
				k.failures = -1
			}
			k.last = nil
			k.failed(err, atOnce)
		}
		if conn, err := k.call(ctx); conn != nil || err != nil {
			return conn, err
		}
	}
}

// ended reports whether c was the slot's connection and is no more, and why.
func (sl *slot) ended(c *carrier) (bool, error) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if c == nil || sl.cur == c {
		return false, nil
	}
	return true, c.err
}

// giveUp ends the connection of a slot that stayed silent, and that no other one takes the place of.
func (sl *slot) giveUp() {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if c := sl.cur; c != nil {
		sl.fence(c.silence())
	}
}

// attach binds conn to the slot, in place of a connection that stayed silent or that proved another secret.
func (k *keeper) attach(ctx context.Context, mode wire.Mode, sid [16]byte, conn *auth.Conn) (*carrier, wire.Attached, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	changed := k.d.network.wait()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { // the answer may never come
		select {
		case <-changed:
			cancel(errHurried)
		case <-ctx.Done():
		}
	})
	k.sl.mu.Lock()
	switch c := k.sl.cur; {
	case c == nil:
	case c.outdated && !c.overdue():
		// It stays open until the proxy has answered, which would take its end for a break.
		k.sl.drop(ErrRenewed)
		defer c.conn.Close()
	default:
		k.sl.fence(c.silence())
	}
	k.sl.mu.Unlock()
	c, at, err := k.d.attach(ctx, k.sl.link, int(k.sl.index), mode, sid, conn)
	if err != nil && context.Cause(ctx) == errHurried {
		err = errHurried
	}
	return c, at, err
}

// errHurried says that an attempt was given up because the network changed.
var errHurried = errors.New("the network changed")

// failed plans the next attempt after one that failed, or after a connection that broke.
func (k *keeper) failed(err error, brokeAtOnce bool) {
	k.failures++
	k.brokeAtOnce = brokeAtOnce
	k.sl.mu.Lock()
	streams, up := len(k.sl.core.streams), k.sl.cur != nil
	k.sl.mu.Unlock()
	k.pause = k.d.cfg.Backoff(k.failures, err, streams)
	if !up { // a spare matters only when the connection is lost
		k.d.cfg.Failed(int(k.sl.index), err, k.pause)
	}
}

// Backoff is the default pause after n attempts in a row that failed. It is short for about a minute, and for as long as
// streams wait, so that the bridge is back soon after somebody repairs the path. After a refusal, which seldom passes by itself, it is long.
// Half of it is random, so that bridges that lost the same proxy do not come back in step.
func Backoff(n int, err error, streams int) time.Duration {
	r, _ := errors.AsType[*peerRefusal](err)
	if r != nil && r.comeBack > 0 { // it knows better, but it is neither to keep this end away nor to have it dial without pause
		least := 50 * time.Millisecond << min(max(n, 1), 5)
		return jitter(max(min(r.comeBack, mostComeBack), min(least, time.Second)))
	}
	_, lacking := errors.AsType[*auth.FeatureError](err)
	refused := lacking || errors.Is(err, auth.ErrRefused) || errors.Is(err, auth.ErrFake) || errors.Is(err, auth.ErrPin) ||
		r != nil && (r.status == wire.StatusDenied || r.status == wire.StatusDuplicate || r.status == wire.StatusUnsupported)
	first, most := 250*time.Millisecond, time.Second
	switch {
	case refused:
		first, most = 2*time.Second, time.Minute
	case n < 1:
		first = 50 * time.Millisecond
	case streams == 0 && (errors.Is(err, auth.ErrClosed) || sys.Reset(err)): // a crowd came to the proxy, which would come again
		most = 4 * time.Second
	case n > 60 && streams == 0:
		most = 10 * time.Second
	}
	return jitter(min(first<<min(max(n, 1)-1, 16), most))
}

func jitter(d time.Duration) time.Duration {
	var b [2]byte
	rand.Read(b[:])
	return d/2 + d*time.Duration(uint16(b[0])<<8|uint16(b[1]))/65536
}
