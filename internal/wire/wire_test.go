package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
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
	attach := "01 00 0059 0000000000000000 0000000000000007" + // ATTACH, generation 7
		"02 03 101112131415161718191a1b1c1d1e1f 404142434445464748494a4b4c4d4e4f" +
		"00000002 01020304 00004000 00001000 000493e0" +
		"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f 6e6173"
	for _, c := range []struct {
		want string
		got  []byte
	}{
		{attach, AppendAttach(nil, 7, Attach{
			Mode: ModeResume, Slot: 3, Session: seq[[16]byte](0x10), WantInstance: seq[[16]byte](0x40), Streams: 2, TableCRC: 0x01020304,
			Window: 0x4000, MaxStreams: 0x1000, Detach: 300_000, MAC: seq[[32]byte](0x80), Name: "nas",
		})},
		{"02 00 001e 0000000000000000 0000000000000007 02 03 04 00 00000002 01020304 00004000 00001000 0bc1 0000 000493e0 6e6f", AppendAttached(nil, 7, Attached{
			Status: StatusGone, Slot: 3, Carriers: 4, Streams: 2, TableCRC: 0x01020304, Window: 0x4000, MaxStreams: 0x1000, Transfer: 3009, Detach: 300_000, Text: "no",
		})},
		{"03 00 001d 0000000000000000 0000000000000000 0000000000000102 0000000000000005 0000000000004005 9a71bb4c 00", AppendTable(nil, exampleTable()[:StreamStateLen])},
		{"04 00 001c 0000000000000102 0000000000010000 0003 04 cb007107 c3cb 10 20010db8000000000000000000000001 2328", AppendOpen(nil, 0x102, 65536, Open{
			Service: 3, Client: netip.MustParseAddrPort("203.0.113.7:50123"), Local: netip.MustParseAddrPort("[2001:db8::1]:9000"),
		})},
		{"05 00 0002 0000000000000102 0000000100000005 6869", append(AppendHeader(nil, TypeData, 0x102, 1<<32+5, 2), "hi"...)},
		{"06 00 0008 0000000000000102 0000000000000005 0000000000004005", AppendAck(nil, 0x102, 5, 0x4005)},
		{"07 00 0008 0000000000000102 0000000000000005 02 03 0000 9a71bb4c", AppendEnd(nil, 0x102, 5, End{RST, CodeUnreachable, 0x9a71bb4c})},
		{"08 00 0000 0000000000000102 0000000000000000", AppendEmpty(nil, TypeForget, 0x102, 0)},
		{"09 00 0000 0000000000000000 00000000075bcd15", AppendEmpty(nil, TypePing, 0, 123456789)},
		{"0a 00 0000 0000000000000000 00000000075bcd15", AppendEmpty(nil, TypePong, 0, 123456789)},
		{"0b 00 0004 0000000000000000 0000000000000000 00007530", AppendGoAway(nil, GoAway{30000})},
		{"0c 00 0005 0000000000000000 0000000000000000 0004 676170", AppendErr(nil, Err{ErrGap, "gap"})},
		{"0d 01 000d 0000000000000000 0000000000000002 08 7463702f39303030 03 613a31", AppendClaim(nil, 2, Claim{"tcp/9000", "a:1"}, true)},
		{"0e 00 001d 0000000000000000 0000000000000002 01 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 08 7463702f39303030 02 6f6b", AppendClaimed(nil, 2, Claimed{ClaimUp, seq[[16]byte](0xa0), "tcp/9000", "ok"})},
		{"0f 00 0000 0000000000000000 0000000000000002", AppendEmpty(nil, TypeUnclaim, 0, 2)},
		{"52565352 01 01 01 01 202122232425262728292a2b2c2d2e2f 303132333435363738393a3b3c3d3e3f" + strings.Repeat("00", 56) +
			"606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f", hellos()[0].Append(nil)},
		{"52565352 01 01 00000000000000000000 404142434445464748494a4b4c4d4e4f" +
			"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", welcomes()[0].Append(nil)},
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
		{"last type", int(TypeUnclaim), 15}, {"last mode", int(ModeJoin), 3}, {"last status", int(StatusStale), 7},
		{"last error", int(ErrClaimInvalid), 11}, {"last code", int(CodeAborted), 8}, {"RST", int(RST), 2},
		{"last claim status", int(ClaimRetrying), 3}, {"last verdict", int(VerdictVersion), 3},
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
		if _, err := ParseTable(table[:n:n]); (err == nil) != (n%StreamStateLen == 0) {
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
		case "unknown-type", "reserved-flags", "length", "stream-missing", "stream-unexpected", "reserved-offset":
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
		entries, err := ParseTable(got)
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
			AppendErr(nil, Err{Code: ErrGap, Text: long}),
			AppendClaim(nil, 1, Claim{Public: long, Target: long}, false),
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
				c, _ := ParseClaim(f)
				texts = []string{c.Public, c.Target}
			case TypeClaimed:
				c, _ := ParseClaimed(f)
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
		Type(0): "type 0", TypeAttach: "ATTACH", TypeUnclaim: "UNCLAIM", typeEnd: "type 16", Type(255): "type 255",
		StatusOK: "ok", StatusStale: "stale", Status(0): "?", statusEnd: "?", Status(255): "?", FIN: "FIN", RST: "RST", EndKind(0): "none",
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

// checkFrame is the property of every parser here: what is taken re-encodes to the same bytes.
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
	if got, err := reencode(f); err == nil && !bytes.Equal(got, b[:n]) {
		t.Fatalf("%s decoded and encoded = %x; want %x", f.Type, got, b[:n])
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range frames() {
		f.Add(c.bytes)
	}
	for _, c := range malformedFrames() {
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
		switch Type(typ) {
		case TypeOpen, TypeData, TypeAck, TypeEnd, TypeForget:
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
	f.Add([]byte{})
	f.Add(exampleTable())
	f.Add(exampleTable()[:40])
	f.Add(append(exampleTable(), exampleTable()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := ParseTable(b)
		if err != nil {
			return
		}
		var again []byte
		last := uint64(0)
		for _, s := range table {
			if s.Stream <= last {
				t.Fatalf("stream %d after %d", s.Stream, last)
			}
			last = s.Stream
			again = AppendStreamState(again, s)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("encoded again = %x; want %x", again, b)
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
		if h, err := ParseHello(b); err == nil && !bytes.Equal(h.Append(nil), b) {
			t.Fatalf("encoded again = %x; want %x", h.Append(nil), b)
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
		if w, err := ParseWelcome(b); err == nil && !bytes.Equal(w.Append(nil), b) {
			t.Fatalf("encoded again = %x; want %x", w.Append(nil), b)
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
