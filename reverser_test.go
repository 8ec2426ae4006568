package reverser_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser"
	"reverser/internal/auth"
	"reverser/internal/freeport"
	"reverser/internal/grammar"
	"reverser/internal/proxy"
)

// startProxy runs a proxy on loopback and returns a token for it.
func startProxy(t *testing.T, allow string) string {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	policy, err := grammar.ParseAllow(allow)
	if err != nil {
		t.Fatal(err)
	}
	k := proxy.Key{Name: "k", ID: [16]byte{1}, Secret: [32]byte{2}, Allow: grammar.Policy{policy}}
	p := proxy.New(proxy.Config{
		Listen: "127.0.0.1:0", Identity: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Settings: proxy.Settings{Keys: []proxy.Key{k}},
	})
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return grammar.Token{Addrs: []string{p.Addr().String()}, KeyID: k.ID, Secret: k.Secret, Pin: auth.Pin(leaf.RawSubjectPublicKeyInfo)}.Encode()
}

// freeAddr is a loopback address where nothing listens.
func freeAddr(t *testing.T) string {
	addr, err := freeport.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestListen(t *testing.T) {
	tok := startProxy(t, "tcp/1024-65535")
	addr := freeAddr(t)
	ln, err := reverser.Listen(t.Context(), reverser.Config{Token: tok, Public: "tcp/" + addr})
	if err != nil {
		t.Fatal(err)
	}
	if got := ln.Addr().String(); got != addr {
		t.Errorf("Addr = %s, want %s", got, addr)
	}
	user, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	user.Write([]byte("hello"))
	user.(*net.TCPConn).CloseWrite()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c.RemoteAddr().String() != user.LocalAddr().String() {
		t.Errorf("RemoteAddr = %s, want the user's %s", c.RemoteAddr(), user.LocalAddr())
	}
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	c.Write([]byte("answer"))
	c.Close()
	if got, err := io.ReadAll(user); string(got) != "answer" || err != nil {
		t.Errorf("user read %q, %v", got, err)
	}
	ln.Close()
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, want net.ErrClosed", err)
	}
}

// TestClientVia: a program's link goes through the way out that it names, and one that is none is refused.
func TestClientVia(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	asked := make(chan string, 100)
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				asked <- req.Method + " " + req.Host
				far, err := net.Dial("tcp", req.Host)
				if err != nil {
					return
				}
				defer far.Close()
				io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
				wg.Go(func() {
					io.Copy(far, r)
					far.Close()
				})
				io.Copy(c, far)
			})
		}
	})
	tok, addr := startProxy(t, "tcp/1024-65535"), freeAddr(t)
	c := &reverser.Client{Token: tok, Via: "http://" + ln.Addr().String()}
	defer c.Close()
	if _, err := c.Listen(t.Context(), "tcp/"+addr); err != nil {
		t.Fatal(err)
	}
	if parsed, _ := grammar.ParseToken(tok); <-asked != "CONNECT "+parsed.Addr() {
		t.Error("the way out was asked for something else than the proxy")
	}
	bad := &reverser.Client{Token: tok, Via: "ftp://alice:s3cret@h"}
	defer bad.Close()
	if _, err := bad.Listen(t.Context(), "tcp/"+addr); err == nil || !strings.Contains(err.Error(), "via: ") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("Listen with a bad way out = %v", err)
	}
}

func TestListenDenied(t *testing.T) {
	tok := startProxy(t, "tcp/9000")
	_, err := reverser.Listen(t.Context(), reverser.Config{Token: tok, Public: "tcp/" + freeAddr(t)})
	if !errors.Is(err, reverser.ErrDenied) {
		t.Errorf("Listen = %v, want ErrDenied", err)
	}
}

func TestListenBadInput(t *testing.T) {
	for _, cfg := range []reverser.Config{
		{Token: "rv1_x", Public: "9000"},
		{Token: grammar.Token{Addrs: []string{"127.0.0.1:1"}}.Encode(), Public: "90x0"},
		{Token: grammar.Token{Addrs: []string{"127.0.0.1:1"}}.Encode(), Public: "udp/53"},
		{Token: grammar.Token{}.Encode(), Public: "9000"},
	} {
		if ln, err := reverser.Listen(t.Context(), cfg); err == nil {
			ln.Close()
			t.Errorf("Listen(%q) = nil error", cfg.Public)
		}
	}
}

func TestListenEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tok := grammar.Token{Addrs: []string{freeAddr(t)}}.Encode()
	if _, err := reverser.Listen(ctx, reverser.Config{Token: tok, Public: "9000"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Listen = %v, want context.Canceled", err)
	}
}
