package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestRoundTrip(t *testing.T) {
	seen := map[Type]bool{}
	for _, c := range frames() {
		tail := []byte{0xff, 0xff, 0xff}
		f, n, err := Parse(append(bytes.Clone(c.bytes), tail...))
		if err != nil || n != len(c.bytes) {
			t.Errorf("%s: Parse = %d, %v; want %d, nil", c.name, n, err, len(c.bytes))
			continue
		}
		seen[f.Type] = true
		if got := AppendFrame(nil, f); !bytes.Equal(got, c.bytes) {
			t.Errorf("%s: AppendFrame = %x; want %x", c.name, got, c.bytes)
		}
		if got, err := reencode(f); err != nil || !bytes.Equal(got, c.bytes) {
			t.Errorf("%s: decoded and encoded = %x, %v; want %x", c.name, got, err, c.bytes)
		}
		if cap(f.Payload) != len(f.Payload) {
			t.Errorf("%s: an append to the payload would overwrite the next frame", c.name)
		}
	}
	for typ := TypeAttach; typ < typeEnd; typ++ {
		if !seen[typ] {
			t.Errorf("no test frame of type %s", typ)
		}
	}
	if len(typeNames) != int(typeEnd) {
		t.Errorf("%d names of %d types", len(typeNames), typeEnd)
	}
	if len(statusNames) != int(statusEnd) {
		t.Errorf("%d names of %d statuses", len(statusNames), statusEnd)
	}
}

// Frames one after another, as they come from a connection.
func TestParseSequence(t *testing.T) {
	var all []byte
	for _, c := range frames() {
		all = append(all, c.bytes...)
	}
	for i, c := range frames() {
		f, n, err := Parse(all)
		if err != nil || !bytes.Equal(AppendFrame(nil, f), c.bytes) {
			t.Fatalf("frame %d: Parse = %v, %v; want %s", i, f, err, c.name)
		}
		all = all[n:]
	}
	if len(all) != 0 {
		t.Errorf("%d bytes are left", len(all))
	}
}

// The layout byte for byte, written by hand: no change of an encoder and its decoder together may go unseen.
func TestLayout(t *testing.T) {
	attach := "01 00 005e 0000000000000000 0000000000000007" + // ATTACH, generation 7
		"02 03 1d 00 101112131415161718191a1b1c1d1e1f 404142434445464748494a4b4c4d4e4f" +
		"00000002 01020304 00004000 00001000 000493e0" +
		"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f 01 0003 6e6173"
	for _, c := range []struct {
		want string
		got  []byte
	}{
		{attach, AppendAttach(nil, 7, Attach{
			Mode: ModeResume, Slot: 3, Session: seq[[16]byte](0x10), WantInstance: seq[[16]byte](0x40), Streams: 2, TableCRC: 0x01020304,
			Window: 0x4000, MaxStreams: 0x1000, Detach: 300_000, MAC: seq[[32]byte](0x80), Name: "nas",
		})},
		{"02 00 0028 0000000000000000 0000000000000007 02 03 04 1d 00000002 01020304 00004000 00001000 0bc1 0000 000493e0 01 0002 6e6f 02 0004 000005dc", AppendAttached(nil, 7, Attached{
			Status: StatusGone, Slot: 3, Carriers: 4, Streams: 2, TableCRC: 0x01020304, Window: 0x4000, MaxStreams: 0x1000, Transfer: 3009, Detach: 300_000, Text: "no", ComeBack: 1500,
		})},
		{"03 00 001d 0000000000000000 0000000000000000 0000000000000102 0000000000000005 0000000000004005 9a71bb4c 00", AppendTable(nil, exampleTable()[:StreamStateLen])},
		{"04 00 0024 0000000000000102 0000000000010000 01 00 00000003 01 0006 cb007107 c3cb 02 0012 20010db8000000000000000000000001 2328", AppendOpen(nil, 0x102, 65536, Open{
			Service: 3, Client: netip.MustParseAddrPort("203.0.113.7:50123"), Local: netip.MustParseAddrPort("[2001:db8::1]:9000"),
		})},
		{"04 00 0035 8000000000000102 0000000000000000 02 00 00000000 03 0001 68 04 0001 04 05 0001 6b 06 0010 505152535455565758595a5b5c5d5e5f 80 0009 7463702f3930303030 81 0001 00", AppendOpen(nil, 1<<63|0x102, 0, Open{
			Kind: OpenDatagrams, Entrance: EntranceHTTPS, More: &OpenMore{Host: "h", KeyName: "k", Trace: seq[[16]byte](0x50), Name: "tcp/90000", HasHops: true},
		})},
		{"05 00 0002 0000000000000102 0000000100000005 6869", append(AppendHeader(nil, TypeData, 0x102, 1<<32+5, 2), "hi"...)},
		{"06 00 0008 0000000000000102 0000000000000005 0000000000004005", AppendAck(nil, 0x102, 5, 0x4005)},
		{"07 00 0008 0000000000000102 0000000000000005 02 03 0000 9a71bb4c", AppendEnd(nil, 0x102, 5, End{RST, CodeUnreachable, 0x9a71bb4c})},
		{"08 00 0000 0000000000000102 0000000000000000", AppendEmpty(nil, TypeForget, 0x102, 0)},
		{"09 00 0000 0000000000000000 00000000075bcd15", AppendEmpty(nil, TypePing, 0, 123456789)},
		{"0a 00 0000 0000000000000000 00000000075bcd15", AppendEmpty(nil, TypePong, 0, 123456789)},
		{"0b 00 0004 0000000000000000 0000000000000000 00007530", AppendGoAway(nil, GoAway{DrainMillis: 30000})},
		{"0b 00 000f 0000000000000000 0000000000000000 00007530 01 0001 78 02 0004 000007d0", AppendGoAway(nil, GoAway{30000, "x", 2000})},
		{"0c 00 0005 0000000000000000 0000000000000000 0004 676170", AppendErr(nil, Err{ErrGap, "gap"})},
		{"0d 00 000d 0000000000000000 0000000000000002 08 7463702f39303030 03 613a31", AppendClaim(nil, 2, Claim{Public: "tcp/9000", Target: "a:1"})},
		{"0d 00 001d 0000000000000000 00000000ffffffff 01 61 01 62 01 0004 00000005 02 0001 02 03 0001 01 04 0002 6c6d 80 0002 6767", AppendClaim(nil, 1<<32-1, Claim{
			Public: "a", Target: "b", Weight: 5, Health: HealthBad, Drained: true, Limits: []byte("lm"), Group: "gg",
		})},
		{"0e 00 001d 0000000000000000 0000000000000002 01 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 08 7463702f39303030 02 6f6b", AppendClaimed(nil, 2, Claimed{Status: ClaimUp, Nonce: seq[[16]byte](0xa0), Public: "tcp/9000", Text: "ok"})},
		{"0f 00 0000 0000000000000000 0000000000000002", AppendUnclaim(nil, 2)},
		{"10 00 0013 0000000000000000 0000000000000002 02 01 0000000000000501 04 0000000000000000", AppendUnclaimed(nil, 2, []Mark{{1, 0x501}, {4, 0}})},
		{"11 00 0000 0000000000000000 0000000000000000", AppendRound(nil)},
		{"12 00 0002 0000000000000102 000000000009 00 01 6869", AppendDatagram(nil, 0x102, 9, []byte("hi"))},
		{"52565352 01 01 01 01 202122232425262728292a2b2c2d2e2f 303132333435363738393a3b3c3d3e3f" + strings.Repeat("00", 56) +
			"606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f", hellos()[0].Append(nil)},
		{"52565352 01 01 02 01 202122232425262728292a2b2c2d2e2f 303132333435363738393a3b3c3d3e3f 8000000000000003 0000000000000002" + strings.Repeat("00", 40) +
			"606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f", hellos()[2].Append(nil)},
		{"52565352 01 01 0000 0000000000000000 404142434445464748494a4b4c4d4e4f" +
			"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", welcomes()[0].Append(nil)},
		{"52565352 04 01 0000 8000000000000001 404142434445464748494a4b4c4d4e4f" +
			"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", welcomes()[4].Append(nil)},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", c.want, err)
		}
		if !bytes.Equal(c.got, want) {
			t.Errorf("type %d is\n%x; want\n%x", want[0], c.got, want)
		}
	}
}

// Codes stand in logs and in peers of other versions.
func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want int
	}{
		{"last type", int(TypeDatagram), 18}, {"first type to skip", int(TypeSkip), 128}, {"last mode", int(ModeJoin), 3}, {"last status", int(StatusUnsupported), 8},
		{"last error", int(ErrClaimInvalid), 11}, {"last code", int(CodeEnded), 10}, {"RST", int(RST), 2},
		{"last claim status", int(ClaimRetrying), 3}, {"last verdict", int(VerdictFeatures), 4}, {"last role", int(RoleProxy), 3},
		{"last kind of OPEN", int(OpenDatagrams), 2}, {"last kind of entrance", int(EntrancePrivate), 6}, {"last health", int(HealthBad), 2},
		{"datagrams", int(FeatureDatagrams), 1}, {"dialling end opens", int(FeatureDialOpens), 2}, {"cluster", int(FeatureCluster), 4},
		{"fields", MaxFields, 4096}, {"table", MaxTable, 65536}, {"datagram", MaxDatagram, 65507}, {"critical", Critical, 128},
		{"entry", StreamStateLen, 29}, {"header", HeaderLen, 20}, {"payload", MaxPayload, 16384}, {"text", MaxText, 128},
	} {
		if c.got != c.want {
			t.Errorf("%s = %d; want %d", c.name, c.got, c.want)
		}
	}
}

func TestEveryTruncation(t *testing.T) {
	for _, c := range frames() {
		for n := range len(c.bytes) {
			if _, used, err := Parse(c.bytes[:n:n]); err != ErrTruncated || used != 0 {
				t.Fatalf("%s cut to %d of %d bytes: Parse = %d, %v; want 0, ErrTruncated", c.name, n, len(c.bytes), used, err)
			}
		}
	}
	for _, h := range hellos() {
		for b := h.Append(nil); len(b) > 0; {
			b = b[:len(b)-1]
			if _, err := ParseHello(b); err != ErrHello {
				t.Fatalf("Hello of %d bytes: %v", len(b), err)
			}
		}
	}
	for _, w := range welcomes() {
		for b := w.Append(nil); len(b) > 0; {
			b = b[:len(b)-1]
			if _, err := ParseWelcome(b); err != ErrHello {
				t.Fatalf("Welcome of %d bytes: %v", len(b), err)
			}
		}
	}
	table := exampleTable()
	for n := range len(table) {
		if _, err := ParseTable(table[:n:n], StreamStateLen); (err == nil) != (n%StreamStateLen == 0) {
			t.Fatalf("table of %d bytes: %v", n, err)
		}
	}
}

// A payload that ends early inside a frame of the right length for it is an error too, never a panic.
func TestEveryShortenedPayload(t *testing.T) {
	for _, c := range frames() {
		for size := range len(c.bytes) - HeaderLen {
			b := bytes.Clone(c.bytes[:HeaderLen+size])
			b[2], b[3] = byte(size>>8), byte(size)
			f, _, err := Parse(b)
			if err != nil {
				continue
			}
			if got, err := reencode(f); err == nil && !bytes.Equal(got, b) {
				t.Errorf("%s with %d bytes of payload: decoded and encoded = %x; want %x", c.name, size, got, b)
			}
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, c := range malformedFrames() {
		t.Run(c.name, func(t *testing.T) {
			f, n, err := Parse(c.bytes)
			if err == nil {
				if n != len(c.bytes) {
					t.Fatalf("Parse takes %d of %d bytes", n, len(c.bytes))
				}
				_, err = reencode(f)
			}
			var fe *FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error = %v; want one with %q", err, c.text)
			}
		})
	}
	hellos, welcomes := malformedMessages()
	for _, c := range hellos {
		if _, err := ParseHello(c.bytes); err != ErrHello {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, c := range welcomes {
		if _, err := ParseWelcome(c.bytes); err != ErrHello {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A header that no payload can mend is refused before the payload comes: a reader must not wait for it.
func TestMalformedHeaderAtOnce(t *testing.T) {
	for _, c := range malformedFrames() {
		switch c.reason {
		case "unknown-type", "flags", "length", "stream-missing", "stream-unexpected":
		default:
			continue
		}
		var fe *FormatError
		if _, _, err := Parse(c.bytes[:min(HeaderLen, len(c.bytes))]); !errors.As(err, &fe) {
			t.Errorf("%s: the header alone: %v", c.name, err)
		}
	}
}

func TestHelloRoundTrip(t *testing.T) {
	for _, want := range hellos() {
		b := want.Append([]byte("before"))[len("before"):]
		if got, err := ParseHello(b); len(b) != HelloLen || err != nil || got != want.Hello {
			t.Errorf("%s: %d bytes, %v, %v", want.name, len(b), got, err)
		}
	}
	for _, want := range welcomes() {
		b := want.Append([]byte("before"))[len("before"):]
		if got, err := ParseWelcome(b); len(b) != WelcomeLen || err != nil || got != want.Welcome {
			t.Errorf("%s: %d bytes, %v, %v", want.name, len(b), got, err)
		}
	}
}

// A table of many streams crosses in several ST frames, each of whole entries and with the index of its first.
func TestTableInFrames(t *testing.T) {
	const most = MaxPayload / StreamStateLen
	for _, n := range []int{0, 1, most - 1, most, most + 1, 2 * most, 16_384} {
		var table []byte
		for i := range n {
			table = AppendStreamState(table, StreamState{Stream: uint64(i+1)<<8 | 1, RcvNxt: uint64(i), Credit: uint64(2 * i), CRC: uint32(i)})
		}
		b := AppendTable(nil, table)
		var got []byte
		for len(b) > 0 {
			f, used, err := Parse(b)
			if err != nil || f.Type != TypeST || f.Offset != uint64(len(got)/StreamStateLen) {
				t.Fatalf("%d streams: frame behind entry %d = %s at %d, %v", n, len(got)/StreamStateLen, f.Type, f.Offset, err)
			}
			got = append(got, f.Payload...)
			b = b[used:]
		}
		entries, err := ParseTable(got, StreamStateLen)
		if err != nil || len(entries) != n || !bytes.Equal(got, table) {
			t.Fatalf("table of %d streams came as %d, %v", n, len(entries), err)
		}
		for i, e := range entries {
			if want := (StreamState{uint64(i+1)<<8 | 1, uint64(i), uint64(2 * i), uint32(i)}); e != want {
				t.Fatalf("entry %d = %v; want %v", i, e, want)
			}
		}
	}
}

// Texts for people are cut, between characters; a long one must not make a frame that the peer refuses.
func TestLongTexts(t *testing.T) {
	for _, long := range []string{strings.Repeat("x", 1000), strings.Repeat("ü", 500), "x" + strings.Repeat("ü", 500), strings.Repeat("門", 300), strings.Repeat("\x80", 1000)} {
		for _, b := range [][]byte{
			AppendAttach(nil, 1, Attach{Mode: ModeNew, Name: long}),
			AppendAttached(nil, 1, Attached{Status: StatusGone, Text: long}),
			AppendGoAway(nil, GoAway{Text: long, ComeBack: 1}),
			AppendOpen(nil, 258, 1, Open{More: &OpenMore{Host: long, KeyName: long, Name: long}}),
			AppendErr(nil, Err{Code: ErrGap, Text: long}),
			AppendClaim(nil, 1, Claim{Public: long, Target: long, Group: long}),
			AppendClaimed(nil, 1, Claimed{Status: ClaimUp, Public: long, Text: long}),
		} {
			f, _, err := Parse(b)
			if err != nil {
				t.Errorf("%v", err)
				continue
			}
			if again, err := reencode(f); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%s with a long text does not come back: %v", f.Type, err)
			}
			var texts []string
			switch f.Type {
			case TypeAttach:
				a, _ := ParseAttach(f)
				texts = []string{a.Name}
			case TypeAttached:
				a, _ := ParseAttached(f)
				texts = []string{a.Text}
			case TypeErr:
				texts = []string{ParseErr(f).Text}
			case TypeClaim:
				_, c, _ := ParseClaim(f)
				texts = []string{c.Public, c.Target, c.Group}
			case TypeGoAway:
				g, _ := ParseGoAway(f)
				texts = []string{g.Text}
			case TypeOpen:
				o, _ := ParseOpen(f)
				texts = []string{o.More.Host, o.More.KeyName, o.More.Name}
			case TypeClaimed:
				_, c, _ := ParseClaimed(f)
				texts = []string{c.Public, c.Text}
			}
			for _, s := range texts {
				if utf8.ValidString(long) && !utf8.ValidString(s) {
					t.Errorf("%s: text is cut inside a character: %q", f.Type, s)
				}
				if utf8.ValidString(long) && len(s) < MaxText-3 {
					t.Errorf("%s: only %d bytes are left of a long text", f.Type, len(s))
				}
			}
		}
	}
}

func TestAddresses(t *testing.T) {
	mapped := netip.MustParseAddrPort("[::ffff:203.0.113.7]:1")
	zone := netip.MustParseAddrPort("[fe80::1%eth0]:1")
	f, _, err := Parse(AppendOpen(nil, 256, 0, Open{Client: mapped, Local: zone}))
	if err != nil {
		t.Fatal(err)
	}
	o, err := ParseOpen(f)
	if want := netip.MustParseAddrPort("203.0.113.7:1"); err != nil || o.Client != want {
		t.Errorf("client = %v, %v; want %v", o.Client, err, want)
	}
	if want := netip.MustParseAddrPort("[fe80::1]:1"); o.Local != want {
		t.Errorf("local = %v; want %v, a zone means nothing elsewhere", o.Local, want)
	}
}

func TestNames(t *testing.T) {
	for v, want := range map[fmt.Stringer]string{
		Type(0): "type 0", TypeAttach: "ATTACH", TypeDatagram: "DATAGRAM", typeEnd: "type 19", Type(255): "type 255",
		StatusOK: "ok", StatusStale: "stale", Status(0): "status 0", statusEnd: "status 9", Status(255): "status 255", FIN: "FIN", RST: "RST", EndKind(0): "none",
		Features(0): "none", FeatureDatagrams | FeatureCluster: "datagrams, cluster", Features(1 << 63): "feature 63",
	} {
		if v.String() != want {
			t.Errorf("%#v is called %q; want %q", v, v, want)
		}
	}
}

// The data path allocates nothing.
func TestNoAllocation(t *testing.T) {
	data := make([]byte, MaxPayload)
	room := make([]byte, 0, 2*(HeaderLen+MaxPayload))
	frame := append(AppendHeader(nil, TypeData, 258, 5, len(data)), data...)
	ack := AppendAck(nil, 258, 5, 16389)
	end := AppendEnd(nil, 258, 5, End{Kind: FIN})
	open := AppendOpen(nil, 258, 5, Open{Client: netip.MustParseAddrPort("203.0.113.7:50123")})
	o := Open{Client: netip.MustParseAddrPort("203.0.113.7:50123"), Local: netip.MustParseAddrPort("[2001:db8::1]:9000")}
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"Parse DATA", func() { _, _, err := Parse(frame); must(err) }},
		{"Parse a truncated frame", func() {
			if _, _, err := Parse(frame[:100]); err != ErrTruncated {
				panic(err)
			}
		}},
		{"Parse ACK", func() {
			f, _, err := Parse(ack)
			must(err)
			if AckCredit(f) != 16389 {
				panic("credit")
			}
		}},
		{"Parse END", func() {
			f, _, err := Parse(end)
			must(err)
			_, err = ParseEnd(f)
			must(err)
		}},
		{"Parse OPEN", func() {
			f, _, err := Parse(open)
			must(err)
			_, err = ParseOpen(f)
			must(err)
		}},
		{"append DATA", func() { room = append(AppendHeader(room[:0], TypeData, 258, 5, len(data)), data...) }},
		{"append ACK", func() { room = AppendAck(room[:0], 258, 5, 16389) }},
		{"append END", func() { room = AppendEnd(room[:0], 258, 5, End{Kind: FIN}) }},
		{"append OPEN", func() { room = AppendOpen(room[:0], 258, 5, o) }},
		{"append PING", func() { room = AppendEmpty(room[:0], TypePing, 0, 1) }},
	} {
		if n := testing.AllocsPerRun(100, c.f); n != 0 {
			t.Errorf("%s allocates %v times", c.name, n)
		}
	}
}

// checkFrame is the property of every parser here: what is taken re-encodes to a frame that means the same. It is the same
// frame but for what is skipped or ignored, and for the order of what may be written in several ways.
func checkFrame(t *testing.T, b []byte) {
	f, n, err := Parse(b)
	if err != nil {
		var fe *FormatError
		if n != 0 || err != ErrTruncated && !errors.As(err, &fe) {
			t.Fatalf("Parse = %d, %v", n, err)
		}
		return
	}
	if got := AppendFrame(nil, f); !bytes.Equal(got, b[:n]) {
		t.Fatalf("AppendFrame = %x; want %x", got, b[:n])
	}
	if f.Type >= TypeSkip {
		return
	}
	once, err := reencode(f)
	if err != nil {
		var fe *FormatError
		var ue *UnsupportedError
		if !errors.As(err, &fe) && !errors.As(err, &ue) {
			t.Fatalf("%s: %v", f.Type, err)
		}
		return
	}
	again, n, err := Parse(once)
	if err != nil || n != len(once) || again.Type != f.Type || again.Stream != f.Stream {
		t.Fatalf("%s decoded and encoded = %x, which parses to %s, %d, %v", f.Type, once, again.Type, n, err)
	}
	if a, b := fields(f), fields(again); !same(a, b) {
		t.Fatalf("%s decoded = %v; decoded, encoded and decoded = %v", f.Type, a, b)
	}
}

// same compares the fields of a frame. A claim loses its unknown field when it is encoded again, and a refusal gets a length of
// entries.
func same(a, b map[string]any) bool {
	delete(a, "unknown")
	delete(b, "unknown")
	if a["status"] != StatusOK {
		delete(a, "entry")
		delete(b, "entry")
	}
	return reflect.DeepEqual(a, b)
}

// A sequence of fields, or a piece of it, is read or refused; what is read is the sequence.
func FuzzFields(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendField(AppendField(nil, 1, []byte("a")), 200, nil))
	f.Add([]byte{1, 0, 2, 'x'})
	f.Add(make([]byte, MaxFields+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := ReadFields(b)
		var again []byte
		for f, ok := r.Next(); ok; f, ok = r.Next() {
			again = AppendField(again, f.Type, f.Value)
		}
		switch {
		case r.Err() == nil && (!bytes.Equal(again, b) || len(b) > MaxFields):
			t.Fatalf("read %x of %x", again, b)
		case r.Err() != nil && !bytes.HasPrefix(b, again):
			t.Fatalf("read %x, then %v, of %x", again, r.Err(), b)
		}
	})
}

// Every part of a sequence of fields that ends inside a field is an error, and one that ends between two is not.
func TestEveryTruncationOfFields(t *testing.T) {
	all := AppendField(AppendField(AppendField(nil, 1, []byte("abc")), 2, nil), 255, []byte("z"))
	whole := map[int]bool{0: true, 6: true, 9: true, len(all): true}
	for n := range len(all) + 1 {
		r := ReadFields(all[:n:n])
		for _, ok := r.Next(); ok; _, ok = r.Next() {
		}
		if (r.Err() == nil) != whole[n] {
			t.Errorf("%d bytes: %v", n, r.Err())
		}
	}
}

// What is not known and not critical is skipped, and what an entry of a table has more than is known here.
func TestWhatIsSkipped(t *testing.T) {
	for _, c := range tolerated() {
		f, n, err := Parse(c.bytes)
		if err != nil || n != len(c.bytes) {
			t.Errorf("%s: Parse = %d, %v", c.name, n, err)
			continue
		}
		if got, err := reencode(f); err != nil || !bytes.Equal(got, with(c.like, 0)) {
			t.Errorf("%s: decoded and encoded = %x, %v; want what %s is", c.name, got, err, c.like)
		}
	}
	for _, c := range skipped() {
		f, n, err := Parse(append(bytes.Clone(c.bytes), 1, 2, 3))
		if err != nil || n != len(c.bytes) || f.Type < TypeSkip {
			t.Errorf("%s: Parse = %s, %d, %v; want all of it", c.name, f.Type, n, err)
		}
	}
	var long []byte
	for b := exampleTable(); len(b) > 0; b = b[StreamStateLen:] {
		long = append(append(long, b[:StreamStateLen]...), "later"...)
	}
	got, err := ParseTable(long, StreamStateLen+5)
	want, _ := ParseTable(exampleTable(), StreamStateLen)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("table with longer entries = %v, %v; want %v", got, err, want)
	}
	for _, entry := range []int{0, 28, 33} {
		if _, err := ParseTable(long, entry); err == nil {
			t.Errorf("a table of entries of 34 bytes is taken as one of %d", entry)
		}
	}
}

// What is not known and critical is named, and everything else is there.
func TestWhatIsUnsupported(t *testing.T) {
	for _, c := range unsupported() {
		f, _, err := Parse(c.bytes)
		if err != nil {
			t.Errorf("%s: Parse = %v", c.name, err)
			continue
		}
		_, err = reencode(f)
		var u *UnsupportedError
		if !errors.As(err, &u) || u.Type != f.Type || u.Field != 200 && u.What == "" {
			t.Errorf("%s: error = %v; want what is unsupported", c.name, err)
		}
	}
	f, _, _ := Parse(withField("claim", 201, "x"))
	if id, c, err := ParseClaim(f); err != nil || id != 1 || c.Unknown != 201 || c.Public != "tcp/9000" {
		t.Errorf("ParseClaim = %d, %+v, %v; want the claim and its unknown field", id, c, err)
	}
	f, _, _ = Parse(withField("attach-resume", 200, ""))
	if a, err := ParseAttach(f); a.Slot != 2 || a.Name != "nas" || err == nil {
		t.Errorf("ParseAttach = %+v, %v; want all that is known", a, err)
	}
	f, _, _ = Parse(withField("open-ipv4", 200, "x"))
	if o, err := ParseOpen(f); o.Service != 3 || err == nil {
		t.Errorf("ParseOpen = %+v, %v", o, err)
	}
}

// Values that later versions may add mean the least.
func TestLaterValues(t *testing.T) {
	f, _, err := Parse(AppendClaim(nil, 1, Claim{Health: 99}))
	if err != nil {
		t.Fatal(err)
	}
	if _, c, err := ParseClaim(f); err != nil || c.Health != HealthUnknown {
		t.Errorf("health 99 = %d, %v", c.Health, err)
	}
}

// A datagram of any size crosses in frames that every receiver takes, and comes together again.
func TestDatagramInFragments(t *testing.T) {
	for _, size := range []int{0, 1, MaxPayload - 1, MaxPayload, MaxPayload + 1, 2 * MaxPayload, 3*MaxPayload + 1, MaxDatagram} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(i * 7)
		}
		b := AppendDatagram(nil, 258, 1<<48+5, want)
		var got []byte
		for n := 0; len(b) > 0; n++ {
			f, used, err := Parse(b)
			if err != nil {
				t.Fatalf("%d bytes: fragment %d: %v", size, n, err)
			}
			d, err := ParseDatagram(f)
			if err != nil || int(d.Fragment) != n || d.Number != 5 || f.Stream != 258 {
				t.Fatalf("%d bytes: fragment %d = %d of datagram %d, %v", size, n, d.Fragment, d.Number, err)
			}
			got = append(got, d.Data...)
			if b = b[used:]; (len(b) == 0) != (d.Fragment == d.Fragments-1) {
				t.Fatalf("%d bytes: %d bytes behind fragment %d of %d", size, len(b), d.Fragment, d.Fragments)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes come as %d", size, len(got))
		}
	}
}

func TestHelloSize(t *testing.T) {
	for method, want := range map[byte]int{AuthPSK: 128, AuthSignature: 192, 3: 128, 0: 128} {
		b := hellos()[0].Append(nil)
		b[7] = method
		if n := HelloSize(b); n != want {
			t.Errorf("method %d: %d bytes; want %d", method, n, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range frames() {
		f.Add(c.bytes)
	}
	for _, c := range malformedFrames() {
		f.Add(c.bytes)
	}
	for _, c := range tolerated() {
		f.Add(c.bytes)
	}
	for _, c := range append(skipped(), unsupported()...) {
		f.Add(c.bytes)
	}
	f.Fuzz(checkFrame)
}

// FuzzPayload gives every decoder payloads under a header that fits, which FuzzParse would have to find first.
func FuzzPayload(f *testing.F) {
	for _, c := range frames() {
		f.Add(c.bytes[0], c.bytes[1], uint64(c.bytes[18])<<8|uint64(c.bytes[19]), c.bytes[HeaderLen:])
	}
	for _, c := range malformedFrames() {
		if len(c.bytes) > HeaderLen {
			f.Add(c.bytes[0], c.bytes[1], uint64(c.bytes[19]), c.bytes[HeaderLen:])
		}
	}
	f.Fuzz(func(t *testing.T, typ, flags byte, offset uint64, p []byte) {
		stream := uint64(0)
		if Type(typ).ofStream() {
			stream = 258
		}
		if len(p) > 0xffff {
			p = p[:0xffff]
		}
		b := append(AppendHeader(nil, Type(typ), stream, offset, len(p)), p...)
		b[1] = flags
		checkFrame(t, b)
	})
}

func FuzzParseTable(f *testing.F) {
	f.Add([]byte{}, 29)
	f.Add(exampleTable(), 29)
	f.Add(exampleTable()[:40], 29)
	f.Add(exampleTable(), 58)
	f.Add(append(exampleTable(), exampleTable()...), 29)
	f.Fuzz(func(t *testing.T, b []byte, entry int) {
		table, err := ParseTable(b, entry)
		if err != nil {
			return
		}
		last := uint64(0)
		for i, s := range table {
			if s.Stream <= last {
				t.Fatalf("stream %d after %d", s.Stream, last)
			}
			last = s.Stream
			if got, want := AppendStreamState(nil, s), b[i*entry:i*entry+StreamStateLen-1]; !bytes.Equal(got[:len(want)], want) {
				t.Fatalf("entry %d encoded again = %x; want %x", i, got, want)
			}
		}
		if len(table)*entry != len(b) {
			t.Fatalf("%d entries of %d bytes in %d", len(table), entry, len(b))
		}
	})
}

func FuzzParseHello(f *testing.F) {
	for _, h := range hellos() {
		f.Add(h.Append(nil))
	}
	bads, _ := malformedMessages()
	for _, c := range bads {
		f.Add(c.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHello(b)
		if err != nil {
			return
		}
		if again, err := ParseHello(h.Append(nil)); err != nil || again != h {
			t.Fatalf("decoded = %v; decoded, encoded and decoded = %v, %v", h, again, err)
		}
	})
}

func FuzzParseWelcome(f *testing.F) {
	for _, w := range welcomes() {
		f.Add(w.Append(nil))
	}
	_, bads := malformedMessages()
	for _, c := range bads {
		f.Add(c.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := ParseWelcome(b)
		if err != nil {
			return
		}
		if again, err := ParseWelcome(w.Append(nil)); err != nil || again != w {
			t.Fatalf("decoded = %v; decoded, encoded and decoded = %v, %v", w, again, err)
		}
	})
}

func BenchmarkAppendData(b *testing.B) {
	data := make([]byte, MaxPayload)
	buf := make([]byte, 0, HeaderLen+MaxPayload)
	b.SetBytes(MaxPayload)
	b.ReportAllocs()
	for b.Loop() {
		buf = append(AppendHeader(buf[:0], TypeData, 258, 5, len(data)), data...)
	}
}

func BenchmarkParseData(b *testing.B) {
	frame := append(AppendHeader(nil, TypeData, 258, 5, MaxPayload), make([]byte, MaxPayload)...)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse(frame); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseBatch parses what one read of a busy connection brings: DATA with ACKs between.
func BenchmarkParseBatch(b *testing.B) {
	var batch []byte
	for i := range 4 {
		batch = append(AppendHeader(batch, TypeData, 258, uint64(i)*16_000, 16_000), make([]byte, 16_000)...)
		batch = AppendAck(batch, 514, uint64(i), 1<<20)
	}
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		for rest := batch; len(rest) > 0; {
			_, n, err := Parse(rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
}
