package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// A peer with the right key may say anything. These tests play it by hand, on real connections, once towards a Host and once
// towards a Dialer, and want what spec/PROTOCOL.md says in section 14: the ERR, the end of the session or not, and another
// session that notices nothing. A bubble ends only when every goroutine in it has.

var (
	goodKey, evilKey = [16]byte{1}, [16]byte{0xe}
	testSecret       = [32]byte{2}
	nextSecret       = [32]byte{3} // of the same keys, which counts as well
	hostInstance     = [16]byte{9}
)

// byKey gives each session of a Host a recorder of its own.
type byKey struct {
	mu   sync.Mutex
	of   map[[16]byte]*recorder
	wrap func(*recorder) Owner // of the next sessions; nil: none
}

func (b *byKey) get(l *Link) *recorder { return b.key(l.KeyID()) }
func (b *byKey) key(id [16]byte) *recorder {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of[id] == nil {
		b.of[id] = newRecorder()
	}
	return b.of[id]
}
func (b *byKey) Opened(s *Stream) { b.get(s.slot.link).Opened(s) }
func (b *byKey) Message(l *Link, f wire.Frame) error {
	if b.wrap != nil {
		return b.wrap(b.get(l)).Message(l, f)
	}
	return b.get(l).Message(l, f)
}
func (b *byKey) Attached(l *Link, slot int)            { b.get(l).Attached(l, slot) }
func (b *byKey) Detached(l *Link, slot int, err error) { b.get(l).Detached(l, slot, err) }
func (b *byKey) GoingAway(l *Link, d time.Duration)    { b.get(l).GoingAway(l, d) }
func (b *byKey) Ended(l *Link, err error)              { b.get(l).Ended(l, err) }

// scene is a Host and a bridge that behaves, whose stream carries bytes all the time.
type scene struct {
	t      *testing.T
	net    *memnet.Net
	host   *Host
	owners *byKey
	br     *recorder // of the bridge that behaves
	wg     sync.WaitGroup
	ln     net.Listener
	stop   context.CancelFunc
	offer  wire.Features            // of connections that are dialled by hand
	prove  func(*auth.ClientConfig) // changes what these prove; nil: nothing
	quiet  func()                   // ends the good stream and fails the test if it suffered
}

func testAuth(lookup func([16]byte) bool) (*auth.ServerConfig, auth.ClientConfig) {
	return &auth.ServerConfig{Identity: testIdentity(), Instance: hostInstance, Features: wire.FeatureDialOpens, Lookup: func(id [16]byte) ([32]byte, bool) { return testSecret, lookup(id) }, Others: func([16]byte) [][32]byte { return [][32]byte{nextSecret} }},
		auth.ClientConfig{Secret: testSecret, Pin: auth.Pin(testIdentity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{7}, Features: wire.FeatureDialOpens}
}

func newScene(t *testing.T) *scene {
	w := &scene{t: t, net: &memnet.Net{}, owners: &byKey{of: map[[16]byte]*recorder{}}, offer: wire.FeatureDialOpens}
	var err error
	if w.ln, err = w.net.Listen("proxy:3010"); err != nil {
		t.Fatal(err)
	}
	sc, cc := testAuth(func(id [16]byte) bool { return id == goodKey || id == evilKey })
	w.host = NewHost(HostConfig{
		Owner: w.owners, Instance: sc.Instance, Carriers: 1,
		Admit: func([16]byte, [32]byte, bool) error { return nil }, Draining: func() bool { return false },
	})
	tc := sc.TLS()
	w.wg.Go(func() {
		for {
			c, err := w.ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				if ac, err := auth.Server(c, tc, sc); err == nil {
					w.host.Serve(ac)
				}
			})
		}
	})
	cc.KeyID = goodKey
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	w.br = newRecorder()
	br := w.br
	d := NewDialer(DialerConfig{
		Owner: br, Carriers: 1, Auth: cc,
		Dial:   Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) { return w.net.Dial(ctx, "proxy:3010") }),
		Failed: func(int, error, time.Duration) {},
	})
	w.wg.Go(func() { d.Run(ctx) })
	px := w.owners.key(goodKey)
	px.wait(px.allUp(1))
	br.wait(br.allUp(1))
	a, err := px.session().Open(wire.Open{})
	if err != nil {
		t.Fatal(err)
	}
	b := <-br.streams
	w.quiet = w.carry(a, b)
	return w
}

// carry sends bytes from a to b until the returned function is called, which wants every one of them to have arrived, over
// the first connections.
func (w *scene) carry(a, b *Stream) (check func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	sum, sent := crc32.NewIEEE(), 0
	wg.Go(func() {
		defer a.CloseWrite()
		for i := 0; ; i++ {
			p := noise(byte(i), 20_000)
			if _, err := a.Write(p); err != nil {
				w.t.Errorf("another session's stream: Write: %v", err)
				return
			}
			sum.Write(p)
			sent += len(p)
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return func() {
		got := crc32.NewIEEE()
		close(done)
		n, err := io.Copy(got, b)
		wg.Wait()
		if err != nil || int(n) != sent || got.Sum32() != sum.Sum32() {
			w.t.Errorf("another session's stream: read %d bytes, %v; want %d equal ones", n, err, sent)
		}
		if r := a.Resumes() + b.Resumes(); r != 0 {
			w.t.Errorf("another session's connection broke %d times", r)
		}
		b.Close()
		a.Close()
	}
}

func (w *scene) close() {
	w.t.Helper()
	w.quiet()
	w.stop()
	w.ln.Close()
	w.host.Close(errors.New("test over"))
	w.wg.Wait()
}

// voice is a connection of the peer that is played by hand.
type voice struct {
	t    *testing.T
	conn *auth.Conn
	buf  [wire.HeaderLen + wire.MaxPayload]byte
}

func (v *voice) say(b []byte) {
	v.conn.SetWriteDeadline(time.Now().Add(time.Minute))
	v.conn.Write(b) // the other end may have closed already, which is what the caller looks for
}

// hear returns the next frame of the type. What a link says by itself is skipped.
func (v *voice) hear(want wire.Type) (wire.Frame, error) {
	v.conn.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		f, err := readFrame(v.conn, v.buf[:])
		switch {
		case err != nil || f.Type == want:
			return f, err
		case f.Type == wire.TypeErr:
			e := wire.ParseErr(f)
			return f, &violationError{e.Code, e.Text, false}
		}
	}
}

// verdict is the code of the ERR that comes, after which the connection is closed; 0: it answers a PING, so all is well.
func (v *voice) verdict() (wire.ErrCode, string) {
	v.t.Helper()
	v.say(wire.AppendEmpty(nil, wire.TypePing, 0, 77))
	v.conn.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		f, err := readFrame(v.conn, v.buf[:])
		switch {
		case err != nil:
			v.t.Errorf("the connection ended without an ERR: %v", err)
			return 0, ""
		case f.Type == wire.TypePong && f.Offset == 77:
			return 0, ""
		case f.Type == wire.TypeErr:
			e := wire.ParseErr(f)
			if f, err := readFrame(v.conn, v.buf[:]); err == nil {
				v.t.Errorf("%s came behind the ERR, want the end", f.Type)
			}
			return e.Code, e.Text
		}
	}
}

func frame(t wire.Type, flags uint8, stream, offset uint64, size int) []byte {
	b := append(wire.AppendHeader(nil, t, stream, offset, size), make([]byte, size)...)
	b[1] = flags
	return b
}

func data(id, offset uint64, p string) []byte {
	return append(wire.AppendHeader(nil, wire.TypeData, id, offset, len(p)), p...)
}

func sumOf(s string) uint32 { return crc32.Checksum([]byte(s), castagnoli) }

func fin(id, final uint64, s string) []byte {
	return wire.AppendEnd(nil, id, final, wire.End{Kind: wire.FIN, CRC: sumOf(s)})
}

func rst(id, final uint64, s string) []byte {
	return wire.AppendEnd(nil, id, final, wire.End{Kind: wire.RST, Code: wire.CodeReset, CRC: sumOf(s)})
}

const (
	theID  = 1<<8 | 1 // of the stream that stands when a violation begins, and over which "hello" went each way
	nextID = 2<<8 | 1
)

// wrong is something that a peer must not say, and what is to come of it.
type wrong struct {
	name string
	slot int
	say  []byte
	want wire.ErrCode // 0: nothing happens
	ends bool         // the session, and not just the connection
}

// both is what is wrong in either direction, on a carrier.
var both = []wrong{
	{"P1 DATA without bytes", 1, frame(wire.TypeData, 0, theID, 5, 0), wire.ErrFormat, false},
	{"P1 DATA of 16,385 bytes", 1, frame(wire.TypeData, 0, theID, 5, 16_385), wire.ErrFormat, false},
	{"P1 DATA behind a gap", 1, data(theID, 6, "x"), wire.ErrGap, true},
	{"P1 DATA beyond the credit", 1, func() (b []byte) {
		for off := uint64(5); off <= 5*wire.MaxPayload; off += wire.MaxPayload {
			b = append(b, frame(wire.TypeData, 0, theID, off, wire.MaxPayload)...)
		}
		return b
	}(), wire.ErrCredit, true},
	{"P1 DATA beyond 2^62", 1, data(theID, 1<<62, "x"), wire.ErrOverflow, true},
	{"P1 DATA around 2^64", 1, data(theID, ^uint64(0), "xx"), wire.ErrOverflow, true},
	{"P2 DATA that was there before", 1, data(theID, 0, "hello"), 0, false},
	{"P2 DATA of which a part was there before", 1, data(theID, 3, "lo, world"), 0, false},
	{"P3 DATA after END", 1, append(fin(theID, 5, "hello"), data(theID, 5, "x")...), wire.ErrAfterEnd, true},
	{"P3 END below what was received", 1, fin(theID, 4, "hell"), wire.ErrAfterEnd, true},
	{"P3 END beyond what was received", 1, fin(theID, 6, "hello!"), wire.ErrGap, true},
	{"P3 a second END elsewhere", 1, append(fin(theID, 5, "hello"), fin(theID, 6, "hello")...), wire.ErrGap, true},
	{"P3 the same END again", 1, append(fin(theID, 5, "hello"), fin(theID, 5, "hello")...), 0, false},
	{"P3 RST where FIN was", 1, append(fin(theID, 5, "hello"), rst(theID, 5, "hello")...), wire.ErrAfterEnd, true},
	{"END of an unknown kind", 1, wire.AppendEnd(nil, theID, 5, wire.End{Kind: 3}), wire.ErrFormat, false},
	{"R6 ACK of what was never sent", 1, wire.AppendAck(nil, theID, 7, 1<<16), wire.ErrAckBeyond, true},
	{"R6 ACK that goes back", 1, append(wire.AppendAck(nil, theID, 5, 1<<16), wire.AppendAck(nil, theID, 2, 1)...), 0, false},
	{"R6 ACK of 2^64-1", 1, wire.AppendAck(nil, theID, ^uint64(0), 1<<16), wire.ErrAckBeyond, true},
	{"ACK with a credit of 2^40", 1, wire.AppendAck(nil, theID, 5, 1<<40), 0, false},
	{"ACK with a credit of 2^64-1", 1, wire.AppendAck(nil, theID, 5, ^uint64(0)), 0, false},
	{"P3 END at 2^64-1", 1, fin(theID, ^uint64(0), "hello"), wire.ErrGap, true},
	{"DATA of a stream of another slot", 1, data(1<<8|2, 0, "x"), wire.ErrUnexpected, true},
	{"END of a stream of the control connection", 1, fin(1<<8, 0, ""), wire.ErrUnexpected, true},
	{"ACK on the control connection", 0, wire.AppendAck(nil, theID, 5, 1<<16), wire.ErrUnexpected, true},
	{"ACK of a stream of another slot", 1, wire.AppendAck(nil, 1<<8|2, 0, 1<<16), wire.ErrUnexpected, true},
	{"DATA on the control connection", 0, data(theID, 5, "x"), wire.ErrUnexpected, true},
	{"P7 unknown type", 1, frame(19, 0, 0, 0, 0), wire.ErrFormat, false},
	{"P7 unknown type that is skipped", 1, append(frame(128, 0xff, 0, 0, 100), frame(255, 0, theID, 9, 0)...), 0, false},
	{"P7 unknown types, again and again", 1, bytes.Repeat(frame(128, 0, 0, 0, 0), glitchLimit/2+1), wire.ErrFlood, true},
	{"P7 unknown type of 16,385 bytes", 1, frame(128, 0, 0, 0, 16_385), wire.ErrFormat, false},
	{"P7 flags that are ignored", 1, frame(wire.TypePing, 0xf0, 0, 0, 0), 0, false},
	{"P7 DATAGRAM, which was not negotiated", 1, wire.AppendDatagram(nil, theID, 1, []byte("x")), wire.ErrUnexpected, true},
	{"P7 DATAGRAM on the control connection", 0, wire.AppendDatagram(nil, theID, 1, []byte("x")), wire.ErrUnexpected, true},
	{"P7 GOAWAY with an unknown critical field", 0, wire.AppendField(frame(wire.TypeGoAway, 0, 0, 0, 4+3)[:wire.HeaderLen+4], 200, nil), wire.ErrFormat, false},
	{"P7 GOAWAY with a bad field", 0, frame(wire.TypeGoAway, 0, 0, 0, 5), wire.ErrFormat, false},
	{"P7 type 0", 1, frame(0, 0, 0, 0, 0), wire.ErrFormat, false},
	{"P7 unknown flags", 1, frame(wire.TypePing, 1, 0, 0, 0), wire.ErrFormat, false},
	{"P7 a stream in a frame of the link", 1, frame(wire.TypePing, 0, 5, 0, 0), wire.ErrFormat, false},
	{"P7 no stream", 1, frame(wire.TypeAck, 0, 0, 0, 8), wire.ErrFormat, false},
	{"P7 a second Hello", 1, append([]byte("RVSR"), make([]byte, 124)...), wire.ErrFormat, false},
	{"P7 ATTACH on an attached connection", 1, frame(wire.TypeAttach, 0, 0, 9, 88), wire.ErrUnexpected, false},
	{"P7 ATTACHED on an attached connection", 1, frame(wire.TypeAttached, 0, 0, 9, 28), wire.ErrUnexpected, false},
	{"P7 ST on an attached connection", 1, frame(wire.TypeST, 0, 0, 0, 29), wire.ErrUnexpected, false},
	{"P6 PONGs that nobody asked for", 1, bytes.Repeat(frame(wire.TypePong, 0, 0, 1<<60, 0), glitchLimit/2+1), wire.ErrFlood, true},
	{"DATA that was there before, again and again", 1, append(fin(theID, 5, "hello"), bytes.Repeat(data(theID, 0, "hello"), glitchLimit+1)...), wire.ErrFlood, true},
	{"CLAIM on a carrier", 1, wire.AppendClaim(nil, 1, wire.Claim{Public: "tcp/9000"}), wire.ErrUnexpected, true},
	{"CLAIMED on a carrier", 1, wire.AppendClaimed(nil, 1, wire.Claimed{Status: wire.ClaimUp}), wire.ErrUnexpected, true},
	{"UNCLAIM on a carrier", 1, wire.AppendUnclaim(nil, 1), wire.ErrUnexpected, true},
	{"UNCLAIMED on a carrier", 1, wire.AppendUnclaimed(nil, 1, nil), wire.ErrUnexpected, true},
	{"ROUND on a carrier", 1, wire.AppendRound(nil), wire.ErrUnexpected, true},
	{"CLAIM that the owner takes", 0, wire.AppendClaim(nil, 1, wire.Claim{Public: "tcp/9000"}), 0, false},
}

// aboutIDs is what is wrong about ids, with the bits that mark those of the receiver and those of the peer.
func aboutIDs(own, peer uint64) []wrong {
	own, peer = own|nextID, peer|nextID
	return []wrong{
		{"P4 OPEN of an id of the receiver", 1, wire.AppendOpen(nil, own, 0, wire.Open{}), wire.ErrUnexpected, true},
		{"FORGET of an id of the receiver", 1, wire.AppendEmpty(nil, wire.TypeForget, own, 0), wire.ErrUnexpected, true},
		{"R6 ACK of a stream that was never opened", 1, wire.AppendAck(nil, own, 0, 1<<16), wire.ErrUnexpected, true},
		{"OPEN of another slot", 1, wire.AppendOpen(nil, peer+1, 1<<16, wire.Open{}), wire.ErrUnexpected, true},
		{"OPEN on the control connection", 0, wire.AppendOpen(nil, peer, 1<<16, wire.Open{}), wire.ErrUnexpected, true},
		{"OPEN of an id of the control connection", 0, wire.AppendOpen(nil, peer-1, 1<<16, wire.Open{}), wire.ErrUnexpected, true},
		{"OPEN with a bad field", 1, frame(wire.TypeOpen, 0, peer, 1<<16, 7), wire.ErrFormat, false},
		{"OPEN with a credit beyond 2^62", 1, wire.AppendOpen(nil, peer, 1<<62+1, wire.Open{}), wire.ErrOverflow, true},
		{"OPEN with a credit of 2^64-1", 1, wire.AppendOpen(nil, peer, ^uint64(0), wire.Open{}), wire.ErrOverflow, true},
		{"ACK before its OPEN", 1, wire.AppendAck(nil, peer, 0, 1<<16), wire.ErrUnexpected, true},
		{"DATA before its OPEN", 1, data(peer, 0, "x"), wire.ErrUnexpected, true},
		{"P7 OPEN of a flow, which was not negotiated", 1, wire.AppendOpen(nil, peer, 1<<16, wire.Open{Kind: wire.OpenDatagrams}), wire.ErrUnexpected, true},
		{"END before its OPEN", 1, fin(peer, 0, ""), wire.ErrUnexpected, true},
		{"FORGET before its OPEN", 1, wire.AppendEmpty(nil, wire.TypeForget, peer, 0), 0, false},
	}
}

// evilBridge is a bridge that is played by hand: a session with slots 0 and 1, and a stream over which "hello" went.
type evilBridge struct {
	w      *scene
	sid    [16]byte
	secret [32]byte
	gen    [2]uint64
	at     [2]*voice
	stream *Stream // its other end
}

func (w *scene) dial(key [16]byte) *voice {
	w.t.Helper()
	sock, err := w.net.Dial(w.t.Context(), "proxy:3010")
	if err != nil {
		w.t.Fatal(err)
	}
	_, cc := testAuth(nil)
	cc.KeyID, cc.Instance, cc.Features = key, [16]byte{0xee}, w.offer
	if w.prove != nil {
		w.prove(&cc)
	}
	conn, err := auth.Client(w.t.Context(), sock, cc)
	if err != nil {
		w.t.Fatal(err)
	}
	return &voice{t: w.t, conn: conn}
}

// ask sends an ATTACH and returns the status of the answer.
func (e *evilBridge) ask(v *voice, a wire.Attach, gen uint64, secret [32]byte, raw []byte) wire.Status {
	e.w.t.Helper()
	if a.Mode != wire.ModeNew {
		a.WantInstance = hostInstance
		a.MAC = auth.ResumeMAC(secret, v.conn.Exporter, a.Session, a.Slot, gen, sha256.Sum256(raw))
	}
	a.Window, a.MaxStreams = floorWindow, MaxStreams
	v.say(wire.AppendTable(wire.AppendAttach(nil, gen, a), raw))
	f, err := v.hear(wire.TypeAttached)
	if err != nil {
		e.w.t.Errorf("ATTACH: %v", err)
		return 0
	}
	at, err := wire.ParseAttached(f)
	if err != nil {
		e.w.t.Errorf("ATTACHED: %v", err)
	}
	return at.Status
}

func table(sts ...wire.StreamState) (raw []byte, a wire.Attach) {
	for _, st := range sts {
		raw = wire.AppendStreamState(raw, st)
	}
	a.Streams, a.TableCRC = uint32(len(sts)), crc32.Checksum(raw, castagnoli)
	return raw, a
}

// attach attaches a slot on a new connection and returns the status.
func (e *evilBridge) attach(slot int, mode wire.Mode, sts ...wire.StreamState) wire.Status {
	e.w.t.Helper()
	raw, a := table(sts...)
	a.Mode, a.Slot, a.Session = mode, uint8(slot), e.sid
	e.gen[slot]++
	v := e.w.dial(evilKey)
	if mode == wire.ModeNew {
		e.secret = auth.SessionSecret(v.conn, e.sid)
	}
	st := e.ask(v, a, e.gen[slot], e.secret, raw)
	if st == wire.StatusOK {
		if e.at[slot] != nil {
			e.at[slot].conn.Close()
		}
		e.at[slot] = v
	} else {
		v.conn.Close()
	}
	return st
}

func newEvilBridge(w *scene) *evilBridge {
	w.t.Helper()
	e := &evilBridge{w: w, sid: [16]byte{0x51}}
	if st := e.attach(0, wire.ModeNew); st != wire.StatusOK {
		w.t.Fatalf("NEW: %s", st)
	}
	if st := e.attach(1, wire.ModeJoin); st != wire.StatusOK {
		w.t.Fatalf("JOIN: %s", st)
	}
	px := w.owners.key(evilKey)
	px.wait(px.allUp(1))
	var err error
	if e.stream, err = px.session().Open(wire.Open{Service: 3}); err != nil {
		w.t.Fatal(err)
	}
	if f, err := e.at[1].hear(wire.TypeOpen); err != nil || f.Stream != theID {
		w.t.Fatalf("OPEN of stream %#x, %v", f.Stream, err)
	}
	e.stream.Write([]byte("hello"))
	e.at[1].hear(wire.TypeData)
	e.at[1].say(data(theID, 0, "hello"))
	if _, err := io.ReadFull(e.stream, make([]byte, 5)); err != nil {
		w.t.Fatal(err)
	}
	return e
}

// withEvilBridge has f play a bridge in a scene and a bubble of its own. ends reports whether its session must have ended after that.
func withEvilBridge(t *testing.T, ends bool, f func(t *testing.T, w *scene, e *evilBridge)) {
	synctest.Test(t, func(t *testing.T) {
		w := newScene(t)
		defer w.close()
		e := newEvilBridge(w)
		defer e.close(ends)
		f(t, w, e)
	})
}

// close fails the test unless the session ended exactly when it should, and ends it.
func (e *evilBridge) close(ends bool) {
	e.w.t.Helper()
	synctest.Wait()
	px := e.w.owners.key(evilKey)
	px.mu.Lock()
	ended := len(px.ended)
	px.mu.Unlock()
	if ended > 0 != ends {
		e.w.t.Errorf("the session ended %d times, want that: %v", ended, ends)
	}
	if ends {
		if _, err := e.stream.Write([]byte("x")); err == nil {
			e.w.t.Error("a stream of a session that is over takes bytes")
		}
	} else if st := e.attach(0, wire.ModeResume); st != wire.StatusOK {
		e.w.t.Errorf("RESUME of the session afterwards: %s", st)
	}
	for _, v := range e.at {
		if v != nil {
			v.conn.Close()
		}
	}
}

func TestViolationsTowardsAHost(t *testing.T) {
	cases := slices.Concat(aboutIDs(0, dialled), []wrong{
		{"P4 OPEN of a live stream", 1, wire.AppendOpen(nil, theID, 0, wire.Open{}), wire.ErrUnexpected, true},
		{"FORGET of a live stream", 1, wire.AppendEmpty(nil, wire.TypeForget, theID, 0), wire.ErrUnexpected, true},
		{"OPEN of a stream that was forgotten", 1, bytes.Join([][]byte{
			wire.AppendOpen(nil, dialled|theID, 1<<16, wire.Open{}), wire.AppendEmpty(nil, wire.TypeForget, dialled|theID, 0),
			wire.AppendOpen(nil, dialled|theID, 1<<16, wire.Open{}),
		}, nil), 0, false},
		{"frames of a stream that is forgotten", 1, bytes.Join([][]byte{
			rst(theID, 5, "hello"), data(theID, 5, "late"), wire.AppendAck(nil, theID, 5, 1<<16), fin(theID, 9, "hellolate"),
		}, nil), 0, false},
	}, both)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newScene(t)
				defer w.close()
				e := newEvilBridge(w)
				defer e.close(c.ends)
				e.at[c.slot].say(c.say)
				if code, text := e.at[c.slot].verdict(); code != c.want {
					t.Errorf("ERR %d (%s), want %d", code, text, c.want)
				}
			})
		})
	}
}

// The first frames of a connection. None of them touches the session that exists.
func TestFirstFramesTowardsAHost(t *testing.T) {
	attach := func(mode wire.Mode, slot uint8, streams uint32) []byte {
		a := wire.Attach{Mode: mode, Slot: slot, Session: [16]byte{0x51}, Streams: streams}
		if mode != wire.ModeNew {
			a.WantInstance = hostInstance
		}
		return wire.AppendAttach(nil, 5, a)
	}
	one := wire.AppendStreamState(nil, wire.StreamState{Stream: theID})
	two := wire.AppendStreamState(bytes.Clone(one), wire.StreamState{Stream: nextID})
	tabled := func(raw []byte, crc uint32, frames ...[]byte) []byte {
		b := wire.AppendAttach(nil, 5, wire.Attach{
			Mode: wire.ModeResume, Slot: 1, Session: [16]byte{0x51}, WantInstance: hostInstance,
			Streams: uint32(len(raw) / wire.StreamStateLen), TableCRC: crc,
		})
		return append(b, bytes.Join(frames, nil)...)
	}
	st := func(index uint64, raw []byte) []byte {
		return append(wire.AppendHeader(nil, wire.TypeST, 0, index, len(raw)), raw...)
	}
	sum := func(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
	swapped := append(bytes.Clone(two[29:]), two[:29]...)
	twice := append(bytes.Clone(one), one...)
	for name, c := range map[string]struct {
		say  []byte
		want wire.ErrCode
	}{
		"P7 unknown type":                      {frame(99, 0, 0, 0, 0), wire.ErrFormat},
		"P7 random bytes":                      {append([]byte{99}, noise(3, 200)...), wire.ErrFormat},
		"P7 a second Hello":                    {append([]byte("RVSR"), make([]byte, 124)...), wire.ErrFormat},
		"P7 unknown flags":                     {frame(wire.TypeAttach, 1, 0, 1, 88), wire.ErrFormat},
		"ATTACH that is too short":             {frame(wire.TypeAttach, 0, 0, 1, 81), wire.ErrFormat},
		"ATTACH of 64 KiB":                     {frame(wire.TypeAttach, 0, 0, 1, 65_535)[:wire.HeaderLen], wire.ErrFormat},
		"ATTACH of generation 0":               {frame(wire.TypeAttach, 0, 0, 0, 88), wire.ErrFormat},
		"ATTACH with mode 9":                   {attach(9, 0, 0), wire.ErrFormat},
		"NEW on slot 1":                        {attach(wire.ModeNew, 1, 0), wire.ErrFormat},
		"P7 PING before ATTACH":                {frame(wire.TypePing, 0, 0, 1, 0), wire.ErrUnexpected},
		"P7 DATA before ATTACH":                {data(theID, 0, "x"), wire.ErrUnexpected},
		"P7 OPEN before ATTACH":                {wire.AppendOpen(nil, theID, 0, wire.Open{}), wire.ErrUnexpected},
		"P7 ERR before ATTACH":                 {wire.AppendErr(nil, wire.Err{Code: wire.ErrFormat}), wire.ErrUnexpected},
		"A9 2^32-1 streams":                    {attach(wire.ModeResume, 1, 1<<32-1), wire.ErrFormat},
		"A9 65,537 streams":                    {attach(wire.ModeResume, 1, wire.MaxTable+1), wire.ErrFormat},
		"A9 the same id twice":                 {tabled(twice, sum(twice), st(0, twice)), wire.ErrFormat},
		"A9 ids out of order":                  {tabled(swapped, sum(swapped), st(0, swapped)), wire.ErrFormat},
		"A9 a wrong checksum":                  {tabled(one, sum(one)+1, st(0, one)), wire.ErrFormat},
		"A9 PING in the table":                 {tabled(two, sum(two), st(0, one), frame(wire.TypePing, 0, 0, 1, 0)), wire.ErrFormat},
		"A9 a part that comes twice":           {tabled(two, sum(two), st(0, one), st(0, one)), wire.ErrFormat},
		"A9 more than was announced":           {tabled(one, sum(one), st(0, two)), wire.ErrFormat},
		"A9 a part of an entry":                {tabled(one, sum(one), frame(wire.TypeST, 0, 0, 0, 28)), wire.ErrFormat},
		"A9 an entry whose place is elsewhere": {tabled(one, sum(one), st(1, one)), wire.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
				v := w.dial(evilKey)
				defer v.conn.Close()
				v.say(c.say)
				f, err := v.hear(wire.TypeErr)
				if err != nil || wire.ParseErr(f).Code != c.want {
					t.Fatalf("%s, %v; want ERR %d", f.Type, err, c.want)
				}
				if _, err := v.hear(wire.TypeErr); err == nil {
					t.Error("the connection goes on behind an ERR")
				}
				if code, text := e.at[1].verdict(); code != 0 {
					t.Errorf("the session's own connection got ERR %d (%s)", code, text)
				}
			})
		})
	}
	t.Run("A9 a table that is cut short", func(t *testing.T) {
		withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
			v := w.dial(evilKey)
			defer v.conn.Close()
			v.say(tabled(two, sum(two), st(0, one)))
			begin := time.Now()
			v.conn.SetReadDeadline(time.Now().Add(time.Minute))
			for err := error(nil); err == nil; {
				_, err = readFrame(v.conn, v.buf[:])
			}
			if took := time.Since(begin); took > attachTimeout {
				t.Errorf("closed after %s, want at most %s", took, attachTimeout)
			}
		})
	})
}

// Attempts on a session, by those who may have it and those who may not.
func TestAttemptsOnASession(t *testing.T) {
	withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
		victim := w.owners.key(goodKey).session()
		for _, c := range []struct {
			name   string
			a      wire.Attach
			gen    uint64
			secret [32]byte
			want   wire.Status
		}{
			{"A7 the session of another key", wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: victim.sid}, 9, e.secret, wire.StatusGone},
			{"A7 the same, with the session's secret", wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: victim.sid}, 9, victim.secret, wire.StatusGone},
			{"A7 a wrong proof", wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: e.sid}, 9, [32]byte{1}, wire.StatusGone},
			{"A7 JOIN with a wrong proof", wire.Attach{Mode: wire.ModeJoin, Slot: 1, Session: e.sid}, 9, [32]byte{1}, wire.StatusGone},
			{"A7 a session that never was", wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: [16]byte{0x99}}, 9, e.secret, wire.StatusGone},
			{"A8 the last generation again", wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: e.sid}, 1, e.secret, wire.StatusStale},
			{"A8 generation 2^64-1", wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: e.sid}, ^uint64(0), e.secret, wire.StatusStale},
			{"A8 a jump of 2^32+1", wire.Attach{Mode: wire.ModeResume, Slot: 1, Session: e.sid}, 1<<32 + 2, e.secret, wire.StatusStale},
			{"A8 NEW with generation 2", wire.Attach{Mode: wire.ModeNew, Session: [16]byte{0x77}}, 2, e.secret, wire.StatusStale},
			{"a slot that there is not", wire.Attach{Mode: wire.ModeJoin, Slot: 2, Session: e.sid}, 1, e.secret, wire.StatusLimit},
			{"slot 255", wire.Attach{Mode: wire.ModeJoin, Slot: 255, Session: e.sid}, 1, e.secret, wire.StatusLimit},
		} {
			v := w.dial(evilKey)
			if st := e.ask(v, c.a, c.gen, c.secret, nil); st != c.want {
				t.Errorf("%s: %s, want %s", c.name, st, c.want)
			}
			v.conn.Close()
			for slot := range e.at {
				if code, text := e.at[slot].verdict(); code != 0 {
					t.Fatalf("%s: the session's own connection got ERR %d (%s)", c.name, code, text)
				}
			}
		}
	})
}

// Tables of a bridge that contradict what the proxy knows.
func TestTablesTowardsAHost(t *testing.T) {
	honest := wire.StreamState{Stream: theID, RcvNxt: 5, Credit: 1 << 16, CRC: sumOf("hello")}
	with := func(f func(*wire.StreamState)) wire.StreamState { st := honest; f(&st); return st }
	for name, c := range map[string]struct {
		st   []wire.StreamState
		want wire.ErrCode
	}{
		"honest":                     {[]wire.StreamState{honest}, 0},
		"R1 below what was acked":    {[]wire.StreamState{with(func(s *wire.StreamState) { s.RcvNxt, s.CRC = 2, sumOf("he") })}, wire.ErrResume},
		"R1 lost what was acked":     {nil, wire.ErrResume},
		"R2 more than was ever sent": {[]wire.StreamState{with(func(s *wire.StreamState) { s.RcvNxt = 6 })}, wire.ErrResume},
		"R2 2^64-1":                  {[]wire.StreamState{with(func(s *wire.StreamState) { s.RcvNxt = ^uint64(0) })}, wire.ErrResume},
		"R3 less credit than before": {[]wire.StreamState{with(func(s *wire.StreamState) { s.Credit = 1 })}, 0},
		"R3 a credit of 2^64-1":      {[]wire.StreamState{with(func(s *wire.StreamState) { s.Credit = ^uint64(0) })}, 0},
		"R5 never opened":            {[]wire.StreamState{honest, {Stream: nextID}}, wire.ErrResume},
		"R5 the highest id of all":   {[]wire.StreamState{honest, {Stream: dialled - 1<<8 | 1}}, wire.ErrResume},
		"R5 with counter 0":          {[]wire.StreamState{{Stream: 1}, honest}, wire.ErrResume},
		"R5 of another slot":         {[]wire.StreamState{{Stream: 1<<8 | 0}, honest}, wire.ErrResume},
		"of the bridge, no OPEN yet": {[]wire.StreamState{honest, {Stream: dialled | theID}}, 0},
		"of the bridge, other slot":  {[]wire.StreamState{honest, {Stream: dialled | 1<<8}}, wire.ErrResume},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newScene(t)
				defer w.close()
				e := newEvilBridge(w)
				e.at[1].say(wire.AppendAck(nil, theID, 5, 1<<16))
				e.at[1].verdict()
				defer e.close(c.want != 0)
				if c.want == 0 {
					if st := e.attach(1, wire.ModeResume, c.st...); st != wire.StatusOK {
						t.Fatalf("RESUME: %s", st)
					}
					e.stream.Write([]byte("!")) // the credit that was there counts on
					if f, err := e.at[1].hear(wire.TypeData); err != nil || f.Offset != 5 || string(f.Payload) != "!" {
						t.Errorf("DATA %q at %d, %v; want the next byte", f.Payload, f.Offset, err)
					}
					return
				}
				raw, a := table(c.st...)
				a.Mode, a.Slot, a.Session, a.WantInstance = wire.ModeResume, 1, e.sid, hostInstance
				v := w.dial(evilKey)
				defer v.conn.Close()
				a.MAC = auth.ResumeMAC(e.secret, v.conn.Exporter, e.sid, 1, 2, sha256.Sum256(raw))
				v.say(wire.AppendTable(wire.AppendAttach(nil, 2, a), raw))
				if f, err := v.hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != c.want {
					t.Errorf("%s, %v; want ERR %d", f.Type, err, c.want)
				}
			})
		})
	}
	t.Run("R5 streams of the control connection", func(t *testing.T) {
		withEvilBridge(t, true, func(t *testing.T, w *scene, e *evilBridge) {
			raw, a := table(wire.StreamState{Stream: 1 << 8, Credit: 1 << 40})
			a.Mode, a.Session, a.WantInstance = wire.ModeResume, e.sid, hostInstance
			v := w.dial(evilKey)
			defer v.conn.Close()
			a.MAC = auth.ResumeMAC(e.secret, v.conn.Exporter, e.sid, 0, 2, sha256.Sum256(raw))
			v.say(wire.AppendTable(wire.AppendAttach(nil, 2, a), raw))
			if f, err := v.hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != wire.ErrResume {
				t.Errorf("%s, %v; want ERR %d", f.Type, err, wire.ErrResume)
			}
		})
	})
	t.Run("R4 a wrong checksum", func(t *testing.T) {
		withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
			other, err := w.owners.key(evilKey).session().Open(wire.Open{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.at[1].hear(wire.TypeOpen); err != nil {
				t.Fatal(err)
			}
			bad := with(func(s *wire.StreamState) { s.CRC++ })
			if st := e.attach(1, wire.ModeResume, bad, wire.StreamState{Stream: nextID, Credit: 1 << 16}); st != wire.StatusOK {
				t.Fatalf("RESUME: %s", st)
			}
			f, err := e.at[1].hear(wire.TypeEnd)
			if end, _ := wire.ParseEnd(f); err != nil || f.Stream != theID || end.Kind != wire.RST || end.Code != wire.CodeChecksum {
				t.Errorf("END %+v of stream %#x, %v; want RST with the code for checksums", end, f.Stream, err)
			}
			if _, err := e.stream.Write([]byte("x")); err == nil {
				t.Error("the stream goes on at the proxy")
			}
			other.Write([]byte("x"))
			if f, err := e.at[1].hear(wire.TypeData); err != nil || f.Stream != nextID {
				t.Errorf("DATA of stream %#x, %v; want the other stream to go on", f.Stream, err)
			}
		})
	})
}

// evilProxy is a proxy that is played by hand, with a bridge that dialled it.
type evilProxy struct {
	w      *scene
	ln     net.Listener
	br     *recorder
	stop   context.CancelFunc
	wg     sync.WaitGroup
	at     [2]*voice
	stream *Stream       // its other end
	limits wire.Attached // what it says of the streams that it accepts
}

// expect accepts the bridge's next connection that says ATTACH, and reads it. Attempts may be given up before.
func (e *evilProxy) expect() (*voice, wire.Attach, uint64) {
	e.w.t.Helper()
	sc, _ := testAuth(func([16]byte) bool { return true })
	for {
		sock, err := e.ln.Accept()
		if err != nil {
			e.w.t.Fatal(err)
		}
		conn, err := auth.Server(sock, sc.TLS(), sc)
		if err != nil {
			continue
		}
		v := &voice{t: e.w.t, conn: conn}
		f, err := v.hear(wire.TypeAttach)
		if err != nil {
			conn.Close()
			continue
		}
		a, err := wire.ParseAttach(f)
		if err != nil {
			e.w.t.Fatal(err)
		}
		gen := f.Offset
		if _, _, err := readTable(v.conn, a.Streams, a.TableCRC, a.Entry, v.buf[:]); err != nil {
			e.w.t.Fatal(err)
		}
		return v, a, gen
	}
}

// welcome answers an ATTACH with a table.
func (e *evilProxy) welcome(v *voice, a wire.Attach, gen uint64, sts ...wire.StreamState) {
	raw, announced := table(sts...)
	v.say(wire.AppendTable(wire.AppendAttached(nil, gen, wire.Attached{
		Status: wire.StatusOK, Slot: a.Slot, Carriers: 1, Window: e.limits.Window, MaxStreams: e.limits.MaxStreams,
		Streams: announced.Streams, TableCRC: announced.TableCRC,
	}), raw))
	if e.at[a.Slot] != nil {
		e.at[a.Slot].conn.Close()
	}
	e.at[a.Slot] = v
}

// newEvilProxy is a proxy that the bridge dials; with session it has answered and opened a stream.
func newEvilProxy(w *scene, session bool) *evilProxy {
	w.t.Helper()
	e := &evilProxy{w: w, br: newRecorder(), limits: wire.Attached{Window: floorWindow, MaxStreams: MaxStreams}}
	var err error
	if e.ln, err = w.net.Listen("evil:3010"); err != nil {
		w.t.Fatal(err)
	}
	_, cc := testAuth(nil)
	cc.KeyID = evilKey
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	d := NewDialer(DialerConfig{
		Owner: e.br, Carriers: 1, Auth: cc,
		Dial:   Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) { return w.net.Dial(ctx, "evil:3010") }),
		Failed: func(int, error, time.Duration) {},
	})
	e.wg.Go(func() { d.Run(ctx) })
	if !session {
		return e
	}
	for range 2 {
		v, a, gen := e.expect()
		e.welcome(v, a, gen)
	}
	e.br.wait(e.br.allUp(1))
	e.at[1].say(wire.AppendOpen(nil, theID, 1<<16, wire.Open{}))
	e.stream = <-e.br.streams
	e.at[1].say(data(theID, 0, "hello"))
	if _, err := io.ReadFull(e.stream, make([]byte, 5)); err != nil {
		w.t.Fatal(err)
	}
	e.stream.Write([]byte("hello"))
	e.at[1].hear(wire.TypeData)
	return e
}

// next returns the mode of the bridge's next ATTACH, which says what it believes of the session.
func (e *evilProxy) next() wire.Mode {
	e.w.t.Helper()
	v, a, _ := e.expect()
	v.conn.Close()
	return a.Mode
}

// withEvilProxy has f play a proxy, with a session or before one, in a scene and a bubble of its own.
func withEvilProxy(t *testing.T, session bool, f func(t *testing.T, w *scene, e *evilProxy)) {
	synctest.Test(t, func(t *testing.T) {
		w := newScene(t)
		defer w.close()
		e := newEvilProxy(w, session)
		defer e.close()
		f(t, w, e)
	})
}

func (e *evilProxy) close() {
	e.stop()
	e.ln.Close()
	for _, v := range e.at {
		if v != nil {
			v.conn.Close()
		}
	}
	e.wg.Wait()
}

func TestViolationsTowardsADialer(t *testing.T) {
	cases := slices.Concat(aboutIDs(dialled, 0), []wrong{
		{"P4 OPEN of a live stream", 1, wire.AppendOpen(nil, theID, 1<<16, wire.Open{}), 0, false},
		{"OPEN that names a PUBLIC", 1, wire.AppendOpen(nil, nextID, 1<<16, wire.Open{More: &wire.OpenMore{Name: "tcp/22"}}), wire.ErrUnexpected, true},
		{"P4 OPEN of a stream that was forgotten", 1, append(wire.AppendEmpty(nil, wire.TypeForget, theID, 0), wire.AppendOpen(nil, theID, 1<<16, wire.Open{})...), 0, false},
		{"R6 ACK of a stream that was forgotten", 1, append(wire.AppendEmpty(nil, wire.TypeForget, theID, 0), wire.AppendAck(nil, theID, 5, 1<<16)...), 0, false},
	}, both)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
				e.at[c.slot].say(c.say)
				code, text := e.at[c.slot].verdict()
				if code != c.want {
					t.Fatalf("ERR %d (%s), want %d", code, text, c.want)
				}
				if c.want == 0 {
					if n := len(e.br.streams); n != 0 {
						t.Errorf("%d more streams are to be connected", n)
					}
					return
				}
				mode := map[bool]wire.Mode{true: wire.ModeNew, false: wire.ModeResume}[c.ends]
				if got := e.next(); got != mode {
					t.Errorf("the bridge's next ATTACH has mode %d, want %d", got, mode)
				}
				if _, err := e.stream.Write([]byte("x")); (err != nil) != c.ends {
					t.Errorf("Write on a stream of the session = %v, want an error: %v", err, c.ends)
				}
			})
		})
	}
}

// Answers to a RESUME that are none.
func TestAnswersTowardsADialer(t *testing.T) {
	theState := wire.StreamState{Stream: theID, RcvNxt: 5, Credit: 1 << 16, CRC: sumOf("hello")}
	raw, announced := table(theState)
	attached := func(gen uint64, edit func(*wire.Attached)) []byte {
		at := wire.Attached{Status: wire.StatusOK, Slot: 1, Carriers: 1, Streams: announced.Streams, TableCRC: announced.TableCRC}
		edit(&at)
		return wire.AppendAttached(nil, gen, at)
	}
	same := func(*wire.Attached) {}
	sts := func(sts ...wire.StreamState) func(gen uint64) []byte {
		raw, announced := table(sts...)
		return func(gen uint64) []byte {
			return wire.AppendTable(attached(gen, func(at *wire.Attached) { at.Streams, at.TableCRC = announced.Streams, announced.TableCRC }), raw)
		}
	}
	for name, c := range map[string]struct {
		say  func(gen uint64) []byte
		want wire.ErrCode // 0: none, the session just ends
		mode wire.Mode    // of the next attempt
	}{
		"P7 unknown type":          {func(uint64) []byte { return frame(99, 0, 0, 0, 0) }, wire.ErrFormat, wire.ModeResume},
		"P7 PING before ATTACHED":  {func(uint64) []byte { return frame(wire.TypePing, 0, 0, 0, 0) }, wire.ErrUnexpected, wire.ModeResume},
		"P7 OPEN before ATTACHED":  {func(uint64) []byte { return wire.AppendOpen(nil, nextID, 0, wire.Open{}) }, wire.ErrUnexpected, wire.ModeResume},
		"P7 ATTACH where ATTACHED": {func(gen uint64) []byte { return frame(wire.TypeAttach, 0, 0, gen, 88) }, wire.ErrUnexpected, wire.ModeResume},
		"of another generation":    {func(gen uint64) []byte { return attached(gen+1, same) }, wire.ErrUnexpected, wire.ModeResume},
		"an unknown status":        {func(gen uint64) []byte { return attached(gen, func(at *wire.Attached) { at.Status = 99 }) }, 0, wire.ModeNew},
		"A9 2^32-1 streams":        {func(gen uint64) []byte { return attached(gen, func(at *wire.Attached) { at.Streams = 1<<32 - 1 }) }, wire.ErrFormat, wire.ModeResume},
		"A9 a wrong checksum": {func(gen uint64) []byte {
			return wire.AppendTable(attached(gen, func(at *wire.Attached) { at.TableCRC++ }), raw)
		}, wire.ErrFormat, wire.ModeResume},
		"A9 PING in the table": {func(gen uint64) []byte { return append(attached(gen, same), frame(wire.TypePing, 0, 0, 0, 0)...) }, wire.ErrFormat, wire.ModeResume},
		"A9 65,537 streams": {func(gen uint64) []byte {
			return attached(gen, func(at *wire.Attached) { at.Streams = wire.MaxTable + 1 })
		}, wire.ErrFormat, wire.ModeResume},
		"A9 the same id twice": {sts(theState, theState), wire.ErrFormat, wire.ModeResume},
		"A9 ids out of order":  {sts(wire.StreamState{Stream: nextID}, theState), wire.ErrFormat, wire.ModeResume},
		"A9 more than was announced": {func(gen uint64) []byte {
			return append(wire.AppendTable(attached(gen, same), raw), wire.AppendTable(nil, raw)...)
		}, wire.ErrUnexpected, wire.ModeResume},
		"R2 2^64-1":                  {sts(wire.StreamState{Stream: theID, RcvNxt: ^uint64(0)}), wire.ErrResume, wire.ModeNew},
		"R5 of another slot":         {sts(wire.StreamState{Stream: 1 << 8}, theState), wire.ErrResume, wire.ModeNew},
		"R5 of the bridge, never":    {sts(theState, wire.StreamState{Stream: dialled | theID}), wire.ErrResume, wire.ModeNew},
		"R1 below what was acked":    {sts(wire.StreamState{Stream: theID, RcvNxt: 2, CRC: sumOf("he")}), wire.ErrResume, wire.ModeNew},
		"R2 more than was ever sent": {sts(wire.StreamState{Stream: theID, RcvNxt: 6}), wire.ErrResume, wire.ModeNew},
		"GONE":                       {func(gen uint64) []byte { return attached(gen, func(at *wire.Attached) { at.Status = wire.StatusGone }) }, 0, wire.ModeNew},
		"STALE": {func(gen uint64) []byte {
			return attached(gen, func(at *wire.Attached) { at.Status = wire.StatusStale })
		}, 0, wire.ModeResume},
		"ERR": {func(uint64) []byte { return wire.AppendErr(nil, wire.Err{Code: wire.ErrResume}) }, 0, wire.ModeResume},
	} {
		t.Run(name, func(t *testing.T) {
			withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
				e.at[1].say(wire.AppendAck(nil, theID, 5, 1<<16))
				e.at[1].verdict()
				e.at[1].conn.Close()
				v, _, gen := e.expect()
				defer v.conn.Close()
				v.say(c.say(gen))
				f, err := v.hear(wire.TypeErr)
				switch {
				case c.want == 0 && err == nil:
					t.Errorf("ERR %d, want none", wire.ParseErr(f).Code)
				case c.want != 0 && (err != nil || wire.ParseErr(f).Code != c.want):
					t.Errorf("%s, %v; want ERR %d", f.Type, err, c.want)
				}
				if got := e.next(); got != c.mode {
					t.Errorf("the bridge's next ATTACH has mode %d, want %d", got, c.mode)
				}
			})
		})
	}
	t.Run("R4 a wrong checksum", func(t *testing.T) {
		withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
			e.at[1].conn.Close()
			v, a, gen := e.expect()
			e.welcome(v, a, gen, wire.StreamState{Stream: theID, RcvNxt: 5, Credit: 1 << 16, CRC: 1})
			f, err := v.hear(wire.TypeEnd)
			if end, _ := wire.ParseEnd(f); err != nil || f.Stream != theID || end.Kind != wire.RST || end.Code != wire.CodeChecksum {
				t.Errorf("END %+v of stream %#x, %v; want RST with the code for checksums", end, f.Stream, err)
			}
			if code, text := v.verdict(); code != 0 {
				t.Errorf("ERR %d (%s), want the session to go on", code, text)
			}
		})
	})
}

// The receiver of an ERR closes the connection and finds out at the next attach what became of the session.
func TestReceivingAnERR(t *testing.T) {
	for _, code := range []wire.ErrCode{wire.ErrFormat, wire.ErrResume, 999} {
		say := wire.AppendErr(nil, wire.Err{Code: code, Text: "enough"})
		withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
			e.at[1].say(say)
			if f, err := e.at[1].hear(wire.TypeErr); err == nil {
				t.Errorf("%s, want no answer", f.Type)
			}
			st := wire.StreamState{Stream: theID, RcvNxt: 5, Credit: 1 << 16, CRC: sumOf("hello")}
			if got := e.attach(1, wire.ModeResume, st); got != wire.StatusOK {
				t.Errorf("RESUME: %s", got)
			}
		})
		withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
			e.at[1].say(say)
			if f, err := e.at[1].hear(wire.TypeErr); err == nil {
				t.Errorf("%s, want no answer", f.Type)
			}
			if got := e.next(); got != wire.ModeResume {
				t.Errorf("the bridge's next ATTACH has mode %d, want RESUME", got)
			}
		})
	}
}

// A connection that ends inside a frame is lost and not wrong.
func TestCutInsideAFrame(t *testing.T) {
	withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
		e.at[1].say(data(theID, 5, "hello")[:23])
		e.at[1].conn.Close()
		st := wire.StreamState{Stream: theID, RcvNxt: 5, Credit: 1 << 16, CRC: sumOf("hello")}
		if got := e.attach(1, wire.ModeResume, st); got != wire.StatusOK {
			t.Errorf("RESUME: %s", got)
		}
	})
}

// heap is what lives on the heap, after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC() // the first only moves what a sync.Pool holds aside
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// grown wants the heap not to have grown by more than most since before.
func grown(t *testing.T, before, most int64) {
	t.Helper()
	if n := heap() - before; n > most {
		t.Errorf("the heap grew by %d KiB, want at most %d", n>>10, most>>10)
	}
}

// pings floods a peer that hears nothing from us: one PONG waits, whatever comes.
func pings(t *testing.T, v *voice) {
	t.Helper()
	flood := bytes.Repeat(frame(wire.TypePing, 0, 0, 5, 0), 1000)
	before := heap()
	for i := range 300 {
		binary.BigEndian.PutUint64(flood[12:], uint64(i+1))
		v.say(flood)
	}
	synctest.Wait()
	grown(t, before, 2<<20)
	if code, text := v.verdict(); code != 0 {
		t.Errorf("ERR %d (%s), want a PONG", code, text)
	}
}

func TestPINGsFromOneWhoNeverReads(t *testing.T) {
	withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
		pings(t, e.at[1])
	})
	withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
		pings(t, e.at[1])
	})
}

// drop takes the streams that a bridge is to connect, as one does that has no room.
func (r *recorder) drop(done <-chan struct{}) {
	for {
		select {
		case s := <-r.streams:
			s.Reset(wire.CodeLimit)
		case <-done:
			return
		}
	}
}

// openTooMany has v, which has opened so many streams, open more than were agreed.
func openTooMany(t *testing.T, v *voice, owner *recorder, bit uint64, open int) {
	id := func(n int) uint64 { return bit | uint64(n)<<8 | 1 }
	var b []byte
	for n := open + 1; n <= MaxStreams; n++ {
		b = wire.AppendOpen(b, id(n), 1<<16, wire.Open{})
	}
	v.say(b)
	for range MaxStreams - open {
		<-owner.streams
	}
	v.say(wire.AppendOpen(nil, id(MaxStreams+1), 1<<16, wire.Open{}))
	f, err := v.hear(wire.TypeEnd)
	if end, _ := wire.ParseEnd(f); err != nil || f.Stream != id(MaxStreams+1) || end.Kind != wire.RST || end.Code != wire.CodeLimit {
		t.Errorf("END %+v of stream %#x, %v; want RST with the code for limits", end, f.Stream, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { // so that the other end's writer is not what stops it
		b = b[:0]
		for n := MaxStreams + 2; n <= 2*MaxStreams+1; n++ {
			b = wire.AppendOpen(b, id(n), 1<<16, wire.Open{})
		}
		v.say(b)
	})
	f, err = v.hear(wire.TypeErr)
	wg.Wait()
	if err != nil || wire.ParseErr(f).Code != wire.ErrFlood {
		t.Errorf("%s, %v; want ERR %d", f.Type, err, wire.ErrFlood)
	}
	if n := len(owner.streams); n != 0 {
		t.Errorf("%d streams beyond the limit are to be connected", n)
	}
}

// A peer that opens more streams than were agreed.
func TestOPENsBeyondTheLimit(t *testing.T) {
	withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
		openTooMany(t, e.at[1], e.br, 0, 1)
		if got := e.next(); got != wire.ModeNew {
			t.Errorf("the bridge's next ATTACH has mode %d, want NEW", got)
		}
	})
	withEvilBridge(t, true, func(t *testing.T, w *scene, e *evilBridge) {
		openTooMany(t, e.at[1], w.owners.key(evilKey), dialled, 0)
	})
}

// What a bridge opens, a proxy may limit, and may not decide about.
func TestStreamsThatADialerOpens(t *testing.T) {
	const mine = dialled | theID
	scene := func(name string, f func(t *testing.T, e *evilProxy, s *Stream)) {
		t.Run(name, func(t *testing.T) {
			withEvilProxy(t, false, func(t *testing.T, w *scene, e *evilProxy) {
				e.limits = wire.Attached{Window: 7, MaxStreams: 1}
				for range 2 {
					v, a, gen := e.expect()
					e.welcome(v, a, gen)
				}
				e.br.wait(e.br.allUp(1))
				s, err := e.br.session().Open(wire.Open{Service: 5})
				if err != nil {
					t.Fatal(err)
				}
				f0, err := e.at[1].hear(wire.TypeOpen)
				if o, _ := wire.ParseOpen(f0); err != nil || f0.Stream != mine || o.Service != 5 {
					t.Fatalf("OPEN %+v of stream %#x, %v", o, f0.Stream, err)
				}
				f(t, e, s)
			})
		})
	}
	for name, say := range map[string][]byte{
		"OPEN":   wire.AppendOpen(nil, mine, 1<<16, wire.Open{}),
		"FORGET": wire.AppendEmpty(nil, wire.TypeForget, mine, 0),
	} {
		scene(name, func(t *testing.T, e *evilProxy, s *Stream) {
			e.at[1].say(say)
			if code, text := e.at[1].verdict(); code != wire.ErrUnexpected {
				t.Errorf("ERR %d (%s), want %d", code, text, wire.ErrUnexpected)
			}
			if got := e.next(); got != wire.ModeNew {
				t.Errorf("the bridge's next ATTACH has mode %d, want NEW", got)
			}
		})
	}
	scene("limits", func(t *testing.T, e *evilProxy, s *Stream) {
		if n := s.TryRoom(); n != 7 {
			t.Errorf("TryRoom = %d, want the 7 bytes of ATTACHED", n)
		}
		if _, err := e.br.session().Open(wire.Open{}); err == nil {
			t.Error("a second stream was opened, where the proxy accepts one")
		}
		s.Reset(wire.CodeReset)
		e.at[1].hear(wire.TypeEnd)
		e.at[1].say(wire.AppendAck(nil, mine, 1, 1<<16))
		if f, err := e.at[1].hear(wire.TypeForget); err != nil || f.Stream != mine {
			t.Errorf("%s of stream %#x, %v; want FORGET", f.Type, f.Stream, err)
		}
		if _, err := e.br.session().Open(wire.Open{}); err != nil {
			t.Errorf("Open behind the end of the first stream: %v", err)
		}
	})
	resume := func(e *evilProxy, sts ...wire.StreamState) *voice {
		e.at[1].conn.Close()
		v, a, gen := e.expect()
		e.welcome(v, a, gen, sts...)
		return v
	}
	scene("a resume that lacks one whose OPEN was lost", func(t *testing.T, e *evilProxy, s *Stream) {
		s.Write([]byte("hello"))
		e.at[1].hear(wire.TypeData)
		v := resume(e)
		if f, err := v.hear(wire.TypeOpen); err != nil || f.Stream != mine {
			t.Errorf("%s of stream %#x, %v; want the OPEN again", f.Type, f.Stream, err)
		}
		if f, err := v.hear(wire.TypeData); err != nil || f.Offset != 0 || string(f.Payload) != "hello" {
			t.Errorf("DATA %q at %d, %v; want all from the start", f.Payload, f.Offset, err)
		}
	})
	scene("a resume that lacks one that was acknowledged", func(t *testing.T, e *evilProxy, s *Stream) {
		s.Write([]byte("hello"))
		e.at[1].hear(wire.TypeData)
		e.at[1].say(wire.AppendAck(nil, mine, 5, 1<<16))
		e.at[1].verdict()
		v := resume(e)
		if f, err := v.hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != wire.ErrResume {
			t.Errorf("%s, %v; want ERR %d", f.Type, err, wire.ErrResume)
		}
		if got := e.next(); got != wire.ModeNew {
			t.Errorf("the bridge's next ATTACH has mode %d, want NEW", got)
		}
	})
	scene("a resume with one that was never opened", func(t *testing.T, e *evilProxy, s *Stream) {
		v := resume(e, wire.StreamState{Stream: dialled | nextID})
		if f, err := v.hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != wire.ErrResume {
			t.Errorf("%s, %v; want ERR %d", f.Type, err, wire.ErrResume)
		}
	})
}

// A proxy that opens streams and forgets them at once, again and again.
func TestOPENAndFORGETFlood(t *testing.T) {
	withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { e.br.drop(done) })
		wg.Go(func() {
			for err := error(nil); err == nil; {
				_, err = e.at[1].hear(wire.TypeErr) // reads, so that the bridge's answers do not stop it
			}
		})
		before := heap()
		for i := range 100 {
			var b []byte
			for j := range 1000 {
				id := uint64(2+1000*i+j)<<8 | 1
				b = wire.AppendOpen(b, id, 1<<16, wire.Open{})
				b = wire.AppendEmpty(b, wire.TypeForget, id, 0)
			}
			e.at[1].say(b)
		}
		synctest.Wait()
		grown(t, before, 2<<20)
		if n := e.br.session().Streams(); n != 1 {
			t.Errorf("%d streams are left, want the one that was there before", n)
		}
		e.at[1].conn.Close()
		close(done)
		wg.Wait()
	})
}
