package grammar

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write spec/vectors from the code")

const vectorFile = "../../spec/vectors/token.json"

type tokenVectors struct {
	Tokens    []tokenVector    `json:"tokens"`
	Malformed []badTokenVector `json:"malformed"`
}

type tokenVector struct {
	Name   string `json:"name"`
	Token  string `json:"token"`
	Addr   string `json:"addr"`
	KeyID  string `json:"key_id"`
	Secret string `json:"secret"`
	Pin    string `json:"pin"`
}

type badTokenVector struct {
	Name   string `json:"name"`
	Token  string `json:"token"`
	Reason string `json:"reason"` // not-a-token, version, length or mistyped
}

var reasons = map[string]error{"not-a-token": ErrNotToken, "version": ErrTokenVersion, "length": ErrTokenLength, "mistyped": ErrTokenMistyped}

func makeVectors() (v tokenVectors) {
	for _, c := range []struct{ name, addr string }{
		{"without-address", ""}, {"name", "server.example.com:3010"}, {"ipv4", "203.0.113.7:3010"}, {"ipv6", "[2001:db8::1]:65535"}, {"shortest-address", "a:1"},
	} {
		t := example(c.addr)
		v.Tokens = append(v.Tokens, tokenVector{c.name, t.Encode(), t.Addr, hex.EncodeToString(t.KeyID[:]), hex.EncodeToString(t.Secret[:]), hex.EncodeToString(t.Pin[:])})
	}
	s := example("server.example.com:3010").Encode()
	v.Malformed = []badTokenVector{
		{"empty", "", "not-a-token"},
		{"a-word", "hello", "not-a-token"},
		{"prefix-in-upper-case", "RV1_" + s[4:], "not-a-token"},
		{"a-later-version", "rv2_" + s[4:], "version"},
		{"prefix-alone", "rv1_", "length"},
		{"half", s[:60], "length"},
		{"too-long", "rv1_" + strings.Repeat("A", 1000), "length"},
		{"one-character-short", s[:len(s)-1], "mistyped"},
		{"one-character-changed", s[:20] + string(other(s[20])) + s[21:], "mistyped"},
		{"padding", s + "=", "mistyped"},
		{"a-space-inside", s[:20] + " " + s[20:], "mistyped"},
		{"an-address-without-port", forge("server.example.com"), "mistyped"},
		{"an-address-in-upper-case", forge("SERVER.example.com:3010"), "mistyped"},
	}
	return v
}

func other(c byte) byte {
	if c == 'A' {
		return 'B'
	}
	return 'A'
}

// forge makes a token with a checksum that fits and an address that Encode would not write.
func forge(addr string) string {
	t := example("")
	b := append(append(append([]byte{}, t.KeyID[:]...), t.Secret[:]...), t.Pin[:]...)
	b = append(b, addr...)
	check := sha256.Sum256(append([]byte("reverser token v1"), b...))
	return "rv1_" + base64.RawURLEncoding.EncodeToString(append(b, check[:4]...))
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
		if got.Addr != c.Addr || hex.EncodeToString(got.KeyID[:]) != c.KeyID || hex.EncodeToString(got.Secret[:]) != c.Secret || hex.EncodeToString(got.Pin[:]) != c.Pin {
			t.Errorf("%s: the fields are others", c.Name)
		}
		if got.Encode() != c.Token {
			t.Errorf("%s: Encode gives another token", c.Name)
		}
	}
	for _, c := range v.Malformed {
		if _, err := ParseToken(c.Token); reasons[c.Reason] == nil || !errors.Is(err, reasons[c.Reason]) {
			t.Errorf("%s: Parse = %v; want %s", c.Name, err, c.Reason)
		}
	}
}
