package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

func TestHalfClose(t *testing.T) {
	t.Parallel()
	for _, k := range []sockets{loopback, alone, inMemory} {
		for _, serverFirst := range []bool{false, true} {
			t.Run(k.name+map[bool]string{false: "/client first", true: "/server first"}[serverFirst], func(t *testing.T) {
				w, l := newWorld(t)
				defer w.close()
				tu := w.tunnel(l, k)
				defer tu.close()
				first, second := tu.user, tu.server
				request, answer := noise(1, 300_000), noise(2, 700_001)
				if serverFirst {
					first, second = second, first
				}
				var wg sync.WaitGroup
				wg.Go(func() { first.Write(request); first.CloseWrite() })
				if got, err := readAll(second); err != nil || !bytes.Equal(got, request) {
					t.Fatalf("read %d bytes, %v; want %d equal ones and EOF", len(got), err, len(request))
				}
				wg.Wait()
				eventually(t, "both pairs are half-closed", func() bool { return tu.client.HalfClosed() && tu.target.HalfClosed() })
				wg.Go(func() { second.Write(answer); second.CloseWrite() })
				if got, err := readAll(first); err != nil || !bytes.Equal(got, answer) {
					t.Fatalf("read %d bytes, %v; want %d equal ones and EOF", len(got), err, len(answer))
				}
				wg.Wait()
				tu.wantReasons(t, ReasonEOF, ReasonEOF)
				if serverFirst {
					request, answer = answer, request
				}
				tu.wantCounts(t, len(request), len(answer))
			})
		}
	}
}

func TestBothFinishAtOnce(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for range 100 {
		tu := w.tunnel(l, loopback)
		var wg sync.WaitGroup
		for _, c := range []conn{tu.user, tu.server} {
			wg.Go(func() {
				c.Write([]byte("bye"))
				c.CloseWrite()
				if got, err := readAll(c); string(got) != "bye" || err != nil {
					t.Errorf("read %q, %v; want %q, EOF", got, err, "bye")
				}
			})
		}
		wg.Wait()
		tu.wantReasons(t, ReasonEOF, ReasonEOF)
		tu.wantCounts(t, 3, 3)
		tu.close()
	}
}

// TestHead: what was read of a connection before there was a pair goes first.
func TestHead(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	server, dialled := loopback.server(t)
	tu := &tunnel{user: user, server: server}
	tu.target = run(&tu.wg, &w.poller, New(Target, dialled, br, nil))
	tu.client = run(&tu.wg, &w.poller, New(Client, accepted, px, []byte("GET ")))
	defer tu.close()
	user.Write([]byte("/"))
	user.CloseWrite()
	if got, err := readAll(server); string(got) != "GET /" || err != nil {
		t.Errorf("the server read %q, %v", got, err)
	}
	server.CloseWrite()
	tu.wantReasons(t, ReasonEOF, ReasonEOF)
	tu.wantCounts(t, 5, 0)
}

// TestResetBehindTheBytes: 100,000 bytes and a RST behind them arrive as exactly that, also at a reader who is slow.
func TestResetBehindTheBytes(t *testing.T) {
	t.Parallel()
	for _, fromServer := range []bool{true, false} {
		for _, slow := range []bool{false, true} {
			name := map[bool]string{true: "server", false: "client"}[fromServer] + map[bool]string{true: " to slow reader", false: ""}[slow]
			t.Run(name, func(t *testing.T) {
				w, l := newWorld(t)
				defer w.close()
				tu := w.tunnel(l, loopback)
				defer tu.close()
				from, to, near := tu.user, tu.server, tu.client
				if fromServer {
					from, to, near = tu.server, tu.user, tu.target
				}
				want := noise(7, 100_000)
				var got []byte
				var err error
				read := make(chan struct{})
				begin := make(chan struct{})
				go func() {
					defer close(read)
					<-begin
					got, err = readAll(to)
				}()
				if !slow {
					close(begin)
				}
				if _, err := from.Write(want); err != nil {
					t.Fatal(err)
				}
				// A reset throws away what the kernel has not delivered yet, so let the relay have all of it.
				eventually(t, "the pair has read everything", func() bool {
					sent, received := near.Counts()
					return sent+received == uint64(len(want))
				})
				from.SetLinger(0)
				from.Close()
				if slow {
					<-near.over
					close(begin)
				}
				<-read
				if !bytes.Equal(got, want) || !sys.Reset(err) {
					t.Errorf("read %d bytes, %v; want %d equal ones, then ECONNRESET", len(got), err, len(want))
				}
				if fromServer {
					tu.wantReasons(t, ReasonTargetReset, ReasonTargetReset)
					tu.wantCounts(t, 0, len(want))
				} else {
					tu.wantReasons(t, ReasonClientReset, ReasonClientReset)
					tu.wantCounts(t, len(want), 0)
				}
			})
		}
	}
}

// TestResetLargerThanBuffers: the bytes before a RST wait in the stream while the reader's socket is full.
func TestResetLargerThanBuffers(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	defer user.Close()
	user.(*net.TCPConn).SetReadBuffer(16 << 10)
	accepted.(*net.TCPConn).SetWriteBuffer(16 << 10)
	var wg sync.WaitGroup
	p := run(&wg, &w.poller, New(Client, accepted, px, nil))
	// Fill until nothing is taken any more for a while: only how much this is depends on the time, not the result.
	br.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	want := noise(3, 16<<20)
	n, err := br.Write(want)
	if err == nil {
		t.Fatal("16 MB were taken from a server whose user reads nothing")
	}
	br.Reset(wire.CodeReset)
	got, err := readAll(user)
	if !bytes.Equal(got, want[:n]) || !sys.Reset(err) {
		t.Errorf("read %d bytes, %v; want %d equal ones, then ECONNRESET", len(got), err, n)
	}
	wg.Wait()
	if _, received := p.Counts(); p.reason != ReasonTargetReset || received != uint64(n) {
		t.Errorf("%s after %d bytes; want %s after %d", p.reason, received, ReasonTargetReset, n)
	}
}

// TestResetAfterFIN: a side that finished and then resets passes both on.
func TestResetAfterFIN(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	t.Run("from the link", func(t *testing.T) {
		px, br := w.open(l)
		user, accepted := loopback.user(t)
		defer user.Close()
		var wg sync.WaitGroup
		p := run(&wg, &w.poller, New(Client, accepted, px, nil))
		br.Write([]byte("answer"))
		br.CloseWrite()
		if got, err := readAll(user); string(got) != "answer" || err != nil {
			t.Fatalf("read %q, %v; want %q, EOF", got, err, "answer")
		}
		br.Reset(wire.CodeReset)
		wg.Wait()
		if p.reason != ReasonTargetReset {
			t.Errorf("reason %q, want %q", p.reason, ReasonTargetReset)
		}
		wantBroken(t, user)
	})
	t.Run("from the socket", func(t *testing.T) {
		tu := w.tunnel(l, loopback)
		defer tu.close()
		tu.user.Write([]byte("request"))
		tu.user.CloseWrite()
		if got, err := readAll(tu.server); string(got) != "request" || err != nil {
			t.Fatalf("read %q, %v; want %q, EOF", got, err, "request")
		}
		tu.user.SetLinger(0)
		tu.user.Close()
		wantBroken(t, tu.server) // the answer finds nobody
		tu.wantReasons(t, ReasonClientReset, ReasonClientReset)
	})
}

// TestIdleResetAfterFIN: a side that finished and then resets passes both on, though nobody has anything to write to it, and
// whether a poller watches it or not.
func TestIdleResetAfterFIN(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	for _, s := range []sockets{loopback, alone} {
		for _, side := range []Side{Client, Target} {
			t.Run(s.name+map[Side]string{Client: ", user", Target: ", server"}[side], func(t *testing.T) {
				tu := w.tunnel(l, s)
				defer tu.close()
				near, far, reason := tu.user, tu.server, ReasonClientReset
				if side == Target {
					near, far, reason = tu.server, tu.user, ReasonTargetReset
				}
				near.Write([]byte("request"))
				near.CloseWrite()
				if got, err := readAll(far); string(got) != "request" || err != nil {
					t.Fatalf("read %q, %v; want %q, EOF", got, err, "request")
				}
				near.SetLinger(0)
				near.Close()
				tu.wantReasons(t, reason, reason)
				wantBroken(t, far)
			})
		}
	}
}

// wantBroken writes until that fails as it does on a connection that was reset.
func wantBroken(t *testing.T, c conn) {
	t.Helper()
	var err error
	eventually(t, "writing fails", func() bool {
		_, err = c.Write([]byte("x"))
		return err != nil
	})
	if !sys.Reset(err) {
		t.Errorf("Write = %v, want ECONNRESET or EPIPE", err)
	}
}

// TestCloseWithUnreadAnswer: who closes its socket while an answer is on its way refuses it; the sender is told by RST.
func TestCloseWithUnreadAnswer(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	tu.user.Write([]byte("request"))
	io.ReadFull(tu.server, make([]byte, 7))
	tu.user.Close() // FIN: from outside like a half-close
	wantBroken(t, tu.server)
	tu.wantReasons(t, ReasonClientReset, ReasonClientReset)
}

// TestCodes: the RST of the other end is the user's RST, and its code the reason.
func TestCodes(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for code, want := range map[wire.Code]Reason{
		wire.CodeRefused: ReasonRefused, wire.CodeUnreachable: ReasonUnreachable, wire.CodeLimit: ReasonLimit,
		wire.CodeService: ReasonRemoved, wire.CodeDrain: ReasonDrain, wire.CodeEnded: ReasonEnded, wire.CodeChecksum: ReasonChecksum,
		wire.CodeReset: ReasonTargetReset, wire.CodeAborted: ReasonTargetReset,
	} {
		px, br := w.open(l)
		user, accepted := loopback.user(t)
		var wg sync.WaitGroup
		p := run(&wg, &w.poller, New(Client, accepted, px, nil))
		br.Reset(code)
		if got, err := readAll(user); len(got) != 0 || !sys.Reset(err) {
			t.Errorf("code %d: read %q, %v; want ECONNRESET", code, got, err)
		}
		wg.Wait()
		if p.reason != want {
			t.Errorf("code %d: reason %q, want %q", code, p.reason, want)
		}
		user.Close()
	}
}

// TestEnd: a role that ends a pair resets both sides and has its reason.
func TestEnd(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	tu.client.End(ReasonRemoved, wire.CodeService)
	for _, c := range []conn{tu.user, tu.server} {
		if got, err := readAll(c); len(got) != 0 || !sys.Reset(err) {
			t.Errorf("read %q, %v; want ECONNRESET", got, err)
		}
	}
	tu.wantReasons(t, ReasonRemoved, ReasonRemoved)
}

// TestLinkLost: with the session goes every pair, by RST and never by an end that looks clean.
func TestLinkLost(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	var tunnels []*tunnel
	for range 3 {
		tu := w.tunnel(l, loopback)
		defer tu.close()
		tu.user.Write([]byte("x"))
		io.ReadFull(tu.server, make([]byte, 1))
		tunnels = append(tunnels, tu)
	}
	l.Kill(errors.New("over"))
	for _, tu := range tunnels {
		for _, c := range []conn{tu.user, tu.server} {
			if got, err := readAll(c); len(got) != 0 || !sys.Reset(err) {
				t.Errorf("read %q, %v; want ECONNRESET", got, err)
			}
		}
		tu.wantReasons(t, ReasonLinkLost, ReasonLinkLost)
	}
	if _, err := l.Open(wire.Open{}); err == nil {
		t.Error("a stream was opened on a session that is over")
	}
}

// TestBackPressure: nobody reads at one end, so the other end can write what the buffers between hold, and no more.
// When reading begins, every byte comes.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	for _, fromServer := range []bool{false, true} {
		t.Run(map[bool]string{false: "client", true: "server"}[fromServer], func(t *testing.T) {
			w, l := newWorld(t)
			defer w.close()
			tu := w.tunnel(l, loopback)
			defer tu.close()
			for _, c := range []net.Conn{tu.user, tu.server, tu.client.sock.conn, tu.target.sock.conn} {
				setBuffers(c, 64<<10)
			}
			from, to := tu.user, tu.server
			if fromServer {
				from, to = to, from
			}
			want := noise(1, 8<<20)
			n := fill(t, from, want)
			if n > 2<<20 {
				t.Fatalf("%d bytes were taken, want at most 2 MB", n)
			}
			from.CloseWrite()
			if got, err := readAll(to); err != nil || !bytes.Equal(got, want[:n]) {
				t.Errorf("read %d bytes, %v; want %d equal ones, EOF", len(got), err, n)
			}
			to.CloseWrite()
			tu.wantReasons(t, ReasonEOF, ReasonEOF)
			if fromServer {
				tu.wantCounts(t, 0, n)
			} else {
				tu.wantCounts(t, n, 0)
			}
		})
	}
}

// TestBackPressureExact is the same where every buffer has a known size.
func TestBackPressureExact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, l := newWorld(t)
		defer w.close()
		tu := w.tunnel(l, inMemory)
		defer tu.close()
		want := noise(1, 4<<20)
		tu.user.SetWriteDeadline(time.Now().Add(time.Hour))
		n, err := tu.user.Write(want)
		const sockets, streamWindow = 2 * 64 << 10, 64 << 10
		if err == nil || n > sockets+2*streamWindow {
			t.Fatalf("Write = %d, %v; want at most the two sockets' buffers and a small window", n, err)
		}
		if sent, _ := tu.target.Counts(); sent > 64<<10 {
			t.Errorf("the target's socket took %d bytes, its buffer holds %d", sent, 64<<10)
		}
		tu.user.CloseWrite()
		if got, err := io.ReadAll(tu.server); err != nil || !bytes.Equal(got, want[:n]) {
			t.Errorf("read %d bytes, %v; want %d equal ones, EOF", len(got), err, n)
		}
	})
}

// TestSlowReader: a reader who takes a little now and then gets every byte, and the end behind it.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, l := newWorld(t)
		defer w.close()
		tu := w.tunnel(l, inMemory)
		defer tu.close()
		want := noise(9, 1<<20)
		go func() { tu.server.Write(want); tu.server.CloseWrite() }()
		var got []byte
		b := make([]byte, 7_001)
		for {
			time.Sleep(3 * time.Second)
			n, err := tu.user.Read(b)
			got = append(got, b[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, want %d equal ones", len(got), len(want))
		}
	})
}

// TestResetToAReaderWhoNeverReads: the bytes before a RST get 10 s, and then the pair is over without them.
func TestResetToAReaderWhoNeverReads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, l := newWorld(t)
		w.poller.patience = 0
		defer w.close()
		px, br := w.open(l)
		user, accepted := inMemory.user(t)
		defer user.Close()
		var wg sync.WaitGroup
		p := run(&wg, &w.poller, New(Client, accepted, px, nil))
		br.SetWriteDeadline(time.Now().Add(time.Second))
		br.Write(make([]byte, 1<<20))
		begin := time.Now()
		br.Reset(wire.CodeReset)
		wg.Wait()
		if d := time.Since(begin); d < 9*time.Second || d > 11*time.Second || p.reason != ReasonTargetReset {
			t.Errorf("over after %s with reason %q; want 10 s, %q", d, p.reason, ReasonTargetReset)
		}
	})
}

// TestResetWaitsForTheKernel: the bytes before a RST have left the process but not reached the user's kernel. Aborting the
// socket now would throw them away.
func TestResetWaitsForTheKernel(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("no way to ask for the socket's send queue here")
	}
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	defer user.Close()
	user.(*net.TCPConn).SetReadBuffer(16 << 10)
	var wg sync.WaitGroup
	p := run(&wg, &w.poller, New(Client, accepted, px, nil))
	want := noise(5, 40_000)
	br.Write(want)
	eventually(t, "the kernel has everything", func() bool { _, n := p.Counts(); return n == uint64(len(want)) })
	br.Reset(wire.CodeReset)
	eventually(t, "the pair waits for the kernel", p.resetWaits)
	select {
	case <-p.over:
		t.Error("the pair was over before its user had the bytes")
	default:
	}
	user.(*net.TCPConn).SetReadBuffer(1 << 20)
	got, err := readAll(user)
	if !bytes.Equal(got, want) || !sys.Reset(err) {
		t.Errorf("read %d bytes, %v; want %d equal ones, then ECONNRESET", len(got), err, len(want))
	}
	wg.Wait()
}

// TestEndDoesNotWaitForAReader: a role that ends a pair does not wait for a user who reads nothing.
func TestEndDoesNotWaitForAReader(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	fill(t, tu.server, make([]byte, 64<<20))
	tu.client.End(ReasonDrain, wire.CodeDrain)
	select {
	case <-tu.client.over:
	case <-time.After(limit):
		t.Fatal("the pair waits for its user")
	}
	tu.wantReasons(t, ReasonDrain, ReasonDrain)
}

// stuck is a socket whose writes wait until they are let go, and then keep what they were given.
type stuck struct {
	net.Conn
	entered chan struct{}
	release chan struct{}
	wrote   chan []byte
}

func (s *stuck) Write(b []byte) (int, error) {
	s.entered <- struct{}{}
	<-s.release
	s.wrote <- bytes.Clone(b)
	return len(b), nil
}

// TestDiscardWhileWriting: a stream is discarded while its last bytes are being written. The chunk they live in must not
// become another stream's meanwhile.
func TestDiscardWhileWriting(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	defer user.Close()
	s := &stuck{accepted, make(chan struct{}, 1), make(chan struct{}), make(chan []byte, 1)}
	var wg sync.WaitGroup
	p := run(&wg, &w.poller, New(Client, s, px, nil))
	mine := bytes.Repeat([]byte{'A'}, 10_000)
	br.Write(mine)
	<-s.entered
	px.Discard()
	// Other streams fill every chunk that is free.
	for range 8 {
		a, b := w.open(l)
		wg.Go(func() { a.Write(bytes.Repeat([]byte{'B'}, 1<<20)); a.CloseWrite() })
		if n, err := io.Copy(io.Discard, b); n != 1<<20 || err != nil {
			t.Fatalf("the other stream: %d bytes, %v", n, err)
		}
		b.Close()
		a.Close()
	}
	close(s.release)
	got := <-s.wrote
	if !bytes.Equal(got, mine[:len(got)]) {
		t.Errorf("the socket was given another stream's bytes")
	}
	p.End(ReasonDrain, wire.CodeDrain)
	wg.Wait()
}

// ends are those of one connection; near is what a pair gets.
type ends struct {
	far  conn
	near net.Conn
}

// bothSides makes a connection as a user does, and one as to a server.
func bothSides(t *testing.T) []ends {
	user, accepted := loopback.user(t)
	server, dialled := loopback.server(t)
	return []ends{{user, accepted}, {server, dialled}}
}

// TestLingerFromBirth: a socket that ends without a pair's doing, as when the process dies, ends with RST.
func TestLingerFromBirth(t *testing.T) {
	t.Parallel()
	for _, c := range bothSides(t) {
		c.near.Write([]byte("cut sho"))
		b := make([]byte, 7)
		io.ReadFull(c.far, b)
		c.near.Close()
		if got, err := readAll(c.far); len(got) != 0 || !sys.Reset(err) {
			t.Errorf("read %q, %v; want ECONNRESET, not a clean end", got, err)
		}
		c.far.Close()
	}
}

// TestLingerBehindFIN: a process that dies when it has sent a FIN leaves no peer waiting for what never comes.
func TestLingerBehindFIN(t *testing.T) {
	t.Parallel()
	for _, c := range bothSides(t) {
		s := socket{conn: c.near}
		c.near.Write([]byte("request"))
		if err := s.closeWrite(false); err != nil {
			t.Fatal(err)
		}
		if got, err := readAll(c.far); string(got) != "request" || err != nil {
			t.Fatalf("read %q, %v; want %q, EOF", got, err, "request")
		}
		c.near.Close() // as the kernel does for a process that died
		var far socket
		far.init(c.far)
		if far.raw != nil && runtime.GOOS == "linux" {
			eventually(t, "the reset arrives", far.gone)
		}
		c.far.Close()
	}
}

// TestUnixTarget: a server behind a unix socket is served like any other.
func TestUnixTarget(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	ln, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Skip(err)
	}
	defer ln.Close()
	dialled, err := sys.Dial(t.Context(), "unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	px, br := w.open(l)
	var wg sync.WaitGroup
	p := run(&wg, &w.poller, New(Target, dialled, br, nil))
	wg.Go(func() { io.Copy(server, server); server.(*net.UnixConn).CloseWrite() })
	want := noise(4, 300_000)
	wg.Go(func() { px.Write(want); px.CloseWrite() })
	px.SetReadDeadline(time.Now().Add(limit))
	if got, err := io.ReadAll(px); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v; want %d equal ones", len(got), err, len(want))
	}
	wg.Wait()
	if p.reason != ReasonEOF {
		t.Errorf("reason %q, want eof", p.reason)
	}
}

// TestSurvivesBreaks: the link's connections break again and again; the sockets at both ends notice nothing.
func TestSurvivesBreaks(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	up, down := noise(1, 4<<20), noise(2, 4<<20)
	var wg sync.WaitGroup
	var moved atomic.Int64
	for _, x := range []struct {
		c          conn
		send, want []byte
	}{{tu.user, up, down}, {tu.server, down, up}} {
		wg.Go(func() { x.c.Write(x.send); x.c.CloseWrite() })
		wg.Go(func() {
			got := make([]byte, 0, len(x.want))
			b := make([]byte, 32<<10)
			x.c.SetReadDeadline(time.Now().Add(limit))
			for {
				n, err := x.c.Read(b)
				got = append(got, b[:n]...)
				moved.Add(int64(n))
				if err != nil {
					if err != io.EOF || !bytes.Equal(got, x.want) {
						t.Errorf("read %d bytes, %v; want %d equal ones, EOF", len(got), err, len(x.want))
					}
					return
				}
			}
		})
	}
	for at := int64(1 << 20); at <= 6<<20; at += 1 << 20 {
		eventually(t, "bytes move", func() bool { return moved.Load() >= at })
		w.net.Reset()
	}
	wg.Wait()
	tu.wantReasons(t, ReasonEOF, ReasonEOF)
	tu.wantCounts(t, len(up), len(down))
}

// TestIdlePairHoldsNoChunk: pairs that have moved bytes and now wait cost less than one chunk, be there two ends.
func TestIdlePairHoldsNoChunk(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	const pairs = 100
	live := func() uint64 {
		runtime.GC()
		runtime.GC() // the first only moves what a sync.Pool holds aside
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	var tunnels []*tunnel
	for range pairs {
		tu := w.tunnel(l, loopback)
		defer tu.close()
		tunnels = append(tunnels, tu)
	}
	b := make([]byte, 30_000)
	for _, tu := range tunnels {
		for _, c := range [][2]conn{{tu.user, tu.server}, {tu.server, tu.user}} {
			go c[0].Write(b[:20_000])
			if _, err := io.ReadFull(c[1], make([]byte, 20_000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var each uint64
	eventually(t, "an idle pair with both its ends holds less than a chunk", func() bool {
		each = (max(live(), before) - before) / pairs
		return each < link.ChunkSize*3/4
	})
	t.Logf("%d bytes of heap for user, two pairs, stream and server", each)
}

// twins is a socket whose read ends and whose write fails at the same moment.
type twins struct {
	net.Conn
	writing, ended chan struct{}
}

func (c *twins) Read([]byte) (int, error) {
	<-c.writing
	defer close(c.ended)
	return 0, io.EOF
}

func (c *twins) Write([]byte) (int, error) {
	close(c.writing)
	<-c.ended
	return 0, syscall.ECONNRESET
}

// TestWriteStealsTheReset: a write that gets the socket's error leaves a clean EOF for the read beside it. Whichever of
// the two comes first, the other end sees the reset.
func TestWriteStealsTheReset(t *testing.T) {
	t.Parallel()
	w, l := newWorld(t)
	defer w.close()
	for range 300 {
		px, br := w.open(l)
		user, accepted := inMemory.user(t)
		c := &twins{accepted, make(chan struct{}), make(chan struct{})}
		br.Write([]byte("x"))
		var wg sync.WaitGroup
		p := run(&wg, &w.poller, New(Client, c, px, nil))
		br.SetReadDeadline(time.Now().Add(limit))
		_, err := io.ReadAll(br)
		if err == nil { // EOF, behind which the reset comes
			eventually(t, "the end is followed by the reset", func() bool {
				_, err = br.Write([]byte("y"))
				return err != nil
			})
		}
		if !sys.Reset(err) {
			t.Fatalf("the other end got %v, want ECONNRESET", err)
		}
		wg.Wait()
		if p.reason != ReasonClientReset {
			t.Fatalf("reason %q, want %q", p.reason, ReasonClientReset)
		}
		user.Close()
		br.Close()
	}
}

// TestCountInto: a pair's bytes stand in the totals while it lives, each way once, at either end.
func TestCountInto(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	px, br := w.open(l)
	user, accepted := loopback.user(t)
	server, dialled := loopback.server(t)
	var sent, received [3]atomic.Uint64
	client, target := New(Client, accepted, px, []byte("?")), New(Target, dialled, br, nil)
	client.CountInto(&sent[0], &received[0])
	target.CountInto(&sent[1], &received[1])
	target.CountInto(&sent[2], &received[2])
	sent[1].Store(100) // of others
	tu := &tunnel{user: user, server: server}
	tu.client, tu.target = run(&tu.wg, &w.poller, client), run(&tu.wg, &w.poller, target)
	user.Write(make([]byte, 100_000))
	if _, err := io.ReadFull(server, make([]byte, 100_001)); err != nil {
		t.Fatal(err)
	}
	server.Write([]byte("answer"))
	if _, err := io.ReadFull(user, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	tu.close()
	for i, want := range []uint64{100_001, 100_101, 100_001} {
		if s, r := sent[i].Load(), received[i].Load(); s != want || r != 6 {
			t.Errorf("totals of end %d: %d, %d; want %d, 6", i, s, r, want)
		}
	}
}
