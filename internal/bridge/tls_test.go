package bridge

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// tlsService is a service whose TLS the bridge ends.
func tlsService(t testing.TB, target grammar.Target) Service {
	return Service{Public: public(t, "tls/app.example"), Target: target,
		TLS: &tls.Config{Certificates: []tls.Certificate{identity()}, NextProtos: []string{"http/1.1", acmeProtocol}}}
}

// from opens a stream as for a user at an address.
func (p *proxy) from(client string) *link.Stream {
	p.t.Helper()
	p.mu.Lock()
	l := p.link
	p.mu.Unlock()
	s, err := l.Open(wire.Open{Service: 1, Client: netip.MustParseAddrPort(client)})
	if err != nil {
		p.t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(limit))
	return s
}

func userTLS(protocols ...string) *tls.Config {
	return &tls.Config{ServerName: "app.example", InsecureSkipVerify: true, NextProtos: protocols}
}

// TestTLSPair follows a user whose TLS the bridge ends to the real server and back.
func TestTLSPair(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{tlsService(t, srv.target())}}})
	p.ready()
	u := tls.Client(p.from("192.0.2.7:1234"), userTLS("h2", "http/1.1"))
	if err := u.Handshake(); err != nil {
		t.Fatal(err)
	}
	if got := u.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("ALPN %q, want that of the target, http/1.1", got)
	}
	c := srv.accept()
	talk(t, u, c, "hello")
	talk(t, c, u, "hi")
	eventually(t, "status shows the plain bytes", func() bool {
		st := b.Status()
		return len(st.Pairs) == 1 && st.Pairs[0].Sent == 5 && st.Pairs[0].Received == 2 && st.Pairs[0].Client == "192.0.2.7:1234" && st.Services[0].Connections == 1
	})
	u.CloseWrite()
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
	c.Close()
	if _, err := io.ReadAll(u); err != nil {
		t.Error(err)
	}
	who := "service=tls/app.example client=192.0.2.7:1234 target=" + srv.target().String()
	eventually(t, "the log has both lines", func() bool {
		return len(b.log.All("pair created "+who)) == 1 && len(b.log.All("pair released "+who+" sent=5 received=2")) == 1
	})
	if got := strings.Join(b.log.All("pair released "+who), ""); !strings.Contains(got, "reason=eof") {
		t.Errorf("%s; want reason=eof", got)
	}
}

// TestTLSTarget: a target that refuses is a reset behind the handshake, and a handshake that fails never gets to it.
func TestTLSTarget(t *testing.T) {
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{tlsService(t, grammar.Target{Network: "tcp", Address: nobody(t)})}}})
	p.ready()
	refused := func(why traffic.Refusal) uint64 {
		return b.conns.Find(keyID, "tls/app.example").Usage().Refused[why]
	}
	u := tls.Client(p.from("192.0.2.7:1"), userTLS())
	if err := u.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Read(make([]byte, 1)); !sys.Reset(err) {
		t.Errorf("the user reads %v, want a reset", err)
	}
	eventually(t, "the refused connect is counted", func() bool { return refused(traffic.RefusedTarget) == 1 })

	for what, cfg := range map[string]*tls.Config{
		"another protocol": userTLS("smtp\x1b[31m"),
		"TLS 1.1":          {InsecureSkipVerify: true, MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11},
	} {
		if err := tls.Client(p.from("192.0.2.7:2"), cfg).Handshake(); err == nil || !strings.HasPrefix(err.Error(), "remote error: tls: ") {
			t.Errorf("%s: %v, want an alert", what, err)
		}
	}
	eventually(t, "the failed handshakes are counted", func() bool { return refused(traffic.RefusedHandshake) == 2 })
	// A certificate authority gets its handshake, and nothing behind it.
	u = tls.Client(p.from("192.0.2.7:3"), userTLS(acmeProtocol))
	if err := u.Handshake(); err != nil {
		t.Fatal(err)
	}
	if n, err := u.Read(make([]byte, 1)); n != 0 || err == nil || sys.Reset(err) {
		t.Errorf("the authority reads %d, %v; want the end", n, err)
	}
	s := p.from("192.0.2.7:4")
	eventually(t, "the handshake has begun", func() bool { return b.hellos.count() == 1 })
	s.Reset(wire.CodeReset)
	eventually(t, "who left is counted", func() bool { return refused(traffic.RefusedHandshake) == 3 })
	if n := refused(traffic.RefusedTarget); n != 1 {
		t.Errorf("the target was dialled %d times, want once", n)
	}
	eventually(t, "no place is taken", func() bool { return b.hellos.count() == 0 })
}

func (hs *handshakes) count() int {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return hs.n
}

// TestTLSSilent: a user who says nothing is reset when the time for handshakes is over, and takes no place of a dial meanwhile.
func TestTLSSilent(t *testing.T) {
	// On a busy machine the time may be over before anybody has looked.
	for wait := 200 * time.Millisecond; !silentUser(t, wait); wait *= 4 {
		if wait > limit {
			t.Fatal("a user who says nothing is never seen to have a place")
		}
	}
}

// silentUser reports whether the user was seen before the time for handshakes was over.
func silentUser(t *testing.T, wait time.Duration) (seen bool) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{tlsService(t, srv.target())}}})
	b.hellos.time = wait
	p.ready()
	s := p.from("192.0.2.7:1")
	told := func() bool { return len(b.log.All("client refused service=tls/app.example client=192.0.2.7:1")) == 1 }
	eventually(t, "it has a place", func() bool { seen = b.hellos.count() == 1; return seen || told() })
	if n := b.conns.Load().Dialling; n != 0 {
		t.Errorf("%d dials are under way, want none", n)
	}
	wantCode(t, s, wire.CodeReset)
	eventually(t, "the log says why", told)
	return seen
}

// TestTLSFlood: as many handshakes as may be are under way, all of one client. Another one gets through; the client itself does not.
func TestTLSFlood(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{tlsService(t, srv.target())}}})
	p.ready()
	b.hellos.mu.Lock()
	b.hellos.most = 8
	b.hellos.mu.Unlock()
	var flood []*link.Stream
	for i := range 8 {
		flood = append(flood, p.from(fmt.Sprintf("198.51.100.9:%d", 1000+i)))
	}
	eventually(t, "all places are taken", func() bool { return b.hellos.count() == 8 })
	wantCode(t, p.from("198.51.100.9:2000"), wire.CodeLimit)
	u := tls.Client(p.from("192.0.2.7:1"), userTLS())
	if err := u.Handshake(); err != nil {
		t.Fatalf("a user beside a flood: %v", err)
	}
	talk(t, u, srv.accept(), "hello")
	ended := make(chan wire.Code, 2*len(flood))
	for _, s := range flood { // which of them came first, the carriers decide
		s.SetReceiver(&sink{over: ended})
	}
	if code := <-ended; code != wire.CodeLimit {
		t.Errorf("one of the flood ends with code %v, want %v", code, wire.CodeLimit)
	}
	for _, s := range flood {
		s.Reset(wire.CodeReset)
	}
	eventually(t, "no place is taken", func() bool { return b.hellos.count() == 0 })
}

// TestTLSRemoved: connections that were accepted before a service went have the drain time, and a handshake does not escape it.
func TestTLSRemoved(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	svc := tlsService(t, srv.target())
	other := Service{Public: public(t, "9000"), Target: srv.target()}
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{svc, other}}})
	p.ready()
	u := tls.Client(p.from("192.0.2.7:1"), userTLS())
	if err := u.Handshake(); err != nil {
		t.Fatal(err)
	}
	c := srv.accept()
	talk(t, u, c, "x")
	late := p.from("192.0.2.7:2")
	eventually(t, "a handshake is under way", func() bool { return b.hellos.count() == 1 })
	if _, err := b.Apply(t.Context(), Settings{Services: []Service{other}, Drain: -1}); err != nil {
		t.Fatal(err)
	}
	wantReset(t, c)
	if _, err := u.Read(make([]byte, 1)); !sys.Reset(err) {
		t.Errorf("the user reads %v, want a reset", err)
	}
	v := tls.Client(late, userTLS())
	if err := v.Handshake(); err == nil {
		if _, err := v.Read(make([]byte, 1)); !sys.Reset(err) {
			t.Errorf("the late user reads %v, want a reset", err)
		}
	}
}
