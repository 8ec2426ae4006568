// Package auth makes a TCP connection between a dialling end, such as a bridge, and a proxy into a link connection: TLS 1.3, the proxy's pin, and
// a mutual proof of the shared 256-bit key that is bound to this TLS connection (spec/PROTOCOL.md, section "Handshake").
//
// Client and Server set one deadline on the connection. It covers everything before authentication, and only success clears it.
// The package starts no goroutine.
package auth

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"reverser/internal/record"
	"reverser/internal/wire"
)

// Timeout covers a connection from its first byte to the end of authentication.
const Timeout = 10 * time.Second

// ALPN keeps other TLS programs away from the link, and the link away from them. It names the link where both share a port.
const ALPN = "reverser/1"

// constantSNI is said where no name is given: an observer learns none.
const constantSNI = "reverser.invalid"

// The exporter label. RFC 5705 section 4 reserves the prefix EXPERIMENTAL for labels without registration; a private
// label keeps this binding apart from every other protocol's (RFC 9266 would share one).
const exporterLabel = "EXPERIMENTAL-reverser-auth-v1"

// fault is an error with the remedy, which is a part of its text.
type fault struct{ what, remedy string }

func (f *fault) Error() string { return f.what + ": " + f.remedy }

// Remedy is the end of the text that says what to do.
func (f *fault) Remedy() string { return f.remedy }

// Errors of the bridge's side, with the remedy: they are shown to whoever runs the bridge.
var (
	ErrPin error = &fault{"the TLS server there is not the proxy that this token was made for", "check the address (--proxy); " +
		"if the token is of another proxy, or the proxy has a new identity, make a new token there with `reverser key add`; " +
		"if neither, something in between intercepts TLS"}
	ErrNotProxy error = &fault{"what answers there is no reverser proxy", "check host and port (--proxy, --proxy-transfer); " +
		"another program may listen there, or something in between, such as a firewall or a proxy for HTTPS, intercepts TLS"}
	ErrClosed error = &fault{"the connection was closed before an answer came", "the proxy may be busy or stopping; " +
		"if it stays so, check host and port (--proxy, --proxy-transfer), where another program may listen"}
	ErrFake error = &fault{"what answers there has the proxy's identity but failed to prove the key, so the bridge goes no further", "check who runs there; if the identity may have been copied, move the proxy's state directory away " +
		"and make new tokens with `reverser key add`"}
	ErrRefused error = &fault{"the proxy refused the key", "it was removed, or the token is of another proxy; " +
		"make a new one there with `reverser key add`"}
)

// VersionError says that the proxy speaks other versions of the protocol.
type VersionError struct{ Proxy uint8 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the proxy speaks protocol version %d, this bridge %d: update the older of the two", e.Proxy, wire.Version)
}

// FeatureError says that the proxy lacks features without which this end does not work with it.
type FeatureError struct{ Missing wire.Features }

func (e *FeatureError) Error() string {
	return fmt.Sprintf("the proxy lacks a feature that is needed here (%s): update the proxy", e.Missing)
}

// Conn is an authenticated link connection.
type Conn struct {
	*record.Conn
	Exporter []byte   // 32 bytes, the same at both ends of this TLS connection and nowhere else
	Peer     [16]byte // instance of the peer's process
	KeyID    [16]byte
	Secret   [32]byte      // of the key that was proven
	Role     wire.Role     // of the dialling end
	Features wire.Features // that this connection may use

	// Took is how long TLS and the proofs took, at the bridge: two round trips, and the computing.
	Took time.Duration
	// Relayed is set by who dialled, if something in between ends TCP: the kernel's keep-alive does not get beyond it.
	Relayed bool
}

// Pin is the SHA-256 of a certificate's SubjectPublicKeyInfo, as in RFC 7469 section 2.4.
func Pin(spki []byte) [32]byte { return sha256.Sum256(spki) }

// ClientConfig is what the dialling end needs to authenticate.
type ClientConfig struct {
	KeyID    [16]byte
	Secret   [32]byte
	Pin      [32]byte
	SNI      string // the name to ask for, which decides nothing here; "": a constant one
	Instance [16]byte
	Role     wire.Role     // 0: a bridge
	Features wire.Features // that this end has
	Needed   wire.Features // without which there is no connection; a part of Features
}

// Client authenticates the dialling side. It closes conn on error.
func Client(ctx context.Context, conn net.Conn, cfg ClientConfig) (_ *Conn, err error) {
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if cfg.Role == 0 {
		cfg.Role = wire.RoleBridge
	}
	begin := time.Now()
	if err := conn.SetDeadline(begin.Add(Timeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	tc, err := record.Client(ctx, conn, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{ALPN},
		ServerName:         cmp.Or(cfg.SNI, constantSNI),
		InsecureSkipVerify: true, // the pin takes the place of a CA
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return ErrPin
			}
			pin := Pin(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if subtle.ConstantTimeCompare(pin[:], cfg.Pin[:]) != 1 {
				return ErrPin
			}
			return nil
		},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	})
	if err != nil {
		// Only an error of the network itself, or an end without a word, leaves open who is there. crypto/tls reports alerts as
		// net.OpErrors too.
		var op *net.OpError
		switch {
		case errors.Is(err, ErrPin):
			return nil, ErrPin
		case closed(err):
			return nil, fmt.Errorf("%w (%w)", ErrClosed, err)
		case !errors.As(err, &op), op.Op == "remote error", op.Op == "local error":
			return nil, fmt.Errorf("%w (%w)", ErrNotProxy, err)
		}
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	cs := tc.ConnectionState()
	if cs.NegotiatedProtocol != ALPN {
		return nil, ErrNotProxy
	}
	exporter, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("TLS exporter: %w", err)
	}
	key := authKey(cfg.Secret)
	hello := wire.Hello{
		VersionMin: wire.Version, VersionMax: wire.Version, Role: cfg.Role, Auth: wire.AuthPSK,
		KeyID: cfg.KeyID, Instance: cfg.Instance, Offered: cfg.Features, Needed: cfg.Needed,
	}
	msg := hello.Append(make([]byte, 0, wire.HelloLen))
	copy(msg[wire.HelloMACed:], macOf(key, dialWord, exporter, msg[:wire.HelloMACed]))
	if _, err := tc.Write(msg); closed(err) {
		return nil, fmt.Errorf("%w (%w)", ErrClosed, err)
	} else if err != nil {
		return nil, fmt.Errorf("send hello: %w", err)
	}
	answer := make([]byte, wire.WelcomeLen)
	if _, err := io.ReadFull(tc, answer); closed(err) {
		return nil, fmt.Errorf("%w (%w)", ErrClosed, err)
	} else if err != nil {
		return nil, fmt.Errorf("wait for the proxy's answer: %w", err)
	}
	w, err := wire.ParseWelcome(answer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotProxy, err)
	}
	switch w.Verdict {
	case wire.VerdictOK, wire.VerdictFeatures: // which a proof stands behind
	case wire.VerdictVersion:
		return nil, &VersionError{w.Version}
	case wire.VerdictRefused:
		return nil, ErrRefused
	default:
		return nil, fmt.Errorf("%w (for reason %d, which this version does not know)", ErrRefused, w.Verdict)
	}
	want := macOf(key, acceptWord, exporter, msg, answer[:wire.WelcomeMACed])
	if !hmac.Equal(want, w.MAC[:]) {
		return nil, ErrFake
	}
	switch {
	case w.Verdict == wire.VerdictFeatures:
		return nil, &FeatureError{cfg.Needed &^ w.Features}
	case w.Version != wire.Version:
		return nil, &VersionError{w.Version}
	case w.Features&^cfg.Features != 0 || cfg.Needed&^w.Features != 0:
		return nil, fmt.Errorf("the proxy chose other features (%s) than this end may use (%s) and needs (%s)", w.Features, cfg.Features, cfg.Needed)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &Conn{
		Conn: tc, Exporter: exporter, Peer: w.Instance, KeyID: cfg.KeyID, Secret: cfg.Secret, Role: cfg.Role, Features: w.Features,
		Took: time.Since(begin),
	}, nil
}

// closed reports whether err says that the peer ended the connection, with or without a reset.
func closed(err error) bool {
	var broken syscall.Errno
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &broken)
}

// ServerConfig is what a proxy needs to authenticate.
type ServerConfig struct {
	Identity tls.Certificate
	Instance [16]byte
	Features wire.Features // that this end has
	// Lookup returns the secret of a key.
	Lookup func(id [16]byte) (secret [32]byte, ok bool)
	// Others returns further secrets of a key, MostOthers at the most: the dialling end may prove one of them instead. nil: there are none.
	Others func(id [16]byte) [][32]byte
}

// MostOthers is how many secrets a key may have beside the one of ServerConfig.Lookup.
const MostOthers = 2

// TLS returns the TLS configuration of the accepting side; make it once and pass it to Server.
func (c *ServerConfig) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{ALPN},
		Certificates:                []tls.Certificate{c.Identity},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

// ErrNoHello says that a connection ended, or was silent, before it authenticated.
var ErrNoHello = errors.New("no valid hello")

// ErrHungUp says that the peer ended the connection before its hello, and not by an alert that names a reason.
var ErrHungUp = fmt.Errorf("%w: the peer hung up", ErrNoHello)

// noHello wraps what came instead of a hello.
func noHello(err error) error {
	if closed(err) {
		return fmt.Errorf("%w: %w", ErrHungUp, err)
	}
	return fmt.Errorf("%w: %w", ErrNoHello, err)
}

// ErrBadKey says that a hello's key is unknown or its MAC wrong; the caller of the peer learns only that it was refused.
var ErrBadKey = errors.New("wrong or unknown key")

// Server authenticates the accepting side. It closes conn on error.
func Server(conn net.Conn, tlsConfig *tls.Config, cfg *ServerConfig) (*Conn, error) {
	return ServerSteps(conn, tlsConfig, cfg, Steps{})
}

// Steps are told of the steps of a handshake. The zero value tells nobody.
type Steps = record.Steps

// ServerSteps is Server, with a say in when something is computed for a stranger.
func ServerSteps(conn net.Conn, tlsConfig *tls.Config, cfg *ServerConfig, steps Steps) (_ *Conn, err error) {
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return nil, err
	}
	tc, err := record.Server(context.Background(), conn, tlsConfig, steps)
	if err != nil {
		return nil, noHello(err)
	}
	cs := tc.ConnectionState()
	if cs.NegotiatedProtocol != ALPN {
		return nil, fmt.Errorf("%w: ALPN %q", ErrNoHello, cs.NegotiatedProtocol)
	}
	exporter, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("TLS exporter: %w", err)
	}
	var msg [wire.HelloLen]byte
	if _, err := io.ReadFull(tc, msg[:]); err != nil {
		return nil, noHello(err)
	}
	hello, err := wire.ParseHello(msg[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoHello, err)
	}
	if more := wire.HelloSize(msg[:]) - len(msg); more > 0 { // of a method that is refused below, but not with bytes unread
		if _, err := io.CopyN(io.Discard, tc, int64(more)); err != nil {
			return nil, noHello(err)
		}
	}
	w := wire.Welcome{Verdict: wire.VerdictRefused, Version: wire.Version}
	if hello.VersionMin > wire.Version || hello.VersionMax < wire.Version {
		w.Verdict = wire.VerdictVersion
		if err := refuse(tc, w); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("hello of protocol version %d to %d", hello.VersionMin, hello.VersionMax)
	}
	secret, key, proven := cfg.proven(hello, exporter, msg[:wire.HelloMACed])
	if !proven || hello.Role < wire.RoleBridge || hello.Role > wire.RoleProxy || hello.Auth != wire.AuthPSK {
		if err := refuse(tc, w); err != nil {
			return nil, err
		}
		return nil, ErrBadKey
	}
	w.Verdict, w.Instance, w.Features = wire.VerdictOK, cfg.Instance, hello.Offered&cfg.Features
	missing := hello.Needed &^ cfg.Features
	if missing != 0 {
		w.Verdict, w.Features = wire.VerdictFeatures, cfg.Features
	}
	answer := w.Append(make([]byte, 0, wire.WelcomeLen))
	copy(answer[wire.WelcomeMACed:], macOf(key, acceptWord, exporter, msg[:], answer[:wire.WelcomeMACed]))
	if _, err := tc.Write(answer); err != nil {
		return nil, fmt.Errorf("send welcome: %w", err)
	}
	if missing != 0 {
		return nil, fmt.Errorf("the peer needs features that this proxy lacks (%s)", missing)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	tc.Trust()
	return &Conn{
		Conn: tc, Exporter: exporter, Peer: hello.Instance, KeyID: hello.KeyID, Secret: secret, Role: hello.Role, Features: w.Features,
	}, nil
}

// proven returns which secret of its key the dialling end has proven. An unknown key costs the same work as a wrong MAC, and one secret the
// same as three, so that time tells neither which ids exist nor which keys have a new token.
func (c *ServerConfig) proven(hello wire.Hello, exporter, msg []byte) (secret [32]byte, key []byte, ok bool) {
	var all [1 + MostOthers][32]byte
	have := 0
	first, known := c.Lookup(hello.KeyID)
	if all[0] = first; known {
		have = 1
		if c.Others != nil {
			have += copy(all[1:], c.Others(hello.KeyID))
		}
	}
	for i, s := range all {
		k := authKey(s)
		if hmac.Equal(macOf(k, dialWord, exporter, msg), hello.MAC[:]) && i < have {
			secret, key, ok = s, k, true
		}
	}
	return secret, key, ok
}

// refuse answers with random bytes where a MAC would stand: every refusal looks the same.
func refuse(tc *record.Conn, w wire.Welcome) error {
	rand.Read(w.Instance[:])
	rand.Read(w.MAC[:])
	if _, err := tc.Write(w.Append(make([]byte, 0, wire.WelcomeLen))); err != nil {
		return fmt.Errorf("send refusal: %w", err)
	}
	return nil
}

// SessionSecret derives what proves, at a resume, that the bridge was there when the session began.
func SessionSecret(c *Conn, sid [16]byte) [32]byte {
	return [32]byte(derive(c.Secret[:], c.Exporter, "reverser session v1 "+string(sid[:])))
}

// ResumeMAC binds an ATTACH to its TLS connection, slot, generation and table, which has the SHA-256 sum.
func ResumeMAC(session [32]byte, exporter []byte, sid [16]byte, slot uint8, gen uint64, sum [32]byte) [32]byte {
	g := [9]byte{slot, byte(gen >> 56), byte(gen >> 48), byte(gen >> 40), byte(gen >> 32), byte(gen >> 24), byte(gen >> 16), byte(gen >> 8), byte(gen)}
	return [32]byte(macOf(session[:], "resume", exporter, sid[:], g[:], sum[:]))
}

func authKey(secret [32]byte) []byte { return derive(secret[:], nil, "reverser auth v1") }

func derive(secret, salt []byte, info string) []byte {
	k, err := hkdf.Key(sha256.New, secret, salt, info, 32)
	if err != nil {
		panic(err) // only for lengths that SHA-256 cannot give; 32 it can
	}
	return k
}

// The words that the two proofs start with.
const (
	dialWord   = "dial"
	acceptWord = "accept"
)

// macOf starts with a word for the side: a MAC of one side is never valid as the other's (the Selfie attack, RFC 9257 section 5.3).
func macOf(key []byte, word string, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, key)
	io.WriteString(m, word)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}
