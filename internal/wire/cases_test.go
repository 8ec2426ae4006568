package wire

import (
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
)

// The values that the tests, the vectors and the seeds of the fuzzers share.

func seq[T [16]byte | [32]byte](from byte) (a T) {
	for i := range len(a) {
		switch p := any(&a).(type) {
		case *[16]byte:
			p[i] = from + byte(i)
		case *[32]byte:
			p[i] = from + byte(i)
		}
	}
	return a
}

// named is a valid frame.
type named struct {
	name  string
	bytes []byte
}

func frames() []named {
	client4, local4 := netip.MustParseAddrPort("203.0.113.7:50123"), netip.MustParseAddrPort("198.51.100.1:9000")
	client6, local6 := netip.MustParseAddrPort("[2001:db8::7]:50123"), netip.MustParseAddrPort("[2001:db8::1]:9000")
	const id, dialled = 1<<8 | 2, 1<<63 | 1<<8 | 2
	all := []named{
		{"attach-new", AppendAttach(nil, 1, Attach{Mode: ModeNew, Session: seq[[16]byte](0x10), Window: 16384, MaxStreams: 16384, Detach: 300_000, Name: "nas"})},
		{"attach-resume", AppendAttach(nil, 7, Attach{
			Mode: ModeResume, Slot: 2, Session: seq[[16]byte](0x10), WantInstance: seq[[16]byte](0x40), Streams: 2,
			TableCRC: crc32.Checksum(exampleTable(), crc32.MakeTable(crc32.Castagnoli)), Window: 16384, MaxStreams: 16384, MAC: seq[[32]byte](0x80), Name: "nas",
		})},
		{"attach-join-without-name", AppendAttach(nil, 1, Attach{
			Mode: ModeJoin, Slot: 4, Session: seq[[16]byte](0x10), WantInstance: seq[[16]byte](0x40), Window: 16384, MaxStreams: 4096, MAC: seq[[32]byte](0x80),
		})},
		{"attach-longest-name", AppendAttach(nil, 1<<64-1, Attach{Mode: ModeJoin, Slot: 255, Streams: 1<<32 - 1, TableCRC: 1<<32 - 1, Window: 1<<32 - 1, MaxStreams: 1<<32 - 1, Detach: 1<<32 - 1, Name: strings.Repeat("n", MaxText)})},
		{"attach-keepalive", AppendAttach(nil, 1, Attach{Mode: ModeNew, Session: seq[[16]byte](0x10), Window: 16384, MaxStreams: 16384, Name: "nas", Keepalive: 25_000})},
		{"attach-ask", AppendAttach(nil, 1, Attach{Mode: ModeNew, Session: seq[[16]byte](0x10), Name: "nas", Ask: "tcp/9000\ntcp/80\n"})},
		{"attach-with-longer-entries", AppendAttach(nil, 2, Attach{Mode: ModeResume, Slot: 1, Entry: 255, Streams: 1})},
		{"attached-ok", AppendAttached(nil, 7, Attached{Status: StatusOK, Slot: 2, Carriers: 4, Streams: 2, TableCRC: 0x01020304, Window: 16384, MaxStreams: 16384, Transfer: 3009, Detach: 300_000})},
		{"attached-gone", AppendAttached(nil, 7, Attached{Status: StatusGone, Slot: 2, Text: "the proxy does not hold this session (any more)"})},
		{"attached-stale", AppendAttached(nil, 7, Attached{Status: StatusStale, Text: strings.Repeat("t", MaxText)})},
		{"attached-draining-come-back", AppendAttached(nil, 1, Attached{Status: StatusDraining, Text: "the proxy is stopping", ComeBack: 1500})},
		{"attached-answers", AppendAttached(nil, 1, Attached{Status: StatusOK, Answers: "\ntcp/80 denied\n"})},
		{"attached-unsupported", AppendAttached(nil, 1, Attached{Status: StatusUnsupported})},
		{"attached-status-of-a-later-version", AppendAttached(nil, 1, Attached{Status: 200})},
		{"st-one-entry", AppendTable(nil, exampleTable()[:StreamStateLen])},
		{"st-two-entries", AppendTable(nil, exampleTable())},
		{"open-ipv4", AppendOpen(nil, id, 65536, Open{Kind: OpenStream, Service: 3, Client: client4, Local: local4})},
		{"open-ipv6", AppendOpen(nil, id, 16384, Open{Kind: OpenStream, Service: 1<<32 - 1, Client: client6, Local: local6})},
		{"open-without-fields", AppendOpen(nil, id, 16384, Open{Kind: OpenStream, Service: 1})},
		{"open-all-of-a-user", AppendOpen(nil, id, 16384, Open{
			Kind: OpenStream, Service: 7, Client: client4, Local: local6, Entrance: EntranceHTTPS,
			More: &OpenMore{Host: "www.example.com", KeyName: "laptop", Trace: seq[[16]byte](0x50)},
		})},
		{"open-by-the-dialling-end", AppendOpen(nil, dialled, 16384, Open{Kind: OpenStream, More: &OpenMore{Name: "private/db", Hops: 1, HasHops: true}})},
		{"open-by-the-dialling-end-local-offers-only", AppendOpen(nil, dialled, 16384, Open{Kind: OpenStream, More: &OpenMore{Name: "private/db", HasHops: true}})},
		{"open-flow", AppendOpen(nil, id, 0, Open{Kind: OpenDatagrams, Service: 2, Client: client4, Local: local4, Entrance: EntranceUDP})},
		{"data-one-byte", append(AppendHeader(nil, TypeData, id, 0, 1), 'x')},
		{"data-beyond-4-gib", append(AppendHeader(nil, TypeData, id, 1<<32+5, 5), "hello"...)},
		{"ack-first", AppendAck(nil, id, 5, 16389)},
		{"ack-large", AppendAck(nil, 1<<64-1, 1<<62, 1<<63)},
		{"end-fin", AppendEnd(nil, id, 5, End{Kind: FIN, CRC: crc32.Checksum([]byte("hello"), crc32.MakeTable(crc32.Castagnoli))})},
		{"end-fin-of-an-empty-direction", AppendEnd(nil, id, 0, End{Kind: FIN})},
		{"end-rst-after-fin", AppendEnd(nil, id, 6, End{Kind: RST, Code: CodeReset, CRC: crc32.Checksum([]byte("hello"), crc32.MakeTable(crc32.Castagnoli))})},
		{"end-rst-ended", AppendEnd(nil, id, 0, End{Kind: RST, Code: CodeEnded})},
		{"end-rst-unsupported", AppendEnd(nil, id, 0, End{Kind: RST, Code: CodeUnsupported})},
		{"end-rst-code-of-a-later-version", AppendEnd(nil, id, 0, End{Kind: RST, Code: 255})},
		{"forget", AppendEmpty(nil, TypeForget, id, 0)},
		{"ping", AppendEmpty(nil, TypePing, 0, 123456789)},
		{"pong", AppendEmpty(nil, TypePong, 0, 123456789)},
		{"goaway", AppendGoAway(nil, GoAway{DrainMillis: 30000})},
		{"goaway-come-back", AppendGoAway(nil, GoAway{DrainMillis: 30000, Text: "upgrade", ComeBack: 2000})},
		{"err", AppendErr(nil, Err{Code: ErrGap, Text: "DATA at 7 on stream 258, want 5"})},
		{"err-without-text", AppendErr(nil, Err{Code: ErrClaimInvalid})},
		{"err-code-of-a-later-version", AppendErr(nil, Err{Code: 999, Text: "no"})},
		{"claim", AppendClaim(nil, 1, Claim{Public: "tcp/9000", Target: "192.168.1.5:80"})},
		{"claim-highest-id", AppendClaim(nil, 1<<32-1, Claim{Public: "offered", Target: "127.0.0.1:9904"})},
		{"claim-longest-texts", AppendClaim(nil, 1, Claim{Public: strings.Repeat("p", 255), Target: strings.Repeat("t", 255)})},
		{"claim-empty", AppendClaim(nil, 1, Claim{})},
		{"claim-of-a-group", AppendClaim(nil, 5, Claim{Public: "http/app.example.com", Target: "10.0.0.1:80", Weight: 3, Health: HealthGood, Group: "app"})},
		{"claim-all-fields", AppendClaim(nil, 5, Claim{Public: "tcp/9000", Target: "a:1", Weight: 1, Health: HealthBad, Drained: true, Limits: []byte("rate=1MB/s"), Group: "g"})},
		{"claim-with-options", AppendClaim(nil, 6, Claim{Public: "http/app.example.com", Target: "a:1", Group: "g", Options: []byte(`{"inspect":true}`)})},
		{"claimed-up", AppendClaimed(nil, 1, Claimed{Status: ClaimUp, Nonce: seq[[16]byte](0xa0), Public: "tcp/9000"})},
		{"claimed-denied", AppendClaimed(nil, 2, Claimed{Status: ClaimDenied, Public: "tcp/22", Text: "tcp/22 denied: the policy of key \"nas\" allows tcp/1024-65535"})},
		{"claimed-longest", AppendClaimed(nil, 1<<32-1, Claimed{Status: ClaimRetrying, Public: strings.Repeat("p", 255), Text: strings.Repeat("t", MaxText)})},
		{"claimed-drained", AppendClaimed(nil, 1, Claimed{Status: ClaimUp, Public: "tcp/9000", Text: "no new users", Drained: true})},
		{"claimed-status-of-a-later-version", AppendClaimed(nil, 1, Claimed{Status: 77, Public: "tcp/9000"})},
		{"unclaim", AppendUnclaim(nil, 1)},
		{"unclaimed", AppendUnclaimed(nil, 1, []Mark{{1, 5<<8 | 1}, {2, 0}, {4, 1<<62 | 4}})},
		{"unclaimed-without-marks", AppendUnclaimed(nil, 1<<32-1, nil)},
		{"round", AppendRound(nil)},
	}
	for _, c := range []struct {
		name string
		size int
	}{{"datagram-empty", 0}, {"datagram-one-byte", 1}, {"datagram-whole-fragment", MaxPayload}} {
		all = append(all, named{c.name, AppendDatagram(nil, id, 1<<48-1, make([]byte, c.size))})
	}
	last := AppendDatagram(nil, dialled, 9, make([]byte, MaxDatagram))
	return append(all,
		named{"datagram-first-fragment-of-the-largest", last[:HeaderLen+MaxPayload]},
		named{"datagram-last-fragment-of-the-largest", last[3*(HeaderLen+MaxPayload):]},
	)
}

// tolerated are valid frames that this package would not send: what it does not know is skipped. Each decodes to what the
// frame "like" decodes to.
func tolerated() (list []struct {
	name, like string
	bytes      []byte
}) {
	add := func(name, like string, b []byte) {
		list = append(list, struct {
			name, like string
			bytes      []byte
		}{name, like, b})
	}
	fields := []struct{ name, like string }{
		{"attach", "attach-resume"}, {"attached", "attached-draining-come-back"}, {"open", "open-ipv4"}, {"claim", "claim"},
		{"claimed", "claimed-up"}, {"unclaimed", "unclaimed"}, {"goaway", "goaway-come-back"},
	}
	for _, f := range fields {
		add(f.name+"-with-an-unknown-field", f.like, withField(f.like, 127, "later"))
		add(f.name+"-with-an-empty-unknown-field", f.like, withField(f.like, 127, ""))
	}
	add("ping-with-flags-to-ignore", "ping", with("ping", 1, 0xf0))
	add("data-with-flags-to-ignore", "data-one-byte", with("data-one-byte", 1, 0x10))
	add("attach-with-a-reserved-byte", "attach-new", with("attach-new", HeaderLen+3, 0xff))
	add("attached-with-reserved-bytes", "attached-ok", with("attached-ok", HeaderLen+22, 0xff, 0xff))
	add("open-with-a-reserved-byte", "open-ipv4", with("open-ipv4", HeaderLen+1, 0xff))
	add("end-with-reserved-bytes", "end-fin", with("end-fin", HeaderLen+2, 0xff, 0xff))
	add("forget-with-an-offset", "forget", with("forget", 12, 1, 2, 3))
	add("goaway-with-an-offset", "goaway", with("goaway", 12, 1, 2, 3))
	add("err-with-an-offset", "err", with("err", 12, 1, 2, 3))
	add("round-with-an-offset", "round", with("round", 12, 1, 2, 3))
	return list
}

// skipped are frames of types that are skipped by their length.
func skipped() []named {
	return []named{
		{"check", AppendEmpty(nil, TypeCheck, 0, 2)},
		{"retire", AppendEmpty(nil, TypeRetire, 0, 0)},
		{"type-130", head(130, 0, 0, 0, 0)},
		{"type-255-of-a-stream", append(head(255, 0xff, 3, 258, 5), "abc"...)},
		{"type-200-longest", append(head(200, 0, MaxPayload, 0, 0), make([]byte, MaxPayload)...)},
	}
}

// unsupported are frames whose only fault is that something critical is not known.
func unsupported() []named {
	var list []named
	for _, f := range []struct{ name, like string }{
		{"attach", "attach-resume"}, {"attached", "attached-ok"}, {"open", "open-ipv4"}, {"claimed", "claimed-up"}, {"unclaimed", "unclaimed"}, {"goaway", "goaway"},
	} {
		list = append(list, named{f.name + "-with-an-unknown-critical-field", withField(f.like, 200, "x")})
	}
	return append(list,
		named{"open-of-kind-0", with("open-ipv4", HeaderLen, 0)},
		named{"open-of-kind-3", with("open-ipv4", HeaderLen, 3)},
	)
}

func exampleTable() []byte {
	b := AppendStreamState(nil, StreamState{Stream: 1<<8 | 2, RcvNxt: 5, Credit: 16389, CRC: crc32.Checksum([]byte("hello"), crc32.MakeTable(crc32.Castagnoli))})
	return AppendStreamState(b, StreamState{Stream: 3<<8 | 2, RcvNxt: 1<<32 + 1, Credit: 1<<32 + 16384, CRC: 0xdeadbeef})
}

// bad is an input that must be refused, and the one reason for it. Reasons are words of spec/PROTOCOL.md, section "Test
// vectors"; text is what this package's error says.
type bad struct {
	name         string
	bytes        []byte
	reason, text string
}

func head(t Type, flags byte, size int, stream, offset uint64) []byte {
	b := AppendHeader(nil, t, stream, offset, size)
	b[1] = flags
	return b
}

// with returns the named valid frame with some bytes replaced.
func with(name string, at int, repl ...byte) []byte {
	for _, f := range frames() {
		if f.name == name {
			b := append([]byte{}, f.bytes...)
			copy(b[at:], repl)
			return b
		}
	}
	panic("no frame " + name)
}

// withField returns the named valid frame with one field more at its end.
func withField(name string, t uint8, value string) []byte {
	b := with(name, 0)
	b = AppendField(b, t, []byte(value))
	return setLength(b, 0)
}

// payload builds a frame whose payload is p.
func payload(t Type, stream, offset uint64, p ...byte) []byte {
	return append(AppendHeader(nil, t, stream, offset, len(p)), p...)
}

func malformedFrames() []bad {
	const id = 1<<8 | 2
	zeros := func(n int) []byte { return make([]byte, n) }
	fixed := func(name string, n int) []byte { return with(name, 0)[HeaderLen : HeaderLen+n] } // fixed part of a payload
	bads := []bad{
		{"type-0", head(0, 0, 0, 0, 0), "unknown-type", "unknown type"},
		{"type-above-the-last", head(typeEnd, 0, 0, 0, 0), "unknown-type", "unknown type"},
		{"type-127", head(127, 0, 0, 0, 0), "unknown-type", "unknown type"},
		{"type-127-in-one-byte", []byte{127}, "unknown-type", "unknown type"},
		{"http-request", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "unknown-type", "unknown type"},
		{"type-128-too-long", head(128, 0, MaxPayload+1, 0, 0), "length", "payload of 16385 bytes"},
		{"data-with-all-flags", with("data-one-byte", 1, 0xff), "flags", "unknown flags 0xf"},
		{"data-with-flag-3", with("data-one-byte", 1, 8), "flags", "unknown flags 0x8"},
		{"data-empty", head(TypeData, 0, 0, id, 0), "length", "payload of 0 bytes"},
		{"data-one-byte-too-long", head(TypeData, 0, MaxPayload+1, id, 0), "length", "payload of 16385 bytes"},
		{"data-of-65535-bytes", head(TypeData, 0, 65535, id, 0), "length", "payload of 65535 bytes"},
		{"ack-of-7-bytes", append(head(TypeAck, 0, 7, id, 0), zeros(7)...), "length", "payload of 7 bytes"},
		{"ack-of-9-bytes", append(head(TypeAck, 0, 9, id, 0), zeros(9)...), "length", "payload of 9 bytes"},
		{"end-of-7-bytes", append(head(TypeEnd, 0, 7, id, 0), zeros(7)...), "length", "payload of 7 bytes"},
		{"ping-with-payload", append(head(TypePing, 0, 1, 0, 0), 0), "length", "payload of 1 bytes"},
		{"forget-with-payload", append(head(TypeForget, 0, 1, id, 0), 0), "length", "payload of 1 bytes"},
		{"unclaim-with-payload", append(head(TypeUnclaim, 0, 1, 0, 1), 0), "length", "payload of 1 bytes"},
		{"round-with-payload", append(head(TypeRound, 0, 1, 0, 0), 0), "length", "payload of 1 bytes"},
		{"goaway-of-3-bytes", append(head(TypeGoAway, 0, 3, 0, 0), zeros(3)...), "length", "payload of 3 bytes"},
		{"attach-one-byte-short", append(head(TypeAttach, 0, attachLen-1, 0, 1), zeros(attachLen-1)...), "length", "payload of"},
		{"attach-fields-too-long", head(TypeAttach, 0, attachLen+MaxFields+1, 0, 1), "length", "payload of"},
		{"attached-one-byte-short", append(head(TypeAttached, 0, attachedLen-1, 0, 1), zeros(attachedLen-1)...), "length", "payload of"},
		{"attached-fields-too-long", head(TypeAttached, 0, attachedLen+MaxFields+1, 0, 1), "length", "payload of"},
		{"err-text-too-long", append(head(TypeErr, 0, 2+MaxText+1, 0, 0), zeros(2+MaxText+1)...), "length", "payload of"},
		{"open-too-short", append(head(TypeOpen, 0, openLen-1, id, 0), zeros(openLen-1)...), "length", "payload of"},
		{"open-fields-too-long", head(TypeOpen, 0, openLen+MaxFields+1, id, 0), "length", "payload of"},
		{"claim-too-long", head(TypeClaim, 0, 512+MaxFields+1, 0, 1), "length", "payload of"},
		{"claimed-too-short", append(head(TypeClaimed, 0, 18, 0, 1), zeros(18)...), "length", "payload of"},
		{"unclaimed-empty", head(TypeUnclaimed, 0, 0, 0, 1), "length", "payload of 0 bytes"},
		{"goaway-fields-too-long", head(TypeGoAway, 0, goAwayLen+MaxFields+1, 0, 0), "length", "payload of"},
		{"st-empty", head(TypeST, 0, 0, 0, 0), "length", "payload of 0 bytes"},
		{"st-too-long", head(TypeST, 0, MaxPayload+1, 0, 0), "length", "payload of"},
		{"datagram-too-long", head(TypeDatagram, 0, MaxPayload+1, id, 1), "length", "payload of"},
		{"attach-on-a-stream", head(TypeAttach, 0, attachLen, id, 1), "stream-unexpected", "in a frame of the link"},
		{"attach-mode-0", with("attach-new", HeaderLen, 0), "mode", "mode 0"},
		{"attach-mode-4", with("attach-new", HeaderLen, 4), "mode", "mode 4"},
		{"attach-generation-0", with("attach-new", 12, 0, 0, 0, 0, 0, 0, 0, 0), "generation", "generation 0"},
		{"attach-new-on-slot-1", with("attach-new", HeaderLen+1, 1), "new-session", "a new session starts"},
		{"attach-new-with-streams", with("attach-new", HeaderLen+39, 1), "new-session", "a new session starts"},
		{"attach-new-with-an-instance", with("attach-new", HeaderLen+20, 1), "new-session", "a new session starts"},
		{"attach-new-with-a-mac", with("attach-new", HeaderLen+56, 1), "new-session", "a new session starts"},
		{"attach-entries-of-28-bytes", with("attach-resume", HeaderLen+2, 28), "entry", "entries of 28 bytes"},
		{"attached-entries-of-0-bytes", with("attached-ok", HeaderLen+3, 0), "entry", "entries of 0 bytes"},
		{"st-stream-0", append(head(TypeST, 0, 29, 0, 0), zeros(29)...), "table-order", "stream 0 after 0"},
		{"st-same-stream-twice", with("st-two-entries", HeaderLen+29+6, 1), "table-order", "stream 258 after 258"},
		{"st-streams-not-in-order", with("st-two-entries", HeaderLen+29+6, 0), "table-order", "stream 2 after 258"},
		{"attach-ask-to-resume", withField("attach-with-longer-entries", fieldAttachAsk, "tcp/9000\n"), "field-value", "field 128"},
		{"attach-ask-for-nothing", withField("attach-new", fieldAttachAsk, ""), "field-value", "field 128"},
		{"attach-ask-too-long", withField("attach-new", fieldAttachAsk, strings.Repeat("a", MaxAsk+1)), "field-value", "field 128"},
		{"attached-answers-too-long", withField("attached-ok", fieldAnswers, strings.Repeat("a", MaxAsk+1)), "field-value", "field 3"},
		{"open-address-of-5-bytes", withField("open-without-fields", fieldClient, "\x01\x02\x03\x04\x05\x00\x50"), "field-value", "field 1"},
		{"open-address-without-port", withField("open-without-fields", fieldLocal, "\x01\x02\x03\x04"), "field-value", "field 2"},
		{"open-empty-address", withField("open-without-fields", fieldClient, ""), "field-value", "field 1"},
		{"open-ipv4-mapped-ipv6", withField("open-without-fields", fieldClient, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x01\x02\x03\x04\x00\x50"), "field-value", "field 1"},
		{"open-host-too-long", withField("open-without-fields", fieldHost, strings.Repeat("h", 256)), "field-value", "field 3"},
		{"open-entrance-of-2-bytes", withField("open-without-fields", fieldEntrance, "ab"), "field-value", "field 4"},
		{"open-key-name-too-long", withField("open-without-fields", fieldKeyName, strings.Repeat("k", MaxText+1)), "field-value", "field 5"},
		{"open-trace-of-15-bytes", withField("open-without-fields", fieldTrace, strings.Repeat("t", 15)), "field-value", "field 6"},
		{"open-trace-of-17-bytes", withField("open-without-fields", fieldTrace, strings.Repeat("t", 17)), "field-value", "field 6"},
		{"open-name-too-long", withField("open-without-fields", fieldName, strings.Repeat("n", 256)), "field-value", "field 128"},
		{"open-hops-of-no-bytes", withField("open-without-fields", fieldHops, ""), "field-value", "field 129"},
		{"attach-name-too-long", withField("attach-join-without-name", fieldAttachName, strings.Repeat("n", MaxText+1)), "field-value", "field 1"},
		{"attach-keepalive-of-2-bytes", withField("attach-join-without-name", fieldAttachKeepalive, "ab"), "field-value", "field 2"},
		{"attached-text-too-long", withField("attached-unsupported", fieldText, strings.Repeat("n", MaxText+1)), "field-value", "field 1"},
		{"attached-come-back-of-3-bytes", withField("attached-unsupported", fieldComeBack, "abc"), "field-value", "field 2"},
		{"goaway-come-back-of-5-bytes", withField("goaway", fieldComeBack, "abcde"), "field-value", "field 2"},
		{"claim-weight-of-1-byte", withField("claim", fieldWeight, "a"), "field-value", "field 1"},
		{"claim-health-of-2-bytes", withField("claim", fieldHealth, "ab"), "field-value", "field 2"},
		{"claim-drained-of-no-bytes", withField("claim", fieldDrained, ""), "field-value", "field 3"},
		{"claim-limits-too-long", withField("claim", fieldLimits, strings.Repeat("l", maxLimits+1)), "field-value", "field 4"},
		{"claim-options-too-long", withField("claim", fieldOptions, strings.Repeat("o", MaxOptions+1)), "field-value", "field 129"},
		{"claim-group-too-long", withField("claim", fieldGroup, strings.Repeat("g", MaxText+1)), "field-value", "field 128"},
		{"end-kind-0", with("end-fin", HeaderLen, 0), "end-kind", "kind 0"},
		{"end-kind-3", with("end-fin", HeaderLen, 3), "end-kind", "kind 3"},
		{"claim-id-0", with("claim", 19, 0), "claim-id", "claim id 0"},
		{"claim-id-above-32-bits", with("claim", 15, 1), "claim-id", "claim id 4294967297"},
		{"claimed-id-0", with("claimed-up", 19, 0), "claim-id", "claim id 0"},
		{"claimed-id-above-32-bits", with("claimed-up", 12, 1), "claim-id", "claim id"},
		{"unclaim-id-0", with("unclaim", 19, 0), "claim-id", "claim id 0"},
		{"unclaimed-id-0", with("unclaimed", 19, 0), "claim-id", "claim id 0"},
		{"claim-text-beyond-the-end", payload(TypeClaim, 0, 1, 1, 'a', 2, 'b'), "text", "bad text"},
		{"claim-without-target", payload(TypeClaim, 0, 1, 1, 'a'), "text", "bad text"},
		{"claim-255-bytes-that-are-not-there", payload(TypeClaim, 0, 1, append([]byte{255}, zeros(254)...)...), "text", "bad text"},
		{"claimed-text-too-long", payload(TypeClaimed, 0, 1, append(append(append([]byte{1}, zeros(16)...), 0, MaxText+1), zeros(MaxText+1)...)...), "text", "bad text"},
		{"unclaimed-fewer-marks-than-said", payload(TypeUnclaimed, 0, 1, append([]byte{2}, zeros(2*markLen-1)...)...), "marks", "2 marks in 17 bytes"},
		{"unclaimed-mark-of-slot-0", payload(TypeUnclaimed, 0, 1, append([]byte{1}, zeros(markLen)...)...), "marks", "mark of slot 0"},
		{"unclaimed-marks-not-in-order", with("unclaimed", HeaderLen+1+markLen, 1), "marks", "mark of slot 1 after slot 1"},
		{"unclaimed-mark-of-another-slot", with("unclaimed", HeaderLen+1+8, 2), "marks", "as the mark of slot 1"},
		{"datagram-of-no-fragments", with("datagram-empty", 19, 0), "fragment", "fragment 0 of 0"},
		{"datagram-of-5-fragments", with("datagram-empty", 19, 5), "fragment", "fragment 0 of 5"},
		{"datagram-fragment-beyond-the-last", with("datagram-empty", 18, 1), "fragment", "fragment 1 of 1"},
		{"datagram-short-fragment", with("datagram-one-byte", 19, 2), "fragment", "fragment 0 of 2 with 1 bytes"},
		{"datagram-empty-last-fragment", with("datagram-empty", 18, 1, 2), "fragment", "fragment 1 of 2 is empty"},
		{"datagram-too-large", with("datagram-whole-fragment", 18, 3, 4), "fragment", "more than 65507 bytes"},
	}
	for _, f := range []struct {
		name string
		t    Type
		of   uint64
		head []byte
	}{
		{"attach", TypeAttach, 0, fixed("attach-new", attachLen)},
		{"attached", TypeAttached, 0, fixed("attached-ok", attachedLen)},
		{"open", TypeOpen, id, fixed("open-ipv4", openLen)},
		{"goaway", TypeGoAway, 0, fixed("goaway", goAwayLen)},
		{"claim", TypeClaim, 0, []byte{0, 0}},
		{"claimed", TypeClaimed, 0, append([]byte{1}, zeros(18)...)},
		{"unclaimed", TypeUnclaimed, 0, []byte{0}},
	} {
		for _, wrong := range []struct {
			name   string
			fields []byte
			text   string
		}{
			{"field-cut-short", []byte{100, 0}, "the last field is cut short"},
			{"field-beyond-the-end", []byte{100, 0, 2, 'x'}, "field 100 of 2 bytes, 1 are there"},
			{"field-0", []byte{0, 0, 0}, "field 0 after 0"},
			{"same-field-twice", []byte{100, 0, 0, 100, 0, 0}, "field 100 after 100"},
			{"fields-not-in-order", []byte{100, 0, 0, 99, 0, 0}, "field 99 after 100"},
		} {
			bads = append(bads, bad{f.name + "-" + wrong.name, payload(f.t, f.of, 1, append(append([]byte{}, f.head...), wrong.fields...)...), "fields", wrong.text})
		}
	}
	for t := TypeAttach; t < typeEnd; t++ {
		var stream, offset uint64 = 0, 1
		of := "stream-unexpected"
		if t.ofStream() {
			stream, of = id, "stream-missing"
		}
		size := bounds[t].min
		name := strings.ToLower(t.String())
		bads = append(bads, bad{name + "-with-flag-0", append(head(t, 1, size, stream, offset), zeros(size)...), "flags", "unknown flags"})
		text := "no stream"
		if stream == 0 {
			text = "in a frame of the link"
		}
		if t != TypeAttach { // has its own above, so that names are unique
			bads = append(bads, bad{fmt.Sprintf("%s-%s", name, of), append(head(t, 0, size, stream^id, offset), zeros(size)...), of, text})
		}
	}
	return bads
}

// reencode decodes the payload of f with the decoder of its type and encodes the result.
func reencode(f Frame) ([]byte, error) {
	switch f.Type {
	case TypeAttach:
		a, err := ParseAttach(f)
		return AppendAttach(nil, f.Offset, a), err
	case TypeAttached:
		a, err := ParseAttached(f)
		return AppendAttached(nil, f.Offset, a), err
	case TypeST:
		t, err := ParseTable(f.Payload, StreamStateLen)
		b := AppendHeader(nil, TypeST, 0, f.Offset, len(t)*StreamStateLen)
		for _, s := range t {
			b = AppendStreamState(b, s)
		}
		return b, err
	case TypeOpen:
		o, err := ParseOpen(f)
		return AppendOpen(nil, f.Stream, f.Offset, o), err
	case TypeAck:
		return AppendAck(nil, f.Stream, f.Offset, AckCredit(f)), nil
	case TypeEnd:
		e, err := ParseEnd(f)
		return AppendEnd(nil, f.Stream, f.Offset, e), err
	case TypeGoAway:
		g, err := ParseGoAway(f)
		return AppendGoAway(nil, g), err
	case TypeErr:
		return AppendErr(nil, ParseErr(f)), nil
	case TypeClaim:
		id, c, err := ParseClaim(f)
		return AppendClaim(nil, id, c), err
	case TypeClaimed:
		id, c, err := ParseClaimed(f)
		return AppendClaimed(nil, id, c), err
	case TypeUnclaim:
		id, err := ParseUnclaim(f)
		return AppendUnclaim(nil, id), err
	case TypeUnclaimed:
		id, marks, err := ParseUnclaimed(f)
		return AppendUnclaimed(nil, id, marks), err
	case TypeRound:
		return AppendRound(nil), nil
	case TypeDatagram:
		d, err := ParseDatagram(f)
		b := AppendHeader(nil, TypeDatagram, f.Stream, d.Number<<16|uint64(d.Fragment)<<8|uint64(d.Fragments), len(d.Data))
		return append(b, d.Data...), err
	case TypeForget:
		return AppendEmpty(nil, f.Type, f.Stream, 0), nil
	case TypePing, TypePong:
		return AppendEmpty(nil, f.Type, 0, f.Offset), nil
	}
	return append(AppendHeader(nil, f.Type, f.Stream, f.Offset, len(f.Payload)), f.Payload...), nil
}

func hellos() []struct {
	name string
	Hello
} {
	h := Hello{VersionMin: 1, VersionMax: 1, Role: RoleBridge, Auth: AuthPSK, KeyID: seq[[16]byte](0x20), Instance: seq[[16]byte](0x30), MAC: seq[[32]byte](0x60)}
	later, visitor, proxy := h, h, h
	later.VersionMin, later.VersionMax, later.Role, later.Auth = 2, 255, 9, 9
	visitor.Role, visitor.Offered, visitor.Needed = RoleVisitor, FeatureDatagrams|FeatureDialOpens|1<<63, FeatureDialOpens
	proxy.Role, proxy.Auth, proxy.Offered = RoleProxy, AuthSignature, FeatureCluster
	return []struct {
		name string
		Hello
	}{{"hello", h}, {"hello-of-later-versions", later}, {"hello-of-a-visitor-with-features", visitor}, {"hello-of-a-proxy-first-128-of-192-bytes", proxy}}
}

func welcomes() []struct {
	name string
	Welcome
} {
	w := Welcome{Verdict: VerdictOK, Version: 1, Instance: seq[[16]byte](0x40), MAC: seq[[32]byte](0x80)}
	refused, version, chosen, lacking, later := w, w, w, w, w
	refused.Verdict = VerdictRefused
	version.Verdict, version.Version = VerdictVersion, 2
	chosen.Features = FeatureDialOpens
	lacking.Verdict, lacking.Features = VerdictFeatures, FeatureDatagrams|1<<63
	later.Verdict = 255
	return []struct {
		name string
		Welcome
	}{
		{"welcome-ok", w}, {"welcome-refused", refused}, {"welcome-version", version}, {"welcome-with-features", chosen}, {"welcome-features-missing", lacking},
		{"welcome-verdict-of-a-later-version", later},
	}
}

func malformedMessages() (hello, welcome []bad) {
	change := func(b []byte, at int, v byte) []byte {
		b = append([]byte{}, b...)
		b[at] = v
		return b
	}
	h, w := hellos()[0].Append(nil), welcomes()[0].Append(nil)
	const text = "not a reverser handshake"
	hello = []bad{
		{"hello-of-another-protocol", append([]byte("GET / HTTP/1.1\r\nHost: "), make([]byte, HelloLen-22)...), "magic", text},
		{"hello-magic-in-lower-case", change(h, 0, 'r'), "magic", text},
		{"hello-version-0", change(h, 4, 0), "version", text},
		{"hello-versions-reversed", change(h, 4, 2), "version", text},
		{"hello-needs-what-it-does-not-offer", change(h, 55, 1), "features", text},
		{"hello-too-long", append(append([]byte{}, h...), 0), "length", text},
	}
	welcome = []bad{
		{"welcome-of-another-protocol", append([]byte("HTTP/1.1 400 Bad Request\r\n"), make([]byte, WelcomeLen-26)...), "magic", text},
		{"welcome-verdict-0", change(w, 4, 0), "verdict", text},
		{"welcome-too-long", append(append([]byte{}, w...), 0), "length", text},
	}
	return hello, welcome
}
