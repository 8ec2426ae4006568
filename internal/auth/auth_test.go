package auth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// Two proxies' identities: tokens pin the first.
var identity, otherIdentity = newIdentity(), newIdentity()

func newIdentity() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

var (
	keyID          = [16]byte{1, 2, 3}
	secret         = [32]byte{4, 5, 6}
	bridgeInstance = [16]byte{7, 8, 9}
	proxyInstance  = [16]byte{10, 11, 12}
)

func clientConfig() ClientConfig {
	return ClientConfig{KeyID: keyID, Secret: secret, Pin: Pin(identity.Leaf.RawSubjectPublicKeyInfo), Instance: bridgeInstance}
}

func serverConfig() *ServerConfig {
	return &ServerConfig{Identity: identity, Instance: proxyInstance, Lookup: func(id [16]byte) ([32]byte, bool) {
		if id == keyID {
			return secret, true
		}
		return [32]byte{}, false
	}}
}

// counted counts what was read from the wire.
type counted struct {
	net.Conn
	read atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

func connect(t *testing.T) (bridge *counted, proxy net.Conn) {
	t.Helper()
	var n memnet.Net
	ln, err := n.Listen("proxy:3010")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := n.Dial(t.Context(), "proxy:3010")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return &counted{Conn: c}, s
}

// bubble runs f with a fake clock. Every goroutine that f started must end by itself.
func bubble(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

type outcome struct {
	conn *Conn
	err  error
}

// serve runs Server, and serveClient Client, beside the test.
func serve(conn net.Conn, cfg *ServerConfig) <-chan outcome {
	ch := make(chan outcome, 1)
	go func() {
		c, err := Server(conn, cfg.TLS(), cfg)
		ch <- outcome{c, err}
	}()
	return ch
}

func dial(ctx context.Context, conn net.Conn, cfg ClientConfig) <-chan outcome {
	ch := make(chan outcome, 1)
	go func() {
		c, err := Client(ctx, conn, cfg)
		ch <- outcome{c, err}
	}()
	return ch
}

// wantClosed fails unless the peer of conn has closed it, after what it still had to say, which is returned.
func wantClosed(t *testing.T, conn net.Conn) []byte {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	b, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
	return b
}

// hmacOf is HMAC-SHA-256.
func hmacOf(key []byte, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// mac is the specification of both MACs, written apart from the code: HKDF-Extract without salt, HKDF-Expand to 32 bytes,
// HMAC.
func mac(secret [32]byte, role string, parts ...[]byte) []byte {
	key := hmacOf(hmacOf(make([]byte, 32), secret[:]), []byte("reverser auth v1"), []byte{1})
	return hmacOf(key, append([][]byte{[]byte(role)}, parts...)...)
}

// hello builds what a bridge sends on tc, after change.
func hello(t *testing.T, tc *tls.Conn, change func(*wire.Hello)) []byte {
	t.Helper()
	h := wire.Hello{VersionMin: 1, VersionMax: 1, Role: 1, Auth: 1, KeyID: keyID, Instance: bridgeInstance}
	if change != nil {
		change(&h)
	}
	b := h.Append(nil)
	copy(b[96:], mac(secret, "dial", exporterOf(t, tc), b[:96]))
	return b
}

func exporterOf(t *testing.T, tc *tls.Conn) []byte {
	t.Helper()
	cs := tc.ConnectionState()
	e, err := cs.ExportKeyingMaterial("EXPERIMENTAL-reverser-auth-v1", nil, 32)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func bridgeTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"reverser/1"}, MinVersion: tls.VersionTLS13}
}

// handshake is the TLS part of a connection of a stranger to the proxy.
func handshake(t *testing.T, conn net.Conn, cfg *tls.Config) *tls.Conn {
	t.Helper()
	tc := tls.Client(conn, cfg)
	if err := tc.Handshake(); err != nil {
		t.Fatalf("TLS handshake: %v", err)
	}
	return tc
}

func TestSuccess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		bridge, proxy := connect(t)
		served := serve(proxy, serverConfig())
		c, err := Client(t.Context(), bridge, clientConfig())
		if err != nil {
			t.Fatal(err)
		}
		s := <-served
		if s.err != nil {
			t.Fatal(s.err)
		}
		if len(c.Exporter) != 32 || !bytes.Equal(c.Exporter, s.conn.Exporter) {
			t.Errorf("exporters are %x and %x", c.Exporter, s.conn.Exporter)
		}
		if c.Peer != proxyInstance || s.conn.Peer != bridgeInstance {
			t.Errorf("instances are %x and %x", c.Peer, s.conn.Peer)
		}
		if c.KeyID != keyID || s.conn.KeyID != keyID || c.Secret != secret || s.conn.Secret != secret {
			t.Error("the key is another one")
		}
		if SessionSecret(c, [16]byte{1}) != SessionSecret(s.conn, [16]byte{1}) {
			t.Error("the ends derive different session secrets")
		}
		time.Sleep(time.Hour) // the deadline of the handshake must be gone
		for _, ends := range [][2]*Conn{{c, s.conn}, {s.conn, c}} {
			go ends[0].Write([]byte("hello"))
			got := make([]byte, 5)
			if _, err := io.ReadFull(ends[1], got); err != nil || string(got) != "hello" {
				t.Errorf("Read = %q, %v", got, err)
			}
		}
		if v := c.ConnectionState().Version; v != tls.VersionTLS13 {
			t.Errorf("TLS version %x", v)
		}
	})
}

func TestExporterIsOfOneConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var seen [][]byte
		for range 2 {
			bridge, proxy := connect(t)
			served := serve(proxy, serverConfig())
			c, err := Client(t.Context(), bridge, clientConfig())
			if err != nil {
				t.Fatal(err)
			}
			<-served
			seen = append(seen, c.Exporter)
		}
		if bytes.Equal(seen[0], seen[1]) {
			t.Error("two connections have the same exporter")
		}
	})
}

// TestSNI: the name is for others. Whatever it is, the pin decides.
func TestSNI(t *testing.T) {
	for sni, want := range map[string]string{"": "reverser.invalid", "tunnel.example.com": "tunnel.example.com"} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			cfg := serverConfig()
			heard := ""
			tlsConfig := cfg.TLS()
			tlsConfig.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
				heard = info.ServerName
				return nil, nil
			}
			served := make(chan error, 1)
			go func() {
				_, err := Server(proxy, tlsConfig, cfg)
				served <- err
			}()
			client := clientConfig()
			client.SNI = sni
			if _, err := Client(t.Context(), bridge, client); err != nil {
				t.Fatal(err)
			}
			if err := <-served; err != nil || heard != want {
				t.Errorf("with the SNI %q the proxy heard %q, %v; want %q", sni, heard, err, want)
			}
		})
	}
}

// What Client sends and expects, against the specification.
func TestClientFollowsTheSpecification(t *testing.T) {
	bubble(t, func(t *testing.T) {
		bridge, proxy := connect(t)
		dialled := dial(t.Context(), bridge, clientConfig())
		tc := tls.Server(proxy, serverConfig().TLS())
		msg := make([]byte, 128)
		if _, err := io.ReadFull(tc, msg); err != nil {
			t.Fatal(err)
		}
		if want := hello(t, tc, nil); !bytes.Equal(msg, want) {
			t.Errorf("hello = %x; want %x", msg, want)
		}
		w := wire.Welcome{Verdict: wire.VerdictOK, Version: 1, Instance: proxyInstance}.Append(nil)
		copy(w[32:], mac(secret, "accept", exporterOf(t, tc), msg, w[:32]))
		tc.Write(w)
		if c := <-dialled; c.err != nil || c.conn.Peer != proxyInstance {
			t.Errorf("Client = %v", c.err)
		}
	})
}

// What Server expects and sends, against the specification.
func TestServerFollowsTheSpecification(t *testing.T) {
	bubble(t, func(t *testing.T) {
		bridge, proxy := connect(t)
		served := serve(proxy, serverConfig())
		tc := handshake(t, bridge, bridgeTLS())
		msg := hello(t, tc, nil)
		tc.Write(msg)
		got := make([]byte, 64)
		if _, err := io.ReadFull(tc, got); err != nil {
			t.Fatal(err)
		}
		want := wire.Welcome{Verdict: wire.VerdictOK, Version: 1, Instance: proxyInstance}.Append(nil)
		copy(want[32:], mac(secret, "accept", exporterOf(t, tc), msg, want[:32]))
		if !bytes.Equal(got, want) {
			t.Errorf("welcome = %x; want %x", got, want)
		}
		if s := <-served; s.err != nil {
			t.Error(s.err)
		}
	})
}

// The dialling end says what it is and what it has; a connection may use what both ends have, and each connection for itself.
func TestRoleAndFeatures(t *testing.T) {
	const a, b, c, d = 1, 2, 4, 1 << 63
	for _, f := range []struct {
		role                        wire.Role
		offered, needed, has, chose wire.Features
		missing                     wire.Features
	}{
		{role: 0},
		{role: wire.RoleVisitor, offered: a | b, has: b | c, chose: b},
		{role: wire.RoleProxy, offered: a | b | d, needed: b | d, has: b | c | d, chose: b | d},
		{offered: a | b, needed: a | b, has: b | c, missing: a},
		{offered: d, needed: d, missing: d},
	} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			sc, cc := serverConfig(), clientConfig()
			sc.Features, cc.Features, cc.Needed, cc.Role = f.has, f.offered, f.needed, f.role
			served := serve(proxy, sc)
			conn, err := Client(t.Context(), bridge, cc)
			s := <-served
			if f.missing != 0 {
				var fe *FeatureError
				if !errors.As(err, &fe) || fe.Missing != f.missing || s.err == nil || errors.Is(s.err, ErrBadKey) {
					t.Errorf("%+v: Client = %v, Server = %v; want a FeatureError", f, err, s.err)
				}
				return
			}
			if err != nil || s.err != nil {
				t.Fatalf("%+v: Client = %v, Server = %v", f, err, s.err)
			}
			want := max(f.role, wire.RoleBridge)
			if conn.Role != want || s.conn.Role != want || conn.Features != f.chose || s.conn.Features != f.chose {
				t.Errorf("%+v: the ends have roles %d and %d, features %s and %s", f, conn.Role, s.conn.Role, conn.Features, s.conn.Features)
			}
		})
	}
}

// Who has not proven the key learns nothing of the features, whatever it needs.
func TestFeaturesAreToldBehindTheProof(t *testing.T) {
	bubble(t, func(t *testing.T) {
		bridge, proxy := connect(t)
		cfg := serverConfig()
		cfg.Features = 5
		served := serve(proxy, cfg)
		tc := handshake(t, bridge, bridgeTLS())
		msg := hello(t, tc, func(h *wire.Hello) { h.Offered, h.Needed = 1<<9, 1<<9 })
		msg[127]++
		tc.Write(msg)
		if w, err := wire.ParseWelcome(wantClosed(t, tc)); err != nil || w.Verdict != wire.VerdictRefused || w.Features != 0 {
			t.Errorf("verdict %d, features %s, %v; want a refusal", w.Verdict, w.Features, err)
		}
		if s := <-served; !errors.Is(s.err, ErrBadKey) {
			t.Errorf("Server = %v; want ErrBadKey", s.err)
		}
	})
}

// What a Hello reserves is ignored, and covered by the proof.
func TestReservedBytesOfAHello(t *testing.T) {
	for _, valid := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			served := serve(proxy, serverConfig())
			tc := handshake(t, bridge, bridgeTLS())
			msg := hello(t, tc, nil)
			msg[60] = 1
			if valid {
				copy(msg[96:], mac(secret, "dial", exporterOf(t, tc), msg[:96]))
			}
			tc.Write(msg)
			if s := <-served; (s.err == nil) != valid {
				t.Errorf("with a proof that covers them (%t): Server = %v", valid, s.err)
			}
		})
	}
}

// Nobody learns from a refusal which keys exist.
// TestOtherSecrets: a key may have further secrets, of which each proves it, and nothing else does.
func TestOtherSecrets(t *testing.T) {
	other, third := [32]byte{7}, [32]byte{8}
	for name, c := range map[string]struct {
		id     [16]byte
		proves [32]byte
		want   bool
	}{
		"the first": {keyID, secret, true}, "the second": {keyID, other, true}, "the third": {keyID, third, true},
		"none of them": {keyID, [32]byte{9}, false}, "zeros": {keyID, [32]byte{}, false}, "zeros, of no key": {[16]byte{9}, [32]byte{}, false},
		"another key's": {[16]byte{9}, other, false},
	} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			sc := serverConfig()
			sc.Others = func([16]byte) [][32]byte { return [][32]byte{other, third} }
			cc := clientConfig()
			cc.KeyID, cc.Secret = c.id, c.proves
			served, dialled := serve(proxy, sc), dial(t.Context(), bridge, cc)
			s, d := <-served, <-dialled
			if (s.err == nil) != c.want || (d.err == nil) != c.want {
				t.Errorf("%s: Server = %v, Client = %v", name, s.err, d.err)
			}
			if c.want && s.err == nil && s.conn.Secret != c.proves {
				t.Errorf("%s: the secret that was proven is another one", name)
			}
			for _, o := range []outcome{s, d} {
				if o.conn != nil {
					o.conn.Close()
				}
			}
		})
	}
}

func TestRefusalsLookAlike(t *testing.T) {
	changes := map[string]func(b []byte){
		"wrong key":      func(b []byte) { copy(b[96:], mac([32]byte{9}, "dial", b[:96])) },
		"unknown key":    func(b []byte) { b[8] ^= 0xff },
		"mac of zeros":   func(b []byte) { clear(b[96:]) },
		"last bit of it": func(b []byte) { b[127] ^= 1 },
		"role":           nil, // with a valid MAC; see below
		"method":         nil,
		"signature":      nil, // its 64 bytes are read before the refusal
	}
	var first []byte
	var firstWire int64
	for name, change := range changes {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			served := serve(proxy, serverConfig())
			tc := handshake(t, bridge, bridgeTLS())
			msg := hello(t, tc, func(h *wire.Hello) {
				switch name {
				case "role":
					h.Role = 4
				case "method":
					h.Auth = 3
				case "signature":
					h.Auth = 2
				}
			})
			if name == "signature" {
				msg = append(msg, make([]byte, 64)...)
			}
			if change != nil {
				change(msg)
			}
			before := bridge.read.Load()
			start := time.Now()
			tc.Write(msg)
			got := wantClosed(t, tc)
			onWire := bridge.read.Load() - before
			if s := <-served; !errors.Is(s.err, ErrBadKey) {
				t.Errorf("%s: Server = %v; want ErrBadKey", name, s.err)
			}
			if len(got) != wire.WelcomeLen {
				t.Fatalf("%s: refusal of %d bytes", name, len(got))
			}
			if time.Since(start) != 0 {
				t.Errorf("%s: refused after %v; want at once", name, time.Since(start))
			}
			if first == nil {
				first, firstWire = got, onWire
			}
			if !bytes.Equal(got[:16], first[:16]) || onWire != firstWire {
				t.Errorf("%s: refusal %x… of %d bytes on the wire; another is %x… of %d", name, got[:16], onWire, first[:16], firstWire)
			}
			if bytes.Equal(got[16:32], proxyInstance[:]) {
				t.Errorf("%s: a refusal tells the instance", name)
			}
			if w, err := wire.ParseWelcome(got); err != nil || w.Verdict != wire.VerdictRefused {
				t.Errorf("%s: verdict %v, %v", name, w.Verdict, err)
			}
		})
	}
}

func TestWrongKey(t *testing.T) {
	for name, change := range map[string]func(*ClientConfig){
		"wrong":   func(c *ClientConfig) { c.Secret[0]++ },
		"unknown": func(c *ClientConfig) { c.KeyID[0]++ },
		// A lookup that finds nothing returns a secret of zeros; it must not open the door.
		"unknown with a secret of zeros": func(c *ClientConfig) { c.KeyID[0]++; c.Secret = [32]byte{} },
	} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			served := serve(proxy, serverConfig())
			cfg := clientConfig()
			change(&cfg)
			if _, err := Client(t.Context(), bridge, cfg); !errors.Is(err, ErrRefused) {
				t.Errorf("%s key: Client = %v; want ErrRefused", name, err)
			}
			if s := <-served; !errors.Is(s.err, ErrBadKey) || s.conn != nil {
				t.Errorf("%s key: Server = %v; want ErrBadKey", name, s.err)
			}
		})
	}
}

// A bridge tells a server that is not its proxy nothing, not even which key it has.
func TestWrongPin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		bridge, proxy := connect(t)
		cfg := serverConfig()
		cfg.Identity = otherIdentity
		dialled := dial(t.Context(), bridge, clientConfig())
		tc := tls.Server(proxy, cfg.TLS())
		proxy.SetDeadline(time.Now().Add(time.Minute))
		if err := tc.Handshake(); err == nil {
			t.Error("the bridge completed the TLS handshake")
		}
		if n, err := tc.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("Read = %d, %v; want no hello", n, err)
		}
		if c := <-dialled; !errors.Is(c.err, ErrPin) || errors.Is(c.err, ErrNotProxy) {
			t.Errorf("Client = %v; want ErrPin", c.err)
		}
		wantClosed(t, proxy)
	})
}

// answer plays a proxy that owns the identity of the pin but not the key: after the hello it sends what reply makes of it.
// It returns what the bridge sent behind its hello.
func answer(t *testing.T, reply func(tc *tls.Conn, hello []byte) []byte) (err error, rest []byte) {
	t.Helper()
	bridge, proxy := connect(t)
	dialled := dial(t.Context(), bridge, clientConfig())
	tc := tls.Server(proxy, serverConfig().TLS())
	msg := make([]byte, wire.HelloLen)
	if _, err := io.ReadFull(tc, msg); err != nil {
		t.Fatal(err)
	}
	tc.Write(reply(tc, msg))
	c := <-dialled
	if c.err != nil {
		rest = wantClosed(t, tc)
	}
	return c.err, rest
}

func TestFakeProxy(t *testing.T) {
	ok := wire.Welcome{Verdict: wire.VerdictOK, Version: 1, Instance: proxyInstance}
	for _, c := range []struct {
		name  string
		reply func(tc *tls.Conn, hello []byte) []byte
		want  error
	}{
		{"a random proof", func(_ *tls.Conn, _ []byte) []byte {
			w := ok
			rand.Read(w.MAC[:])
			return w.Append(nil)
		}, ErrFake},
		{"no proof, then OPEN", func(_ *tls.Conn, _ []byte) []byte {
			return wire.AppendOpen(ok.Append(nil), 257, 65536, wire.Open{})
		}, ErrFake},
		{"the bridge's own proof", func(_ *tls.Conn, hello []byte) []byte {
			w := ok
			copy(w.MAC[:], hello[wire.HelloMACed:])
			return w.Append(nil)
		}, ErrFake},
		{"the proof of another hello", func(tc *tls.Conn, hello []byte) []byte {
			b := ok.Append(nil)
			other := bytes.Clone(hello)
			other[24]++
			copy(b[32:], mac(secret, "accept", exporterOf(t, tc), other, b[:32]))
			return b
		}, ErrFake},
		{"the proof of another connection", func(tc *tls.Conn, hello []byte) []byte {
			b := ok.Append(nil)
			copy(b[32:], mac(secret, "accept", make([]byte, 32), hello, b[:32]))
			return b
		}, ErrFake},
		{"the word of the dialling end", func(tc *tls.Conn, hello []byte) []byte {
			b := ok.Append(nil)
			copy(b[32:], mac(secret, "dial", exporterOf(t, tc), hello, b[:32]))
			return b
		}, ErrFake},
		{"a changed instance under a true proof", func(tc *tls.Conn, hello []byte) []byte {
			b := ok.Append(nil)
			copy(b[32:], mac(secret, "accept", exporterOf(t, tc), hello, b[:32]))
			b[16]++
			return b
		}, ErrFake},
		{"missing features without a proof", func(_ *tls.Conn, _ []byte) []byte {
			w := ok
			w.Verdict = wire.VerdictFeatures
			return w.Append(nil)
		}, ErrFake},
		{"a refusal for a later reason", func(_ *tls.Conn, _ []byte) []byte {
			w := ok
			w.Verdict = 200
			return w.Append(nil)
		}, ErrRefused},
		{"64 bytes of something else", func(_ *tls.Conn, _ []byte) []byte { return []byte(strings.Repeat("HTTP/1.1 200 OK\n", 4)) }, ErrNotProxy},
		{"its hello", func(_ *tls.Conn, hello []byte) []byte { return hello }, ErrFake},
	} {
		bubble(t, func(t *testing.T) {
			err, rest := answer(t, c.reply)
			if !errors.Is(err, c.want) {
				t.Errorf("%s: Client = %v; want %v", c.name, err, c.want)
			}
			if len(rest) != 0 {
				t.Errorf("%s: the bridge sent %x behind its hello", c.name, rest)
			}
		})
	}
}

// A proxy that chooses what was not offered is not obeyed.
func TestFeaturesThatWereNotOffered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		err, rest := answer(t, func(tc *tls.Conn, hello []byte) []byte {
			b := wire.Welcome{Verdict: wire.VerdictOK, Version: 1, Instance: proxyInstance, Features: 1 << 7}.Append(nil)
			copy(b[32:], mac(secret, "accept", exporterOf(t, tc), hello, b[:32]))
			return b
		})
		if err == nil || !strings.Contains(err.Error(), "feature 7") || len(rest) != 0 {
			t.Errorf("Client = %v, and sent %x", err, rest)
		}
	})
}

func TestReplayedHello(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var recorded []byte
		answer(t, func(_ *tls.Conn, hello []byte) []byte { recorded = hello; return make([]byte, wire.WelcomeLen) })
		bridge, proxy := connect(t)
		served := serve(proxy, serverConfig())
		tc := handshake(t, bridge, bridgeTLS())
		tc.Write(recorded)
		if w, err := wire.ParseWelcome(wantClosed(t, tc)); err != nil || w.Verdict != wire.VerdictRefused {
			t.Errorf("verdict %v, %v; want a refusal", w.Verdict, err)
		}
		if s := <-served; !errors.Is(s.err, ErrBadKey) {
			t.Errorf("Server = %v; want ErrBadKey", s.err)
		}
	})
}

// Somebody in the middle who even has the proxy's private key, but not the shared one, relays both legs.
func TestManInTheMiddle(t *testing.T) {
	for name, change := range map[string]func([]byte){
		"relays":                        func([]byte) {},
		"makes the refusal an approval": func(b []byte) { b[4] = byte(wire.VerdictOK) },
	} {
		bubble(t, func(t *testing.T) {
			bridge, front := connect(t)
			back, proxy := connect(t)
			served := serve(proxy, serverConfig())
			dialled := dial(t.Context(), bridge, clientConfig())
			left := tls.Server(front, serverConfig().TLS())
			right := handshake(t, back, bridgeTLS())
			msg := make([]byte, wire.HelloLen)
			if _, err := io.ReadFull(left, msg); err != nil {
				t.Fatal(err)
			}
			right.Write(msg)
			reply := make([]byte, wire.WelcomeLen)
			if _, err := io.ReadFull(right, reply); err != nil {
				t.Fatal(err)
			}
			change(reply)
			left.Write(reply)
			if s := <-served; !errors.Is(s.err, ErrBadKey) {
				t.Errorf("%s: Server = %v; want ErrBadKey", name, s.err)
			}
			if c := <-dialled; !errors.Is(c.err, ErrRefused) && !errors.Is(c.err, ErrFake) {
				t.Errorf("%s: Client = %v", name, c.err)
			}
		})
	}
}

func TestOtherTLSClients(t *testing.T) {
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2":      func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"another ALPN": func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} },
		"a later ALPN": func(c *tls.Config) { c.NextProtos = []string{"reverser/2"} },
		"no ALPN":      func(c *tls.Config) { c.NextProtos = nil },
	} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			served := serve(proxy, serverConfig())
			cfg := bridgeTLS()
			change(cfg)
			tc := tls.Client(bridge, cfg)
			if err := tc.Handshake(); err == nil {
				tc.Write(hello(t, tc, nil))
				if b := wantClosed(t, tc); len(b) != 0 {
					t.Errorf("%s: the proxy answered %x", name, b)
				}
			}
			if s := <-served; !errors.Is(s.err, ErrNoHello) {
				t.Errorf("%s: Server = %v; want ErrNoHello", name, s.err)
			}
		})
	}
}

func TestStrangersAtTheProxy(t *testing.T) {
	random := make([]byte, 1<<20)
	rand.Read(random)
	random[0] = 0x80
	for name, first := range map[string][]byte{
		"HTTP":           []byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"),
		"SSH":            []byte("SSH-2.0-OpenSSH_9.9\r\n"),
		"random bytes":   random,
		"zeros":          make([]byte, 1000),
		"a long hello":   append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xf0}, make([]byte, 16<<10)...),
		"a plain hello":  wire.Hello{VersionMin: 1, VersionMax: 1, Role: 1, Auth: 1, KeyID: keyID}.Append(nil),
		"a plain ATTACH": wire.AppendAttach(nil, 1, wire.Attach{Mode: wire.ModeNew}),
	} {
		bubble(t, func(t *testing.T) {
			stranger, proxy := connect(t)
			served := serve(proxy, serverConfig())
			go stranger.Write(first)
			start := time.Now()
			if b := wantClosed(t, stranger); len(b) > 7 {
				t.Errorf("%s is answered with %d bytes; want no more than a TLS alert", name, len(b))
			}
			if d := time.Since(start); d > Timeout {
				t.Errorf("%s: closed after %v", name, d)
			}
			if s := <-served; !errors.Is(s.err, ErrNoHello) {
				t.Errorf("%s: Server = %v; want ErrNoHello", name, s.err)
			}
		})
	}
}

// After the TLS handshake a stranger gets no more than a closed connection either.
func TestNoHelloInsideTLS(t *testing.T) {
	for name, msg := range map[string][]byte{
		"HTTP":             []byte("GET / HTTP/1.1\r\nHost: " + strings.Repeat("x", 200) + "\r\n\r\n"),
		"an ATTACH":        append(wire.AppendAttach(nil, 1, wire.Attach{Mode: wire.ModeNew}), make([]byte, 128)...),
		"needs unoffered":  append(append([]byte("RVSR\x01\x01\x01\x01"), bytes.Repeat([]byte{0}, 47)...), append([]byte{1}, make([]byte, 72)...)...),
		"end of the input": nil,
	} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			served := serve(proxy, serverConfig())
			tc := handshake(t, bridge, bridgeTLS())
			if msg != nil {
				tc.Write(msg)
			} else {
				tc.CloseWrite()
			}
			if b := wantClosed(t, tc); len(b) != 0 {
				t.Errorf("%s: the proxy answered %x", name, b)
			}
			if s := <-served; !errors.Is(s.err, ErrNoHello) {
				t.Errorf("%s: Server = %v; want ErrNoHello", name, s.err)
			}
		})
	}
}

// Who leaves before a hello is told apart from who says something wrong: on a real socket, where a reset is another error.
func TestHangUpAtTheProxy(t *testing.T) {
	for name, want := range map[string]bool{"FIN": true, "RST": true, "FIN inside TLS": true, "RST inside TLS": true, "noise": false, "alert": false, "closed here inside TLS": false} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		bridge, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer bridge.Close()
		proxy, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		served := serve(proxy, serverConfig())
		if strings.HasSuffix(name, "inside TLS") {
			handshake(t, bridge, bridgeTLS())
		}
		switch {
		case name == "noise":
			bridge.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		case name == "alert":
			bridge.Write([]byte{21, 3, 1, 0, 2, 2, 42}) // fatal, bad_certificate
		case strings.HasPrefix(name, "closed here"):
			proxy.Close()
		case strings.HasPrefix(name, "RST"):
			bridge.(*net.TCPConn).SetLinger(0)
			fallthrough
		default:
			bridge.Close()
		}
		if s := <-served; !errors.Is(s.err, ErrNoHello) || errors.Is(s.err, ErrHungUp) != want {
			t.Errorf("%s: Server = %v; is ErrHungUp: %t, want %t", name, s.err, !want, want)
		}
	}
}

// One deadline covers all of it: progress by single bytes buys no time.
func TestSilenceAtTheProxy(t *testing.T) {
	for name, f := range map[string]func(t *testing.T, c net.Conn){
		"silence from the start": func(*testing.T, net.Conn) {},
		"half a ClientHello":     func(_ *testing.T, c net.Conn) { c.Write([]byte{0x16, 3, 1, 2, 0, 1, 0}) },
		"TLS, then silence":      func(t *testing.T, c net.Conn) { handshake(t, c, bridgeTLS()) },
		"half a hello": func(t *testing.T, c net.Conn) {
			tc := handshake(t, c, bridgeTLS())
			tc.Write(hello(t, tc, nil)[:64])
		},
		"a hello of one byte a second": func(t *testing.T, c net.Conn) {
			tc := handshake(t, c, bridgeTLS())
			for _, b := range hello(t, tc, nil) {
				if _, err := tc.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
			t.Error("128 seconds were granted")
		},
	} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			start := time.Now()
			served := serve(proxy, serverConfig())
			var stranger sync.WaitGroup
			stranger.Go(func() { f(t, bridge) })
			defer stranger.Wait()
			s := <-served
			if d := time.Since(start); d != 10*time.Second {
				t.Errorf("%s: closed after %v; want 10s", name, d)
			}
			if !errors.Is(s.err, ErrNoHello) || !errors.Is(s.err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: Server = %v", name, s.err)
			}
			if _, err := proxy.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: the connection is not closed: %v", name, err)
			}
		})
	}
}

func TestSilenceAtTheBridge(t *testing.T) {
	for name, f := range map[string]func(c net.Conn){
		"silence from the start": func(net.Conn) {},
		"TLS, then silence":      func(c net.Conn) { tls.Server(c, serverConfig().TLS()).Handshake() },
		"half a welcome": func(c net.Conn) {
			tc := tls.Server(c, serverConfig().TLS())
			io.ReadFull(tc, make([]byte, wire.HelloLen))
			tc.Write(wire.Welcome{Verdict: wire.VerdictOK, Version: 1}.Append(nil)[:63])
		},
	} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			start := time.Now()
			go f(proxy)
			_, err := Client(t.Context(), bridge, clientConfig())
			if d := time.Since(start); d != Timeout {
				t.Errorf("%s: given up after %v; want 10s", name, d)
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrNotProxy) {
				t.Errorf("%s: Client = %v; want a timeout, which proves nothing about who is there", name, err)
			}
			wantClosed(t, proxy)
		})
	}
}

// Whatever answers that is no proxy is called so: the user named the wrong port.
func TestOtherServersAtTheBridge(t *testing.T) {
	plain := func(s string) func(net.Conn) {
		return func(c net.Conn) {
			c.Write([]byte(s))
			io.Copy(io.Discard, c)
		}
	}
	overTLS := func(change func(*tls.Config)) func(net.Conn) {
		return func(c net.Conn) {
			cfg := serverConfig().TLS()
			change(cfg)
			tc := tls.Server(c, cfg)
			if tc.Handshake() == nil {
				io.Copy(io.Discard, tc)
			} else {
				c.Close()
			}
		}
	}
	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  error
	}{
		"SSH":                       {plain("SSH-2.0-OpenSSH_9.9\r\n"), ErrNotProxy},
		"HTTP":                      {plain("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), ErrNotProxy},
		"a server that hangs up":    {func(c net.Conn) { io.ReadFull(c, make([]byte, 100)); c.(interface{ CloseWrite() error }).CloseWrite() }, ErrClosed},
		"HTTPS":                     {overTLS(func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }), ErrNotProxy},
		"a later reverser":          {overTLS(func(c *tls.Config) { c.NextProtos = []string{"reverser/2"} }), ErrNotProxy},
		"TLS 1.2 only":              {overTLS(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), ErrNotProxy},
		"TLS without ALPN":          {overTLS(func(c *tls.Config) { c.NextProtos = nil }), ErrNotProxy},
		"other TLS without ALPN":    {overTLS(func(c *tls.Config) { c.NextProtos, c.Certificates = nil, []tls.Certificate{otherIdentity} }), ErrPin},
		"TLS that wants more of us": {overTLS(func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }), nil},
	} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			go func() {
				c.serve(proxy)
				proxy.Close()
			}()
			_, err := Client(t.Context(), bridge, clientConfig())
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: Client = %v; want %v", name, err, c.want)
			}
		})
	}
}

func TestVersions(t *testing.T) {
	// The proxy tells a bridge of other versions which one it speaks; it needs no key for that.
	for _, v := range [][2]uint8{{2, 2}, {2, 255}} {
		bubble(t, func(t *testing.T) {
			bridge, proxy := connect(t)
			served := serve(proxy, serverConfig())
			tc := handshake(t, bridge, bridgeTLS())
			tc.Write(hello(t, tc, func(h *wire.Hello) { h.VersionMin, h.VersionMax = v[0], v[1]; h.KeyID = [16]byte{99} }))
			w, err := wire.ParseWelcome(wantClosed(t, tc))
			if err != nil || w.Verdict != wire.VerdictVersion || w.Version != wire.Version {
				t.Errorf("versions %v: welcome %v of version %d, %v", v, w.Verdict, w.Version, err)
			}
			if s := <-served; s.err == nil || errors.Is(s.err, ErrBadKey) {
				t.Errorf("versions %v: Server = %v", v, s.err)
			}
		})
	}
	// A later bridge that still speaks this version gets it.
	bubble(t, func(t *testing.T) {
		bridge, proxy := connect(t)
		served := serve(proxy, serverConfig())
		tc := handshake(t, bridge, bridgeTLS())
		tc.Write(hello(t, tc, func(h *wire.Hello) { h.VersionMax = 3 }))
		got := make([]byte, wire.WelcomeLen)
		io.ReadFull(tc, got)
		if w, err := wire.ParseWelcome(got); err != nil || w.Verdict != wire.VerdictOK || w.Version != 1 {
			t.Errorf("welcome %v of version %d, %v", w.Verdict, w.Version, err)
		}
		if s := <-served; s.err != nil {
			t.Error(s.err)
		}
	})
	// The bridge's side.
	for name, reply := range map[string]func(tc *tls.Conn, hello []byte) []byte{
		"refused for its version": func(*tls.Conn, []byte) []byte {
			return wire.Welcome{Verdict: wire.VerdictVersion, Version: 2}.Append(nil)
		},
		"welcomed in another": func(tc *tls.Conn, hello []byte) []byte {
			b := wire.Welcome{Verdict: wire.VerdictOK, Version: 2}.Append(nil)
			copy(b[32:], mac(secret, "accept", exporterOf(t, tc), hello, b[:32]))
			return b
		},
	} {
		bubble(t, func(t *testing.T) {
			err, _ := answer(t, reply)
			if v, ok := errors.AsType[*VersionError](err); !ok || v.Proxy != 2 {
				t.Errorf("%s: Client = %v; want a VersionError of 2", name, err)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		bridge, proxy := connect(t)
		ctx, cancel := context.WithCancel(t.Context())
		dialled := dial(ctx, bridge, clientConfig())
		time.Sleep(3 * time.Second)
		cancel()
		start := time.Now()
		if c := <-dialled; c.err == nil || time.Since(start) != 0 {
			t.Errorf("Client = %v after %v; want an error at once", c.err, time.Since(start))
		}
		wantClosed(t, proxy)
		// Once it has succeeded, the context does not matter any more.
		bridge, proxy = connect(t)
		served := serve(proxy, serverConfig())
		ctx, cancel = context.WithCancel(t.Context())
		c, err := Client(ctx, bridge, clientConfig())
		if err != nil {
			t.Fatal(err)
		}
		s := <-served
		cancel()
		synctest.Wait()
		go c.Write([]byte("x"))
		if _, err := io.ReadFull(s.conn, make([]byte, 1)); err != nil {
			t.Errorf("after cancel: %v", err)
		}
	})
}

func BenchmarkHandshake(b *testing.B) {
	var n memnet.Net
	ln, err := n.Listen("proxy:3010")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	cfg := serverConfig()
	tc := cfg.TLS()
	for b.Loop() {
		c, err := n.Dial(b.Context(), "proxy:3010")
		if err != nil {
			b.Fatal(err)
		}
		s, err := ln.Accept()
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := Server(s, tc, cfg)
			done <- err
		}()
		if _, err := Client(b.Context(), c, clientConfig()); err != nil {
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		c.Close()
		s.Close()
	}
}

// TestRemedies: the errors are shown as they are, so each says what to look at and what to do.
func TestRemedies(t *testing.T) {
	for err, words := range map[error][]string{
		ErrPin:      {"check the address", "--proxy", "another proxy", "new identity", "`reverser key add`", "intercepts TLS"},
		ErrNotProxy: {"check host and port", "--proxy", "another program", "intercepts TLS"},
		ErrClosed:   {"busy", "check host and port", "--proxy", "another program"},
		ErrFake:     {"check who runs there", "state directory", "`reverser key add`"},
		ErrRefused:  {"removed", "another proxy", "`reverser key add`"},
	} {
		if err == ErrClosed && strings.Contains(err.Error(), "TLS") {
			t.Errorf("%q blames the network, when the proxy may be busy", err)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
	}
}
