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
	const id = 1<<8 | 2
	return []named{
		{"attach-new", AppendAttach(nil, 1, Attach{Mode: ModeNew, Session: seq[[16]byte](0x10), Window: 16384, MaxStreams: 16384, Detach: 300_000, Name: "nas"})},
		{"attach-resume", AppendAttach(nil, 7, Attach{
			Mode: ModeResume, Slot: 2, Session: seq[[16]byte](0x10), WantInstance: seq[[16]byte](0x40), Streams: 2,
			TableCRC: crc32.Checksum(exampleTable(), crc32.MakeTable(crc32.Castagnoli)), Window: 16384, MaxStreams: 16384, MAC: seq[[32]byte](0x80), Name: "nas",
		})},
		{"attach-join-without-name", AppendAttach(nil, 1, Attach{
			Mode: ModeJoin, Slot: 4, Session: seq[[16]byte](0x10), WantInstance: seq[[16]byte](0x40), Window: 16384, MaxStreams: 4096, MAC: seq[[32]byte](0x80),
		})},
		{"attach-longest-name", AppendAttach(nil, 1<<64-1, Attach{Mode: ModeJoin, Slot: 255, Streams: 1<<32 - 1, TableCRC: 1<<32 - 1, Window: 1<<32 - 1, MaxStreams: 1<<32 - 1, Detach: 1<<32 - 1, Name: strings.Repeat("n", MaxText)})},
		{"attached-ok", AppendAttached(nil, 7, Attached{Status: StatusOK, Slot: 2, Carriers: 4, Streams: 2, TableCRC: 0x01020304, Window: 16384, MaxStreams: 16384, Transfer: 3009, Detach: 300_000})},
		{"attached-gone", AppendAttached(nil, 7, Attached{Status: StatusGone, Slot: 2, Text: "the proxy does not hold this session (any more)"})},
		{"attached-stale", AppendAttached(nil, 7, Attached{Status: StatusStale, Text: strings.Repeat("t", MaxText)})},
		{"st-one-entry", AppendTable(nil, exampleTable()[:StreamStateLen])},
		{"st-two-entries", AppendTable(nil, exampleTable())},
		{"open-ipv4", AppendOpen(nil, id, 65536, Open{Service: 3, Client: client4, Local: local4})},
		{"open-ipv6", AppendOpen(nil, id, 16384, Open{Service: 65535, Client: client6, Local: local6})},
		{"open-without-addresses", AppendOpen(nil, id, 16384, Open{})},
		{"data-one-byte", append(AppendHeader(nil, TypeData, id, 0, 1), 'x')},
		{"data-beyond-4-gib", append(AppendHeader(nil, TypeData, id, 1<<32+5, 5), "hello"...)},
		{"ack-first", AppendAck(nil, id, 5, 16389)},
		{"ack-large", AppendAck(nil, 1<<64-1, 1<<62, 1<<63)},
		{"end-fin", AppendEnd(nil, id, 5, End{Kind: FIN, CRC: crc32.Checksum([]byte("hello"), crc32.MakeTable(crc32.Castagnoli))})},
		{"end-fin-of-an-empty-direction", AppendEnd(nil, id, 0, End{Kind: FIN})},
		{"end-rst-after-fin", AppendEnd(nil, id, 6, End{Kind: RST, Code: CodeReset, CRC: crc32.Checksum([]byte("hello"), crc32.MakeTable(crc32.Castagnoli))})},
		{"end-rst-last-code", AppendEnd(nil, id, 0, End{Kind: RST, Code: codeEnd - 1})},
		{"forget", AppendEmpty(nil, TypeForget, id, 0)},
		{"ping", AppendEmpty(nil, TypePing, 0, 123456789)},
		{"pong", AppendEmpty(nil, TypePong, 0, 123456789)},
		{"goaway", AppendGoAway(nil, GoAway{DrainMillis: 30000})},
		{"err", AppendErr(nil, Err{Code: ErrGap, Text: "DATA at 7 on stream 258, want 5"})},
		{"err-without-text", AppendErr(nil, Err{Code: ErrClaimInvalid})},
		{"claim-last", AppendClaim(nil, 0, Claim{Public: "tcp/9000", Target: "192.168.1.5:80"}, false)},
		{"claim-more", AppendClaim(nil, 1023, Claim{Public: "offered", Target: "127.0.0.1:9904"}, true)},
		{"claim-longest", AppendClaim(nil, 1, Claim{Public: strings.Repeat("p", 255), Target: strings.Repeat("t", 255)}, false)},
		{"claim-empty", AppendClaim(nil, 1, Claim{}, false)},
		{"claimed-up", AppendClaimed(nil, 0, Claimed{Status: ClaimUp, Nonce: seq[[16]byte](0xa0), Public: "tcp/9000"})},
		{"claimed-denied", AppendClaimed(nil, 1, Claimed{Status: ClaimDenied, Public: "tcp/22", Text: "tcp/22 denied: the policy of key \"nas\" allows tcp/1024-65535"})},
		{"claimed-longest", AppendClaimed(nil, 65535, Claimed{Status: ClaimRetrying, Public: strings.Repeat("p", 255), Text: strings.Repeat("t", MaxText)})},
		{"unclaim", AppendEmpty(nil, TypeUnclaim, 0, 1)},
	}
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

// payload builds a frame whose payload is p.
func payload(t Type, stream, offset uint64, p ...byte) []byte {
	return append(AppendHeader(nil, t, stream, offset, len(p)), p...)
}

func malformedFrames() []bad {
	const id = 1<<8 | 2
	zeros := func(n int) []byte { return make([]byte, n) }
	bads := []bad{
		{"type-0", head(0, 0, 0, 0, 0), "unknown-type", "unknown type"},
		{"type-above-the-last", head(typeEnd, 0, 0, 0, 0), "unknown-type", "unknown type"},
		{"type-255-in-one-byte", []byte{255}, "unknown-type", "unknown type"},
		{"http-request", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "unknown-type", "unknown type"},
		{"claim-with-an-unknown-flag", with("claim-last", 1, 2), "reserved-flags", "reserved flags"},
		{"claim-with-all-flags", with("claim-last", 1, 0xff), "reserved-flags", "reserved flags"},
		{"data-empty", head(TypeData, 0, 0, id, 0), "length", "payload of 0 bytes"},
		{"data-one-byte-too-long", head(TypeData, 0, MaxPayload+1, id, 0), "length", "payload of 16385 bytes"},
		{"data-of-65535-bytes", head(TypeData, 0, 65535, id, 0), "length", "payload of 65535 bytes"},
		{"ack-of-7-bytes", append(head(TypeAck, 0, 7, id, 0), zeros(7)...), "length", "payload of 7 bytes"},
		{"ack-of-9-bytes", append(head(TypeAck, 0, 9, id, 0), zeros(9)...), "length", "payload of 9 bytes"},
		{"end-of-7-bytes", append(head(TypeEnd, 0, 7, id, 0), zeros(7)...), "length", "payload of 7 bytes"},
		{"ping-with-payload", append(head(TypePing, 0, 1, 0, 0), 0), "length", "payload of 1 bytes"},
		{"forget-with-payload", append(head(TypeForget, 0, 1, id, 0), 0), "length", "payload of 1 bytes"},
		{"unclaim-with-payload", append(head(TypeUnclaim, 0, 1, 0, 0), 0), "length", "payload of 1 bytes"},
		{"goaway-of-3-bytes", append(head(TypeGoAway, 0, 3, 0, 0), zeros(3)...), "length", "payload of 3 bytes"},
		{"attach-one-byte-short", append(head(TypeAttach, 0, attachLen-1, 0, 1), zeros(attachLen-1)...), "length", "payload of"},
		{"attach-name-too-long", append(head(TypeAttach, 0, attachLen+MaxText+1, 0, 1), zeros(attachLen+MaxText+1)...), "length", "payload of"},
		{"attached-one-byte-short", append(head(TypeAttached, 0, attachedLen-1, 0, 1), zeros(attachedLen-1)...), "length", "payload of"},
		{"err-text-too-long", append(head(TypeErr, 0, 2+MaxText+1, 0, 0), zeros(2+MaxText+1)...), "length", "payload of"},
		{"open-too-long", append(head(TypeOpen, 0, 41, id, 0), zeros(41)...), "length", "payload of"},
		{"claim-too-long", append(head(TypeClaim, 0, 513, 0, 0), zeros(513)...), "length", "payload of"},
		{"claimed-too-short", append(head(TypeClaimed, 0, 18, 0, 0), zeros(18)...), "length", "payload of"},
		{"st-empty", head(TypeST, 0, 0, 0, 0), "length", "payload of 0 bytes"},
		{"st-with-a-part-of-an-entry", append(head(TypeST, 0, 30, 0, 0), zeros(30)...), "length", "whole entries"},
		{"st-too-long", head(TypeST, 0, 565*29, 0, 0), "length", "payload of"},
		{"attach-on-a-stream", head(TypeAttach, 0, attachLen, id, 1), "stream-unexpected", "in a frame of the link"},
		{"forget-with-an-offset", head(TypeForget, 0, 0, id, 1), "reserved-offset", "reserved offset"},
		{"goaway-with-an-offset", append(head(TypeGoAway, 0, 4, 0, 1), zeros(4)...), "reserved-offset", "reserved offset"},
		{"err-with-an-offset", append(head(TypeErr, 0, 2, 0, 1), 0, 1), "reserved-offset", "reserved offset"},
		{"attach-mode-0", with("attach-new", HeaderLen, 0), "mode", "mode 0"},
		{"attach-mode-4", with("attach-new", HeaderLen, 4), "mode", "mode 4"},
		{"attach-generation-0", with("attach-new", 12, 0, 0, 0, 0, 0, 0, 0, 0), "generation", "generation 0"},
		{"attach-new-on-slot-1", with("attach-new", HeaderLen+1, 1), "new-session", "a new session starts"},
		{"attach-new-with-streams", with("attach-new", HeaderLen+37, 1), "new-session", "a new session starts"},
		{"attach-new-with-an-instance", with("attach-new", HeaderLen+18, 1), "new-session", "a new session starts"},
		{"attach-new-with-a-mac", with("attach-new", HeaderLen+54, 1), "new-session", "a new session starts"},
		{"attached-status-0", with("attached-ok", HeaderLen, 0), "status", "status 0"},
		{"attached-status-above-the-last", with("attached-ok", HeaderLen, byte(statusEnd)), "status", "status 8"},
		{"attached-reserved-byte-3", with("attached-ok", HeaderLen+3, 1), "reserved", "reserved"},
		{"attached-reserved-bytes-22-23", with("attached-ok", HeaderLen+23, 1), "reserved", "reserved"},
		{"st-reserved-bits", with("st-one-entry", HeaderLen+28, 1), "reserved", "reserved"},
		{"st-stream-0", append(head(TypeST, 0, 29, 0, 0), zeros(29)...), "table-order", "stream 0 after 0"},
		{"st-same-stream-twice", with("st-two-entries", HeaderLen+29+6, 1), "table-order", "stream 258 after 258"},
		{"st-streams-not-in-order", with("st-two-entries", HeaderLen+29+6, 0), "table-order", "stream 2 after 258"},
		{"open-address-of-5-bytes", payload(TypeOpen, id, 0, 0, 1, 5, 1, 2, 3, 4, 5, 0, 80, 0), "address", "bad address"},
		{"open-address-without-port", payload(TypeOpen, id, 0, 0, 1, 0, 4, 1, 2, 3, 4, 0), "address", "bad address"},
		{"open-one-address-only", payload(TypeOpen, id, 0, 0, 1, 4, 1, 2, 3, 4, 0, 80), "address", "bad address"},
		{"open-bytes-behind-the-addresses", payload(TypeOpen, id, 0, 0, 1, 0, 0, 0), "address", "bad address"},
		{"open-ipv4-mapped-ipv6", payload(TypeOpen, id, 0, 0, 1, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4, 0, 80, 0), "address", "bad address"},
		{"end-kind-0", with("end-fin", HeaderLen, 0), "end-kind", "kind 0"},
		{"end-kind-3", with("end-fin", HeaderLen, 3), "end-kind", "kind 3"},
		{"end-code-above-the-last", with("end-fin", HeaderLen+1, byte(codeEnd)), "end-code", "code 9"},
		{"end-reserved-bytes", with("end-fin", HeaderLen+2, 0, 1), "reserved", "reserved"},
		{"claim-id-above-65535", with("claim-last", 12, 0, 0, 0, 0, 0, 1, 0, 0), "claim-id", "bad text"},
		{"claim-text-beyond-the-end", payload(TypeClaim, 0, 0, 1, 'a', 2, 'b'), "text", "bad text"},
		{"claim-without-target", payload(TypeClaim, 0, 0, 1, 'a'), "text", "bad text"},
		{"claim-bytes-behind-the-target", payload(TypeClaim, 0, 0, 0, 0, 0), "text", "bad text"},
		{"claim-255-bytes-that-are-not-there", payload(TypeClaim, 0, 0, append([]byte{255}, zeros(254)...)...), "text", "bad text"},
		{"claimed-status-0", with("claimed-up", HeaderLen, 0), "status", "bad status"},
		{"claimed-status-above-the-last", with("claimed-up", HeaderLen, byte(claimEnd)), "status", "bad status"},
		{"claimed-id-above-65535", with("claimed-up", 12, 0, 0, 0, 0, 0, 1, 0, 0), "claim-id", "bad status or text"},
		{"claimed-text-too-long", payload(TypeClaimed, 0, 0, append(append(append([]byte{1}, zeros(16)...), 0, MaxText+1), zeros(MaxText+1)...)...), "text", "bad status or text"},
		{"claimed-bytes-behind-the-text", payload(TypeClaimed, 0, 0, append(append([]byte{1}, zeros(16)...), 0, 0, 0)...), "text", "bad status or text"},
	}
	for t := TypeAttach; t < typeEnd; t++ {
		var stream, offset uint64 = 0, 1
		of := "stream-unexpected"
		switch t {
		case TypeOpen, TypeData, TypeAck, TypeEnd, TypeForget:
			stream, of = id, "stream-missing"
		}
		if t == TypeForget || t == TypeGoAway || t == TypeErr {
			offset = 0
		}
		size := bounds[t].min
		name := strings.ToLower(t.String())
		if t != TypeClaim {
			bads = append(bads, bad{name + "-with-the-flag-of-claim", append(head(t, FlagMore, size, stream, offset), zeros(size)...), "reserved-flags", "reserved flags"})
		}
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
		t, err := ParseTable(f.Payload)
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
		return AppendGoAway(nil, ParseGoAway(f)), nil
	case TypeErr:
		return AppendErr(nil, ParseErr(f)), nil
	case TypeClaim:
		c, err := ParseClaim(f)
		return AppendClaim(nil, uint16(f.Offset), c, f.Flags&FlagMore != 0), err
	case TypeClaimed:
		c, err := ParseClaimed(f)
		return AppendClaimed(nil, uint16(f.Offset), c), err
	case TypeForget:
		return AppendEmpty(nil, f.Type, f.Stream, 0), nil
	case TypePing, TypePong, TypeUnclaim:
		return AppendEmpty(nil, f.Type, 0, f.Offset), nil
	}
	return append(AppendHeader(nil, f.Type, f.Stream, f.Offset, len(f.Payload)), f.Payload...), nil
}

func hellos() []struct {
	name string
	Hello
} {
	h := Hello{VersionMin: 1, VersionMax: 1, Role: RoleBridge, Auth: AuthPSK, KeyID: seq[[16]byte](0x20), Instance: seq[[16]byte](0x30), MAC: seq[[32]byte](0x60)}
	later := h
	later.VersionMin, later.VersionMax, later.Role, later.Auth = 2, 255, 9, 9
	return []struct {
		name string
		Hello
	}{{"hello", h}, {"hello-of-later-versions", later}}
}

func welcomes() []struct {
	name string
	Welcome
} {
	w := Welcome{Verdict: VerdictOK, Version: 1, Instance: seq[[16]byte](0x40), MAC: seq[[32]byte](0x80)}
	refused, version := w, w
	refused.Verdict = VerdictRefused
	version.Verdict, version.Version = VerdictVersion, 2
	return []struct {
		name string
		Welcome
	}{{"welcome-ok", w}, {"welcome-refused", refused}, {"welcome-version", version}}
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
		{"hello-padding-first-byte", change(h, 40, 1), "reserved", text},
		{"hello-padding-last-byte", change(h, HelloMACed-1, 1), "reserved", text},
		{"hello-too-long", append(append([]byte{}, h...), 0), "length", text},
	}
	welcome = []bad{
		{"welcome-of-another-protocol", append([]byte("HTTP/1.1 400 Bad Request\r\n"), make([]byte, WelcomeLen-26)...), "magic", text},
		{"welcome-verdict-0", change(w, 4, 0), "verdict", text},
		{"welcome-verdict-4", change(w, 4, 4), "verdict", text},
		{"welcome-padding-first-byte", change(w, 6, 1), "reserved", text},
		{"welcome-padding-last-byte", change(w, 15, 1), "reserved", text},
		{"welcome-too-long", append(append([]byte{}, w...), 0), "length", text},
	}
	return hello, welcome
}
