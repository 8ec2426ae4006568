package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/service"
	"reverser/internal/wire"
)

type br struct {
	link    chan *link.Link
	claimed chan wire.Claimed
	streams chan *link.Stream
}

func (b *br) Opened(s *link.Stream)                           { b.streams <- s }
func (b *br) Claim(*link.Link, uint16, wire.Claim, bool)      {}
func (b *br) Unclaim(*link.Link, uint16)                      {}
func (b *br) Claimed(_ *link.Link, id uint16, c wire.Claimed) { b.claimed <- c }
func (b *br) Attached(l *link.Link, i int) {
	if i == 0 {
		b.link <- l
	}
}
func (b *br) Detached(*link.Link, int, error)     {}
func (b *br) GoingAway(*link.Link, time.Duration) {}
func (b *br) Ended(*link.Link, error)             {}

func startPlain(t *testing.T) (*Proxy, *br, *link.Link, func()) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	policy, _ := service.ParseAllow("tcp/1024-65535")
	k := Key{Name: "k", ID: [16]byte{1}, Secret: [32]byte{2}, Allow: service.Policy{policy}}
	p := New(Config{Listen: "127.0.0.1:0", Identity: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Keys: []Key{k}})
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	b := &br{make(chan *link.Link, 10), make(chan wire.Claimed, 1<<16), make(chan *link.Stream, 100)}
	d := link.NewDialer(link.DialerConfig{
		Owner: b, Log: slog.New(slog.DiscardHandler),
		Auth: auth.ClientConfig{KeyID: k.ID, Secret: k.Secret, Pin: auth.Pin(leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{7}},
		Dial: func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) {
			return net.Dial("tcp", p.Addr().String())
		},
		Failed: func(int, error, time.Duration) {},
	})
	dctx, dcancel := context.WithCancel(context.Background())
	wg.Go(func() { d.Run(dctx) })
	return p, b, <-b.link, func() { dcancel(); cancel(); wg.Wait() }
}

func freePort(t *testing.T) int {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// A claim id that is used for another public leaves the old public port open, and its users land at the new service.
func TestClaimIDReused(t *testing.T) {
	p, b, l, stop := startPlain(t)
	defer stop()
	for range 50 {
		l.Claims([]wire.Claim{{Public: fmt.Sprintf("tcp/127.0.0.1:%d", freePort(t)), Target: "x"}})
		<-b.claimed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.public) != 1 {
		t.Errorf("%d public ports are open for 1 claim", len(p.public))
	}
}

// The nonces of repeated claims.
func TestClaimFlood(t *testing.T) {
	_, b, l, stop := startPlain(t)
	defer stop()
	c := []wire.Claim{{Public: fmt.Sprintf("tcp/127.0.0.1:%d", freePort(t)), Target: "x"}}
	l.Claims(c)
	<-b.claimed
	_ = b
	ln := &listener{}
	begin := time.Now()
	for range 20_000 {
		ln.expectProbe()
	}
	d := time.Since(begin)
	t.Logf("20,000 CLAIM frames (%d KB): %s under Proxy.mu, %d nonces kept", 20_000*50/1000, d, len(ln.probes))
	if d > time.Second || len(ln.probes) > 100 {
		t.Error("unbounded")
	}
}

// A user who resets while a probe is expected.
func TestResetDuringProbe(t *testing.T) {
	_, b, l, stop := startPlain(t)
	defer stop()
	port := freePort(t)
	l.Claims([]wire.Claim{{Public: fmt.Sprintf("tcp/127.0.0.1:%d", port), Target: "x"}})
	<-b.claimed                        // the nonce is never shown: a probe is expected for 5 s
	time.Sleep(200 * time.Millisecond) // carriers
	u, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(30 * time.Millisecond)
	u.(*net.TCPConn).SetLinger(0)
	u.Close()
	select {
	case s := <-b.streams:
		s.SetReadDeadline(time.Now().Add(3 * time.Second))
		n, err := io.ReadAll(s)
		t.Logf("the target reads %q, then %v", n, err)
		if err == nil {
			t.Error("clean EOF for a connection that was reset")
		}
	case <-time.After(7 * time.Second):
		t.Log("no stream")
	}
}

// An authenticated connection that never sends ATTACH holds a stop up.
func TestStopWithSilentAuthenticated(t *testing.T) {
	p, _, _, stop := startPlain(t)
	c, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pin := auth.Pin(p.cfg.Identity.Leaf.RawSubjectPublicKeyInfo)
	if _, err := auth.Client(t.Context(), c, auth.ClientConfig{KeyID: [16]byte{1}, Secret: [32]byte{2}, Pin: pin, Instance: [16]byte{8}}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	begin := time.Now()
	stop()
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("stop took %s", d)
	}
}
