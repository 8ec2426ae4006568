package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
	"strings"
	"testing"
)

func header(client, local string) Header {
	var h Header
	if client != "" {
		h.Client = netip.MustParseAddrPort(client)
	}
	if local != "" {
		h.Local = netip.MustParseAddrPort(local)
	}
	return h
}

// v2 returns a header of version 2 whose length fits.
func v2(command, family byte, rest ...byte) string {
	b := append([]byte(prefix2), version2|command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(rest)))
	return string(append(b, rest...))
}

// field is one of those behind the addresses.
func field(kind byte, value string) string {
	return string(append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value))), value...))
}

var addresses4 = "\xc0\x00\x02\x01\xc6\x33\x64\x02\x30\x39\x01\xbb" // 192.0.2.1:12345 at 198.51.100.2:443

// withChecksum returns a header with a right checksum between other fields.
func withChecksum(change byte) string {
	b := []byte(v2(commandProxy, tcp4, []byte(addresses4+field(1, "h2")+field(typeCRC32C, "\x00\x00\x00\x00")+field(0xea, "vpce-1"))...))
	at := bytes.Index(b, []byte{typeCRC32C, 0, 4}) + 3
	binary.BigEndian.PutUint32(b[at:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))^uint32(change))
	return string(b)
}

var good = map[string]Header{
	"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n": header("192.0.2.1:12345", "198.51.100.2:443"),
	"PROXY TCP4 0.0.0.1 0.0.0.0 0 0\r\n":              header("0.0.0.1:0", "0.0.0.0:0"),
	"PROXY TCP4 0.0.0.0 192.0.2.1 0 80\r\n":           {}, // somebody who does not know
	"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n":  header("[2001:db8::1]:1", "[2001:db8::2]:65535"),
	"PROXY TCP6 ::ffff:192.0.2.1 ::2 1 2\r\n":         header("192.0.2.1:1", "[::2]:2"),
	"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n": header(
		"[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
	"PROXY UNKNOWN\r\n":                                                                {},
	"PROXY UNKNOWN 192.0.2.1 whatever\r\n":                                             {},
	"PROXY UNKNOWN " + strings.Repeat("f", 91) + "\r\n":                                {},
	v2(commandLocal, unspec):                                                           {},
	v2(commandLocal, tcp4, []byte(addresses4)...):                                      {},
	v2(commandLocal, unspec, []byte("what it likes")...):                               {},
	v2(commandProxy, unspec):                                                           {},
	v2(commandProxy, tcp4, []byte(addresses4)...):                                      header("192.0.2.1:12345", "198.51.100.2:443"),
	v2(commandProxy, 0x12, []byte(addresses4)...):                                      {}, // UDP
	v2(commandProxy, 0x31, make([]byte, 216)...):                                       {}, // unix
	v2(commandProxy, tcp4, []byte(addresses4+field(2, "app.example")+field(4, ""))...): header("192.0.2.1:12345", "198.51.100.2:443"),
	v2(commandProxy, tcp6, append(append(netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("2001:db8::2").AsSlice()...),
		0, 1, 0xff, 0xff)...): header("[2001:db8::1]:1", "[2001:db8::2]:65535"),
	withChecksum(0): header("192.0.2.1:12345", "198.51.100.2:443"),
	v2(commandProxy, tcp4, []byte(addresses4+field(4, strings.Repeat("n", MaxLen-head2-len(addresses4)-3)))...): header("192.0.2.1:12345", "198.51.100.2:443"),
}

var bad = map[string]string{
	"GET / HTTP/1.1\r\n\r\n": `begins with "GET / HTTP/1.1\r"`,
	"\x16\x03\x01\x02\x00":   "begins with",
	"\n":                     "begins with",
	"proxy TCP4 192.0.2.1 198.51.100.2 12345 443\r\n":                  "begins with",
	"PROXY\tTCP4 192.0.2.1 198.51.100.2 12345 443\r\n":                 "begins with",
	"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\n":                    `ends without \r\n`,
	"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\r\n":                `ends without \r\n`,
	"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443 \r\n":                 "7 words",
	"PROXY TCP4 192.0.2.1 198.51.100.2 12345\r\n":                      "5 words",
	"PROXY TCP4  192.0.2.1 198.51.100.2 12345 443\r\n":                 "7 words",
	"PROXY TCP4 192.0.2.1 198.51.100.2 12345 65536\r\n":                `"65536" is no port`,
	"PROXY TCP4 192.0.2.1 198.51.100.2 012345 443\r\n":                 `"012345" is no port`,
	"PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n":                     `"+1" is no port`,
	"PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n":                     `"-1" is no port`,
	"PROXY TCP4 192.0.2.256 198.51.100.2 1 443\r\n":                    "no address of TCP4",
	"PROXY TCP4 192.0.2.01 198.51.100.2 1 443\r\n":                     "no address of TCP4",
	"PROXY TCP4 2001:db8::1 198.51.100.2 1 443\r\n":                    "no address of TCP4",
	"PROXY TCP6 192.0.2.1 2001:db8::2 1 443\r\n":                       "no address of TCP6",
	"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 443\r\n":                    "no address of TCP6",
	"PROXY UDP4 192.0.2.1 198.51.100.2 1 443\r\n":                      "unknown family",
	"PROXY  UNKNOWN\r\n":                                               "3 words",
	"PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n":                "longer than 107",
	"PROXY \r\n1234567":                                                "2 words",
	"PROXY TCP4 " + strings.Repeat("1", 200):                           "",
	prefix2 + "\x11\x11\x00\x0c" + addresses4:                          "version 1",
	prefix2 + "\x31\x11\x00\x0c" + addresses4:                          "version 3",
	v2(2, tcp4, []byte(addresses4)...):                                 "command 2",
	v2(commandProxy, 0x41, []byte(addresses4)...):                      "family and protocol 0x41",
	v2(commandProxy, 0x13, []byte(addresses4)...):                      "family and protocol 0x13",
	v2(commandProxy, tcp4, []byte(addresses4)[:11]...):                 "11 bytes for addresses of family 1, which take 12",
	v2(commandProxy, tcp6, []byte(addresses4)...):                      "12 bytes for addresses of family 2, which take 36",
	v2(commandProxy, tcp4, []byte(addresses4+"\x04\x00")...):           "2 bytes are left",
	v2(commandProxy, tcp4, []byte(addresses4+"\x04\x00\x02x")...):      "field 4 of 2 bytes where 1 are left",
	v2(commandProxy, tcp4, []byte(addresses4+field(3, "\x00\x00"))...): "a checksum of 2 bytes",
	withChecksum(1): "the checksum is",
	prefix2 + "\x21\x11\xff\xff" + addresses4: "more than 16384",
}

// read reads a header as a connection's owner does.
func read(r io.Reader) (h Header, had []byte, err error) {
	for {
		h, more, err := Parse(had)
		if err != nil || more == 0 {
			return h, had, err
		}
		at := len(had)
		had = append(had, make([]byte, more)...)
		n, err := r.Read(had[at:])
		if had = had[:at+n]; n == 0 && err != nil {
			return h, had, err
		}
	}
}

// oneByte gives bytes one at a time.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:min(1, len(b))]) }

func TestParse(t *testing.T) {
	const behind = "PROXY is what the user says first\r\n"
	for s, want := range good {
		for _, slow := range []bool{false, true} {
			src := strings.NewReader(s + behind)
			var r io.Reader = src
			if slow {
				r = oneByte{src}
			}
			h, had, err := read(r)
			if h != want || err != nil || string(had) != s {
				t.Errorf("%.60q: %v, %v after %d bytes; want %v after %d", s, h, err, len(had), want, len(s))
			}
		}
		for i := range len(s) {
			if h, more, err := Parse([]byte(s[:i])); err != nil || more <= 0 || i+more > len(s) || h != (Header{}) {
				t.Fatalf("the first %d bytes of %.60q: %v, %d more, %v; want at most %d more", i, s, h, more, err, len(s)-i)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for s, want := range bad {
		h, had, err := read(strings.NewReader(s + strings.Repeat("x", 200)))
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), want) || h != (Header{}) {
			t.Errorf("%.60q: %v, %v; want %q", s, h, err, want)
		}
		if len(had) > max(len(s), longest1) {
			t.Errorf("%.60q: refused after %d bytes", s, len(had))
		}
		if len(err.Error()) > 500 {
			t.Errorf("%.60q: the error has %d bytes", s, len(err.Error()))
		}
	}
}

func TestAppend(t *testing.T) {
	for _, c := range []struct{ client, local, v1, client2, local2 string }{
		{"192.0.2.1:1", "198.51.100.2:443", "PROXY TCP4 192.0.2.1 198.51.100.2 1 443\r\n", "192.0.2.1:1", "198.51.100.2:443"},
		{"[2001:db8::1]:1", "[2001:db8::2]:443", "PROXY TCP6 2001:db8::1 2001:db8::2 1 443\r\n", "[2001:db8::1]:1", "[2001:db8::2]:443"},
		{"[::ffff:192.0.2.1]:1", "198.51.100.2:443", "PROXY TCP4 192.0.2.1 198.51.100.2 1 443\r\n", "192.0.2.1:1", "198.51.100.2:443"},
		{"[fe80::1%eth0]:1", "[fe80::2%eth0]:443", "PROXY TCP6 fe80::1 fe80::2 1 443\r\n", "[fe80::1]:1", "[fe80::2]:443"},
		{"192.0.2.1:1", "[2001:db8::2]:443", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 443\r\n", "192.0.2.1:1", "[2001:db8::2]:443"},
		{"[2001:db8::1]:1", "198.51.100.2:443", "PROXY TCP6 2001:db8::1 ::ffff:198.51.100.2 1 443\r\n", "[2001:db8::1]:1", "198.51.100.2:443"},
		{"192.0.2.1:1", "", "PROXY TCP4 192.0.2.1 0.0.0.0 1 0\r\n", "192.0.2.1:1", "0.0.0.0:0"},
		{"[2001:db8::1]:1", "", "PROXY TCP6 2001:db8::1 :: 1 0\r\n", "[2001:db8::1]:1", "[::]:0"},
		{"", "198.51.100.2:443", "PROXY UNKNOWN\r\n", "", ""},
		{"", "", "PROXY UNKNOWN\r\n", "", ""},
	} {
		h, want := header(c.client, c.local), header(c.client2, c.local2)
		if got := string(Append(nil, 1, h)); got != c.v1 {
			t.Errorf("%v is written as %q, want %q", h, got, c.v1)
		}
		for version := 1; version <= 2; version++ {
			b := Append([]byte("before"), version, h)
			got, more, err := Parse(b[len("before"):])
			if got != want || more != 0 || err != nil || len(b)-len("before") > longest1 {
				t.Errorf("%v in version %d: %v, %d more, %v; want %v", h, version, got, more, err, want)
			}
		}
	}
}

// FuzzParse: nothing that a stranger sends makes Parse read beyond a header, take the same bytes for two things, or ask for more for ever.
func FuzzParse(f *testing.F) {
	for s := range good {
		f.Add([]byte(s))
	}
	for s := range bad {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, had, err := read(bytes.NewReader(b))
		if len(had) > MaxLen {
			t.Fatalf("%d bytes were read", len(had))
		}
		slow, hadSlow, errSlow := read(oneByte{bytes.NewReader(b)})
		if slow != h || (err == nil) != (errSlow == nil) || err == nil && !bytes.Equal(had, hadSlow) {
			t.Fatalf("at once %v, %v; byte by byte %v, %v", h, err, slow, errSlow)
		}
		if errors.Is(err, ErrMalformed) != errors.Is(errSlow, ErrMalformed) {
			t.Fatalf("at once %v; byte by byte %v", err, errSlow)
		}
		if err != nil || !h.Client.IsValid() {
			return
		}
		for version := 1; version <= 2; version++ {
			again, more, err := Parse(Append(nil, version, h))
			if again != h || more != 0 || err != nil {
				t.Fatalf("%v becomes %v, %v in version %d", h, again, err, version)
			}
		}
	})
}
