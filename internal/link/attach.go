package link

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/wire"
)

// attachTimeout covers the exchange of ATTACH, ATTACHED and their tables.
const attachTimeout = 10 * time.Second

// Socket prepares an accepted or dialled socket of the link for authentication.
func Socket(c net.Conn) net.Conn {
	tune(c)
	return newBatchConn(c)
}

// readFrame reads exactly one frame; buf is scratch.
func readFrame(r io.Reader, buf []byte) (wire.Frame, error) {
	if _, err := io.ReadFull(r, buf[:wire.HeaderLen]); err != nil {
		return wire.Frame{}, err
	}
	size := int(buf[2])<<8 | int(buf[3])
	if size > wire.MaxPayload {
		return wire.Frame{}, fmt.Errorf("frame of %d bytes", size)
	}
	if _, err := io.ReadFull(r, buf[wire.HeaderLen:wire.HeaderLen+size]); err != nil {
		return wire.Frame{}, err
	}
	f, _, err := wire.Parse(buf[:wire.HeaderLen+size])
	return f, err
}

// readTable reads the n entries that an ATTACH or ATTACHED announced.
func readTable(r io.Reader, n, crc uint32, buf []byte) (raw []byte, table []wire.StreamState, err error) {
	want := int(n) * wire.StreamStateLen
	if n > 2*MaxStreams {
		return nil, nil, fmt.Errorf("table of %d streams, at most %d are possible", n, 2*MaxStreams)
	}
	for len(raw) < want {
		f, err := readFrame(r, buf)
		if err != nil {
			return nil, nil, err
		}
		if f.Type != wire.TypeST || f.Offset != uint64(len(raw)/wire.StreamStateLen) || len(raw)+len(f.Payload) > want {
			return nil, nil, fmt.Errorf("%s where entry %d of a table of %d was due", f.Type, len(raw)/wire.StreamStateLen, n)
		}
		raw = append(raw, f.Payload...)
	}
	if crc32.Checksum(raw, castagnoli) != crc {
		return nil, nil, errors.New("table with a wrong checksum")
	}
	table, err = wire.ParseTable(raw)
	return raw, table, err
}

// HostConfig says how a proxy keeps its links.
type HostConfig struct {
	Owner    Owner
	Log      *slog.Logger
	Budget   *Budget
	Instance [16]byte
	Carriers int           // 0: the default
	Transfer uint16        // port for carriers that ATTACHED announces; 0: none
	Detach   time.Duration // 0: DetachLimit
	// Admit says whether the key may (still) have a session; it is asked at every attach.
	Admit func(keyID [16]byte) bool
	// Draining says whether new sessions are refused.
	Draining func() bool
}

// Host is the proxy's end of all links: it decides which session a connection belongs to.
type Host struct {
	cfg HostConfig

	mu     sync.Mutex
	bySID  map[[16]byte]*Link // guarded by mu, as byKey
	byKey  map[[16]byte]*Link
	fresh  map[net.Conn]struct{} // authenticated, without a session yet
	closed bool
	expiry sync.WaitGroup
}

// NewHost returns a Host without links.
func NewHost(cfg HostConfig) *Host {
	if cfg.Carriers == 0 {
		cfg.Carriers = Carriers
	}
	if cfg.Detach == 0 {
		cfg.Detach = DetachLimit
	}
	if cfg.Budget == nil {
		cfg.Budget = NewBudget(0)
	}
	return &Host{cfg: cfg, bySID: map[[16]byte]*Link{}, byKey: map[[16]byte]*Link{}, fresh: map[net.Conn]struct{}{}}
}

// refusal is an attach that was answered with a status other than OK.
type refusal struct {
	status wire.Status
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("attach refused (%s): %s", r.status, r.text) }

// Serve attaches an authenticated connection and serves it until it ends. raw is what Socket returned for it.
func (h *Host) Serve(conn *auth.Conn, raw net.Conn) error {
	bc := raw.(*batchConn)
	defer bc.Conn.Close()
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrEnded
	}
	h.fresh[bc.Conn] = struct{}{}
	h.mu.Unlock()
	arrived := sync.OnceFunc(func() {
		h.mu.Lock()
		delete(h.fresh, bc.Conn)
		h.mu.Unlock()
	})
	defer arrived()
	bc.SetDeadline(time.Now().Add(attachTimeout))
	buf := make([]byte, wire.HeaderLen+wire.MaxPayload)
	f, err := readFrame(conn, buf)
	if err != nil {
		return fmt.Errorf("wait for ATTACH: %w", err)
	}
	if f.Type != wire.TypeAttach {
		conn.Write(wire.AppendErr(nil, wire.Err{Code: wire.ErrUnexpected, Text: f.Type.String() + " before ATTACH"}))
		return fmt.Errorf("%s before ATTACH", f.Type)
	}
	a, err := wire.ParseAttach(f)
	gen := f.Offset
	var rawTable []byte
	var table []wire.StreamState
	if err == nil {
		rawTable, table, err = readTable(conn, a.Streams, a.TableCRC, buf)
	}
	if err != nil {
		conn.Write(wire.AppendErr(nil, wire.Err{Code: wire.ErrFormat, Text: err.Error()}))
		return fmt.Errorf("read ATTACH: %w", err)
	}
	arrived()
	var l *Link
	if a.Mode == wire.ModeNew && gen != 1 {
		err = &refusal{wire.StatusStale, fmt.Sprintf("generation %d, a new session starts with 1", gen)}
	} else {
		l, err = h.find(conn, a)
	}
	if err == nil {
		var c *carrier
		if c, err = l.accept(h, conn, bc, gen, a, rawTable, table); err == nil {
			h.cfg.Owner.Attached(l, int(a.Slot))
			err = c.run(nil)
			h.cfg.Owner.Detached(l, int(a.Slot), err)
			return err
		}
	}
	var r *refusal
	var p *protocolError
	switch {
	case errors.As(err, &r):
		conn.Write(wire.AppendAttached(nil, gen, wire.Attached{Status: r.status, Slot: a.Slot, Text: r.text}))
	case errors.As(err, &p):
		conn.Write(wire.AppendErr(nil, wire.Err{Code: p.code, Text: p.text}))
		if p.fatal && l != nil {
			l.Kill(err)
		}
	}
	return err
}

// find returns the session that the connection belongs to, and makes a new one where that is asked for and possible.
func (h *Host) find(conn *auth.Conn, a wire.Attach) (*Link, error) {
	if !h.cfg.Admit(conn.KeyID) {
		return nil, &refusal{wire.StatusDenied, "the key was removed"}
	}
	if a.Mode != wire.ModeNew {
		h.mu.Lock()
		l := h.bySID[a.Session]
		h.mu.Unlock()
		if l == nil || l.keyID != conn.KeyID || a.WantInstance != h.cfg.Instance {
			return nil, &refusal{wire.StatusGone, "the proxy does not hold this session (any more)"}
		}
		return l, nil
	}
	if h.cfg.Draining() {
		return nil, &refusal{wire.StatusDraining, "the proxy is stopping"}
	}
	h.mu.Lock()
	old := h.byKey[conn.KeyID]
	h.mu.Unlock()
	if old != nil {
		// The same process knows best what became of its own link. Another one has to wait until the old one is silent.
		if old.peer != conn.Peer && old.Ping(probeOld) {
			return nil, &refusal{wire.StatusDuplicate, "another live bridge holds this key; give each bridge a key of its own (reverser key add NAME --allow ...)"}
		}
		old.Kill(ErrReplaced)
		h.forget(old)
	}
	l := newLink(true, h.cfg.Owner, h.cfg.Log, h.cfg.Budget, h.cfg.Carriers)
	l.begin(conn, a.Session)
	l.peerName = a.Name
	for _, sl := range l.slots {
		sl.core.peerWindow = min(uint64(a.Window), 1<<30)
		sl.core.maxStreams = min(int(a.MaxStreams), MaxStreams)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed || h.cfg.Draining():
		return nil, &refusal{wire.StatusDraining, "the proxy is stopping"}
	case !h.cfg.Admit(conn.KeyID): // it may have gone while the old link was asked for a sign of life
		return nil, &refusal{wire.StatusDenied, "the key was removed"}
	}
	if h.bySID[a.Session] != nil || h.byKey[conn.KeyID] != nil {
		return nil, &refusal{wire.StatusDuplicate, "another bridge attached with this key at the same time"}
	}
	h.bySID[a.Session], h.byKey[conn.KeyID] = l, l
	h.expiry.Go(func() {
		l.expire(h.cfg.Detach)
		h.forget(l)
	})
	return l, nil
}

// probeOld is how long an old link may be silent before a new bridge takes over.
const probeOld = 3 * time.Second

// ErrReplaced ends a session whose bridge began a newer one.
var ErrReplaced = errors.New("a newer session of the same bridge took over")

func (h *Host) forget(l *Link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bySID[l.sid] == l {
		delete(h.bySID, l.sid)
	}
	if h.byKey[l.keyID] == l {
		delete(h.byKey, l.keyID)
	}
}

// Links returns the live links.
func (h *Host) Links() []*Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ls []*Link
	for _, l := range h.byKey {
		ls = append(ls, l)
	}
	return ls
}

// Close ends all sessions and waits for what they started, but not for Serve calls, which end by it.
func (h *Host) Close(err error) {
	h.mu.Lock()
	h.closed = true
	for c := range h.fresh {
		c.Close()
	}
	h.mu.Unlock()
	for _, l := range h.Links() {
		l.Kill(err)
	}
	h.expiry.Wait()
}

// accept binds a connection to its slot at the proxy: prove, fence, rewind, answer.
func (l *Link) accept(h *Host, conn *auth.Conn, bc *batchConn, gen uint64, a wire.Attach, raw []byte, table []wire.StreamState) (*carrier, error) {
	if int(a.Slot) >= len(l.slots) {
		return nil, &refusal{wire.StatusLimit, fmt.Sprintf("slot %d, the proxy has %d", a.Slot, len(l.slots))}
	}
	if a.Mode != wire.ModeNew {
		want := auth.ResumeMAC(l.secret, conn.Exporter, l.sid, a.Slot, gen, raw)
		if !hmac.Equal(want[:], a.MAC[:]) {
			return nil, &refusal{wire.StatusGone, "the proxy does not hold this session (any more)"}
		}
	}
	sl := l.slots[a.Slot]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if gen <= sl.gen || gen > sl.gen+1<<32 {
		return nil, &refusal{wire.StatusStale, fmt.Sprintf("generation %d after %d", gen, sl.gen)}
	}
	sl.gen = gen
	sl.fence(errFenced)
	events, err := sl.core.apply(table)
	if err != nil {
		return nil, err
	}
	mine, crc := sl.core.table()
	msg := wire.AppendAttached(nil, gen, wire.Attached{
		Status: wire.StatusOK, Slot: a.Slot, Carriers: uint8(len(l.slots) - 1),
		Streams: uint32(len(mine) / wire.StreamStateLen), TableCRC: crc,
		Window: floorWindow, MaxStreams: MaxStreams, Transfer: h.cfg.Transfer,
	})
	msg = wire.AppendTable(msg, mine)
	c := newCarrier(sl, conn.Conn, bc)
	if l.Err() != nil {
		return nil, &refusal{wire.StatusGone, "the session is over"}
	}
	sl.install(c)
	for _, ev := range events {
		sl.handle(ev)
	}
	// The answer goes out before any frame, by the connection's own writer.
	c.greeting = msg
	return c, nil
}

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
			err = c.run(nil)
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

// attach dials one connection and binds it to slot i at the bridge: fence, count, ask, rewind.
func (d *Dialer) attach(ctx context.Context, l *Link, i int, mode wire.Mode, sid [16]byte, transfer uint16) (_ *carrier, at wire.Attached, err error) {
	sock, err := d.cfg.Dial(ctx, i > 0, transfer)
	if err != nil {
		return nil, at, err
	}
	tune(sock)
	bc := newBatchConn(sock)
	conn, err := auth.Client(ctx, bc, d.cfg.Auth)
	if err != nil {
		return nil, at, err
	}
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	defer func() {
		stop()
		if err != nil {
			sock.Close()
		}
	}()
	sock.SetDeadline(time.Now().Add(attachTimeout))
	sl := l.slots[i]
	if mode == wire.ModeNew {
		l.begin(conn, sid)
	} else if conn.Peer != l.peer {
		return nil, at, &refusal{wire.StatusGone, "the proxy was restarted"}
	}
	sl.mu.Lock()
	sl.fence(errFenced)
	sl.gen++
	gen := sl.gen
	raw, crc := sl.core.table()
	sl.mu.Unlock()
	a := wire.Attach{
		Mode: mode, Slot: uint8(i), Session: sid,
		Streams: uint32(len(raw) / wire.StreamStateLen), TableCRC: crc,
		Window: floorWindow, MaxStreams: MaxStreams, Name: d.cfg.Name,
	}
	if mode != wire.ModeNew {
		a.WantInstance = l.peer
		a.MAC = auth.ResumeMAC(l.secret, conn.Exporter, sid, uint8(i), gen, raw)
	}
	begin := time.Now()
	if _, err := conn.Write(wire.AppendTable(wire.AppendAttach(nil, gen, a), raw)); err != nil {
		return nil, at, fmt.Errorf("send ATTACH: %w", err)
	}
	buf := make([]byte, wire.HeaderLen+wire.MaxPayload)
	f, err := readFrame(conn, buf)
	if err != nil {
		return nil, at, fmt.Errorf("wait for ATTACHED: %w", err)
	}
	if f.Type == wire.TypeErr {
		return nil, at, fmt.Errorf("the proxy gave the connection up: %s", wire.ParseErr(f).Text)
	}
	if f.Type != wire.TypeAttached || f.Offset != gen {
		return nil, at, fmt.Errorf("%s where ATTACHED was due", f.Type)
	}
	if at, err = wire.ParseAttached(f); err != nil {
		return nil, at, err
	}
	if at.Status != wire.StatusOK {
		return nil, at, &refusal{at.Status, at.Text}
	}
	rtt := time.Since(begin)
	_, table, err := readTable(conn, at.Streams, at.TableCRC, buf)
	if err != nil {
		return nil, at, fmt.Errorf("read ATTACHED: %w", err)
	}
	c := newCarrier(sl, conn.Conn, bc)
	if err := sl.resume(c, table, rtt); err != nil {
		l.Kill(err)
		return nil, at, err
	}
	sock.SetDeadline(time.Time{})
	return c, at, nil
}

// resume goes on where the proxy's table says, on c.
func (sl *slot) resume(c *carrier, table []wire.StreamState, rtt time.Duration) error {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if err := sl.link.Err(); err != nil {
		return err
	}
	sl.core.rtt = smooth(sl.core.rtt, rtt)
	events, err := sl.core.apply(table)
	if err != nil {
		return err
	}
	sl.install(c)
	for _, ev := range events {
		sl.handle(ev)
	}
	return nil
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
