package grammar

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"

	"reverser/internal/wire"
)

func example(addrs ...string) Token {
	t := Token{Addrs: addrs}
	for i := range t.KeyID {
		t.KeyID[i] = byte(i)
	}
	for i := range t.Secret {
		t.Secret[i] = byte(100 + i)
	}
	t.Pin = sha256.Sum256([]byte("pin"))
	return t
}

var addrs = [][]string{
	nil, {"a:1"}, {"server.example.com:3010"}, {"203.0.113.7:3010"}, {"[2001:db8::1]:65535"}, {strings.Repeat("a.", 127) + ":65535"},
	{"one.example.com:3010", "[2001:db8::1]:3010", "203.0.113.7:3009"}, slices.Repeat([]string{strings.Repeat("a.", 127) + ":65535"}, maxAddrs),
}

func TestRoundTrip(t *testing.T) {
	for _, addr := range addrs {
		want := example(addr...)
		s := want.Encode()
		for _, in := range []string{s, " \t" + s + "\r\n"} {
			if got, err := ParseToken(in); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("Parse of a token with address %q = %v, %v", addr, got, err)
			}
		}
		if !LooksToken(s) {
			t.Errorf("a token with address %q does not look like one", addr)
		}
	}
	want := example("a:1")
	want.SNI = "tunnel.example.com"
	if got, err := ParseToken(want.Encode()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Parse of a token with an SNI = %v, %v", got, err)
	}
	if got, want := want.String(), "rv1_(key 00010203, a:1 (SNI tunnel.example.com), secret withheld)"; got != want {
		t.Errorf("String = %s, want %s", got, want)
	}
}

func TestParseSNI(t *testing.T) {
	for in, want := range map[string]string{"a": "a", "Tunnel.Example.com": "tunnel.example.com", "tunnel.example.com.": "tunnel.example.com", "xn--bcher-kva.example": "xn--bcher-kva.example"} {
		if got, err := ParseSNI(in); got != want || err != nil {
			t.Errorf("ParseSNI(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for in, word := range map[string]string{
		"": "empty", "203.0.113.7": "is an address", "2001:db8::1": "is an address", "tunnel.example.com:443": "write the name alone, tunnel.example.com",
		"*.example.com": "placeholder", "a b": `" " in it`, "bücher.example": "xn--", strings.Repeat("a.", 127) + "example": "longer than 253", "rv1_x": "token", "[::1]:443": "write the name alone",
	} {
		if got, err := ParseSNI(in); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("ParseSNI(%q) = %q, %v; want an error with %q", in, got, err, word)
		}
	}
}

// What stands around the token is named as what is wrong, not the token.
func TestMoreThanTheToken(t *testing.T) {
	tok := example("a:1").Encode()
	for _, in := range []string{"reverser bridge " + tok + " 9000", tok + " 9000", "TOKEN: " + tok, tok + "\n" + tok, "reverser bridge \\\n  " + tok + " 9000\n"} {
		_, err := ParseToken(in)
		if !errors.Is(err, ErrNotToken) || !strings.Contains(err.Error(), "keep the one word that begins with rv1_") || strings.Contains(err.Error(), tok[5:20]) {
			t.Errorf("Parse of %d words: %v; want to be told to keep one", len(strings.Fields(in)), err)
		}
	}
}

// The layout stands in a user's files: it must not change under this version.
func TestLayout(t *testing.T) {
	tok := example("a:1")
	raw := append([]byte{}, tok.KeyID[:]...)
	raw = append(raw, tok.Secret[:]...)
	raw = append(raw, tok.Pin[:]...)
	raw = append(raw, 1, 0, 3)
	raw = append(raw, "a:1"...)
	check := sha256.Sum256(append([]byte("reverser token v1"), raw...))
	want := "rv1_" + base64.RawURLEncoding.EncodeToString(append(raw, check[:4]...))
	if got := tok.Encode(); got != want {
		t.Errorf("Encode = %s; want %s", got, want)
	}
}

func TestEverySlipIsRefused(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for _, addr := range [][]string{nil, {"ab:12"}, {"a:1"}} { // every remainder of the length
		s := example(addr...).Encode()
		refuse := func(what, changed string) {
			t.Helper()
			_, err := ParseToken(changed)
			if err == nil {
				t.Errorf("addresses %q: %s is taken", addr, what)
				return
			}
			if !errors.Is(err, ErrNotToken) && !errors.Is(err, ErrTokenVersion) && !errors.Is(err, ErrTokenLength) && !errors.Is(err, ErrTokenMistyped) {
				t.Errorf("addresses %q: %s: %v is of no kind", addr, what, err)
			}
			checkSilent(t, err.Error(), changed)
		}
		for i := range len(s) {
			for _, c := range []byte(alphabet + "+/=. \n*") {
				if c != s[i] {
					refuse(fmt.Sprintf("%q at %d", c, i), s[:i]+string(c)+s[i+1:]+"")
				}
			}
			refuse(fmt.Sprintf("cut to %d", i), s[:i])
			refuse(fmt.Sprintf("without %d", i), s[:i]+s[i+1:])
			if i > 0 {
				refuse(fmt.Sprintf("a line break at %d", i), s[:i]+"\n"+s[i:])
			}
		}
		refuse("twice", s+s)
		refuse("with a tail", s+"A")
	}
}

// checkSilent fails when text holds eight characters in a row of the token.
func checkSilent(t *testing.T, text, tok string) {
	t.Helper()
	_, body, _ := strings.Cut(tok, "_")
	for i := 0; i+8 <= len(body); i++ {
		if strings.Contains(text, body[i:i+8]) {
			t.Errorf("%q holds a part of the token", text)
			return
		}
	}
}

func TestKindsOfError(t *testing.T) {
	s := example("server.example.com:3010").Encode()
	for _, c := range []struct {
		name, in string
		kind     error
		word     string
	}{
		{"empty", "", ErrNotToken, "empty"},
		{"a word", "hello", ErrNotToken, "starts with rv1_"},
		{"a service", "9000=9904", ErrNotToken, "starts with rv1_"},
		{"in quotes", `"` + s + `"`, ErrNotToken, "quotes"},
		{"in curly quotes", "“" + s + "”", ErrNotToken, "quotes"},
		{"the printed line", "reverser bridge " + s + " 9000", ErrNotToken, "without a command"},
		{"a variable", "REVERSER_TOKEN=" + s, ErrNotToken, "keep the one word that begins with rv1_"},
		{"TOML", "token = \"" + s + "\"", ErrNotToken, "keep the one word"},
		{"a comment", "# office\n" + s, ErrNotToken, "comment"},
		{"two", s + "\n" + example("b:1").Encode(), ErrNotToken, "2 tokens"},
		{"two lines", s[:60] + "\r\n  " + s[60:], ErrTokenMistyped, "on one line"},
		{"a long dash", s[:60] + "—" + s[61:], ErrTokenMistyped, "mistyped"},
		{"a full-width letter", s[:4] + string(rune(s[4])-'!'+'！') + s[5:], ErrTokenMistyped, "word processor"},
		{"another case", "RV1_" + s[4:], ErrNotToken, "starts with rv1_"},
		{"a later version", "rv2_" + s[4:], ErrTokenVersion, "version rv2"},
		{"the prefix alone", "rv1_", ErrTokenLength, "cut short"},
		{"half", s[:60], ErrTokenLength, "cut short"},
		{"a character short", s[:len(s)-1], ErrTokenMistyped, "cut short"},
		{"a character changed", s[:20] + string(s[20]^1) + s[21:], ErrTokenMistyped, "mistyped"},
		{"a space inside", s[:20] + " " + s[20:], ErrTokenMistyped, "in one piece"},
		{"very long", "rv1_" + strings.Repeat("A", 6000), ErrTokenLength, "too long"},
	} {
		_, err := ParseToken(c.in)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v; want %v with %q", c.name, err, c.kind, c.word)
		}
	}
}

// forged is a token with fields of any kind and a checksum that fits.
func forged(fields []byte) string {
	t := example()
	raw := append(append(append([]byte{}, t.KeyID[:]...), t.Secret[:]...), t.Pin[:]...)
	raw = append(raw, fields...)
	check := sum(raw)
	return prefix + base.EncodeToString(append(raw, check[:]...))
}

func TestAddressInside(t *testing.T) {
	for _, addr := range []string{
		"", "noport", "a:0", "a:65536", "A.example:1", "a b:1", ":1", "::1:1", "a:1\n", strings.Repeat("a", 300),
		",a:1", "a:1,", "a:1,,b:1", "a:1, b:1", "a:1,b", strings.Repeat("a:1,", maxAddrs) + "a:1",
	} {
		got, err := ParseToken(forged(wire.AppendField(nil, fieldAddrs, []byte(addr))))
		if !errors.Is(err, ErrTokenMistyped) {
			t.Errorf("Parse takes the address %q: %v, %v", addr, got, err)
		}
	}
	tok := example("Server.Example:3010", "B:1")
	if got, err := ParseToken(tok.Encode()); err != nil || got.Addr() != "server.example:3010" || len(got.Addrs) != 2 || got.Addrs[1] != "b:1" {
		t.Errorf("Parse = %v, %v; want the canonical addresses", got, err)
	}
	if a := (Token{}).Addr(); a != "" {
		t.Errorf("no address is %q", a)
	}
}

// A token of a later version says more. What may be skipped is skipped, all else is refused by number.
func TestFieldsInside(t *testing.T) {
	addr := wire.AppendField(nil, fieldAddrs, []byte("a:1"))
	later := wire.AppendField(bytes.Clone(addr), 4, []byte("a public key"))
	if got, err := ParseToken(forged(later)); err != nil || got.Addr() != "a:1" {
		t.Errorf("Parse with an unknown field = %v, %v", got, err)
	}
	must := wire.AppendField(bytes.Clone(later), 130, nil)
	if _, err := ParseToken(forged(must)); !errors.Is(err, ErrTokenVersion) || !strings.Contains(err.Error(), "field 130") {
		t.Errorf("Parse with an unknown critical field: %v", err)
	}
	for n := range len(must) { // cut anywhere but between two fields
		if _, err := ParseToken(forged(must[:n])); (err == nil) != (n == 0 || n == len(addr) || n == len(later)) {
			t.Errorf("Parse with %d of %d bytes of fields: %v", n, len(must), err)
		}
	}
	for name, fields := range map[string][]byte{
		"twice":         append(bytes.Clone(addr), addr...),
		"out of order":  append(wire.AppendField(nil, 2, []byte("a")), addr...),
		"field 0":       {0, 0, 0},
		"as text":       []byte("server.example.com:3010"), // how a token was before it had fields
		"too much":      wire.AppendField(nil, 100, make([]byte, wire.MaxFields-2)),
		"the checksums": append(bytes.Clone(addr), 1, 2, 3, 4),
	} {
		if got, err := ParseToken(forged(fields)); !errors.Is(err, ErrTokenMistyped) && !errors.Is(err, ErrTokenLength) {
			t.Errorf("%s: Parse = %v, %v", name, got, err)
		}
	}
}

func TestLooks(t *testing.T) {
	for in, want := range map[string]bool{
		"rv1_": true, " rv1_x": true, "rv2_x": true, "rv10_x": true,
		"": false, "rv1": false, "rv_": false, "rvx_": false, "9000": false, "RV1_x": false, "tcp/9000": false, "rv1234_": false,
	} {
		if got := LooksToken(in); got != want {
			t.Errorf("LooksToken(%q) = %v; want %v", in, got, want)
		}
	}
}

func TestNothingPrintsTheSecret(t *testing.T) {
	tok := example("server.example.com:3010")
	const want = "rv1_(key 00010203, server.example.com:3010, secret withheld)"
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
		for _, v := range []any{tok, &tok} {
			if got := fmt.Sprintf(verb, v); got != want {
				t.Errorf("Sprintf(%s, %T) = %s; want %s", verb, v, got, want)
			}
		}
		if got := fmt.Sprintf(verb, struct{ T Token }{tok}); !strings.Contains(got, want) {
			t.Errorf("Sprintf(%s) inside of a struct = %s", verb, got)
		}
	}
	for name, handler := range map[string]func(*strings.Builder) slog.Handler{
		"text": func(b *strings.Builder) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *strings.Builder) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b strings.Builder
		slog.New(handler(&b)).Info("x", "token", tok)
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s handler: %s", name, b.String())
		}
	}
	if b, err := json.Marshal(tok); err == nil {
		t.Errorf("json.Marshal = %s; want an error", b)
	}
}

func FuzzParseToken(f *testing.F) {
	for _, addr := range addrs {
		f.Add(example(addr...).Encode())
	}
	f.Add(forged(wire.AppendField(wire.AppendField(nil, 1, []byte("a:1,b:2")), 200, []byte("x"))))
	f.Add(forged(wire.AppendField(nil, 100, nil)))
	for _, s := range []string{"", "rv1_", "rv2_AAAA", "rv1_" + strings.Repeat("A", 112), "hello", "rv1_\n", " rv1_é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.Encode()); err != nil || !reflect.DeepEqual(again, tok) {
			t.Errorf("Parse, Encode and Parse = %v, %v; want %v", again, err, tok)
		}
	})
}
