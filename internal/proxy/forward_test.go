package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/status"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// TestPair follows one user from the connection to the log lines.
func TestPair(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	u := w.user(addr)
	u.Write([]byte("hello"))
	u.CloseWrite()
	s := b.stream()
	if got, err := io.ReadAll(s); string(got) != "hello" || err != nil {
		t.Errorf("the bridge read %q, %v", got, err)
	}
	if o := s.Open(); o.Service != 1 || o.Client.String() != u.LocalAddr().String() || o.Local.String() != addr {
		t.Errorf("OPEN %+v; want service 1, client %s, local %s", o, u.LocalAddr(), addr)
	}
	s.Write([]byte("answers"))
	eventually(t, "the pair is half-closed", func() bool {
		ps := w.p.Status().Pairs
		return len(ps) == 1 && ps[0].State == status.PairHalfClosed && ps[0].Received == 7
	})
	s.CloseWrite()
	if got, err := io.ReadAll(u); string(got) != "answers" || err != nil {
		t.Errorf("the user read %q, %v", got, err)
	}
	who := fmt.Sprintf("service=%s client=%s target=10.0.0.1:80", pub, u.LocalAddr())
	eventually(t, "the pair is released", func() bool {
		return w.log.Count("pair created "+who) == 1 && w.log.Count("pair released "+who, "sent=5 received=7", "reason=eof", "resumes=0") == 1
	})
	eventually(t, "no pair is left", func() bool { return len(w.p.Status().Pairs) == 0 })
}

// TestReset: a RST passes through in both directions.
func TestReset(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, s := w.pair(b, addr)
	s.Reset(wire.CodeReset)
	wantReset(t, u)
	u, s = w.pair(b, addr)
	u.SetLinger(0)
	u.Close()
	wantReset(t, s)
	u = w.user(addr)
	u.Write([]byte("x"))
	b.stream().Reset(wire.CodeRefused)
	wantReset(t, u)
	eventually(t, "each has its reason", func() bool {
		return w.log.Count("pair released", "reason=target-reset") == 1 && w.log.Count("pair released", "reason=client-reset") == 1 &&
			w.log.Count("pair released", "reason=target-refused") == 1
	})
}

func TestStatus(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	st := w.p.Status()
	if st.Role != "proxy" || st.Version != "test" || st.UptimeSeconds <= 0 || len(st.Links)+len(st.Services)+len(st.Pairs) != 0 {
		t.Errorf("status of an idle proxy: %+v", st)
	}
	b := w.bridge(k, how{instance: 5}, pub, "tcp/80")
	u1, _ := w.pair(b, addr)
	u2, _ := w.pair(b, addr)
	eventually(t, "both answers are counted", func() bool {
		st = w.p.Status()
		return len(st.Pairs) == 2 && st.Pairs[0].Received == 1 && st.Pairs[1].Received == 1
	})
	if len(st.Links) != 1 || len(st.Services) != 2 || len(st.Pairs) != 2 {
		t.Fatalf("status %+v, want one link, two services, two pairs", st)
	}
	if l := st.Links[0]; l.Key != "nas" || l.Bridge != "host5" || l.State != status.LinkUp || l.Remote == "" || l.Since.IsZero() {
		t.Errorf("link %+v", l)
	}
	if s := st.Services[0]; s.Public != pub || s.Target != "10.0.0.1:80" || s.State != status.ServiceUp || s.Connections != 2 || s.Reason != "" {
		t.Errorf("service %+v", s)
	}
	if s := st.Services[1]; s.Public != "tcp/80" || s.State != status.ServiceDenied || s.Connections != 0 || s.Reason == "" {
		t.Errorf("service %+v", s)
	}
	ids := map[string]bool{}
	for i, u := range []net.Conn{u1, u2} {
		p := st.Pairs[i]
		ids[p.ID] = true
		if p.Service != pub || p.Client != u.LocalAddr().String() || p.Target != "10.0.0.1:80" || p.Sent != 1 || p.Received != 1 || p.State != status.PairOpen || p.Since.IsZero() {
			t.Errorf("pair %d: %+v", i, p)
		}
	}
	if len(ids) != 2 {
		t.Errorf("ids %v, want different ones", ids)
	}
	b.stop()
	<-b.done
	eventually(t, "the link is down", func() bool {
		st = w.p.Status()
		return len(st.Links) == 1 && st.Links[0].State == status.LinkDown && len(st.Services) > 0 && st.Services[0].State == status.ServiceAway &&
			len(st.Pairs) > 0 && st.Pairs[0].State == status.PairPaused
	})
}

// TestProbe: a bridge's probe is answered here, and never reaches the target.
func TestProbe(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1, silent: true}, pub)
	nonce := b.claim(0).Nonce
	got, err := show(addr, nonce)
	if err != nil || got != link.ProbeAnswer(nonce) {
		t.Errorf("answer %x, %v; want %x, EOF", got, err, link.ProbeAnswer(nonce))
	}
	// A nonce is good once: now it is what a user says.
	shown := link.ProbeQuestion(nonce)
	u := w.user(addr)
	u.Write(shown[:])
	s := b.stream()
	if s.Open().Client.String() != u.LocalAddr().String() {
		t.Errorf("the first stream is %s's, want %s's: a probe reached the target", s.Open().Client, u.LocalAddr())
	}
	first := make([]byte, 16)
	if _, err := io.ReadFull(s, first); err != nil || [16]byte(first) != shown {
		t.Errorf("read %x, %v; want the user's bytes", first, err)
	}
	if n := w.log.Count("pair created"); n != 1 {
		t.Errorf("%d pairs were created, want the user's", n)
	}
}

// TestUsersWhileAProbeIsExpected: what users say meanwhile, and what they do not say, arrives.
func TestUsersWhileAProbeIsExpected(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1, silent: true}, pub)
	probes := &w.p.service(w.route(pub)).probes
	nonce := link.ProbeQuestion(b.claim(0).Nonce)
	expect := func() { nonce = link.ProbeQuestion(probes.Expect(true)) }
	other := func() string { return string([]byte{nonce[0] + 1}) }
	for _, what := range []func() string{
		other,
		func() string {
			return other() + "GET / HTTP/1.1\r\nHost: example\r\n\r\n and a body that is longer than any nonce"
		},
		func() string { return string(nonce[:3]) + "no nonce" },
		func() string { return string(nonce[:15]) + string([]byte{nonce[15] + 1}) },
		func() string { return "" }, // FIN at once
	} {
		for range 5 { // only the last ones are expected
			expect()
		}
		say := what()
		u := w.user(addr)
		u.Write([]byte(say))
		u.CloseWrite()
		s := b.stream()
		if got, err := io.ReadAll(s); string(got) != say || err != nil {
			t.Errorf("the target read %q, %v; want %q", got, err, say)
		}
		s.Close()
	}
	t.Run("in pieces", func(t *testing.T) {
		expect()
		u := w.user(addr)
		u.SetNoDelay(true)
		for _, c := range nonce[:3] {
			u.Write([]byte{c})
		}
		u.Write([]byte("rest"))
		s := b.stream()
		got := make([]byte, 7)
		if _, err := io.ReadFull(s, got); string(got) != string(nonce[:3])+"rest" || err != nil {
			t.Errorf("the target read %q, %v", got, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		expect()
		for _, n := range []int{0, 3} { // nothing said, or what is held back
			u := w.user(addr)
			u.Write(nonce[:n])
			u.SetLinger(0)
			u.Close()
		}
		u := w.user(addr)
		u.Write([]byte(other()))
		u.CloseWrite()
		for {
			s := b.stream()
			got, err := io.ReadAll(s)
			if s.Open().Client.String() == u.LocalAddr().String() {
				break
			}
			if err == nil {
				t.Errorf("the target read %q and a clean end of a user who reset", got)
			}
		}
	})
}

// TestAway: the bridge is gone with its session; its port is closed. A bridge that only lost its connections is waited for.
func TestAway(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	b.stop() // without a word, as if its machine had lost power
	<-b.done
	eventually(t, "the proxy knows", func() bool { return w.p.Status().Services[0].State == status.ServiceAway })
	u := w.user(addr)
	u.Write([]byte("anybody?"))
	ln := w.route(pub)
	eventually(t, "the user is held", func() bool { return w.p.conns.Load().Unbound() == 1 })
	next := w.bridge(k, how{instance: 2}, pub) // restarted: a new process
	s := next.stream()
	got := make([]byte, 8)
	if _, err := io.ReadFull(s, got); string(got) != "anybody?" || err != nil {
		t.Errorf("the target read %q, %v", got, err)
	}
	if w.route(pub) != ln {
		t.Error("the port was closed in between")
	}
}

// TestClientShare: one address has its share of the descriptors; more of it are reset, and another key's users and bridge are served.
func TestClientShare(t *testing.T) {
	addr, pub := free(t)
	otherAddr, otherPub := free(t)
	k, other := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	w := start(t, Config{MaxConns: 16, Settings: Settings{Keys: []Key{k, other}}})
	b := w.bridge(k, how{instance: 1}, pub)
	w.idle() // the probe is over
	for range 4 {
		w.pair(b, addr)
	}
	for range 20 {
		if u, err := net.Dial("tcp", addr); err == nil {
			u.SetDeadline(time.Now().Add(limit))
			wantReset(t, u)
			u.Close()
		} else if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
	}
	if n := w.log.Count("running short", "of=descriptors for users", "largest_key=nas", "largest_key_has=4", "largest_client=127.0.0.1"); n != 1 {
		t.Errorf("%d lines that descriptors run short, want 1", n)
	}
	st := w.p.Status()
	if len(st.Pressure) != 1 || st.Pressure[0].Largest.Key != "nas" || st.Pressure[0].Largest.Service != pub {
		t.Errorf("pressure %+v", st.Pressure)
	}
	for _, s := range st.Services {
		if s.Public == pub && s.Refused != 20 {
			t.Errorf("service %+v, want 20 refused", s)
		}
	}
	o := w.bridge(other, how{instance: 2, silent: true}, otherPub)
	w.pair(o, otherAddr)
}

// TestKeyConnections: users beyond the limit of a key are reset, at all its services together. A change of the limit is for newcomers, and
// another key has its own.
func TestKeyConnections(t *testing.T) {
	addr, pub := free(t)
	addr2, pub2 := free(t)
	otherAddr, otherPub := free(t)
	k, other := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	k.MaxConnections = 2
	w := start(t, Config{Settings: Settings{Keys: []Key{k, other}}})
	b := w.bridge(k, how{instance: 1}, pub, pub2)
	o := w.bridge(other, how{instance: 2}, otherPub)
	w.idle() // the probes are over
	u, s := w.pair(b, addr)
	u2, s2 := w.pair(b, addr2)
	reset := func(addr string) {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if errors.Is(err, syscall.ECONNRESET) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		wantReset(t, c)
	}
	reset(addr)
	reset(addr2)
	for range 3 {
		w.pair(o, otherAddr)
	}
	for _, public := range []string{pub, pub2} {
		if n := w.log.Count("client refused", "service="+public, "limit of the key: at most 2 connections at once"); n != 1 {
			t.Errorf("%d lines about the limit for %s, want 1", n, public)
		}
		if n := w.p.conns.Account(k.ID, public).Usage().Refused[traffic.RefusedLimit]; n != 1 {
			t.Errorf("%d users of %s are counted as refused for the limit, want 1", n, public)
		}
	}

	k.MaxConnections = 3
	w.setKeys(k, other)
	w.pair(b, addr)
	reset(addr)
	k.MaxConnections = 1
	w.setKeys(k, other)
	reset(addr)
	talk(t, u, s, "still")
	talk(t, u2, s2, "still")
	k.MaxConnections = 0
	w.setKeys(k, other)
	for range 3 {
		w.pair(b, addr)
	}
}

// TestDrain: the ports are free for a successor at once; those who are there finish, and then Run returns.
func TestDrain(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Listen: oneAddr(t), Transfer: oneAddr(t), Settings: Settings{Keys: []Key{k}}}) // which nobody else gets meanwhile
	b := w.bridge(k, how{instance: 1}, pub)
	u1, s1 := w.pair(b, addr)
	u2, s2 := w.pair(b, addr)
	w.p.Drain()
	w.p.Drain()
	for _, at := range []string{addr, w.p.Addr().String(), w.p.TransferAddr().String()} {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatalf("a successor cannot have the port: %v", err)
		}
		ln.Close()
	}
	eventually(t, "the bridge is told", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.leaving })
	if st := w.p.Status(); len(st.Links) != 1 || st.Links[0].State != status.LinkDraining {
		t.Errorf("links %+v, want one that is draining", st.Links)
	}
	talk(t, u1, s1, "still")
	finish := func(u interface {
		io.ReadWriter
		CloseWrite() error
	}, s *link.Stream) {
		u.Write([]byte("last"))
		u.CloseWrite()
		if got, err := io.ReadAll(s); string(got) != "last" || err != nil {
			t.Errorf("the target read %q, %v", got, err)
		}
		s.Write([]byte("words"))
		s.CloseWrite()
		if got, err := io.ReadAll(u); string(got) != "words" || err != nil {
			t.Errorf("the user read %q, %v", got, err)
		}
	}
	finish(u1, s1)
	select {
	case <-w.done:
		t.Fatal("Run returned while a pair was there")
	default:
	}
	finish(u2, s2)
	<-w.done
	if w.err != nil {
		t.Errorf("Run = %v, want nil", w.err)
	}
	if n := w.log.Count("pair released", "reason=eof"); n != 2 {
		t.Errorf("%d pairs ended with eof, want 2", n)
	}
}

// TestDrainWithoutABridge: no connection of a bridge can come back to a proxy that freed its ports. Whoever depends on one that
// broke is told at once, and the drain does not wait for them.
func TestDrainWithoutABridge(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, _ := w.pair(b, addr)
	w.p.Drain()
	b.cut()
	wantReset(t, u)
	<-w.done
	if n := w.log.Count("pair released", "reason=link-lost"); n != 1 || w.err != nil {
		t.Errorf("%d pairs released with reason link-lost, Run = %v; want 1, nil", n, w.err)
	}
}

// TestResumeWithin: connections do not outlive their link for longer than was asked for.
func TestResumeWithin(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}, ResumeWithin: 50 * time.Millisecond}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, _ := w.pair(b, addr)
	b.stop()
	<-b.done
	wantReset(t, u)
	eventually(t, "the log says why", func() bool { return w.log.Count("bridge session ended", "no connection came back within 50ms") == 1 })
}

func TestDrainWithoutPairs(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, _ := w.pair(b, addr)
	u.SetLinger(0)
	u.Close()
	eventually(t, "the pair is gone", func() bool { return len(w.p.Status().Pairs) == 0 })
	w.p.Drain()
	<-w.done
	if w.err != nil {
		t.Errorf("Run = %v, want nil", w.err)
	}
}

// TestDrainWhileOpening: a user who is not a pair yet counts, and is served.
func TestDrainWhileOpening(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1, silent: true}, pub)
	u := w.user(addr) // says nothing, so it may yet be the probe that is expected
	eventually(t, "the user is accepted", func() bool { return w.p.conns.Load().Unbound() == 1 })
	w.p.Drain()
	eventually(t, "the public port is closed", func() bool { return refused(addr) })
	if st := w.p.Status(); len(st.Services) != 1 || st.Services[0].State != status.ServiceAway || st.Services[0].Reason == "" {
		t.Errorf("services %+v, want one that is away, with a reason: its port is closed", st.Services)
	}
	u.Write([]byte("?"))
	s := b.stream()
	talk(t, s, u, "!")
	u.CloseWrite()
	if got, err := io.ReadAll(s); string(got) != "?" || err != nil {
		t.Errorf("the target read %q, %v; want the user's byte", got, err)
	}
	s.CloseWrite()
	<-w.done
	if n := w.log.Count("pair released", "reason=eof"); n != 1 {
		t.Errorf("%d pairs released with reason eof, want 1", n)
	}
}

// TestDrainIsOver: who does not finish in time is reset, and the bridge learns why.
func TestDrainIsOver(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}, Drain: 20 * time.Millisecond}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, s := w.pair(b, addr)
	w.p.Drain()
	wantReset(t, u)
	wantReset(t, s)
	<-w.done
	if n := w.log.Count("pair released", "reason=drain"); n != 1 || w.err != nil {
		t.Errorf("%d pairs released with reason drain, Run = %v; want 1, nil", n, w.err)
	}
}

// TestHeldUserAtDrain: a user who waits for a bridge that is away is not a reason to wait.
func TestHeldUserAtDrain(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	b.stop()
	<-b.done
	eventually(t, "the proxy knows", func() bool { return w.p.Status().Services[0].State == status.ServiceAway })
	u := w.user(addr)
	eventually(t, "the user is held", func() bool { return w.p.conns.Load().Unbound() == 1 })
	w.p.Drain()
	wantReset(t, u)
	<-w.done
}

// TestStop: the end of the context resets everybody at once.
func TestStop(t *testing.T) {
	// A proxy that waits for strangers does so for auth.Timeout, each time. A machine may be as slow once.
	for tries := 5; ; tries-- {
		d := timeStop(t)
		if d < auth.Timeout/2 || t.Failed() {
			return
		}
		if tries == 0 {
			t.Fatalf("Run returned %s after its context ended", d)
		}
	}
}

// timeStop returns how long a proxy took to end.
func timeStop(t *testing.T) time.Duration {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, s := w.pair(b, addr)
	silent := w.user(w.p.Addr().String()) // a stranger who is waited for must not delay it, nor one with a key and no ATTACH
	proven, err := auth.Client(t.Context(), w.user(w.p.Addr().String()), auth.ClientConfig{
		KeyID: k.ID, Secret: k.Secret, Pin: auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{8},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer proven.Close()
	begin := time.Now()
	w.stop()
	<-w.done
	took := time.Since(begin)
	wantReset(t, u)
	wantReset(t, s)
	silent.Close()
	if w.err != nil {
		t.Errorf("Run = %v, want nil", w.err)
	}
	return took
}

// TestDrainOfAKilledBridge: a bridge that was killed and is started again cannot finish what it had: the drain does not wait for it.
func TestDrainOfAKilledBridge(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}, Drain: time.Hour}})
	b := w.bridge(k, how{instance: 1}, pub)
	u, _ := w.pair(b, addr)
	w.p.Drain()
	eventually(t, "the bridge is told", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.leaving })
	b.mu.Lock()
	b.mute = true
	b.mu.Unlock()
	b.cut()
	again := w.dial(k, how{instance: 2}, pub)
	wantReset(t, u)
	<-w.done
	again.mu.Lock()
	defer again.mu.Unlock()
	if len(again.up) != 0 {
		t.Error("a bridge was let in during the drain")
	}
	if n := w.log.Count("pair released", "reason=link-lost"); n != 1 || w.err != nil {
		t.Errorf("%d pairs released with reason link-lost, Run = %v; want 1, nil", n, w.err)
	}
}

// TestTotals: a service's bytes are counted while the connection lives, and all is still there when it is over and when the bridge
// comes back.
func TestTotals(t *testing.T) {
	addr, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	want := func(conns int, total, sent, received uint64) {
		t.Helper()
		var s status.Service
		eventually(t, fmt.Sprintf("%d connections of %d, %d bytes sent, %d received", conns, total, sent, received), func() bool {
			ss := w.p.Status().Services
			if len(ss) != 1 {
				return false
			}
			s = ss[0]
			return s.Connections == conns && s.Total == total && s.Sent == sent && s.Received == received
		})
	}
	want(0, 0, 0, 0) // the bridge's probe is nobody's
	u, s := w.pair(b, addr)
	want(1, 1, 1, 1)
	talk(t, u, s, "hello")
	talk(t, s, u, "hi")
	want(1, 1, 6, 3)
	u.SetLinger(0)
	u.Close()
	want(0, 1, 6, 3)
	b.stop()
	<-b.done
	next := w.bridge(k, how{instance: 2}, pub)
	w.pair(next, addr)
	want(1, 2, 7, 4)
	next.unclaim(0)
	eventually(t, "the service that was removed keeps its totals, in a list of its own", func() bool {
		s := w.p.Status()
		return len(s.Services) == 0 && len(s.Removed) == 1 && s.Removed[0].Total == 2 && s.Removed[0].Sent == 7 && s.Removed[0].Connections == 1
	})
	s2 := w.p.Status()
	if len(s2.Keys) != 1 || s2.Keys[0].Key != "nas" || s2.Keys[0].Total != 2 || s2.Keys[0].Sent != 7 || s2.Keys[0].Received != 4 {
		t.Errorf("keys %+v", s2.Keys)
	}
	if len(s2.Clients) != 1 || s2.Clients[0].Client != "127.0.0.1" || s2.Clients[0].Connections != 1 || s2.Clients[0].Sent != 7 || s2.Clients[0].Received != 4 {
		t.Errorf("clients %+v", s2.Clients)
	}
}

// TestAStreamOfABridge: a proxy has no service for a bridge that opens streams, and does not say that it takes them.
func TestAStreamOfABridge(t *testing.T) {
	_, pub := free(t)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, pub)
	b.mu.Lock()
	l := b.link
	b.mu.Unlock()
	if s, err := l.Open(wire.Open{}); err == nil || !strings.Contains(err.Error(), "update the proxy") {
		t.Errorf("Open = %v, %v; want an error that says what is missing", s, err)
	}
	eventually(t, "no stream is left", func() bool { return l.Streams() == 0 })
}
