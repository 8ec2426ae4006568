package link

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// HostConfig says how a proxy keeps its links.
type HostConfig struct {
	Owner    Owner
	Say      SayFunc // nil: discard
	Budget   *Budget
	Instance [16]byte
	Carriers int           // 0: the default
	Transfer uint16        // port for carriers that ATTACHED announces; 0: none
	Detach   time.Duration // 0: DetachLimit
	// Admit returns why the key may not have a session (any more), in words for whoever runs the bridge, of MaxText bytes at the most; nil:
	// it may. It is asked at every attach. begins: the session is a new one.
	Admit func(keyID [16]byte, secret [32]byte, begins bool) error
	// Attached is told which secret of its key a connection has proven that was attached. nil: nobody is.
	Attached func(keyID [16]byte, secret [32]byte)
	// Draining reports whether new sessions are refused.
	Draining func() bool
	// Ask says of each PUBLIC why the key would not get it, "" if it would; nil: nothing is said.
	Ask func(keyID [16]byte, public []string) (why []string)
}

// Host is the proxy's end of all links: it decides which session a connection belongs to.
type Host struct {
	cfg      HostConfig
	arrivals arrivals
	tenants  tenants

	mu     sync.Mutex
	detach time.Duration        // guarded by mu, as all below
	bySID  map[[16]byte]*Link   // all
	byKey  map[[16]byte]*Link   // the newest of each key
	beside map[[16]byte][]*Link // by key: older ones, which are leaving and finish their streams; oldest first
	closed bool
	living sync.WaitGroup // links
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
	return &Host{
		cfg: cfg, detach: cfg.Detach, bySID: map[[16]byte]*Link{}, byKey: map[[16]byte]*Link{}, beside: map[[16]byte][]*Link{},
		arrivals: arrivals{most: attemptsOfASlot * (1 + cfg.Carriers), of: map[[16]byte][]*arrival{}},
	}
}

// SetDetach says how long the streams of links that begin from now on wait for a connection. 0: DetachLimit.
func (h *Host) SetDetach(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.detach = cmp.Or(d, DetachLimit)
}

// Serve attaches an authenticated connection and serves it until it ends.
func (h *Host) Serve(conn *auth.Conn) error {
	serve, err := h.Attach(conn)
	if err != nil {
		return err
	}
	return serve()
}

// Attach attaches an authenticated connection, or closes it. The caller calls serve, which returns when the connection has ended: best
// in a goroutine of its own, since the stack of one that made a handshake and found a session is large, and stays so for as long as
// the connection.
func (h *Host) Attach(conn *auth.Conn) (serve func() error, err error) {
	sys.TuneLink(conn.Conn.Conn, batch)
	if !h.arrivals.enter(conn) {
		conn.Close()
		return nil, ErrEnded
	}
	conn.SetDeadline(time.Now().Add(attachTimeout)) // one for all of it, whatever comes and however slowly
	l, c, err := h.attach(conn)
	h.arrivals.leave(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	l.proved(conn.Secret)
	if h.cfg.Attached != nil {
		h.cfg.Attached(conn.KeyID, conn.Secret)
	}
	h.cfg.Owner.Attached(l, int(c.slot.index))
	if c.slot.index == 0 {
		l.checkAll()
	}
	return func() error {
		err := c.run()
		h.cfg.Owner.Detached(l, int(c.slot.index), err)
		return err
	}, nil
}

// attach finds the session and binds the connection to its slot, or says to the peer why not.
func (h *Host) attach(conn *auth.Conn) (l *Link, c *carrier, err error) {
	if err := h.slow(conn); err != nil {
		complain(conn, err)
		return nil, nil, err
	}
	buf := make([]byte, attachScratch)
	a, gen, err := readAttach(conn, buf)
	unread := a.Streams > 0
	if err == nil && a.Ask != "" {
		conn.Write(wire.AppendAttached(nil, gen, h.answer(conn, a, gen)))
		return nil, nil, errAsked
	}
	if err == nil {
		h.arrivals.said(conn)
		l, err = h.find(conn, a, gen)
	}
	if err == nil { // nobody else's table is worth memory
		var sum [32]byte
		var table []wire.StreamState
		unread = false
		if sum, table, err = readTable(conn, a.Streams, a.TableCRC, a.Entry, buf); err == nil {
			c, err = l.accept(h, conn, gen, a, sum, table)
		}
	}
	if err == nil {
		return l, c, nil
	}
	if r, ok := errors.AsType[*ownRefusal](err); ok {
		conn.Write(wire.AppendAttached(nil, gen, wire.Attached{Status: r.status, Slot: a.Slot, Text: r.text, ComeBack: uint32(r.comeBack.Milliseconds())}))
		if unread {
			drain(conn.Conn)
		}
	}
	if p, ok := errors.AsType[*violationError](err); ok && p.fatal {
		l.Kill(err)
	}
	complain(conn, err)
	return nil, nil, err
}

// slow makes a connection wait, or refuses it, whose key makes very many. A refusal ends no session, as those in ATTACHED do.
func (h *Host) slow(conn *auth.Conn) error {
	wait, ok := h.tenants.come(conn.KeyID)
	if !ok {
		return misfit(wire.ErrFlood, "more than %d connections a second with this key", connRate)
	}
	if wait > 0 {
		time.Sleep(wait)
	}
	return nil
}

// readAttach reads the first frame of a connection.
func readAttach(conn *auth.Conn, buf []byte) (a wire.Attach, gen uint64, err error) {
	f, err := readFrame(conn, buf)
	if err != nil {
		return a, 0, fmt.Errorf("wait for ATTACH: %w", err)
	}
	if f.Type != wire.TypeAttach {
		return a, 0, misfit(wire.ErrUnexpected, "%s before ATTACH", f.Type)
	}
	a, err = wire.ParseAttach(f)
	if unsupported, ok := errors.AsType[*wire.UnsupportedError](err); ok {
		return a, f.Offset, &ownRefusal{status: wire.StatusUnsupported, text: unsupported.Error()}
	}
	if err != nil {
		return a, f.Offset, asViolation(err)
	}
	return a, f.Offset, checkTable(a.Streams)
}

// errAsked ends a connection that only asked.
var errAsked = errors.New("it asked, and got its answer")

// answer is what a bridge would be told that begins a session, and nothing begins or ends by it.
func (h *Host) answer(conn *auth.Conn, a wire.Attach, gen uint64) wire.Attached {
	at := wire.Attached{Status: wire.StatusOK}
	refused := h.mayAttach(conn, a, gen)
	if refused == nil {
		h.mu.Lock()
		old := h.byKey[conn.KeyID]
		h.mu.Unlock()
		switch {
		case h.cfg.Draining():
			refused = refuseDraining()
		case old != nil && !old.Leaving() && !old.frozen() && !old.superseded(conn.Secret) && old.Ping(oldLinkTimeout):
			refused = refuseDuplicate()
		}
	}
	if refused != nil {
		at.Status, at.Text, at.ComeBack = refused.status, refused.text, uint32(refused.comeBack.Milliseconds())
	}
	if h.cfg.Ask == nil || at.Status == wire.StatusDenied {
		return at
	}
	for _, why := range h.ask(conn.KeyID, strings.Split(strings.TrimSuffix(a.Ask, "\n"), "\n")) {
		line := strings.ReplaceAll(why, "\n", " ") + "\n"
		if len(at.Answers)+len(line) > wire.MaxAsk {
			break
		}
		at.Answers += line
	}
	return at
}

// askedAtOnce is how many names are looked up in one turn.
const askedAtOnce = 64

// ask looks names up, a few in each turn and at the pace of the key.
func (h *Host) ask(key [16]byte, public []string) (why []string) {
	for some := range slices.Chunk(public, askedAtOnce) {
		InTurn(func() { why = append(why, h.cfg.Ask(key, some)...) })
		h.tenants.keep(key)
	}
	return why
}

func refuseDraining() *ownRefusal {
	return &ownRefusal{status: wire.StatusDraining, text: "the proxy is stopping", comeBack: time.Second}
}

func refuseDuplicate() *ownRefusal {
	return &ownRefusal{status: wire.StatusDuplicate, comeBack: 5 * time.Second,
		text: "another live bridge holds this key; give each bridge a key of its own (reverser key add NAME --allow ...)"}
}

// mayAttach refuses a connection that may not have any session.
func (h *Host) mayAttach(conn *auth.Conn, a wire.Attach, gen uint64) *ownRefusal {
	if a.Mode == wire.ModeNew && gen != 1 {
		return &ownRefusal{status: wire.StatusStale, text: fmt.Sprintf("generation %d, a new session starts with 1", gen)}
	}
	if why := h.cfg.Admit(conn.KeyID, conn.Secret, a.Mode == wire.ModeNew); why != nil {
		return &ownRefusal{status: wire.StatusDenied, text: why.Error()}
	}
	if conn.Role != wire.RoleBridge {
		return &ownRefusal{status: wire.StatusUnsupported, text: "this proxy serves bridges only, and neither visitors nor other proxies: update it"}
	}
	return nil
}

// find returns the session that the connection belongs to, and makes a new one where that is asked for and possible.
func (h *Host) find(conn *auth.Conn, a wire.Attach, gen uint64) (*Link, error) {
	if refused := h.mayAttach(conn, a, gen); refused != nil {
		return nil, refused
	}
	if a.Mode != wire.ModeNew {
		h.mu.Lock()
		l := h.bySID[a.Session]
		h.mu.Unlock()
		if l == nil || l.keyID != conn.KeyID || a.WantInstance != h.cfg.Instance {
			return nil, &ownRefusal{status: wire.StatusGone, text: "the proxy does not hold this session (any more)"}
		}
		if int(a.Slot) >= len(l.slots) {
			return nil, &ownRefusal{status: wire.StatusLimit, text: fmt.Sprintf("slot %d, the proxy has %d", a.Slot, len(l.slots))}
		}
		return l, nil
	}
	h.mu.Lock()
	old := h.byKey[conn.KeyID]
	h.mu.Unlock()
	draining := refuseDraining()
	successor := old != nil && old.peer != conn.Peer && old.Leaving() && !h.cfg.Draining() && !old.frozen()
	if old != nil && !successor { // also while draining: or the drain would wait for streams whose bridge is gone for good
		if old.frozen() {
			return nil, ErrFrozen
		}
		stopping := h.cfg.Draining()
		// The same process knows best what became of its own link, but it may finish that one beside a session elsewhere. Another one
		// has to wait until the old one is silent.
		switch alive := (old.peer != conn.Peer && !old.superseded(conn.Secret) || stopping) && old.Ping(oldLinkTimeout); {
		case alive && stopping:
			return nil, draining
		case alive:
			return nil, refuseDuplicate()
		}
		old.Kill(ErrReplaced)
		h.forget(old)
	}
	l := newLink(false, h.cfg.Owner, h.cfg.Say, h.cfg.Budget.share(conn.KeyID), h.cfg.Carriers)
	l.begin(conn, a.Session)
	l.peerName = a.Name
	l.proved(conn.Secret)
	l.agree(a.Window, a.MaxStreams)
	if successor {
		h.makeRoom(conn.KeyID)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	l.limit = shorter(h.detach, a.Detach)
	if h.closed || h.cfg.Draining() {
		return nil, draining
	}
	if why := h.cfg.Admit(conn.KeyID, conn.Secret, true); why != nil { // it may have gone while the old link was asked for a sign of life
		return nil, &ownRefusal{status: wire.StatusDenied, text: why.Error()}
	}
	if now := h.byKey[conn.KeyID]; h.bySID[a.Session] != nil || now != nil && !(successor && now == old) {
		return nil, &ownRefusal{status: wire.StatusDuplicate, text: "another bridge attached with this key at the same time"}
	}
	if successor && h.byKey[conn.KeyID] == old {
		h.beside[conn.KeyID] = append(h.beside[conn.KeyID], old)
	}
	h.addLocked(l)
	return l, nil
}

// proved notes which secret of its key a connection of a session has proven. They come in any order: one that was under way for long may
// prove the former secret when others have proven the new one.
func (l *Link) proved(secret [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.proven, secret) {
		return
	}
	if len(l.proven) == mostProven {
		l.proven = slices.Delete(l.proven, 0, 1)
	}
	l.proven = append(l.proven, secret)
}

// mostProven bounds what a session remembers of its secrets. A connection proves the present one, its successor or the one before.
const mostProven = 4

// superseded reports whether a bridge that proved a secret has a newer token than the bridge of this session, which never proved that one.
// Admit lets no older one begin. Of a session that was handed over nothing is known until it has a connection.
func (l *Link) superseded(secret [32]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.proven) > 0 && !slices.Contains(l.proven, secret)
}

// maxBeside is how many bridges of one key may finish their streams beside their successor.
const maxBeside = 4

// makeRoom ends the oldest link that a key has beside its newest, if there are as many as may be.
func (h *Host) makeRoom(key [16]byte) {
	h.mu.Lock()
	var oldest *Link
	if older := h.beside[key]; len(older) >= maxBeside {
		oldest = older[0]
	}
	h.mu.Unlock()
	if oldest != nil {
		oldest.Kill(errCrowded)
		h.forget(oldest)
	}
}

var errCrowded = fmt.Errorf("more than %d bridges with this key are stopping", maxBeside)

// addLocked makes l known and watches over its outages.
func (h *Host) addLocked(l *Link) {
	l.tenants = &h.tenants
	h.bySID[l.sid], h.byKey[l.keyID] = l, l
	h.living.Add(1)
	l.watchOutages(func() {
		h.forget(l)
		h.living.Done()
	})
}

// oldLinkTimeout is how long an old link may be silent before a new bridge takes over.
const oldLinkTimeout = 3 * time.Second

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
	if older := slices.DeleteFunc(h.beside[l.keyID], func(o *Link) bool { return o == l }); len(older) > 0 {
		h.beside[l.keyID] = older
	} else {
		delete(h.beside, l.keyID)
	}
}

// Link returns the newest live link of a key, nil if there is none.
func (h *Host) Link(key [16]byte) *Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byKey[key]
}

// Links returns the live links.
func (h *Host) Links() []*Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ls []*Link
	for _, l := range h.bySID {
		ls = append(ls, l)
	}
	return ls
}

// Close ends all sessions and waits for what they started, but not for Serve calls, which end by it.
func (h *Host) Close(err error) {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.arrivals.close()
	for _, l := range h.Links() {
		l.Kill(err)
	}
	h.living.Wait()
}
