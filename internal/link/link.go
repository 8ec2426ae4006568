// Package link carries streams between a bridge and a proxy over a few TLS connections, any of which may break without a
// stream noticing (spec/PROTOCOL.md).
//
// The package does not know what a stream is connected to, which services exist or who may have them: its Owner does. A link has a
// control connection (slot 0) and carriers (slots 1…K); the protocol state of each slot is a core, which is deterministic, and the
// goroutines around it only move bytes.
//
// Goroutines: a connection's reader and writer belong to carrier.run; carrier.run belongs to who called Host.Attach (proxy) or to
// Dialer.Run (bridge). A stream has none of its own.
package link

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/wire"
)

// Carriers is the default number of connections that carry streams, besides the control connection.
const Carriers = 4

// DetachLimit is how long a link's streams wait for a connection to come back before they are reset.
const DetachLimit = 5 * time.Minute

// Owner is the part of a proxy or bridge that a Link reports to. The methods are called without any lock held, from the
// goroutine that reads the connection: they must not wait.
type Owner interface {
	Opened(*Stream) // the peer opened a stream
	// Message is told of CLAIM, CLAIMED, UNCLAIM, UNCLAIMED and ROUND. The payload is valid during the call only. An error
	// made by Violation, or a *wire.FormatError, ends the session, any other one the connection.
	Message(l *Link, f wire.Frame) error
	Attached(l *Link, slot int)             // a connection serves the slot from now on
	Detached(l *Link, slot int, err error)  // none does any more
	GoingAway(l *Link, drain time.Duration) // the peer is stopping
	Ended(l *Link, err error)               // the session is over; its streams were reset
}

// Link is one session between a bridge and a proxy.
type Link struct {
	dials    bool // this end is the one that dials
	owner    Owner
	say      SayFunc
	start    time.Time
	share    *share   // of the memory for windows
	tenants  *tenants // proxy: the host's, from when the link is known
	sid      [16]byte
	secret   [32]byte // of the session; proves a resume
	keyID    [16]byte
	peer     [16]byte  // instance of the peer's process
	role     wire.Role // of the dialling end
	peerName string
	slots    []*slot
	ended    chan struct{}
	heard    bell // a frame of a link itself came, or a connection began or ended
	back     bell // bridge: a connection was attached

	reach    uint8          // bridge: the highest slot that the proxy accepts
	transfer uint16         // bridge: the port for carriers that the proxy announced; 0: none
	limit    time.Duration  // of an outage
	serving  sync.WaitGroup // connections that were installed

	leaving leaving
	upkeep  upkeep

	mu      sync.Mutex
	err     error       // why the session ended; guarded by mu, as all below
	outages *time.Timer // calls checkOutages
	atEnd   func()

	proven [][32]byte // proxy: the secrets of the key that connections of the session have proven, the last few
}

// SayFunc logs what a peer caused, which it may do as often as it likes: the function bounds the lines of each key or proxy, whatever
// sessions they come from, and never waits.
type SayFunc func(l *Link, level slog.Level, msg string, args ...any)

func newLink(dials bool, owner Owner, say SayFunc, memory *share, carriers int) *Link {
	if say == nil {
		say = func(*Link, slog.Level, string, ...any) {}
	}
	l := &Link{dials: dials, owner: owner, say: say, share: memory, start: time.Now(), ended: make(chan struct{}), leaving: leaving{left: make(chan struct{})}}
	for i := range carriers + 1 {
		l.slots = append(l.slots, &slot{link: l, index: uint8(i), core: newCore(dials, uint8(i), memory)})
	}
	return l
}

// now is the link's clock. It starts above zero, so that a value of it is never mistaken for none.
func (l *Link) now() time.Duration { return time.Since(l.start) + time.Millisecond }

// KeyID is the key that the bridge proved.
func (l *Link) KeyID() [16]byte { return l.keyID }

// Peer is the instance of the peer's process.
func (l *Link) Peer() [16]byte { return l.peer }

// PeerName is what the bridge calls its host.
func (l *Link) PeerName() string { return l.peerName }

// Features are those of the control connection, or of the last one while there is none.
func (l *Link) Features() wire.Features {
	sl := l.slots[0]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.core.features
}

// Done is closed when the session is over.
func (l *Link) Done() <-chan struct{} { return l.ended }

// Err says why the session is over; nil while it is not.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// ErrEnded says that the session is over.
var ErrEnded = errors.New("the link's session is over")

// Open makes a stream, at either end, on the carrier that has the least to do. It returns at once; the peer learns of the stream with the next
// batch, or when a connection is back.
func (l *Link) Open(o wire.Open) (*Stream, error) {
	best := l.idlest()
	best.mu.Lock()
	for range l.slots { // a connection that has gone, or is known to be dead, meanwhile is not the idlest any more
		if best.connected() {
			break
		}
		best.mu.Unlock()
		best = l.idlest()
		best.mu.Lock()
	}
	s, err := l.openLocked(best, o)
	missing, several := best.cur == nil, len(best.core.streams) > 1
	best.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case missing:
		l.check(best)
	case several && l.dials:
		l.wantCarriers()
	}
	return s, nil
}

func (l *Link) openLocked(best *slot, o wire.Open) (*Stream, error) {
	switch {
	case l.Err() != nil, l.leaving.closed.Load():
		return nil, ErrEnded
	case best.frozen:
		return nil, ErrFrozen
	}
	if !best.core.mayOpen() {
		return nil, fmt.Errorf("the proxy takes no connections from this end (%s): update the proxy", wire.FeatureDialOpens)
	}
	if best.core.full() {
		return nil, fmt.Errorf("the peer accepts no more than %d connections on each carrier", best.core.limits.open)
	}
	s := best.core.open(o).whole
	s.bind(best)
	best.wake()
	return s, nil
}

// idlest returns the carrier that a new stream is best on.
func (l *Link) idlest() (best *slot) {
	var least load
	for _, sl := range l.slots[1:] {
		if at := sl.load(); best == nil || at.less(least) {
			best, least = sl, at
		}
	}
	return best
}

// load is what counts against a carrier for a new stream, the most important first.
type load struct {
	full    int    // 1: it may not have more, or was never there, and may never be
	away    int    // 0: it is connected, 1: it was, 2: it never was
	bytes   uint64 // lately, in steps that only bulk reaches
	streams int
}

// bulkStep is from how many bytes in half a second on a carrier counts as busy. What bulk has in the kernel's buffers at both
// ends, megabytes on a fast path, passes before a keystroke on the same carrier.
const bulkStep = 1 << 20

func (sl *slot) load() (at load) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	switch {
	case sl.cur != nil && !sl.cur.hungUp && sl.link.now() < sl.cur.answerBy(suspectAfter, 2):
	case sl.attached:
		at.away = 1
	default:
		at.away = 2
	}
	at.bytes = sl.core.traffic.lately(sl.link.now()) / bulkStep
	at.streams = len(sl.core.streams)
	if sl.core.full() || at.away == 2 {
		at.full = 1
	}
	return at
}

func (a load) less(b load) bool {
	return cmp.Or(cmp.Compare(a.full, b.full), cmp.Compare(a.away, b.away), cmp.Compare(a.bytes, b.bytes), cmp.Compare(a.streams, b.streams)) < 0
}

// Kill ends the session: every stream is reset at once, every connection closed.
func (l *Link) Kill(err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	close(l.ended)
	atEnd := l.atEnd
	if l.outages != nil {
		l.outages.Stop()
	}
	l.mu.Unlock()
	for _, sl := range l.slots {
		sl.mu.Lock()
		sl.fence(err)
		abort := sl.killStreams()
		sl.mu.Unlock()
		abort()
	}
	l.owner.Ended(l, err)
	if atEnd != nil {
		atEnd()
	}
}

// killStreams ends every stream of the slot. mu is held; abort, which tells their receivers, is called without it.
func (sl *slot) killStreams() (abort func()) {
	var receivers []Receiver
	for _, s := range sl.core.streams {
		if r := s.whole.kill(wire.CodeAborted); r != nil {
			receivers = append(receivers, r)
		}
		sl.core.remove(s)
	}
	return func() {
		for _, r := range receivers {
			r.Abort(wire.CodeAborted)
		}
	}
}

// Up reports whether the link can carry new streams at once, and the peer is not stopping.
func (l *Link) Up() bool { return !l.Leaving() && l.Connected() }

// Connected reports whether the link can carry new streams at once. A peer that is stopping may take them still.
func (l *Link) Connected() bool {
	if l.Err() != nil || l.leaving.closed.Load() {
		return false
	}
	for _, sl := range l.slots[1:] {
		sl.mu.Lock()
		up := sl.connected()
		sl.mu.Unlock()
		if up {
			return true
		}
	}
	return false
}

// connected reports whether the slot has a connection whose peer is there, as far as this machine knows. It asks the kernel, which
// knows that a bridge was killed before the reader does: the reader may have megabytes to read ahead of the reset, and a user who got
// a stream meanwhile would be reset with it. mu is held.
func (sl *slot) connected() bool {
	c := sl.cur
	if c != nil && !c.hungUp {
		c.hungUp = c.conn.HungUp()
	}
	return c != nil && !c.hungUp
}

// Say queues a frame on the control connection. A later one with the same id replaces it, in its place in the queue, unless it
// has gone out: only the last counts. While the control connection is down nothing is queued: when it is back the owner says
// everything again.
func (l *Link) Say(id uint64, frame []byte) {
	sl := l.slots[0]
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.cur == nil {
		return
	}
	sl.core.say(id, frame)
	sl.wake()
}

// Marks returns the highest id of a stream that this end opened in each carrier; 0 where it opened none.
func (l *Link) Marks() []wire.Mark {
	marks := make([]wire.Mark, 0, len(l.slots)-1)
	for _, sl := range l.slots[1:] {
		sl.mu.Lock()
		marks = append(marks, wire.Mark{Slot: sl.index, Stream: sl.core.mark()})
		sl.mu.Unlock()
	}
	return marks
}

// CheckMarks returns a violation when marks that the peer sent cannot be those of its streams.
func (l *Link) CheckMarks(marks []wire.Mark) error {
	slots := len(l.slots)
	if l.dials {
		slots = min(slots, 1+int(l.reach))
	}
	for _, m := range marks {
		switch {
		case m.Stream == 0:
		case int(m.Slot) >= slots:
			return Violation(wire.ErrClaimInvalid, "stream %#x as the mark of slot %d, which this link does not have", m.Stream, m.Slot)
		case m.Stream&^dialled <= 0xff:
			return Violation(wire.ErrClaimInvalid, "stream %#x as a mark, which cannot be opened", m.Stream)
		case l.slots[m.Slot].core.mine(m.Stream):
			return Violation(wire.ErrClaimInvalid, "stream %#x of the receiver as a mark", m.Stream)
		}
	}
	return nil
}

// Ping asks for a sign of life on every connection and reports whether one came within d. A connection that takes a slot
// meanwhile counts as one. Without any connection it returns false at once.
func (l *Link) Ping(d time.Duration) bool {
	type seen struct {
		c    *carrier
		read int64
	}
	before := make([]seen, len(l.slots))
	for i, sl := range l.slots {
		sl.mu.Lock()
		if c := sl.cur; c != nil {
			before[i] = seen{c, c.lastRead.Load()}
			c.ping(l.now())
		}
		sl.mu.Unlock()
	}
	late := time.NewTimer(max(d, soonest))
	defer late.Stop()
	for timeout := false; ; {
		heard, up := l.heard.wait(), false
		for i, sl := range l.slots {
			sl.mu.Lock()
			c := sl.cur
			up = up || c != nil
			alive := c != nil && (c != before[i].c || c.lastRead.Load() != before[i].read)
			sl.mu.Unlock()
			if alive {
				return true
			}
		}
		if timeout || !up {
			return false
		}
		select {
		case <-l.ended:
			return false
		case <-heard:
		case <-late.C:
			timeout = true
		}
	}
}

// watchOutages ends the session when a slot that was attached had no connection for the limit of an outage. atEnd is called when the
// session is over.
func (l *Link) watchOutages(atEnd func()) {
	l.share.join(l)
	end := func() { l.share.leave(l); atEnd() }
	l.mu.Lock()
	over := l.err != nil
	if !over {
		l.atEnd = end
		l.outages = time.AfterFunc(l.limit, l.checkOutages)
	}
	l.mu.Unlock()
	if over {
		end()
	}
}

func (l *Link) checkOutages() {
	// A slot that loses its connection later is not due before the whole limit has passed again.
	left := l.limit
	for _, sl := range l.slots {
		sl.mu.Lock()
		if sl.cur == nil && sl.attached && !sl.frozen && (sl.index == 0 || len(sl.core.streams) > 0 || l.upkeep.interval() == 0) {
			left = min(left, l.limit-(l.now()-sl.since))
		}
		sl.mu.Unlock()
	}
	if left <= 0 {
		l.Kill(fmt.Errorf("no connection came back within %s", l.limit))
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.outages.Reset(left)
	}
}

// agree takes over what the peer said about the streams that it accepts: how many in a slot, and their first credit.
func (l *Link) agree(window, streams uint32) {
	for _, sl := range l.slots {
		sl.mu.Lock()
		sl.core.limits.agree(window, streams)
		sl.mu.Unlock()
	}
}

// begin notes what the first connection settles for the session.
func (l *Link) begin(c *auth.Conn, sid [16]byte) {
	l.sid, l.keyID, l.peer, l.role = sid, c.KeyID, c.Peer, c.Role
	l.secret = auth.SessionSecret(c, sid)
}
