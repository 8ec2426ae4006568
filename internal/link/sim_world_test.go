package link

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"reverser/internal/wire"
)

// The simulated world: a proxy and a bridge process with the core of one slot each, connections between them that are
// byte streams, and the sockets of users and services at the far ends. It has no goroutine and no clock. Everything that
// happens is an action (actions below), and every choice that an action makes comes from pick, so that a seed, a fuzz input
// or rapid can drive it. After each step check (sim_check_test.go) looks at all invariants.

// The two ends, as indexes.
const (
	atProxy = iota
	atBridge
)

var endNames = [...]string{"proxy", "bridge"}

type sim struct {
	pick  func(what string, n int) int // a number in [0,n)
	trace func(format string, args ...any)
	err   error // the first violation

	now    time.Duration
	procs  [2]*process
	conns  []*conn
	pairs  []*pair
	live   []*pair // not yet over at both ends
	sids   uint64
	opened int
	serial int
	stats  simStats

	// Kinds of worlds with faults that the rules do not promise to survive unnoticed, but to answer in a certain way.
	leaky   bool // fences let late DATA, ACK and END of known streams through: nobody may notice
	corrupt bool // payloads change on their way (a fault of hardware): never a clean end
	lying   bool // tables name positions that the peer cannot have: the session ends
	limited bool // each end accepts fewer streams than the other one opens
	small   bool // little memory for windows
}

// simStats says what a run went through, so that a test can tell whether the faults happen at all.
type simStats struct {
	steps, bytes, resumes, stale, sessions, leaks, lies, wrong int
	handedOver, carried, finished                              int    // processes that were handed over, and the streams that went with them
	withdrawn, lent                                            int    // streams, and how often there was credit that was lent
	opened                                                     [2]int // streams, by the end that opened them
}

// process is the part of a proxy or bridge process that matters here. A crash replaces it.
type process struct {
	end      int
	budget   *share
	squeezed int64 // charged by others than the slot
	seen     shareSeen
	sid      [16]byte
	core     *core           // of the live session, nil while there is none
	begun    bool            // bridge: the session was answered once
	newest   *conn           // the connection that this end dialled or accepted last
	opened   map[uint64]bool // ids that this end opened in the present session
	last     uint64
	socks    map[*streamCore]*sock // of the present session, and forgotten ones that still deliver
}

// conn is one connection. dir[e] holds what is on its way to end e.
type conn struct {
	id   int
	gen  uint64
	sid  [16]byte
	hail []byte // ATTACH and its table, as sent
	ends [2]connEnd
	dir  [2]flow
}

type connEnd struct {
	open     bool
	attached bool
	in       []byte          // arrived, not yet a whole frame
	leak     []byte          // what a leaky fence lets through
	missed   map[uint64]bool // streams of which the leak lost a frame: nothing later of them may come
	lie      uint64          // the stream about which the table that this end sent lies
}

type flow struct {
	buf  []byte
	cut  bool // nothing more enters
	mute bool // nothing arrives, and nobody is told
}

// pair is one user's connection, from end to end.
type pair struct {
	n         int
	opener    int // the end at which the user is
	socks     [2]*sock
	dials     int
	sid       [16]byte
	died      bool // a session or process that carried it ended
	refused   bool // by the service or the bridge
	withdrawn bool // its memory was needed by others
}

// sock is the user's or the service's socket.
type sock struct {
	pair   *pair
	end    int
	proc   *process
	core   *core
	s      *streamCore
	lazy   bool // reads only when told to
	sent   uint64
	fin    bool // it said FIN
	rst    bool // it was reset by its own side
	closed bool // its program closed it and reads no more
	got    uint64
	wait   int          // received, not read yet
	coming wire.EndKind // to be told behind wait
	code   wire.Code
	told   wire.EndKind
	una    uint64 // what was acknowledged and granted to it when last looked at
	credit uint64
	wrong  bool // wrong bytes arrived
	dead   bool // reset because its session or process ended
}

func (k *sock) peer() *sock { return k.pair.socks[1-k.end] }

// over says that the socket has no business any more.
func (k *sock) over() bool {
	return k.rst || k.dead || k.told == wire.RST || k.closed && (k.told != 0 || k.s.send.reset()) || k.told == wire.FIN && k.fin
}

// over says that no socket of the pair has any business any more.
func (p *pair) over() bool {
	return !slices.ContainsFunc(p.socks[:], func(k *sock) bool { return k != nil && !k.over() })
}

func newSim(pick func(string, int) int) *sim {
	w := &sim{pick: pick, trace: func(string, ...any) {}, now: time.Second}
	switch pick("kind of world", 16) {
	case 1, 2, 3, 10, 11:
		w.leaky = true
	case 4:
		w.corrupt = true
	case 5:
		w.lying = true
	case 6:
		w.limited = true
	case 7, 8, 9:
		w.small = true
	}
	for e := range w.procs {
		w.start(e)
	}
	w.dial()
	return w
}

// start makes a process without a session; the bridge begins one.
func (w *sim) start(e int) {
	size := int64(0)
	if w.small {
		size = 150_000
	}
	w.procs[e] = &process{end: e, budget: NewBudget(size).share([16]byte{1}), socks: map[*streamCore]*sock{}}
	if e == atBridge {
		w.newSession()
	}
}

func (w *sim) newCore(e int) *core {
	c := newCore(e == atBridge, 1, w.procs[e].budget)
	if w.limited {
		c.limits.open, c.limits.accept = 5, 3
	}
	w.procs[e].opened = map[uint64]bool{}
	return c
}

func (w *sim) newSession() {
	b := w.procs[atBridge]
	w.sids++
	b.sid = [16]byte{byte(w.sids >> 8), byte(w.sids)}
	b.core, b.begun, b.newest = w.newCore(atBridge), false, nil
}

func (w *sim) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
		w.trace("FAILED: %s", w.err)
	}
}

// content is what flows: each direction of each pair reads from its own place in it, so that every byte is checked.
var content = func() []byte {
	b := make([]byte, 65_521+64<<10) // a prime period
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range b[:65_521] {
		b[i] = byte(rnd.Uint32())
	}
	copy(b[65_521:], b)
	return b
}()

func bytesOf(p *pair, end int, off uint64, n int) []byte {
	at := (uint64(p.n)*7919 + uint64(end)*30_011 + off) % 65_521
	return content[at : at+uint64(n)]
}

// ---- Users and services.

func (w *sim) openStream(e int) {
	p := w.procs[e]
	if p.core == nil || len(w.live) >= 7 || p.core.full() || e == atBridge && !p.begun {
		return // a Dialer shows nobody a session before the proxy has answered
	}
	s := p.core.open(wire.Open{Service: 1})
	if peer := w.procs[1-e]; p.opened[s.id] || peer.sid == p.sid && peer.opened[s.id] {
		w.fail("I15: the %s opens stream %d, an id that was opened before", endNames[e], s.id)
	}
	p.opened[s.id] = true
	pr := &pair{n: w.opened, opener: e, sid: p.sid}
	w.opened++
	w.stats.opened[e]++
	k := &sock{pair: pr, end: e, proc: p, core: p.core, s: s, lazy: w.pick("a lazy user", 3) == 0}
	pr.socks[e] = k
	p.socks[s] = k
	w.pairs, w.live = append(w.pairs, pr), append(w.live, pr)
	w.trace("a user of the %s opens stream %s (pair %d)", endNames[e], idName(s.id), pr.n)
}

// idName writes an id as two numbers, which are easier to read than one above 2^63.
func idName(id uint64) string {
	e := atProxy
	if id&dialled != 0 {
		e = atBridge
	}
	return fmt.Sprintf("%d of the %s", id&^dialled>>8, endNames[e])
}

// connect connects a stream to its service at the end that did not open it.
func (w *sim) connect(p *process, s *streamCore) {
	e := p.end
	for _, pr := range w.pairs {
		if pr.opener == e || pr.socks[pr.opener].s.id != s.id || pr.sid != p.sid {
			continue
		}
		if pr.dials++; pr.dials > 1 {
			w.fail("I7: the service of pair %d was dialled %d times", pr.n, pr.dials)
		}
		k := &sock{pair: pr, end: e, proc: p, core: p.core, s: s, lazy: w.pick("a lazy service", 3) == 0}
		pr.socks[e] = k
		p.socks[s] = k
		if !slices.Contains(w.live, pr) {
			w.live = append(w.live, pr)
		}
		if w.pick("the service refuses", 12) == 1 {
			w.trace("the service of pair %d refuses", pr.n)
			pr.refused = true
			w.resetSock(k, wire.CodeRefused)
		}
		return
	}
	w.fail("the %s was told to connect stream %s, which no user opened", endNames[e], idName(s.id))
}

func (w *sim) pickSock(what string, ok func(*sock) bool) *sock {
	var fit []*sock
	for _, pr := range w.live {
		for _, k := range pr.socks {
			if k != nil && ok(k) {
				fit = append(fit, k)
			}
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return fit[w.pick(what, len(fit))]
}

func (k *sock) mayWrite() bool {
	return !k.fin && !k.rst && !k.dead && !k.closed && k.told != wire.RST && k.coming != wire.RST
}

func (k *sock) String() string { return fmt.Sprintf("pair %d at the %s", k.pair.n, endNames[k.end]) }

func (w *sim) write() {
	k := w.pickSock("writer", (*sock).mayWrite)
	if k == nil {
		return
	}
	w.writeSock(k, 1+w.pick("bytes", []int{16, 1500, 40_000}[w.pick("size", 3)]))
}

// writeSock lets a socket say n bytes, or what there is room for.
func (w *sim) writeSock(k *sock, n int) {
	if n = min(n, k.s.send.room(k.core.budget)); n == 0 {
		return
	}
	p := bytesOf(k.pair, k.end, k.sent, n)
	if n <= ChunkSize && n%2 == 0 { // both ways in which Stream fills the queue
		c := NewChunk()
		c.Grow(copy(c.Room(), p))
		k.s.send.q.push(c)
	} else {
		k.s.send.q.write(p)
	}
	k.core.touch(k.s)
	k.sent += uint64(n)
	w.trace("%v writes %d bytes up to %d", k, n, k.sent)
}

func (w *sim) finish() {
	if k := w.pickSock("FIN of", (*sock).mayWrite); k != nil {
		w.trace("%v says FIN at %d", k, k.sent)
		w.finSock(k)
	}
}

func (w *sim) finSock(k *sock) {
	k.fin = true
	k.core.end(k.s, wire.FIN, 0)
}

func (w *sim) reset() {
	if k := w.pickSock("RST of", func(k *sock) bool { return !k.over() && !k.closed }); k != nil {
		if h := &k.s.send; h.end == 0 && !h.dropped && !k.s.forgotten && w.pick("bytes without credit", 3) == 1 {
			p := bytesOf(k.pair, k.end, k.sent, 1+w.pick("so many", 60_000))
			k.s.send.q.write(p)
			k.sent += uint64(len(p))
		}
		w.trace("%v is reset at %d", k, k.sent)
		w.resetSock(k, wire.CodeReset)
	}
}

// cutRest gives up what a reset socket left and the peer gives no credit for.
func (w *sim) cutRest() {
	k := w.pickSock("rest of", func(k *sock) bool { return k.rst && !k.s.send.dropped && k.s.send.q.end > k.s.send.max })
	if k != nil {
		k.core.cutRest(k.s)
		k.sent = k.s.send.q.end
		w.trace("%v gives up what is behind %d", k, k.sent)
	}
}

func (w *sim) resetSock(k *sock, code wire.Code) {
	k.rst = true
	k.core.end(k.s, wire.RST, code)
	w.discard(k)
}

// discard does what Stream.Discard does.
func (w *sim) discard(k *sock) {
	if r := &k.s.recv; !r.discard {
		r.discard = true
		if n := k.wait; n > 0 {
			k.wait = 0
			k.core.consume(k.s, n, w.now)
		}
	}
}

// closeSock does what Stream.Close does.
func (w *sim) closeSock() {
	k := w.pickSock("close of", func(k *sock) bool { return !k.over() && !k.closed })
	if k == nil {
		return
	}
	w.trace("%v is closed with %d bytes unread", k, k.wait)
	k.closed, k.s.closed = true, true
	if k.wait > 0 {
		w.resetSock(k, wire.CodeAborted)
		return
	}
	if !k.fin {
		w.finSock(k)
	}
	w.discard(k)
}

func (w *sim) read() {
	k := w.pickSock("reader", func(k *sock) bool { return k.wait > 0 && !k.over() })
	if k != nil {
		w.readSock(k, 1+w.pick("bytes to read", k.wait))
	}
}

func (w *sim) readSock(k *sock, n int) {
	k.wait -= n
	k.core.consume(k.s, n, w.now)
	w.trace("%v reads %d bytes, %d are left", k, n, k.wait)
	w.tell(k)
}

func (w *sim) mood() {
	if k := w.pickSock("mood of", func(k *sock) bool { return !k.over() }); k != nil {
		k.lazy = !k.lazy
	}
}

// arrive takes bytes that the core received for a socket.
func (w *sim) arrive(k *sock, p []byte) {
	if k.rst || k.dead || k.told != 0 {
		w.fail("%v: bytes after its end", k)
		return
	}
	x := k.peer()
	at := k.got
	for len(p) > 0 {
		n := min(len(p), 32<<10)
		if !bytes.Equal(p[:n], bytesOf(k.pair, 1-k.end, at, n)) {
			if !w.corrupt {
				w.fail("I1: %v got wrong bytes between %d and %d", k, at, at+uint64(n))
			}
			k.wrong = true
		}
		at += uint64(n)
		p = p[n:]
	}
	n := int(at - k.got)
	k.got = at
	if x == nil || at > x.sent {
		w.fail("I1: %v got %d bytes, more than were sent", k, at)
	}
	k.wait += n
	if !k.lazy {
		w.readSock(k, k.wait)
	}
}

// tell gives the socket the end that came, once everything before it was read.
func (w *sim) tell(k *sock) {
	if k.wait > 0 || k.coming == k.told || k.rst || k.dead || k.told == wire.RST {
		return
	}
	k.told = k.coming
	x := k.peer()
	w.trace("%v is told %s", k, k.told)
	switch {
	case k.closed:
	case k.told == wire.FIN && (x == nil || !x.fin):
		w.fail("I5: %v saw a clean end, but the other side did not end", k)
	case k.told == wire.FIN && k.got != x.sent:
		w.fail("I5: %v saw a clean end after %d of %d bytes", k, k.got, x.sent)
	case k.told == wire.FIN && k.wrong:
		w.fail("I5: %v saw a clean end after wrong bytes", k)
	case k.told == wire.FIN, k.code == wire.CodeChecksum && w.corrupt, x == nil && k.code == wire.CodeLimit && w.limited:
	case x == nil || !x.rst && !x.closed:
		w.fail("I6: %v was reset (code %d), but the other side was not", k, k.code)
	case k.got != x.sent && !w.corrupt:
		w.fail("I6: %v was reset after %d of %d bytes", k, k.got, x.sent)
	}
}

// abort resets a socket at once, without an END from the peer.
func (w *sim) abort(k *sock, why string) {
	if k.over() {
		return
	}
	k.dead, k.wait = true, 0
	w.trace("%v is aborted: %s", k, why)
}
