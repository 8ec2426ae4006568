package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"reverser/internal/auth"
	"reverser/internal/freeport"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// hello sends the ClientHello for a name, and returns the connection and what was sent.
func (w *world) hello(name string) (*net.TCPConn, []byte) {
	w.t.Helper()
	u := w.user(w.p.names.ln.Addr().String())
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	}()
	head := make([]byte, 5)
	io.ReadFull(b, head)
	sent := append(head, make([]byte, int(head[3])<<8|int(head[4]))...)
	io.ReadFull(b, sent[5:])
	b.Close()
	<-done
	a.Close()
	if _, err := u.Write(sent); err != nil {
		w.t.Fatal(err)
	}
	return u, sent
}

// wantUnrecognized reads the alert of a name that nobody serves.
func (w *world) wantUnrecognized(name string) {
	w.t.Helper()
	u, _ := w.hello(name)
	if got, err := io.ReadAll(u); err != nil || !bytes.Equal(got, []byte{21, 3, 3, 0, 2, 2, 112}) {
		w.t.Errorf("%q: %x, %v; want the alert unrecognized_name", name, got, err)
	}
}

// TestNames: the most specific service of a name has its users, whatever key it is of, and gets every byte that they said.
func TestNames(t *testing.T) {
	nas, pc := key(t, "nas", "tls/*"), key(t, "pc", "tls/*.example")
	w := start(t, Config{HTTPS: "127.0.0.1:0", Settings: Settings{Keys: []Key{nas, pc}}})
	all := []string{"tls/*", "tls/a.example", "tls/*.b.example"}
	first := w.bridge(nas, how{instance: 1}, all...)
	second := w.bridge(pc, how{instance: 2}, "tls/*.example", "tls/c.example")
	for host, want := range map[string]struct {
		b  *bridge
		id uint32
	}{
		"a.example": {first, 2}, "A.EXAMPLE": {first, 2}, "x.b.example": {first, 3}, "b.example": {second, 1}, "c.example": {second, 2},
		"x.y.b.example": {first, 1}, "elsewhere.invalid": {first, 1},
	} {
		u, sent := w.hello(host)
		u.Write([]byte("behind it"))
		s := want.b.stream()
		got := make([]byte, len(sent)+len("behind it"))
		if _, err := io.ReadFull(s, got); err != nil || string(got) != string(sent)+"behind it" {
			t.Errorf("%s: the bridge read %d bytes, %v; want the %d of the hello, and what follows", host, len(got), err, len(sent))
		}
		if o := s.Open(); o.Service != want.id || o.Entrance != wire.EntranceTLS || o.Client.String() != u.LocalAddr().String() {
			t.Errorf("%s: OPEN %+v, want service %d", host, o, want.id)
		}
		s.Reset(wire.CodeReset)
		wantReset(t, u)
	}
	if st := w.p.Status(); len(st.Services) != 5 {
		t.Errorf("status has %d services, want 5", len(st.Services))
	}
	w.setKeys(nas) // what another key had goes to the wildcard
	u, _ := w.hello("c.example")
	if s := first.stream(); s.Open().Service != 1 {
		t.Errorf("c.example went to service %d, want the wildcard", s.Open().Service)
	}
	u.Close()
}

// TestNamesRefused: a name that nobody serves, none at all, and what is no TLS, end at once; so do names of two keys, and ports of the
// proxy's own.
func TestNamesRefused(t *testing.T) {
	nas, pc := key(t, "nas", "tls/*"), key(t, "pc", "tls/*", "tcp/1-65535")
	w := start(t, Config{HTTPS: "127.0.0.1:0", Settings: Settings{Keys: []Key{nas, pc}}})
	w.bridge(nas, how{instance: 1}, "tls/a.example")
	for _, name := range []string{"b.example", "x.a.example", ""} {
		w.wantUnrecognized(name)
	}
	eventually(t, "the operator is told of the first one", func() bool {
		return w.log.Count("that reached no service", "count=1", `no service has the name "b.example"`) == 1
	})
	u := w.user(w.p.names.ln.Addr().String())
	u.Write([]byte("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"))
	wantReset(t, u)
	w.dial(pc, how{instance: 2}, "tls/a.example", fmt.Sprintf("tcp/127.0.0.1:%d", portOf(w.p.names.ln.Addr())))
	eventually(t, "the second key hears that the name is held", func() bool {
		return w.log.Count("service cannot be opened, trying again service=tls/a.example key=pc", `held by key "nas"`) == 1
	})
	eventually(t, "the port of names is nobody's", func() bool { return w.log.Count("the link itself uses this port") == 1 })
}

// TestLinkAtTheNames: a bridge comes in at the port of names, by its ALPN and whatever name it says, and never reaches a service there;
// who says another ALPN never reaches the link.
func TestLinkAtTheNames(t *testing.T) {
	k, other := key(t, "nas", "tls/*"), key(t, "pc", "tcp/1-65535")
	for what, cfg := range map[string]Config{"a port of its own": {HTTPS: "127.0.0.1:0"}, "one port for all": {Listen: oneAddr(t)}} {
		t.Run(what, func(t *testing.T) {
			if cfg.HTTPS == "" {
				cfg.HTTPS = cfg.Listen
			}
			cfg.Keys = []Key{k, other}
			w := start(t, cfg)
			b := w.bridge(k, how{instance: 1, names: true}, "tls/*")
			u, sent := w.hello("a.example")
			s := b.stream()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("the bridge read %d bytes, %v; want the hello", len(got), err)
			}
			b.cut() // and it comes back the same way
			second := w.bridge(other, how{instance: 2, names: true})
			u.Write([]byte("on"))
			if _, err := io.ReadFull(s, got[:2]); err != nil || string(got[:2]) != "on" {
				t.Errorf("behind a break: %q, %v", got[:2], err)
			}
			s.Reset(wire.CodeReset)
			wantReset(t, u)
			for _, sni := range []string{"a.example", "reverser.invalid"} {
				conn := tls.Client(w.user(w.p.names.ln.Addr().String()), &tls.Config{ServerName: sni, NextProtos: []string{"h2", auth.ALPN}, InsecureSkipVerify: true})
				if err := conn.Handshake(); err != nil || conn.ConnectionState().NegotiatedProtocol != auth.ALPN {
					t.Errorf("%s: %v, ALPN %q; want the link's", sni, err, conn.ConnectionState().NegotiatedProtocol)
				}
				conn.Close()
			}
			eventually(t, "nobody is there but the two bridges", func() bool {
				st := w.p.Status()
				return len(st.Pairs) == 0 && len(st.Links) == 2 && w.p.port.descriptors.Taken(sys.ForHellos) <= 1 // the next one's
			})
			second.cut()
		})
	}
}

// oneAddr is an address to listen on.
func oneAddr(t *testing.T) string {
	addr, err := freeport.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// TestLinkAtTheNamesBesideUsers: users who stay have taken all descriptors that users may have. A bridge still comes in.
func TestLinkAtTheNamesBesideUsers(t *testing.T) {
	k, other := key(t, "nas", "tls/*"), key(t, "pc")
	pool := sys.NewPool(128, 12)
	w := start(t, Config{HTTPS: "127.0.0.1:0", Descriptors: pool, Settings: Settings{Keys: []Key{k, other}}})
	w.bridge(k, how{instance: 1}, "tls/*")
	for pool.Take(sys.ForUsers) {
	}
	w.bridge(other, how{instance: 2, names: true})
}

// TestStrangersAtTheLinkByName: noise behind a hello of the link is one of the link's strangers, told once.
func TestStrangersAtTheLinkByName(t *testing.T) {
	w := start(t, Config{HTTPS: "127.0.0.1:0", Settings: Settings{Keys: []Key{key(t, "nas", "tls/*")}}})
	conn := tls.Client(w.user(w.p.names.ln.Addr().String()), &tls.Config{NextProtos: []string{auth.ALPN}, InsecureSkipVerify: true})
	conn.Write(bytes.Repeat([]byte("noise"), 100))
	if got, err := io.ReadAll(conn); len(got) != 0 {
		t.Errorf("a stranger got %d bytes, %v; want none", len(got), err)
	}
	conn.Close()
	eventually(t, "the operator is told", func() bool { return w.log.Count("connections to the link port that were no bridge", "count=1") == 1 })
	if n := w.log.Count("that reached no service"); n != 0 {
		t.Errorf("%d lines call it a user", n)
	}
}

// TestNamesNeedAPort: without --https a name is denied by a word that says so.
func TestNamesNeedAPort(t *testing.T) {
	k := key(t, "nas", "tls/*")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	w.dial(k, how{instance: 1}, "tls/a.example")
	eventually(t, "it is denied", func() bool { return w.log.Count("tls/a.example denied", "--https :443") == 1 })
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := New(Config{Listen: oneAddr(t), HTTPS: taken.Addr().String(), Identity: identity()})
	if err := p.Listen(); err == nil || !strings.Contains(err.Error(), "open the port of names (https "+taken.Addr().String()) {
		t.Errorf("Listen at a port that is taken: %v", err)
	}
	if c, err := net.Dial("tcp", p.Addr().String()); err == nil {
		c.Close()
		t.Error("the link port is open after Listen failed")
	}
}

// TestSilentAtTheNames: those who say nothing do not keep others from their names.
func TestSilentAtTheNames(t *testing.T) {
	k := key(t, "nas", "tls/*")
	w := start(t, Config{HTTPS: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "tls/a.example")
	gate := w.p.names.gate
	gate.mu.Lock()
	gate.room.most = 8
	gate.mu.Unlock()
	var silent []*net.TCPConn
	for range 40 {
		silent = append(silent, w.user(w.p.names.ln.Addr().String()))
	}
	u, _ := w.hello("a.example")
	b.stream()
	u.Close()
	gone := 0
	for _, c := range silent[:32] {
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) || err != nil {
			gone++
		}
	}
	if gone != 32 {
		t.Errorf("%d of the first 32 that said nothing were sent away", gone)
	}
}
