package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Before authentication only two messages exist, of fixed size. Nothing else is parsed.
const (
	HelloLen     = 128 // with AuthPSK, and the first part of any other
	HelloMACed   = 96  // leading bytes of a Hello that its MAC covers
	WelcomeLen   = 64
	WelcomeMACed = 32 // leading bytes of a Welcome that its MAC covers
)

// Version is the version of the protocol that this package speaks.
const Version = 1

var magic = [4]byte{'R', 'V', 'S', 'R'}

// Role says what the dialling end is.
type Role uint8

// The roles.
const (
	RoleBridge  Role = 1 + iota // offers services
	RoleVisitor                 // uses services
	RoleProxy                   // another proxy of the same cluster
)

// The methods of authentication.
const (
	AuthPSK       = 1 // two HMACs over the TLS exporter
	AuthSignature = 2 // reserved: a signature of 64 bytes stands behind the HelloLen bytes
)

// HelloSize returns the length of a Hello that begins with b, which has HelloLen bytes: the method of authentication decides.
func HelloSize(b []byte) int {
	if b[7] == AuthSignature {
		return HelloLen + 64
	}
	return HelloLen
}

// Features are what a connection may use besides what every end can, a bit for each.
type Features uint64

// The features.
const (
	FeatureDatagrams Features = 1 << iota // DATAGRAM, and OPEN of flows
	FeatureDialOpens                      // the dialling end opens streams
	FeatureCluster                        // reserved: PEERS, WANT, CALL
	FeatureIdle                           // CHECK, RETIRE: an idle link has few connections, which are seldom asked for a sign of life
)

var featureNames = [...]string{"datagrams", "streams opened by the dialling end", "cluster", "idle links"}

// String names the features for people.
func (f Features) String() string {
	var names []string
	for i := range 64 {
		switch bit := Features(1) << i; {
		case f&bit == 0:
		case i < len(featureNames):
			names = append(names, featureNames[i])
		default:
			names = append(names, fmt.Sprintf("feature %d", i))
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ", ")
}

// Hello is the first message on a connection, from the dialling end.
type Hello struct {
	VersionMin, VersionMax uint8
	Role                   Role
	Auth                   uint8
	KeyID                  [16]byte
	Instance               [16]byte // random per process
	Offered                Features
	Needed                 Features // a part of them
	MAC                    [32]byte
}

// ErrHello says that the bytes are no Hello or Welcome.
var ErrHello = errors.New("not a reverser handshake")

// Append appends h. The MAC is the last 32 bytes.
func (h Hello) Append(b []byte) []byte {
	b = append(b, magic[:]...)
	b = append(b, h.VersionMin, h.VersionMax, byte(h.Role), h.Auth)
	b = append(b, h.KeyID[:]...)
	b = append(b, h.Instance[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Offered))
	b = binary.BigEndian.AppendUint64(b, uint64(h.Needed))
	b = append(b, make([]byte, HelloMACed-56)...)
	return append(b, h.MAC[:]...)
}

// ParseHello decodes the HelloLen bytes that every Hello begins with.
func ParseHello(b []byte) (h Hello, err error) {
	if len(b) != HelloLen || [4]byte(b) != magic {
		return h, ErrHello
	}
	h.VersionMin, h.VersionMax, h.Role, h.Auth = b[4], b[5], Role(b[6]), b[7]
	copy(h.KeyID[:], b[8:])
	copy(h.Instance[:], b[24:])
	h.Offered = Features(binary.BigEndian.Uint64(b[40:]))
	h.Needed = Features(binary.BigEndian.Uint64(b[48:]))
	copy(h.MAC[:], b[HelloMACed:])
	if h.VersionMin == 0 || h.VersionMin > h.VersionMax || h.Needed&^h.Offered != 0 {
		return h, ErrHello
	}
	return h, nil
}

// Verdict of a Welcome.
type Verdict uint8

// The verdicts. VerdictVersion may be told to a stranger; everything else about a key may not. One that is not known is a
// refusal.
const (
	VerdictOK       Verdict = 1 + iota
	VerdictRefused          // of the key
	VerdictVersion          // no version in common
	VerdictFeatures         // after the proof: a needed feature is missing
)

// Welcome answers a Hello.
type Welcome struct {
	Verdict  Verdict
	Version  uint8    // chosen; with VerdictVersion the highest that the accepting end speaks
	Features Features // chosen: offered, and known here; with VerdictFeatures all that the accepting end has
	Instance [16]byte
	MAC      [32]byte
}

// Append appends w. The MAC is the last 32 bytes.
func (w Welcome) Append(b []byte) []byte {
	b = append(b, magic[:]...)
	b = append(b, byte(w.Verdict), w.Version, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(w.Features))
	b = append(b, w.Instance[:]...)
	return append(b, w.MAC[:]...)
}

// ParseWelcome decodes a Welcome of exactly WelcomeLen bytes.
func ParseWelcome(b []byte) (w Welcome, err error) {
	if len(b) != WelcomeLen || [4]byte(b) != magic || b[4] == 0 {
		return w, ErrHello
	}
	w.Verdict, w.Version = Verdict(b[4]), b[5]
	w.Features = Features(binary.BigEndian.Uint64(b[8:]))
	copy(w.Instance[:], b[16:])
	copy(w.MAC[:], b[WelcomeMACed:])
	return w, nil
}
