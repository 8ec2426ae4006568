package grammar

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"reverser/internal/wire"
)

var update = flag.Bool("update", false, "write spec/vectors from the code")

const vectorFile = "../../spec/vectors/token.json"

type tokenVectors struct {
	Tokens    []tokenVector    `json:"tokens"`
	Malformed []badTokenVector `json:"malformed"`
}

type tokenVector struct {
	Name   string   `json:"name"`
	Token  string   `json:"token"`
	Addrs  []string `json:"addrs"`
	SNI    string   `json:"sni,omitempty"`
	KeyID  string   `json:"key_id"`
	Secret string   `json:"secret"`
	Pin    string   `json:"pin"`
}

type badTokenVector struct {
	Name   string `json:"name"`
	Token  string `json:"token"`
	Reason string `json:"reason"` // not-a-token, version, length or mistyped
}

var reasons = map[string]error{"not-a-token": ErrNotToken, "version": ErrTokenVersion, "length": ErrTokenLength, "mistyped": ErrTokenMistyped}

func makeVectors() (v tokenVectors) {
	for _, c := range []struct {
		name  string
		addrs []string
		sni   string
	}{
		{"without-address", []string{}, ""},
		{"name", []string{"server.example.com:3010"}, ""},
		{"ipv4", []string{"203.0.113.7:3010"}, ""},
		{"ipv6", []string{"[2001:db8::1]:65535"}, ""},
		{"shortest-address", []string{"a:1"}, ""},
		{"several-addresses", []string{"one.example.com:3010", "[2001:db8::1]:3010", "203.0.113.7:3009"}, ""},
		{"sni", []string{"203.0.113.7:443"}, "tunnel.example.com"},
		{"sni-without-address", []string{}, "a"},
	} {
		t := example(c.addrs...)
		t.SNI = c.sni
		v.Tokens = append(v.Tokens, tokenVector{c.name, t.Encode(), t.Addrs, t.SNI, hex.EncodeToString(t.KeyID[:]), hex.EncodeToString(t.Secret[:]), hex.EncodeToString(t.Pin[:])})
	}
	t := example("a:1")
	v.Tokens = append(v.Tokens, tokenVector{
		"with-an-unknown-field", forged(wire.AppendField(wire.AppendField(nil, 1, []byte("a:1")), 127, []byte("later"))), t.Addrs, "",
		hex.EncodeToString(t.KeyID[:]), hex.EncodeToString(t.Secret[:]), hex.EncodeToString(t.Pin[:]),
	})
	s := example("server.example.com:3010").Encode()
	v.Malformed = []badTokenVector{
		{"empty", "", "not-a-token"},
		{"a-word", "hello", "not-a-token"},
		{"prefix-in-upper-case", "RV1_" + s[4:], "not-a-token"},
		{"a-later-version", "rv2_" + s[4:], "version"},
		{"prefix-alone", "rv1_", "length"},
		{"half", s[:60], "length"},
		{"too-long", "rv1_" + strings.Repeat("A", 6000), "length"},
		{"one-character-short", s[:len(s)-1], "mistyped"},
		{"one-character-changed", s[:20] + string(other(s[20])) + s[21:], "mistyped"},
		{"padding", s + "=", "mistyped"},
		{"a-space-inside", s[:20] + " " + s[20:], "mistyped"},
		{"an-address-without-port", forged(wire.AppendField(nil, 1, []byte("server.example.com"))), "mistyped"},
		{"an-address-in-upper-case", forged(wire.AppendField(nil, 1, []byte("SERVER.example.com:3010"))), "mistyped"},
		{"an-empty-address", forged(wire.AppendField(nil, 1, []byte("a:1,"))), "mistyped"},
		{"a-space-between-addresses", forged(wire.AppendField(nil, 1, []byte("a:1, b:1"))), "mistyped"},
		{"an-empty-sni", forged(wire.AppendField(nil, 2, nil)), "mistyped"},
		{"an-sni-in-upper-case", forged(wire.AppendField(nil, 2, []byte("Tunnel.example.com"))), "mistyped"},
		{"an-sni-with-a-trailing-dot", forged(wire.AppendField(nil, 2, []byte("tunnel.example.com."))), "mistyped"},
		{"an-sni-that-is-an-address", forged(wire.AppendField(nil, 2, []byte("203.0.113.7"))), "mistyped"},
		{"an-sni-with-a-port", forged(wire.AppendField(nil, 2, []byte("tunnel.example.com:443"))), "mistyped"},
		{"an-unknown-critical-field", forged(wire.AppendField(nil, 128, nil)), "version"},
		{"a-field-beyond-the-end", forged([]byte{1, 0, 4, 'a', ':', '1'}), "mistyped"},
		{"the-same-field-twice", forged([]byte{100, 0, 0, 100, 0, 0}), "mistyped"},
		{"field-0", forged([]byte{0, 0, 0}), "mistyped"},
	}
	return v
}

func other(c byte) byte {
	if c == 'A' {
		return 'B'
	}
	return 'A'
}

// TestVectorsAreUpToDate fails when code and vectors part. Write them anew with
// go test ./internal/grammar -run Vectors -update, and look at the difference
// before it lands.
func TestVectorsAreUpToDate(t *testing.T) {
	want, err := json.MarshalIndent(makeVectors(), "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(vectorFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n")), want) {
		t.Error("spec/vectors/token.json is not what the code makes")
	}
}

func TestVectors(t *testing.T) {
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var v tokenVectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	for _, c := range v.Tokens {
		got, err := ParseToken(c.Token)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if !slices.Equal(got.Addrs, c.Addrs) || got.SNI != c.SNI || hex.EncodeToString(got.KeyID[:]) != c.KeyID || hex.EncodeToString(got.Secret[:]) != c.Secret || hex.EncodeToString(got.Pin[:]) != c.Pin {
			t.Errorf("%s: the fields are others", c.Name)
		}
		if c.Name != "with-an-unknown-field" && got.Encode() != c.Token {
			t.Errorf("%s: Encode gives another token", c.Name)
		}
	}
	for _, c := range v.Malformed {
		if _, err := ParseToken(c.Token); reasons[c.Reason] == nil || !errors.Is(err, reasons[c.Reason]) {
			t.Errorf("%s: Parse = %v; want %s", c.Name, err, c.Reason)
		}
	}
}
