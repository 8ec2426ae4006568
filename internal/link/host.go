package link

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/wire"
)

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
	Admit func(keyID [16]byte, secret [32]byte) bool
	// Draining says whether new sessions are refused.
	Draining func() bool
}

// Host is the proxy's end of all links: it decides which session a connection belongs to.
type Host struct {
	cfg HostConfig

	mu     sync.Mutex
	bySID  map[[16]byte]*Link    // all sessions; guarded by mu, as all below
	byKey  map[[16]byte]*Link    // the present session of each key
	beside map[[16]byte][]*Link  // sessions whose bridge is stopping and has a successor, the oldest first
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
	return &Host{cfg: cfg, bySID: map[[16]byte]*Link{}, byKey: map[[16]byte]*Link{}, beside: map[[16]byte][]*Link{}, fresh: map[net.Conn]struct{}{}}
}

// Serve attaches an authenticated connection and serves it until it ends.
func (h *Host) Serve(conn *auth.Conn) error {
	defer conn.Close()
	tune(conn.Conn.Conn)
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrEnded
	}
	h.fresh[conn] = struct{}{}
	h.mu.Unlock()
	arrived := sync.OnceFunc(func() {
		h.mu.Lock()
		delete(h.fresh, conn)
		h.mu.Unlock()
	})
	defer arrived()
	conn.SetDeadline(time.Now().Add(attachTimeout))
	buf := make([]byte, wire.HeaderLen+wire.MaxPayload)
	a, gen, sum, table, err := readAttach(conn, buf)
	if err != nil {
		refuse(conn, gen, a.Slot, err)
		complain(conn, err)
		return fmt.Errorf("wait for ATTACH: %w", err)
	}
	arrived()
	var l *Link
	if a.Mode == wire.ModeNew && gen != 1 {
		err = &refusal{status: wire.StatusStale, text: fmt.Sprintf("generation %d, a new session starts with 1", gen)}
	} else {
		l, err = h.find(conn, a)
	}
	if err == nil {
		var c *carrier
		if c, err = l.accept(h, conn, gen, a, sum, table); err == nil {
			h.cfg.Owner.Attached(l, int(a.Slot))
			err = c.run()
			h.cfg.Owner.Detached(l, int(a.Slot), err)
			return err
		}
	}
	refuse(conn, gen, a.Slot, err)
	complain(conn, err)
	if p, ok := errors.AsType[*protocolError](err); ok && p.fatal {
		l.Kill(err)
	}
	return err
}

// refuse answers an ATTACH with the status that err is of.
func refuse(conn *auth.Conn, gen uint64, slot uint8, err error) {
	if r, ok := errors.AsType[*refusal](err); ok {
		conn.Write(wire.AppendAttached(nil, gen, wire.Attached{Status: r.status, Slot: slot, Text: r.text}))
	}
}

// readAttach reads the first frame of a connection, and the table behind it.
func readAttach(conn *auth.Conn, buf []byte) (a wire.Attach, gen uint64, sum [32]byte, table []wire.StreamState, err error) {
	f, err := readFrame(conn, buf)
	if err != nil {
		return a, 0, sum, nil, err
	}
	if f.Type != wire.TypeAttach {
		return a, 0, sum, nil, misfit(wire.ErrUnexpected, "%s before ATTACH", f.Type)
	}
	gen = f.Offset
	if a, err = wire.ParseAttach(f); err != nil {
		if u, ok := errors.AsType[*wire.UnsupportedError](err); ok {
			return a, gen, sum, nil, &refusal{status: wire.StatusUnsupported, text: u.Error()}
		}
		return a, 0, sum, nil, asViolation(err)
	}
	sum, table, err = readTable(conn, a.Streams, a.TableCRC, a.Entry, buf)
	return a, gen, sum, table, err
}

// find returns the session that the connection belongs to, and makes a new one where that is asked for and possible.
func (h *Host) find(conn *auth.Conn, a wire.Attach) (*Link, error) {
	if !h.cfg.Admit(conn.KeyID, conn.Secret) {
		return nil, &refusal{status: wire.StatusDenied, text: "the key was removed"}
	}
	if conn.Role != wire.RoleBridge {
		return nil, &refusal{status: wire.StatusUnsupported, text: "this proxy serves bridges only, and neither visitors nor other proxies: update it"}
	}
	if a.Mode != wire.ModeNew {
		h.mu.Lock()
		l := h.bySID[a.Session]
		h.mu.Unlock()
		if l == nil || l.keyID != conn.KeyID || a.WantInstance != h.cfg.Instance {
			return nil, &refusal{status: wire.StatusGone, text: "the proxy does not hold this session (any more)"}
		}
		return l, nil
	}
	h.mu.Lock()
	old := h.byKey[conn.KeyID]
	h.mu.Unlock()
	draining := &refusal{status: wire.StatusDraining, text: "the proxy is stopping"}
	if old != nil && old.frozen() {
		return nil, ErrFrozen
	}
	stopping := h.cfg.Draining()
	if old != nil && (stopping || !succeeds(conn, old)) { // also while draining: or the drain would wait for streams whose bridge is gone for good
		// The same process knows best what became of its own link, but it may finish that one beside a session elsewhere. Another one
		// has to wait until the old one is silent.
		switch alive := (old.peer != conn.Peer || stopping) && old.Ping(probeOld); {
		case alive && stopping:
			return nil, draining
		case alive:
			return nil, &refusal{status: wire.StatusDuplicate, text: "another live bridge holds this key; give each bridge a key of its own (reverser key add NAME --allow ...)"}
		}
		old.Kill(ErrReplaced)
		h.forget(old)
	}
	l := newLink(false, h.cfg.Owner, h.cfg.Log, h.cfg.Budget, h.cfg.Carriers)
	l.begin(conn, a.Session)
	l.peerName, l.limit = a.Name, shorter(h.cfg.Detach, a.Detach)
	l.agree(a.Window, a.MaxStreams)
	var crowded *Link
	defer func() {
		if crowded != nil {
			crowded.Kill(ErrReplaced)
		}
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed || h.cfg.Draining():
		return nil, draining
	case !h.cfg.Admit(conn.KeyID, conn.Secret): // it may have gone while the old link was asked for a sign of life
		return nil, &refusal{status: wire.StatusDenied, text: "the key was removed"}
	}
	old = h.byKey[conn.KeyID]
	if h.bySID[a.Session] != nil || old != nil && !succeeds(conn, old) {
		return nil, &refusal{status: wire.StatusDuplicate, text: "another bridge attached with this key at the same time"}
	}
	h.addLocked(l)
	if len(h.beside[conn.KeyID]) > mostBeside {
		crowded = h.beside[conn.KeyID][0]
	}
	return l, nil
}

// succeeds reports whether the bridge at the other end of conn takes over from a session of its key that is about to end, and
// goes on beside it. A bridge that is its own successor has given that session up.
func succeeds(conn *auth.Conn, old *Link) bool {
	return old.Leaving() && old.peer != conn.Peer && old.Err() == nil
}

// mostBeside bounds the sessions of a key that finish what they have beside the present one.
const mostBeside = 3

// addLocked makes l known and watches over its outages.
func (h *Host) addLocked(l *Link) {
	h.bySID[l.sid] = l
	switch present := h.byKey[l.keyID]; {
	case present != nil && l.Leaving() && !present.Leaving(): // taken over from another process of this proxy, in any order
		h.beside[l.keyID] = append(h.beside[l.keyID], l)
	case present != nil:
		h.beside[l.keyID] = append(h.beside[l.keyID], present)
		fallthrough
	default:
		h.byKey[l.keyID] = l
	}
	h.expiry.Go(func() {
		l.expire()
		h.forget(l)
	})
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
	if i := slices.Index(h.beside[l.keyID], l); i >= 0 {
		h.beside[l.keyID] = slices.Delete(h.beside[l.keyID], i, i+1)
		if len(h.beside[l.keyID]) == 0 {
			delete(h.beside, l.keyID)
		}
	}
}

// Links returns the live links, those that are about to end included.
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
	for c := range h.fresh {
		c.Close()
	}
	h.mu.Unlock()
	for _, l := range h.Links() {
		l.Kill(err)
	}
	h.expiry.Wait()
}
