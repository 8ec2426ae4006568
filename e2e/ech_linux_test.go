package e2e

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"

	"reverser/internal/acmetest"
)

// echKey makes a key for Encrypted Client Hello, and what its clients learn of it (draft-ietf-tls-esni, section 4), with the name that they
// show to the network.
func echKey(t *testing.T, id uint8, outer string) (key tls.EncryptedClientHelloKey, list []byte) {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddUint16(0xfe0d)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(id)
		b.AddUint16(0x0020) // DHKEM(X25519, HKDF-SHA256)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(k.PublicKey().Bytes()) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint16(1) // HKDF-SHA256
			b.AddUint16(1) // AES-128-GCM
		})
		b.AddUint8(0)
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(outer)) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {})
	})
	config := b.BytesOrPanic()
	var l cryptobyte.Builder
	l.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(config) })
	return tls.EncryptedClientHelloKey{Config: config, PrivateKey: k.Bytes(), SendAsRetry: true}, l.BytesOrPanic()
}

// TestEncryptedClientHello: a client that encrypts the name it wants reaches the server of its outer name, which decrypts it. The proxy
// neither goes by the inner name, though it serves it too, nor learns it. With a key that is no longer the server's, or where the bridge
// ends TLS, which has none, the client is told so by whoever has the certificate of the outer name.
func TestEncryptedClientHello(t *testing.T) {
	t.Parallel()
	const outer, inner, ended = "front.example.com", "secret.example.net", "ended.example.com"
	chain, keyPEM := acmetest.Certificate(t, outer, inner, ended)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	pair, err := tls.X509KeyPair(chain, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	key, list := echKey(t, 1, outer)
	server := func(who string, keys ...tls.EncryptedClientHelloKey) (port int) {
		return serve(t, func(c *net.TCPConn) {
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, EncryptedClientHelloKeys: keys})
			if s.Handshake() != nil {
				return // the client knows why
			}
			st := s.ConnectionState()
			fmt.Fprintf(s, "%s as %s, %v\n", who, st.ServerName, st.ECHAccepted)
			io.Copy(s, s)
			s.CloseWrite()
		})
	}
	dir, https := t.TempDir(), freePort(t)
	accessLog := filepath.Join(dir, "access.log")
	p := startProxy(t, "--https", loopback(https), "--access-log", accessLog, "--log-level", "debug")
	router := startRouter(t, p.link)
	conf := fmt.Sprintf("[[expose]]\npublic = \"tls/%s\"\ntarget = %d\n[[expose]]\npublic = \"tls/*.example.net\"\ntarget = %d\n[[expose]]\npublic = \"tls/%s\"\ntarget = %d\ncertificate = %q\ncertificate_key = %q\n",
		outer, server("front", key), server("the other"), ended, serve(t, echo),
		writeFile(t, filepath.Join(dir, "chain.pem"), string(chain)), writeFile(t, filepath.Join(dir, "key.pem"), string(keyPEM)))
	b := startBridge(t, addKey(t, p.state, "web", "tls/*"), "--proxy", loopback(router.port), "--config", writeFile(t, filepath.Join(dir, "bridge.toml"), conf))
	b.awaitUp("tls/"+outer, "tls/*.example.net", "tls/"+ended)

	connect := func(name string, list []byte) (*tls.Conn, error) {
		c := tls.Client(dial(t, loopback(https)), &tls.Config{RootCAs: roots, ServerName: name, EncryptedClientHelloConfigList: list})
		return c, c.Handshake()
	}
	greeted := func(c *tls.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("the server says %q, %v; want %q", got, err, want)
		}
	}
	c, err := connect(inner, list)
	if err != nil {
		t.Fatal(err)
	}
	if !c.ConnectionState().ECHAccepted {
		t.Error("the encrypted name was not accepted")
	}
	greeted(c, "front as "+inner+", true\n")
	echoThrough(t, c, 4<<20, 2, router.cut)
	c.Close()
	if r := p.awaitRecord("pair released", "service", "tls/"+outer); r.Text("reason") != "eof" {
		t.Errorf("the pair ended as %q, want eof", r.Text("reason"))
	}
	var logged []byte
	eventually(t, "the access log has the outer name", func() bool {
		logged, _ = os.ReadFile(accessLog)
		return strings.Contains(string(logged), outer)
	})
	for what, text := range map[string]string{"the access log": string(logged), "the proxy's log": p.Stderr.String(), "its status": runReverser(t, "status", "--json", "--state", p.state), "the bridge's log": b.Stderr.String()} {
		if strings.Contains(text, inner) {
			t.Errorf("%s has the inner name", what)
		}
	}

	_, stale := echKey(t, 2, outer)
	_, err = connect(inner, stale)
	var rejected *tls.ECHRejectionError
	if !errors.As(err, &rejected) || !bytes.Equal(rejected.RetryConfigList, list) {
		t.Fatalf("with a key that is not the server's: %v; want the server's own key", err)
	}
	if c, err = connect(inner, rejected.RetryConfigList); err != nil {
		t.Fatal(err)
	}
	greeted(c, "front as "+inner+", true\n")

	_, none := echKey(t, 3, ended)
	if _, err = connect(inner, none); !errors.As(err, &rejected) || len(rejected.RetryConfigList) > 0 {
		t.Errorf("where the bridge ends TLS: %v; want that it has no such key", err)
	}
	// Without encryption the inner name is one as all others.
	if c, err = connect(inner, nil); err != nil {
		t.Fatal(err)
	}
	greeted(c, "the other as "+inner+", false\n")
}
