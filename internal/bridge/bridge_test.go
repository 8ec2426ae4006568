package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"reverser/internal/claims"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// TestPair follows one user to the real server and back.
func TestPair(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	if c := p.claims[1]; c.Public != "tcp/9000" || c.Target != srv.target().String() {
		t.Errorf("claim %+v", c)
	}
	p.mu.Lock()
	l := p.link
	p.mu.Unlock()
	s, err := l.Open(wire.Open{Service: 1, Client: netip.MustParseAddrPort("192.0.2.7:1234"), More: &wire.OpenMore{Trace: [16]byte{0xab, 15: 0xcd}}})
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(limit))
	c := srv.accept()
	s.Write([]byte("hello"))
	s.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("the server read %q, %v", got, err)
	}
	c.Write([]byte("answers"))
	eventually(t, "status shows the pair", func() bool {
		st := b.Status()
		return len(st.Pairs) == 1 && st.Pairs[0].State == status.PairHalfClosed && st.Pairs[0].Sent == 5 && st.Pairs[0].Received == 7 &&
			st.Pairs[0].Client == "192.0.2.7:1234" && st.Services[0].Connections == 1
	})
	c.Close()
	if got, err := io.ReadAll(s); string(got) != "answers" || err != nil {
		t.Errorf("the user read %q, %v", got, err)
	}
	who := "service=tcp/9000 client=192.0.2.7:1234 target=" + srv.target().String()
	eventually(t, "the pair is released", func() bool {
		const request = "request=ab0000000000000000000000000000cd" // as the page of a request that the target did not answer has it
		return b.log.Count("pair created "+who, request) == 1 && b.log.Count("pair released "+who, "sent=5 received=7", "reason=eof", "resumes=0", request) == 1 &&
			len(b.Status().Pairs) == 0
	})
}

func TestUnixTarget(t *testing.T) {
	dir, err := os.MkdirTemp("", "rv") // short: a socket's path has a limit
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if l, err := net.Listen("unix", dir+"/probe"); err != nil {
		if runtime.GOOS != "windows" {
			t.Fatal(err)
		}
		t.Skipf("this Windows has no unix sockets: %v", err)
	} else {
		l.Close()
	}
	srv := serve(t, "unix", dir+"/s")
	p := listen(t, "127.0.0.1:0", false)
	start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	s := p.open(1)
	c := srv.accept()
	want := bytes.Repeat([]byte("0123456789"), 50_000)
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(c, c); c.(*net.UnixConn).CloseWrite() })
	wg.Go(func() { s.Write(want); s.CloseWrite() })
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v; want %d equal ones", len(got), err, len(want))
	}
	wg.Wait()
}

// TestNoTarget: a user whose connection cannot be made gets RST, and the reason is the code's.
func TestNoTarget(t *testing.T) {
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{
		{Public: public(t, "9000"), Target: grammar.Target{Network: "tcp", Address: nobody(t)}},
		{Public: public(t, "9001"), Target: grammar.Target{Network: "unix", Address: t.TempDir() + "/none"}},
		{Public: public(t, "9002"), Target: grammar.Target{Network: "tcp", Address: "name.invalid:80"}},
	}}})
	p.ready()
	wantCode(t, p.open(1), wire.CodeRefused)
	wantCode(t, p.open(2), wire.CodeUnreachable)
	wantCode(t, p.open(3), wire.CodeUnreachable)
	wantCode(t, p.open(4), wire.CodeService) // one more than there are
	wantCode(t, p.open(1<<32-1), wire.CodeService)
	wantCode(t, p.open(0), wire.CodeService) // nobody's
	eventually(t, "the log names the target that refused", func() bool { return b.log.Count("target cannot be reached", "service=tcp/9000") == 1 })
	if n := b.log.Count("pair created"); n != 0 {
		t.Errorf("%d pairs were created without a target", n)
	}
}

func TestTargetCode(t *testing.T) {
	for err, want := range map[error]wire.Code{
		&net.OpError{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}: wire.CodeRefused,
		&net.OpError{Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}: wire.CodeUnreachable,
		&net.OpError{Err: os.NewSyscallError("socket", syscall.EMFILE)}:        wire.CodeUnreachable,
		context.DeadlineExceeded: wire.CodeUnreachable,
	} {
		if got := targetCode(err); got != want {
			t.Errorf("targetCode(%v) = %v, want %v", err, got, want)
		}
	}
}

// TestTargetComesAndGoes: a server that accepts and resets, is down, and is back, each within the same session.
func TestTargetComesAndGoes(t *testing.T) {
	srv := serve(t, "tcp", nobody(t)) // a port that nobody else gets while it is closed
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	s := p.open(1)
	c := srv.accept()
	talk(t, s, c, "?")
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	wantCode(t, s, wire.CodeReset)
	eventually(t, "the pair is released", func() bool { return b.log.Count("pair released", "reason=target-reset") == 1 })
	addr := srv.ln.Addr().String()
	srv.ln.Close()
	wantCode(t, p.open(1), wire.CodeRefused)
	srv = serve(t, "tcp", addr)
	s = p.open(1)
	c = srv.accept()
	talk(t, s, c, "?")
	talk(t, c, s, "!")
}

func TestDialsAtOnce(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	release := takeDials(t, b)
	wantCode(t, p.open(1), wire.CodeLimit)
	release(1)
	s := p.open(1)
	talk(t, s, srv.accept(), "?")
	release(traffic.DefaultDials - 1)
}

// takeDials has as many dials under way as there may be, and returns what ends n of them.
func takeDials(t *testing.T, b *running) (release func(n int)) {
	t.Helper()
	var all []*traffic.Admission
	for range traffic.DefaultDials {
		a, err := b.conns.Admit(b.conns.Account(keyID, "test"), netip.AddrPort{}, traffic.NoWait)
		if err != nil || !a.Dial() {
			t.Fatalf("a dial was refused: %v", err)
		}
		all = append(all, a)
	}
	return func(n int) {
		for _, a := range all[:n] {
			a.Leave()
		}
		all = all[n:]
	}
}

// TestStreamsWhileDialsHang: a proxy that opens more and more streams costs no more than the dials that are under way.
func TestStreamsWhileDialsHang(t *testing.T) {
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: grammar.Target{Network: "tcp", Address: nobody(t)}}}}})
	p.ready()
	release := takeDials(t, b)
	before := runtime.NumGoroutine()
	for range 10 {
		var streams []*link.Stream
		for range 1000 {
			streams = append(streams, p.open(1))
		}
		for _, s := range streams { // each is answered before the next thousand: the proxy obeys the limits
			wantCode(t, s, wire.CodeLimit)
		}
		if n := runtime.NumGoroutine() - before; n > 50 {
			t.Fatalf("%d more goroutines", n)
		}
	}
	eventually(t, "no stream is counted as on its way", func() bool { return b.conns.Load().Unbound() == traffic.DefaultDials })
	release(traffic.DefaultDials)
}

func TestHandle(t *testing.T) {
	conns := make(chan net.Conn, 1)
	p := listen(t, "127.0.0.1:0", false)
	start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Handle: func(c net.Conn) { conns <- c }}}}})
	p.ready()
	s := p.open(1)
	c := <-conns
	talk(t, s, c, "?")
	talk(t, c, s, "!")
	c.Close()
	if got, err := io.ReadAll(s); len(got) != 0 || err != nil {
		t.Errorf("read %q, %v; want EOF", got, err)
	}
}

func TestNew(t *testing.T) {
	one := []Service{{Public: public(t, "9000")}}
	many := make([]Service, claims.MaxServices+1)
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Settings: Settings{Services: one}}, "name it with --proxy"},
		{Config{Token: tokenFor("h:1"), Settings: Settings{Services: many}}, "16385 services, one bridge exposes at most 16384"},
	} {
		if b, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New = %v, %v; want an error with %q", b, err, c.want)
		}
	}
	for addr, want := range map[string]string{"h": "h:3010", "h:1": "h:1", "2001:db8::1": "[2001:db8::1]:3010", "[2001:db8::1]:7": "[2001:db8::1]:7"} {
		b, err := New(Config{Token: tokenFor("other:1"), Proxies: []Proxy{{Addr: addr}}, Settings: Settings{Services: one}})
		if err != nil || b.uplinks[0].proxy != want {
			t.Errorf("with proxy %q: %v, %v; want %s", addr, b, err, want)
		}
	}
}

// TestProxyComesLate: at boot the proxy may not be there yet, and may come back as another process.
func TestProxyComesLate(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	addr := nobody(t)
	b := start(t, Config{Token: tokenFor(addr), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	eventually(t, "the bridge says what it misses", func() bool {
		return b.log.Count("WARN no connection to the proxy, trying again", "proxy="+addr, "is `reverser proxy` running there") >= 1
	})
	st := b.Status()
	if len(st.Links) != 1 || st.Links[0].State != status.LinkDown || st.Links[0].Remote != addr || st.Services[0].State != status.ServiceAway {
		t.Errorf("status %+v, want a link that is down and a service that is away", st)
	}
	p := listen(t, addr, false)
	p.ready()
	s := p.open(1)
	c := srv.accept()
	talk(t, s, c, "?")
	eventually(t, "status shows the link", func() bool {
		st := b.Status()
		return st.Role == "bridge" && st.Links[0].State == status.LinkUp && st.Services[0].State == status.ServiceUp
	})

	p.close() // and with it its sessions
	next := listen(t, addr, false)
	next.ready()
	wantReset(t, c) // never EOF
	s = next.open(1)
	talk(t, s, srv.accept(), "?")
	eventually(t, "the log has the session's end", func() bool { return b.log.Count("session with the proxy ended, its connections were reset") == 1 })
}

// TestKeyRefused: loud once, and tried again: the key may be added yet.
func TestKeyRefused(t *testing.T) {
	p := listen(t, "127.0.0.1:0", false)
	p.mu.Lock()
	p.known = false
	p.mu.Unlock()
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
	eventually(t, "the refusal is logged", func() bool { return b.log.Count("WARN", "the proxy refused the key") == 1 })
	p.mu.Lock()
	p.known = true
	p.mu.Unlock()
	p.ready()
}

// passOn forwards connections from ln to an address until the returned function is called.
func passOn(ln net.Listener, to string) (stop func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			wg.Go(func() { io.Copy(out, c); out.Close() })
			wg.Go(func() { io.Copy(c, out); c.Close() })
		}
	})
	return func() {
		ln.Close()
		wg.Wait()
	}
}

// TestTransfer: carriers go where the proxy says, or where the operator says.
func TestTransfer(t *testing.T) {
	t.Run("announced", func(t *testing.T) {
		p := listen(t, "127.0.0.1:0", true)
		start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
		p.ready()
		p.mu.Lock()
		defer p.mu.Unlock()
		for slot, st := range p.link.Status() { // a busy machine may have made more attempts than there are slots, for any slot
			want := p.ln[1].Addr().String()
			if slot == 0 {
				want = p.addr()
			}
			if at := p.via[st.Remote]; at != want {
				t.Errorf("the connection of slot %d came in at %q, want %s", slot, at, want)
			}
		}
	})
	t.Run("configured", func(t *testing.T) {
		p := listen(t, "127.0.0.1:0", true)
		front, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer passOn(front, p.ln[1].Addr().String())()
		srv := serve(t, "tcp", "127.0.0.1:0")
		b := start(t, Config{
			Token: tokenFor(p.addr()), Proxies: []Proxy{{Addr: p.addr(), Transfer: front.Addr().String()}}, Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}},
		})
		p.ready()
		talk(t, p.open(1), srv.accept(), "?")
		b.stop()
		<-b.done
	})
	t.Run("blocked", func(t *testing.T) {
		p := listen(t, "127.0.0.1:0", true)
		blocked := nobody(t)
		srv := serve(t, "tcp", "127.0.0.1:0")
		p.mu.Lock()
		p.answer = func(l *link.Link, id uint32, c wire.Claim) {
			claimed(l, id, wire.Claimed{Status: wire.ClaimUp, Public: c.Public, Nonce: [16]byte{1}})
		}
		p.mu.Unlock()
		b := start(t, Config{Token: tokenFor(p.addr()), Proxies: []Proxy{{Addr: p.addr(), Transfer: blocked}}, Settings: Settings{Services: []Service{{Public: public(t, "tcp/"+nobody(t)), Target: srv.target()}}}})
		eventually(t, "the bridge says what is wrong, though it is connected", func() bool {
			return b.log.Count("WARN no connection for carriers", blocked) == 1
		})
		eventually(t, "the service is away, and why", func() bool {
			st := b.Status()
			return st.Links[0].State == status.LinkUp && st.Services[0].State == status.ServiceAway && strings.Contains(st.Services[0].Reason, "carriers")
		})
		if n := b.log.Count("service up"); n != 0 {
			t.Errorf("%d lines say that a service is up that nobody can reach", n)
		}
		front, err := net.Listen("tcp", blocked)
		if err != nil {
			t.Fatal(err)
		}
		defer passOn(front, p.ln[1].Addr().String())()
		eventually(t, "the bridge says so when it is", func() bool { return b.log.Count("service up") == 1 })
		b.stop()
		<-b.done
	})
}

// TestDrain: users who are there finish, newcomers are served for as long as the proxy sends some, and then Run returns.
func TestDrain(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Drain: time.Hour, Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	s := p.open(1)
	c := srv.accept()
	talk(t, s, c, "?")
	eventually(t, "the bridge has the proxy's answer", func() bool { return b.Status().Services[0].State == status.ServiceUp }) // which comes on another connection
	b.Drain()
	b.Drain()
	eventually(t, "the proxy is told", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.leaving > 0 })
	if st := b.Status(); st.Links[0].State != status.LinkDraining || st.Services[0].State != status.ServiceUp {
		t.Errorf("link %+v, service %+v; want a draining link, and a service that is up", st.Links[0], st.Services[0])
	}
	var late *link.Stream
	eventually(t, "the bridge takes users", func() bool { // the pair is young and may end soon: for a moment, none are to be sent
		var err error
		late, err = p.session().Open(wire.Open{Service: 1})
		return err == nil
	})
	late.SetDeadline(time.Now().Add(limit))
	lateAt := srv.accept()
	talk(t, late, lateAt, "late")
	talk(t, s, c, "still")
	s.CloseWrite()
	io.ReadAll(c)
	select {
	case <-b.done:
		t.Fatal("Run returned while a pair was there")
	default:
	}
	c.Write([]byte("last words"))
	c.Close()
	if got, err := io.ReadAll(s); string(got) != "last words" || err != nil {
		t.Errorf("the user read %q, %v", got, err)
	}
	talk(t, late, lateAt, "later")
	late.Close()
	lateAt.Close()
	<-b.done
	if b.err != nil {
		t.Errorf("Run = %v, want nil", b.err)
	}
}

// TestDrainWhileDialling: a user whose connection to the target is being made counts.
func TestDrainWhileDialling(t *testing.T) {
	asked, proceed := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(proceed) })
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Drain: time.Hour, Services: []Service{{Public: public(t, "9000"), Handle: func(c net.Conn) {
		close(asked)
		<-proceed
		c.Write([]byte("served"))
		c.Close()
	}}}}})
	t.Cleanup(release)
	p.ready()
	s := p.open(1)
	<-asked
	b.Drain()
	eventually(t, "the bridge says that it waits", func() bool { return b.log.Count("draining pairs=0 dials=1") == 1 })
	select {
	case <-b.done:
		t.Fatal("Run returned while a user's connection was being made")
	default:
	}
	release()
	if got, err := io.ReadAll(s); string(got) != "served" || err != nil {
		t.Errorf("the user read %q, %v", got, err)
	}
	<-b.done
}

// held is a pair that ends when the test says so.
type held struct {
	traffic.Pair
	ended func(relay.Reason)
}

func (p *held) Start(_ *relay.Poller, ended func(relay.Reason)) { p.ended = ended }
func (*held) Counts() (sent, received uint64)                   { return 0, 0 }
func (*held) Resumes() uint64                                   { return 0 }

// TestDrainEndsWithItsLastPair: the drain is over as soon as the last pair is, also behind a pause that was for nothing.
func TestDrainEndsWithItsLastPair(t *testing.T) {
	for _, after := range []time.Duration{drainLook / 2, 2 * pauseLimit, pauseEvery, 2 * pauseEvery} {
		synctest.Test(t, func(t *testing.T) {
			var n memnet.Net
			b := onMemnet(t, &n, new(dns))
			defer b.conns.Close()
			defer b.stop()
			a, err := b.conns.Admit(b.conns.Account(b.cfg.Token.KeyID, "tcp/9000"), netip.AddrPort{}, traffic.NoWait)
			if err != nil {
				t.Fatal(err)
			}
			p := new(held)
			var ends time.Time
			if !a.Dial() {
				t.Fatal("a dial was refused")
			}
			a.Dialled()
			a.BindPair(p, "x")
			time.AfterFunc(after, func() {
				ends = time.Now()
				p.ended(relay.ReasonEOF)
			})
			b.finish(time.Minute)
			if late := time.Since(ends); ends.IsZero() || late > drainLook+settleLimit {
				t.Errorf("a pair that ended %s after the drain began: it was over %s after that", after, late)
			}
		})
	}
}

// TestDrainIsOver: who does not finish in time is reset at both ends, with the reason.
func TestDrainIsOver(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Drain: 20 * time.Millisecond, Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	s := p.open(1)
	c := srv.accept()
	talk(t, s, c, "?")
	b.Drain()
	wantReset(t, c)
	wantCode(t, s, wire.CodeDrain)
	<-b.done
	if n := b.log.Count("pair released", "reason=drain"); n != 1 || b.err != nil {
		t.Errorf("%d pairs released with reason drain, Run = %v; want 1, nil", n, b.err)
	}
}

// TestResumeWithin: connections do not outlive their link for longer than was asked for.
func TestResumeWithin(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), ResumeWithin: 50 * time.Millisecond, Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	c := func() net.Conn { s := p.open(1); c := srv.accept(); talk(t, s, c, "?"); return c }()
	p.close() // and nobody is there to resume with
	wantReset(t, c)
	eventually(t, "the log says why", func() bool {
		return b.log.Count("session with the proxy ended", "no connection came back within 50ms") == 1
	})
}

func TestDrainWithoutPairs(t *testing.T) {
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
	p.ready()
	b.Drain()
	<-b.done
	late := start(t, Config{Token: tokenFor(nobody(t)), Settings: Settings{Services: []Service{{Public: public(t, "9000")}}}})
	late.Drain() // never connected
	<-late.done
}

// TestStop: the end of the context resets everybody, with the reason.
func TestStop(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	s := p.open(1)
	c := srv.accept()
	talk(t, s, c, "?")
	b.stop()
	wantReset(t, c)
	wantCode(t, s, wire.CodeDrain)
	<-b.done
	if b.err != nil {
		t.Errorf("Run = %v, want nil", b.err)
	}
}

// TestEndWhileUsersCome: whatever became of those who were on the way to the service when the bridge reset everybody, it ends.
func TestEndWhileUsersCome(t *testing.T) {
	for name, end := range map[string]func(b *running){
		"stop":  func(b *running) { b.stop() },
		"drain": func(b *running) { b.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			for range 8 {
				srv := serve(t, "tcp", "127.0.0.1:0")
				p := listen(t, "127.0.0.1:0", false)
				b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Drain: time.Nanosecond, Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
				p.ready()
				p.mu.Lock()
				l := p.link
				p.mu.Unlock()
				const some = 20
				came, gone := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(gone)
					for n := 0; n < 2000; n++ {
						if _, err := l.Open(wire.Open{Service: 1}); err != nil {
							break
						}
						if n == some {
							close(came)
						}
					}
				}()
				<-came
				end(b)
				select {
				case <-b.done:
				case <-time.After(limit):
					t.Fatal("Run did not return")
				}
				p.close()
				<-gone
			}
		})
	}
}

// TestStopWithHandle: the end of the context resets the connections that a program has as well.
func TestStopWithHandle(t *testing.T) {
	conns := make(chan net.Conn, 1)
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Handle: func(c net.Conn) { conns <- c }}}}})
	p.ready()
	s := p.open(1)
	c := <-conns
	talk(t, s, c, "?")
	b.stop()
	wantCode(t, s, wire.CodeDrain)
	<-b.done
}

// TestAnswersToClaims: what the proxy says of each service reaches status, log and those who wait for it.
func TestAnswersToClaims(t *testing.T) {
	p := listen(t, "127.0.0.1:0", false)
	p.mu.Lock()
	p.answer = func(l *link.Link, id uint32, c wire.Claim) {
		switch id {
		case 1:
			claimed(l, id, wire.Claimed{Status: wire.ClaimUp, Public: "tcp/9000"})
		case 2:
			claimed(l, id, wire.Claimed{Status: wire.ClaimDenied, Public: c.Public, Text: "denied: the policy says so"})
		case 3:
			claimed(l, id, wire.Claimed{Status: wire.ClaimRetrying, Public: c.Public, Text: "open tcp/9002: in use"})
		case 4:
			claimed(l, id, wire.Claimed{Status: wire.ClaimUp, Public: "tcp/9003"}) // it owns the port and offers it
		case 5:
			claimed(l, id, wire.Claimed{Status: wire.ClaimUp, Public: c.Public})
		}
	}
	p.mu.Unlock()
	var services []Service
	for _, s := range []string{"9000", "80", "9002", "offered", "http/a.example"} {
		services = append(services, Service{Public: public(t, s), Target: grammar.Target{Network: "tcp", Address: "127.0.0.1:1"}})
	}
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: services}})
	p.ready()
	want := []status.Service{
		{Public: "tcp/9000", Target: "127.0.0.1:1", State: status.ServiceUp, Probe: status.Probe{State: status.ProbeNone, Text: "the proxy asks for no probe: its public ports may have another address than its link (--bind there)"}},
		{Public: "tcp/80", Target: "127.0.0.1:1", State: status.ServiceDenied, Reason: "tcp/80 denied: the policy says so"},
		{Public: "tcp/9002", Target: "127.0.0.1:1", State: status.ServiceRetrying, Reason: "open tcp/9002: in use"},
		{Public: "tcp/9003", Target: "127.0.0.1:1", State: status.ServiceUp, Probe: status.Probe{State: status.ProbeNone, Text: "the proxy chose its port"}},
		{Public: "http/a.example", Target: "127.0.0.1:1", State: status.ServiceUp, Probe: status.Probe{State: status.ProbeNone, Text: "names have no port of their own"}},
	}
	for i := range want {
		want[i].TargetState = status.TargetUnknown
	}
	eventually(t, "status shows the answers", func() bool { return fmt.Sprint(b.Status().Services) == fmt.Sprint(want) })
	for i, s := range services {
		ctx, cancel := context.WithCancel(t.Context())
		if want[i].State == status.ServiceRetrying {
			cancel()
		}
		got, err := b.Await(ctx, s.Public)
		want[i].Probe, want[i].TargetState = status.Probe{}, "" // for which whoever waits does not ask
		switch {
		case got != want[i]:
			t.Errorf("Await(%s) = %+v, want %+v", s.Public, got, want[i])
		case ctx.Err() == nil && err != nil:
			t.Errorf("Await(%s) = %v", s.Public, err)
		case ctx.Err() != nil && (!errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "in use")):
			t.Errorf("Await(%s) = %v, want the end of the context and its cause", s.Public, err)
		}
		cancel()
	}
	eventually(t, "the answers are in the log", func() bool {
		return b.log.Count("ERROR service denied by the proxy", "service=tcp/80", "reason=tcp/80 denied") == 1 &&
			b.log.Count("WARN service cannot be opened at the proxy", "service=tcp/9002", "in use") == 1
	})
}

// TestTotals: a service's bytes are counted while the connection lives, and stay counted.
func TestTotals(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	want := func(conns int, total, sent, received uint64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d connections of %d, %d bytes sent, %d received", conns, total, sent, received), func() bool {
			s := b.Status().Services[0]
			return s.Connections == conns && s.Total == total && s.Sent == sent && s.Received == received
		})
	}
	want(0, 0, 0, 0)
	s := p.open(1)
	c := srv.accept()
	talk(t, s, c, "hello")
	talk(t, c, s, "hi")
	want(1, 1, 5, 2)
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	want(0, 1, 5, 2)
}
