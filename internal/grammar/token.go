package grammar

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"

	"reverser/internal/wire"
)

const (
	prefix   = "rv1_"
	checksum = 4
	fixed    = 16 + 32 + 32
)

// The fields of a token.
const (
	fieldAddrs = 1 // host:port, several with commas between
	fieldSNI   = 2 // a host name
	// 3 is reserved for a way out (a proxy on the way to the proxy), 4 for a public key.
)

// maxAddrs is how many addresses a token has at the most.
const maxAddrs = 8

// Reach is how bridges reach a proxy: what all tokens of it have in common, apart from the pin.
type Reach struct {
	Addrs []string // as in Token
	SNI   string   // as in Token
}

// String is how people read it.
func (r Reach) String() string {
	text := cmp.Or(strings.Join(r.Addrs, ", "), "no address")
	if r.SNI != "" {
		text += " (SNI " + r.SNI + ")"
	}
	return text
}

// What can be wrong with a token, for errors.Is. The text of an error says
// what to do.
var (
	ErrNotToken      = errors.New("not a token")
	ErrTokenVersion  = errors.New("unknown token version")
	ErrTokenLength   = errors.New("token of the wrong length")
	ErrTokenMistyped = errors.New("mistyped token")
)

// refused is one of the sentinels, said to a person.
type refused struct {
	kind error
	text string
}

func (e *refused) Error() string { return e.text }
func (e *refused) Unwrap() error { return e.kind }

// Token is what a bridge needs to know about its proxy, in the one line that a user copies:
//
//	rv1_ base64url( key id 16 | secret 32 | pin 32 | fields | checksum 4 )
//
// without padding. The fields are those of internal/wire: what is not known is skipped or refused. The checksum is the start
// of SHA-256 over "reverser token v1" and everything before it. It keeps slips of the mouse away from the network and proves
// nothing: the secret does that. No error and no printed form of a Token holds any of its text.
type Token struct {
	// Addrs are where the proxy takes the link, host:port, the best first; none where the proxy could not know it.
	Addrs  []string
	SNI    string // the name that the bridge sends as SNI, as ParseSNI returns it; "": the constant one
	KeyID  [16]byte
	Secret [32]byte
	Pin    [32]byte // SHA-256 of the proxy's SubjectPublicKeyInfo
}

// Addr returns the first address; "" where there is none.
func (t Token) Addr() string {
	if len(t.Addrs) == 0 {
		return ""
	}
	return t.Addrs[0]
}

// ParseSNI parses a name to send as SNI (RFC 6066 section 3): a host name, which needs no address. It is returned in lower case,
// without a trailing dot.
func ParseSNI(s string) (string, error) {
	if looksSecret(s) {
		return "", errTokenAsAddress
	}
	if host, _, err := cutHostPort(s); err == nil {
		return "", fmt.Errorf("%q has a port: write the name alone, %s", s, host)
	}
	host, err := CanonicalHost(s)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "", fmt.Errorf("%s is an address, and TLS sends names only: write a host name", host)
	}
	return strings.TrimSuffix(host, "."), nil
}

// base is strict: with the unused bits of the last character free, several
// spellings would mean the same token.
var base = base64.RawURLEncoding.Strict()

// ParseToken reads a token. White space around it is no part of it.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, &refused{ErrNotToken, "the token is empty: copy the word that begins with rv1_, which the proxy or `reverser key add` printed"}
	}
	if t, err := parseToken(s); err == nil {
		return t, nil
	} else if better := moreThanToken(s); better != nil {
		return Token{}, better
	} else {
		return Token{}, err
	}
}

// moreThanToken finds a whole token in what is none, nil if there is none.
func moreThanToken(s string) error {
	found := map[string]bool{}
	for _, at := range tokenWord.FindAllStringIndex(s, 100) {
		word, rest := s[at[0]:at[1]], s[at[1]:]
		if _, err := parseToken(word); err == nil && !strings.HasPrefix(rest, "=") { // that would be a slip in Base64
			found[word] = true
		}
	}
	switch len(found) {
	case 0:
	case 1:
		return &refused{ErrNotToken, "there is more than the token: keep the one word that begins with rv1_, without a command, a name, quotes or a comment around it"}
	default:
		return &refused{ErrNotToken, fmt.Sprintf("there are %d tokens: keep the one that is for this bridge", len(found))}
	}
	if _, err := parseToken(strings.Join(strings.Fields(s), "")); err == nil {
		return &refused{ErrTokenMistyped, "the token is broken in two, by a space or a line break: write it in one piece, on one line"}
	}
	if _, err := parseToken(plain(s)); err == nil {
		return &refused{ErrTokenMistyped, "the token has a character that a word processor made of another, such as a long dash: copy it again from the terminal"}
	}
	return nil
}

var tokenWord = regexp.MustCompile(prefix + `[A-Za-z0-9_-]+`)

func parseToken(s string) (Token, error) {
	version, rest, ok := cutVersion(s)
	if !ok {
		return Token{}, &refused{ErrNotToken, "this is not a token: a token starts with rv1_; copy that word from what the proxy or `reverser key add` printed"}
	}
	if version != prefix {
		return Token{}, &refused{ErrTokenVersion, fmt.Sprintf("the token is of version %s, which this program does not know: use the same version of reverser as on the proxy, or make a token there with this one", strings.TrimSuffix(version, "_"))}
	}
	for i := range len(rest) {
		if !isBase64(rest[i]) {
			return Token{}, &refused{ErrTokenMistyped, fmt.Sprintf("the token is mistyped: character %d is no part of any token; copy it again in one piece, without spaces, quotes or line breaks", len(prefix)+i+1)}
		}
	}
	if n := base.EncodedLen(fixed + checksum); len(rest) < n {
		return Token{}, &refused{ErrTokenLength, fmt.Sprintf("the token is cut short: it has %d characters of at least %d; copy it again, up to its end", len(s), len(prefix)+n)}
	}
	if n := base.EncodedLen(fixed + wire.MaxFields + checksum); len(rest) > n {
		return Token{}, &refused{ErrTokenLength, fmt.Sprintf("the token is too long: it has %d characters of at most %d; copy one token alone", len(s), len(prefix)+n)}
	}
	if len(rest)%4 == 1 {
		return Token{}, &refused{ErrTokenLength, "the token is cut short or has a character too many: copy it again, from rv1_ to its end"}
	}
	raw, err := base.DecodeString(rest)
	// The decoder's own error would quote a character, so it goes no further.
	if err != nil || [checksum]byte(raw[len(raw)-checksum:]) != sum(raw[:len(raw)-checksum]) {
		return Token{}, &refused{ErrTokenMistyped, "the token is mistyped or cut short, its checksum does not fit: copy it again, from rv1_ to its end"}
	}
	var t Token
	copy(t.KeyID[:], raw)
	copy(t.Secret[:], raw[16:])
	copy(t.Pin[:], raw[48:])
	if err := t.takeFields(raw[fixed : len(raw)-checksum]); err != nil {
		return Token{}, err
	}
	return t, nil
}

// takeFields reads what stands behind the fixed part. The checksum fits, so no hand slipped: somebody made it so.
func (t *Token) takeFields(b []byte) error {
	r := wire.ReadFields(b)
	for f, ok := r.Next(); ok; f, ok = r.Next() {
		switch {
		case f.Type == fieldAddrs:
			t.Addrs = strings.Split(string(f.Value), ",")
			for _, a := range t.Addrs {
				if addr, err := ParseHostPort(a); err != nil || addr != a || len(t.Addrs) > maxAddrs {
					return &refused{ErrTokenMistyped, "the address inside the token is not host:port: make a new token with `reverser key add` on the proxy"}
				}
			}
		case f.Type == fieldSNI:
			t.SNI = string(f.Value)
			if name, err := ParseSNI(t.SNI); err != nil || name != t.SNI {
				return &refused{ErrTokenMistyped, "the SNI inside the token is no host name: make a new token with `reverser key add` on the proxy"}
			}
		case f.Type >= wire.Critical:
			return &refused{ErrTokenVersion, fmt.Sprintf("the token says something that this program must understand and does not (field %d): use the same version of reverser as on the proxy", f.Type)}
		}
	}
	if r.Err() != nil {
		return &refused{ErrTokenMistyped, "the token is damaged, or of a version of reverser before the first release: make a new token with `reverser key add` on the proxy"}
	}
	return nil
}

// Encode writes the token: the one form that holds the secret. Addrs hold what ParseHostPort takes, and SNI what ParseSNI returned.
func (t Token) Encode() string {
	raw := make([]byte, 0, fixed+64+checksum)
	raw = append(raw, t.KeyID[:]...)
	raw = append(raw, t.Secret[:]...)
	raw = append(raw, t.Pin[:]...)
	if len(t.Addrs) > 0 {
		addrs := make([]string, len(t.Addrs))
		for i, a := range t.Addrs {
			addrs[i] = a
			if canonical, err := ParseHostPort(a); err == nil {
				addrs[i] = canonical
			}
		}
		raw = wire.AppendField(raw, fieldAddrs, []byte(strings.Join(addrs, ",")))
	}
	if t.SNI != "" {
		raw = wire.AppendField(raw, fieldSNI, []byte(t.SNI))
	}
	check := sum(raw)
	return prefix + base.EncodeToString(append(raw, check[:]...))
}

// LooksToken reports whether s wants to be a token, of this or of a later version.
func LooksToken(s string) bool {
	_, _, ok := cutVersion(strings.TrimSpace(s))
	return ok
}

// cutVersion splits "rv1_…" after the underscore.
func cutVersion(s string) (version, rest string, ok bool) {
	digits, ok := strings.CutPrefix(s, "rv")
	if !ok {
		return "", "", false
	}
	n := 0
	for n < len(digits) && '0' <= digits[n] && digits[n] <= '9' {
		n++
	}
	// Beyond two digits it is no version, and may be part of a secret.
	if n == 0 || n > 2 || n == len(digits) || digits[n] != '_' {
		return "", "", false
	}
	cut := len("rv") + n + len("_")
	return s[:cut], s[cut:], true
}

func isBase64(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

func sum(b []byte) [checksum]byte {
	h := sha256.New()
	io.WriteString(h, "reverser token v1")
	h.Write(b)
	return [checksum]byte(h.Sum(nil))
}

// String names the key and the address, which are no secrets, and nothing else.
func (t Token) String() string {
	return fmt.Sprintf("rv1_(key %s, %s, secret withheld)", hex.EncodeToString(t.KeyID[:4]), Reach{t.Addrs, t.SNI})
}

// GoString is String.
func (t Token) GoString() string { return t.String() }

// Format is String for every verb: %x of a struct would print the secret.
func (t Token) Format(f fmt.State, _ rune) { io.WriteString(f, t.String()) }

// LogValue is String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText refuses, so that no encoder writes the secret as a list of
// numbers. Encode is the one way out.
func (t Token) MarshalText() ([]byte, error) {
	return nil, errors.New("a token is not written by an encoder, as it is a secret")
}
