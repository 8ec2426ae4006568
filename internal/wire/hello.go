package wire

import "errors"

// Before authentication only two messages exist, of fixed size. Nothing else is parsed.
const (
	HelloLen     = 128
	HelloMACed   = 96 // leading bytes of a Hello that its MAC covers
	WelcomeLen   = 64
	WelcomeMACed = 32 // leading bytes of a Welcome that its MAC covers
)

// Version is the version of the protocol that this package speaks.
const Version = 1

var magic = [4]byte{'R', 'V', 'S', 'R'}

// RoleBridge is the role of a bridge in a Hello.
const RoleBridge = 1

// AuthPSK is the only method of authentication so far: two HMACs over the TLS exporter.
const AuthPSK = 1

// Hello is the first message on a connection, from the dialling side.
type Hello struct {
	VersionMin, VersionMax uint8
	Role, Auth             uint8
	KeyID                  [16]byte
	Instance               [16]byte // random per process
	MAC                    [32]byte
}

// ErrHello says that the bytes are no Hello or Welcome.
var ErrHello = errors.New("not a reverser handshake")

// Append appends h. The MAC is the last 32 bytes.
func (h Hello) Append(b []byte) []byte {
	b = append(b, magic[:]...)
	b = append(b, h.VersionMin, h.VersionMax, h.Role, h.Auth)
	b = append(b, h.KeyID[:]...)
	b = append(b, h.Instance[:]...)
	b = append(b, make([]byte, HelloMACed-40)...)
	return append(b, h.MAC[:]...)
}

// ParseHello decodes a Hello of exactly HelloLen bytes.
func ParseHello(b []byte) (h Hello, err error) {
	if len(b) != HelloLen || [4]byte(b) != magic || !zero(b[40:HelloMACed]) {
		return h, ErrHello
	}
	h.VersionMin, h.VersionMax, h.Role, h.Auth = b[4], b[5], b[6], b[7]
	copy(h.KeyID[:], b[8:])
	copy(h.Instance[:], b[24:])
	copy(h.MAC[:], b[HelloMACed:])
	if h.VersionMin == 0 || h.VersionMin > h.VersionMax {
		return h, ErrHello
	}
	return h, nil
}

// Verdict of a Welcome.
type Verdict uint8

// The verdicts. VerdictVersion may be told to a stranger; everything else about a key may not.
const (
	VerdictOK      Verdict = 1
	VerdictRefused Verdict = 2
	VerdictVersion Verdict = 3
)

// Welcome answers a Hello.
type Welcome struct {
	Verdict  Verdict
	Version  uint8 // chosen; with VerdictVersion the highest that the proxy speaks
	Instance [16]byte
	MAC      [32]byte
}

// Append appends w. The MAC is the last 32 bytes.
func (w Welcome) Append(b []byte) []byte {
	b = append(b, magic[:]...)
	b = append(b, byte(w.Verdict), w.Version)
	b = append(b, make([]byte, 10)...)
	b = append(b, w.Instance[:]...)
	return append(b, w.MAC[:]...)
}

// ParseWelcome decodes a Welcome of exactly WelcomeLen bytes.
func ParseWelcome(b []byte) (w Welcome, err error) {
	if len(b) != WelcomeLen || [4]byte(b) != magic || !zero(b[6:16]) {
		return w, ErrHello
	}
	w.Verdict, w.Version = Verdict(b[4]), b[5]
	copy(w.Instance[:], b[16:])
	copy(w.MAC[:], b[WelcomeMACed:])
	if w.Verdict < VerdictOK || w.Verdict > VerdictVersion {
		return w, ErrHello
	}
	return w, nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
