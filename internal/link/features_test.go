package link

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"reverser/internal/auth"
	"reverser/internal/wire"
)

// again attaches the slot on a new connection with the features f, and returns which streams end by it at each end.
func (e *ends) again(f wire.Features) (atBridge, atProxy []event) {
	e.t.Helper()
	e.b.lost(e.b.bound)
	e.p.lost(e.p.bound)
	atBridge = e.b.negotiate(f)
	gen, tb, _ := e.b.dial()
	tp, _, atProxy, err := e.p.accept(gen, f, parseTable(e.t, tb))
	if err != nil {
		e.t.Fatal(err)
	}
	more, err := e.b.resumed(gen, parseTable(e.t, tp))
	if err != nil {
		e.t.Fatal(err)
	}
	over := func(evs []event) []event {
		return slices.DeleteFunc(evs, func(ev event) bool { return ev.kind != evReset })
	}
	return over(append(atBridge, more...)), over(atProxy)
}

// A feature belongs to a connection: a step back ends the streams of the dialling end and leaves the others alone, and a step
// forward lets it open again.
func TestAFeatureIsOfOneConnection(t *testing.T) {
	e := newEnds(t)
	users := e.p.open(wire.Open{Service: 1})
	visits := []*streamCore{e.b.open(wire.Open{More: &wire.OpenMore{Name: "private/db"}}), e.b.open(wire.Open{More: &wire.OpenMore{Name: "private/db"}})}
	e.settle()
	unsent := e.b.open(wire.Open{More: &wire.OpenMore{Name: "private/db"}})

	atBridge, atProxy := e.again(0)
	if len(atBridge) != 3 || atBridge[0].stream != visits[0] || atBridge[1].stream != visits[1] || atBridge[2].stream != unsent {
		t.Errorf("the bridge ends %d streams, want its three in their order", len(atBridge))
	}
	if len(atProxy) != 2 {
		t.Errorf("the proxy is told of %d ends, want the two streams that it had", len(atProxy))
	}
	if len(e.b.streams) != 1 || len(e.p.streams) != 1 || e.p.streams[users.id] != users {
		t.Errorf("%d and %d streams are left, want the user's", len(e.b.streams), len(e.p.streams))
	}
	if !e.b.full() || e.p.full() {
		t.Error("the wrong end may open streams")
	}
	write(e.p, users, []byte("hello"))
	e.settle()
	if got := e.b.streams[users.id].recv.nxt; got != 5 {
		t.Errorf("%d bytes of the user came", got)
	}

	if atBridge, atProxy = e.again(wire.FeatureDialOpens); len(atBridge)+len(atProxy) != 0 {
		t.Errorf("%d and %d streams end by an upgrade", len(atBridge), len(atProxy))
	}
	if e.b.full() {
		t.Error("the bridge may not open streams after the upgrade")
	}
	next := e.b.open(wire.Open{More: &wire.OpenMore{Name: "private/db"}})
	e.settle()
	if next.id <= unsent.id || e.p.streams[next.id] == nil {
		t.Errorf("the next stream has id %#x after %#x, at the proxy: %t", next.id, unsent.id, e.p.streams[next.id] != nil)
	}
}

// At the dialling end Open says what is missing.
func TestOpenWithoutTheFeature(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, 0)
		defer w.close()
		if f := w.br.session().Features() | w.px.session().Features(); f != 0 {
			t.Errorf("the connection has the features %s", f)
		}
		if s, err := w.br.session().Open(wire.Open{}); err == nil || !strings.Contains(err.Error(), "streams opened by the dialling end") {
			t.Errorf("Open = %v, %v; want the name of the feature", s, err)
		}
		if _, err := w.px.session().Open(wire.Open{}); err != nil {
			t.Errorf("Open at the proxy: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		if f := w.br.session().Features() & w.px.session().Features(); f != wire.FeatureDialOpens {
			t.Errorf("the connection has the features %s", f)
		}
	})
}

// A bridge that uses what its connection has not negotiated ends its own session.
func TestAFeatureThatWasNotNegotiated(t *testing.T) {
	for name, c := range map[string]struct {
		say  []byte
		want wire.ErrCode
	}{
		"OPEN by the dialling end": {wire.AppendOpen(nil, dialled|nextID, 1<<16, wire.Open{}), wire.ErrUnexpected},
		"OPEN of a flow":           {wire.AppendOpen(nil, dialled|nextID, 1<<16, wire.Open{Kind: wire.OpenDatagrams}), wire.ErrUnexpected},
		"DATAGRAM":                 {wire.AppendDatagram(nil, theID, 1, []byte("x")), wire.ErrUnexpected},
		"PEERS":                    {frame(19, 0, 0, 0, 0), wire.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newScene(t)
				defer w.close()
				w.offer = 0
				e := newEvilBridge(w)
				defer e.close(c.want != wire.ErrFormat)
				e.at[1].say(c.say)
				if code, text := e.at[1].verdict(); code != c.want {
					t.Errorf("ERR %d (%s), want %d", code, text, c.want)
				}
			})
		})
	}
	t.Run("a table with a stream of the dialling end", func(t *testing.T) {
		withEvilBridge(t, true, func(t *testing.T, w *scene, e *evilBridge) {
			e.at[1].say(wire.AppendOpen(nil, dialled|theID, 1<<16, wire.Open{}))
			e.at[1].verdict()
			w.offer = 0
			raw, a := table(wire.StreamState{Stream: theID, RcvNxt: 5, Credit: 1 << 16, CRC: sumOf("hello")}, wire.StreamState{Stream: dialled | theID})
			a.Mode, a.Slot, a.Session, a.WantInstance, a.Window, a.MaxStreams = wire.ModeResume, 1, e.sid, hostInstance, floorWindow, MaxStreams
			v := w.dial(evilKey)
			defer v.conn.Close()
			a.MAC = auth.ResumeMAC(e.secret, v.conn.Exporter, e.sid, 1, 2, sha256.Sum256(raw))
			v.say(wire.AppendTable(wire.AppendAttach(nil, 2, a), raw))
			if f, err := v.hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != wire.ErrResume {
				t.Errorf("%s, %v; want ERR %d", f.Type, err, wire.ErrResume)
			}
		})
	})
}

// with200 adds a critical field that nobody knows to a frame that ends with its fields.
func with200(b []byte) []byte {
	b = wire.AppendField(b, 200, []byte("later"))
	n := len(b) - wire.HeaderLen
	b[2], b[3] = byte(n>>8), byte(n)
	return b
}

// An OPEN that needs more than is known here is refused by itself, at either end; its stream can be forgotten and the next one
// opened.
func TestOPENThatIsNotSupported(t *testing.T) {
	kind3 := func(id uint64) []byte {
		b := wire.AppendOpen(nil, id, 1<<16, wire.Open{Service: 1})
		b[wire.HeaderLen] = 3
		return b
	}
	field := func(id uint64) []byte { return with200(wire.AppendOpen(nil, id, 1<<16, wire.Open{Service: 1})) }
	check := func(t *testing.T, v *voice, id uint64, b []byte) {
		t.Helper()
		v.say(b)
		f, err := v.hear(wire.TypeEnd)
		if end, _ := wire.ParseEnd(f); err != nil || f.Stream != id || end.Kind != wire.RST || end.Code != wire.CodeUnsupported {
			t.Errorf("END %+v of stream %#x, %v; want RST with the code for what is not supported", end, f.Stream, err)
		}
		v.say(append(data(id, 0, "hello"), wire.AppendAck(nil, id, 1, 1<<16)...))
		v.say(wire.AppendEmpty(nil, wire.TypeForget, id, 0))
		if code, text := v.verdict(); code != 0 {
			t.Errorf("ERR %d (%s)", code, text)
		}
	}
	for name, open := range map[string]func(uint64) []byte{"an unknown kind": kind3, "an unknown critical field": field} {
		t.Run(name, func(t *testing.T) {
			withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
				check(t, e.at[1], dialled|nextID, open(dialled|nextID))
				if n := len(w.owners.key(evilKey).streams); n != 0 {
					t.Errorf("%d streams are to be connected", n)
				}
			})
			withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
				check(t, e.at[1], nextID, open(nextID))
				if n := len(e.br.streams); n != 0 {
					t.Errorf("%d streams are to be connected", n)
				}
			})
		})
	}
}

// An ATTACH that needs more than is known here is refused, and so is a role that this proxy does not serve. The session that
// exists is not touched.
func TestATTACHThatIsNotSupported(t *testing.T) {
	withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
		v := w.dial(evilKey)
		defer v.conn.Close()
		v.say(with200(wire.AppendAttach(nil, 1, wire.Attach{Mode: wire.ModeNew, Session: [16]byte{9}})))
		f, err := v.hear(wire.TypeAttached)
		if err != nil {
			t.Fatal(err)
		}
		if at, err := wire.ParseAttached(f); err != nil || at.Status != wire.StatusUnsupported || !strings.Contains(at.Text, "field 200") {
			t.Errorf("ATTACHED %+v, %v; want a refusal that names the field", at, err)
		}
	})
	for _, role := range []wire.Role{wire.RoleVisitor, wire.RoleProxy} {
		withEvilBridge(t, false, func(t *testing.T, w *scene, e *evilBridge) {
			sock, err := w.net.Dial(t.Context(), "proxy:3010")
			if err != nil {
				t.Fatal(err)
			}
			_, cc := testAuth(nil)
			cc.KeyID, cc.Role = evilKey, role
			conn, err := auth.Client(t.Context(), sock, cc)
			if err != nil {
				t.Fatal(err)
			}
			v := &voice{t: t, conn: conn}
			defer conn.Close()
			if st := e.ask(v, wire.Attach{Mode: wire.ModeNew, Session: [16]byte{9}}, 1, e.secret, nil); st != wire.StatusUnsupported {
				t.Errorf("role %d: %s, want a refusal", role, st)
			}
		})
	}
	withEvilProxy(t, true, func(t *testing.T, w *scene, e *evilProxy) {
		e.at[1].conn.Close()
		v, _, gen := e.expect()
		defer v.conn.Close()
		v.say(with200(wire.AppendAttached(nil, gen, wire.Attached{Status: wire.StatusOK, Slot: 1, Carriers: 1})))
		f, err := v.hear(wire.TypeErr)
		if err != nil || wire.ParseErr(f).Code != wire.ErrFormat || !strings.Contains(wire.ParseErr(f).Text, "field 200") {
			t.Errorf("%s, %v; want an ERR that names the field", f.Type, err)
		}
		if got := e.next(); got != wire.ModeResume {
			t.Errorf("the bridge's next ATTACH has mode %d, want %d", got, wire.ModeResume)
		}
	})
}

// Entries may be longer than they are known here: what is more is read, checked and skipped.
func TestTableOfLongerEntries(t *testing.T) {
	const each = 40
	var raw, short []byte
	want := []wire.StreamState{{Stream: theID, RcvNxt: 5, Credit: 9, CRC: 1}, {Stream: nextID, RcvNxt: 6, Credit: 10, CRC: 2}}
	for _, st := range want {
		short = wire.AppendStreamState(nil, st)
		raw = append(append(raw, short...), make([]byte, each-len(short))...)
	}
	crc := crc32.Checksum(raw, castagnoli)
	st := func(index uint64, b []byte) []byte {
		return append(wire.AppendHeader(nil, wire.TypeST, 0, index, len(b)), b...)
	}
	buf := make([]byte, wire.HeaderLen+wire.MaxPayload)
	for name, frames := range map[string][]byte{
		"in one frame":                 st(0, raw),
		"in two frames":                append(st(0, raw[:each]), st(1, raw[each:])...),
		"with a frame to skip between": append(append(st(0, raw[:each]), wire.AppendHeader(nil, 200, 5, 5, 0)...), st(1, raw[each:])...),
	} {
		sum, table, err := readTable(bytes.NewReader(frames), 2, crc, each, buf)
		if err != nil || sum != sha256.Sum256(raw) || len(table) != 2 || table[0] != want[0] || table[1] != want[1] {
			t.Errorf("%s: table %v, %v; want %v", name, table, err, want)
		}
	}
	for name, frames := range map[string][]byte{
		"as entries of 29 bytes": st(0, raw[:58]),
		"a part of an entry":     append(st(0, raw[:each+1]), st(1, raw[each+1:])...),
		"changed where it is skipped": func() []byte {
			b := st(0, raw)
			b[len(b)-1]++
			return b
		}(),
		"more than was announced": st(0, append(bytes.Clone(raw), raw...)),
	} {
		if _, table, err := readTable(bytes.NewReader(frames), 2, crc, each, buf); err == nil {
			t.Errorf("%s is taken as %v", name, table)
		}
	}
	endless := bytes.NewReader(bytes.Repeat(wire.AppendHeader(nil, 200, 0, 0, 0), 1000))
	_, _, err := readTable(endless, 2, crc, each, buf)
	if p, ok := errors.AsType[*violationError](err); !ok || p.code != wire.ErrFlood {
		t.Errorf("frames to skip without an end: %v; want ERR %d", err, wire.ErrFlood)
	}
}

// sayer answers every frame about a claim.
type sayer struct{ *recorder }

func (s sayer) Message(l *Link, f wire.Frame) error {
	l.Say(f.Offset, wire.AppendUnclaimed(nil, uint32(f.Offset), l.Marks()))
	return s.recorder.Message(l, f)
}

// A peer that asks about more and more claims and reads no answer ends its session.
func TestAnswersThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScene(t)
		defer w.close()
		w.owners.wrap = func(r *recorder) Owner { return sayer{r} }
		e := newEvilBridge(w)
		defer e.close(true)
		sl := w.owners.key(evilKey).session().slots[0]
		sl.mu.Lock()
		sl.cur.sending = true // as one whose peer takes nothing
		sl.mu.Unlock()
		var b []byte
		for id := range uint32(maxControl + 1) {
			b = wire.AppendUnclaim(b, id+1)
		}
		e.at[0].say(b)
		if f, err := e.at[0].hear(wire.TypeErr); err != nil || wire.ParseErr(f).Code != wire.ErrFlood {
			t.Errorf("%s, %v; want ERR %d", f.Type, err, wire.ErrFlood)
		}
	})
}

// What an owner says of a frame about a claim ends the session, or the connection, or nothing.
func TestWhatAnOwnerRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		wrong error
		want  wire.ErrCode
		ends  bool
	}{
		"a violation":            {Violation(wire.ErrClaimInvalid, "no"), wire.ErrClaimInvalid, true},
		"a malformed frame":      {&wire.FormatError{Type: wire.TypeClaim, What: "x"}, wire.ErrClaimInvalid, true},
		"an unsupported frame":   {&wire.UnsupportedError{Type: wire.TypeClaim, Field: 200}, wire.ErrFormat, false},
		"nothing":                {nil, 0, false},
		"a frame on a violation": {Violation(wire.ErrUnexpected, "no"), wire.ErrUnexpected, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newScene(t)
				defer w.close()
				e := newEvilBridge(w)
				defer e.close(c.ends)
				px := w.owners.key(evilKey)
				px.note(func() { px.wrong = c.wrong })
				e.at[0].say(wire.AppendClaim(nil, 1, wire.Claim{Public: "tcp/9000"}))
				if code, text := e.at[0].verdict(); code != c.want {
					t.Errorf("ERR %d (%s), want %d", code, text, c.want)
				}
			})
		})
	}
}

// Frames of the owner keep their order, and a later one takes the place of an earlier one with the same id.
func TestSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		l := w.br.session()
		sl := l.slots[0]
		sl.mu.Lock()
		sl.cur.sending = true // so that nothing goes out
		sl.mu.Unlock()
		l.Say(1, wire.AppendClaim(nil, 1, wire.Claim{Public: "tcp/1"}))
		l.Say(1<<40, wire.AppendRound(nil))
		l.Say(2, wire.AppendClaim(nil, 2, wire.Claim{Public: "tcp/2"}))
		l.Say(1, wire.AppendUnclaim(nil, 1))
		sl.mu.Lock()
		sl.cur.sending = false
		var b bundle
		sl.core.fill(&b, batch, 0)
		got := b.own
		sl.mu.Unlock()
		var types []wire.Type
		for len(got) > 0 {
			f, n, err := wire.Parse(got)
			if err != nil {
				t.Fatal(err)
			}
			if f.Type >= wire.TypeClaim {
				types = append(types, f.Type)
			}
			got = got[n:]
		}
		if want := []wire.Type{wire.TypeUnclaim, wire.TypeRound, wire.TypeClaim}; !slices.Equal(types, want) {
			t.Errorf("queued %v, want %v", types, want)
		}
	})
}

func TestMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		px, br := w.px.session(), w.br.session()
		for _, l := range []*Link{px, br} {
			if m := l.Marks(); len(m) != testCarriers || m[0] != (wire.Mark{Slot: 1}) || m[1] != (wire.Mark{Slot: 2}) {
				t.Errorf("marks before the first stream: %v", m)
			}
		}
		s, err := br.Open(wire.Open{})
		if err != nil {
			t.Fatal(err)
		}
		if m := br.Marks()[s.slot.index-1]; m.Stream != s.id || s.id&dialled == 0 {
			t.Errorf("mark %+v of stream %#x", m, s.id)
		}
		a, _ := w.open()
		m := px.Marks()
		if m[a.slot.index-1].Stream != a.id {
			t.Errorf("marks %v of stream %#x", m, a.id)
		}
		if err := br.CheckMarks(m); err != nil {
			t.Errorf("the peer's marks: %v", err)
		}
		if br.CheckMarks(br.Marks()) == nil || br.CheckMarks([]wire.Mark{{Slot: testCarriers + 1, Stream: 1<<8 | testCarriers + 1}}) == nil {
			t.Error("marks that cannot be are taken")
		}
	})
}

// The values that spec/PROTOCOL.md names.
func TestProbeValues(t *testing.T) {
	nonce := [16]byte{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf}
	if got, want := fmt.Sprintf("%x", ProbeQuestion(nonce)), "57b396c21ab64ba0156f9f4fcf34df6d"; got != want {
		t.Errorf("a bridge shows %s, want %s", got, want)
	}
	if got, want := fmt.Sprintf("%x", ProbeAnswer(nonce)), "c607982863c02596eafe2e21a984641a"; got != want {
		t.Errorf("a proxy answers %s, want %s", got, want)
	}
}
