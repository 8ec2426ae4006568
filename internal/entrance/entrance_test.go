package entrance

import (
	"context"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/registry"
	"reverser/internal/sys"
)

// world is a Set on a network in memory.
type world struct {
	*Set
	t   *testing.T
	net memnet.Net

	mu      sync.Mutex
	opened  []string
	refuse  bool // nobody wants what is opened
	arrived chan arrival
	slow    map[string]chan struct{} // addresses where listening takes until the channel is closed
}

type arrival struct {
	name grammar.Public
	conn net.Conn
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, arrived: make(chan arrival, 16), slow: make(map[string]chan struct{})}
	pool := sys.NewPool(256, 0)
	t.Cleanup(func() {
		w.Shut()
		if n := pool.Taken(sys.ForListeners); n != 0 {
			t.Errorf("%d descriptors are taken when all is over", n)
		}
	})
	w.Set = New(Config{
		Log: slog.New(slog.DiscardHandler),
		Listen: func(network, addr string) (net.Listener, error) {
			if c := w.slow[addr]; c != nil {
				<-c
			}
			return w.net.Listen(addr)
		},
		Opened: func(s registry.Socket, attempt uint64, err error) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			line := s.String()
			if err != nil {
				line += ": " + err.Error()
			}
			w.opened = append(w.opened, line)
			return !w.refuse
		},
		Arrived:     func(name grammar.Public, conn net.Conn) { w.arrived <- arrival{name, conn} },
		Descriptors: pool,
	})
	return w
}

func (w *world) want(lines ...string) {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.opened, lines) {
		w.t.Errorf("opened %q, want %q", w.opened, lines)
	}
	w.opened = nil
}

func (w *world) dial(addr string) (net.Conn, error) { return w.net.Dial(context.Background(), addr) }

var one, two = registry.Socket{Kind: "tcp", Host: "10.0.0.1", Port: 1}, registry.Socket{Kind: "tcp", Host: "10.0.0.1", Port: 2}

func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.Open(one, 1)
		w.want("tcp/10.0.0.1:1")
		c, err := w.dial(one.Public().ListenAddr())
		if err != nil {
			t.Fatal(err)
		}
		if a := <-w.arrived; a.name != one.Public() {
			t.Errorf("somebody came for %s, want %s", a.name, one)
		} else {
			a.conn.Close()
		}
		c.Close()
		w.Open(one, 2)
		synctest.Wait()
		w.mu.Lock()
		if len(w.opened) != 1 || w.opened[0] == one.String() {
			t.Errorf("a second attempt says %q, want an error", w.opened)
		}
		w.opened = nil
		w.mu.Unlock()
		w.Close(one)
		if _, err := w.dial(one.Public().ListenAddr()); !sys.Refused(err) {
			t.Errorf("dial of a closed socket = %v", err)
		}
		w.Close(one)
		w.Open(one, 3)
		w.want("tcp/10.0.0.1:1")
		w.Shut()
		if _, err := w.dial(one.Public().ListenAddr()); !sys.Refused(err) {
			t.Errorf("dial after Shut = %v", err)
		}
		w.Open(two, 4)
		w.want()
	})
}

// TestSlowListen: a socket that takes long to open holds up no other one, and what is opened after Shut is closed.
// TestBind: a socket without an address is opened at the one that the Set has for those, and stands for its name as ever.
func TestBind(t *testing.T) {
	for bind, want := range map[string]string{"10.0.0.9": "tcp4 10.0.0.9:1", "::1": "tcp6 [::1]:1", "0.0.0.0": "tcp4 0.0.0.0:1", "": "tcp :1"} {
		var asked []string
		opened := make(chan registry.Socket, 1)
		s := New(Config{
			Log: slog.New(slog.DiscardHandler), Bind: bind, Descriptors: sys.NewPool(256, 0),
			Listen: func(network, addr string) (net.Listener, error) {
				asked = append(asked, network+" "+addr)
				return nil, net.ErrClosed
			},
			Opened: func(s registry.Socket, _ uint64, _ error) bool { opened <- s; return false },
		})
		for _, sock := range []registry.Socket{{Kind: "tcp", Port: 1}, one} {
			s.Open(sock, 1)
			if got := <-opened; got != sock {
				t.Errorf("%s was opened, want %s", got, sock)
			}
		}
		s.Shut()
		if !slices.Equal(asked, []string{want, "tcp4 10.0.0.1:1"}) {
			t.Errorf("with %q: listened at %q, want %q and the address of the socket's own", bind, asked, want)
		}
	}
}

func TestSlowListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		slow := make(chan struct{})
		w.slow[one.Public().ListenAddr()] = slow
		w.Open(one, 1)
		w.Open(two, 2)
		w.want("tcp/10.0.0.1:2")
		w.Close(two)
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.Shut()
		}()
		synctest.Wait()
		close(slow)
		<-done
		w.want("tcp/10.0.0.1:1: " + net.ErrClosed.Error())
		if _, err := w.dial(one.Public().ListenAddr()); !sys.Refused(err) {
			t.Errorf("dial = %v", err)
		}
	})
}

// TestUnwanted: a socket that nobody wants when it is open is closed.
func TestUnwanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.refuse = true
		w.Open(one, 1)
		w.want("tcp/10.0.0.1:1")
		if _, err := w.dial(one.Public().ListenAddr()); !sys.Refused(err) {
			t.Errorf("dial = %v", err)
		}
		w.Shut()
	})
}

// pipe returns both ends of a connection.
func pipe(t *testing.T, n *memnet.Net) (user, proxy net.Conn) {
	t.Helper()
	ln, err := n.Listen("10.0.0.9:9")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if user, err = n.Dial(context.Background(), "10.0.0.9:9"); err != nil {
		t.Fatal(err)
	}
	if proxy, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return user, proxy
}

// answered is what Answer returned, and when.
type answered struct {
	got  string
	over bool
	took time.Duration
}

func ask(p *Probes, conn net.Conn, near bool) <-chan answered {
	c := make(chan answered, 1)
	begin := time.Now()
	go func() {
		got, over := p.Answer(context.Background(), conn, near)
		c <- answered{string(got), over, time.Since(begin)}
	}()
	return c
}

// TestProbe: whoever shows the nonce hears that the proxy is there, once, however the bytes come.
func TestProbe(t *testing.T) {
	for _, pieces := range []int{16, 5, 1} {
		synctest.Test(t, func(t *testing.T) {
			var n memnet.Net
			var p Probes
			nonce := p.Expect(true)
			user, conn := pipe(t, &n)
			a := ask(&p, conn, false)
			question := link.ProbeQuestion(nonce)
			for b := range slices.Chunk(question[:], pieces) {
				user.Write(b)
				time.Sleep(look / 2)
			}
			got, err := io.ReadAll(user)
			if want := link.ProbeAnswer(nonce); err != nil || string(got) != string(want[:]) {
				t.Errorf("the bridge read %x, %v; want %x", got, err, want)
			}
			user.Close()
			if a := <-a; !a.over {
				t.Errorf("Answer = %+v, want the end", a)
			}
			if p.Expected() {
				t.Error("the nonce is good a second time")
			}
			if n := p.Expect(false); n != ([nonceLen]byte{}) || p.Expected() {
				t.Errorf("Expect = %x, though the port is proven", n)
			}
			if n := p.Expect(true); n == ([nonceLen]byte{}) || n == nonce {
				t.Errorf("Expect = %x, want another nonce", n)
			}
		})
	}
}

// TestUsersWhileAProbeIsExpected: what users say loses no byte, and who says nothing waits for a moment only.
func TestUsersWhileAProbeIsExpected(t *testing.T) {
	user := func(name string, near bool, do func(net.Conn, [nonceLen]byte), want answered) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n memnet.Net
				var p Probes
				nonce := link.ProbeQuestion(p.Expect(true))
				u, conn := pipe(t, &n)
				a := ask(&p, conn, near)
				if do != nil {
					do(u, nonce)
				}
				got := <-a
				if want.got == "half" {
					want.got = string(nonce[:7])
				}
				if want.got == "nonce" {
					want.got = string(nonce[:15]) + string([]byte{nonce[15] ^ 1})
				}
				if got.got != want.got || got.over != want.over || got.took > want.took || got.took < want.took-look {
					t.Errorf("Answer = %+v, want %+v", got, want)
				}
				if !got.over { // and no deadline is left
					time.Sleep(time.Hour)
					u.Write([]byte("later"))
					b := make([]byte, 5)
					if _, err := io.ReadFull(conn, b); err != nil && do == nil {
						t.Errorf("read afterwards: %v", err)
					}
				}
				u.Close()
				conn.Close()
			})
		})
	}
	user("silent", false, nil, answered{"", false, strangerTime + look})
	user("silent and near", true, nil, answered{"", false, ProbeTime + look})
	user("half a nonce and silence", false, func(c net.Conn, n [nonceLen]byte) { c.Write(n[:7]) }, answered{"half", false, strangerTime + look})
	user("speaks", true, func(c net.Conn, _ [nonceLen]byte) { c.Write([]byte("GET /")) }, answered{"GET /", false, look})
	user("nearly a nonce", true, func(c net.Conn, n [nonceLen]byte) { c.Write(append(n[:15:15], n[15]^1)) }, answered{"nonce", false, look})
	user("finished", true, func(c net.Conn, _ [nonceLen]byte) { c.(interface{ CloseWrite() error }).CloseWrite() }, answered{"", false, look})
	user("resets", true, func(c net.Conn, _ [nonceLen]byte) {
		c.(interface{ SetLinger(int) error }).SetLinger(0)
		c.Close()
	}, answered{"", true, look})
}

// TestOwnProbe: the proxy itself may ask, as often as it likes. Its nonce is good until it is withdrawn, and says nothing about bridges.
func TestOwnProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var p Probes
		for range maxNonces + 1 { // which a bridge's do not push out
			p.Expect(true)
		}
		own, withdraw := p.ExpectOwn()
		for range maxNonces + 1 {
			p.Expect(true)
		}
		user, conn := pipe(t, &n)
		a := ask(&p, conn, false)
		question := link.ProbeQuestion(own)
		user.Write(question[:])
		got, err := io.ReadAll(user)
		if want := link.ProbeAnswer(own); err != nil || string(got) != string(want[:]) || !(<-a).over {
			t.Errorf("the proxy read %x, %v; want %x", got, err, want)
		}
		user.Close()
		if p.Proven() {
			t.Error("the proxy's own look counts as a bridge's")
		}
		withdraw()
		bridges := p.Expect(true)
		question = link.ProbeQuestion(bridges)
		if _, whole, is := p.match(question[:]); !whole || is != bridges || !p.Proven() {
			t.Error("a bridge's nonce is not good beside the proxy's own")
		}
		_, withdraw = p.ExpectOwn()
		if !p.Expected() {
			t.Error("the proxy's own nonce is not expected")
		}
		withdraw()
		clear(p.nonces)
		if p.Expected() {
			t.Error("a nonce is expected that was withdrawn")
		}
		// A user waits for a moment at the most.
		_, withdraw = p.ExpectOwn()
		defer withdraw()
		user, conn = pipe(t, &n)
		if a := <-ask(&p, conn, false); a.over || a.took > strangerTime+look {
			t.Errorf("a silent user beside the proxy's own look: %+v", a)
		}
		user.Close()
		conn.Close()
	})
}

// TestLateProbe: a bridge with many ports comes late to some, and only users from its own network wait a little for that.
func TestLateProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var p Probes
		nonce := p.Expect(true)
		time.Sleep(MostProbeTime / 2)
		for near, want := range map[bool]time.Duration{true: strangerTime + look, false: 0} {
			user, conn := pipe(t, &n)
			a := ask(&p, conn, near)
			if a := <-a; a.over || a.took > want || a.took < want-look {
				t.Errorf("a silent user, near %t: %+v, want %v", near, a, want)
			}
			user.Close()
			conn.Close()
		}
		user, conn := pipe(t, &n)
		a := ask(&p, conn, true)
		question := link.ProbeQuestion(nonce)
		user.Write(question[:])
		got, err := io.ReadAll(user)
		if want := link.ProbeAnswer(nonce); err != nil || string(got) != string(want[:]) || !(<-a).over {
			t.Errorf("the bridge read %x, %v; want %x", got, err, want)
		}
		user.Close()
	})
}

// TestProbesAreBounded: a bridge that claims again and again makes the proxy remember a few nonces, of which the last counts.
func TestProbesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Probes
		if p.Expected() {
			t.Error("a probe is expected of nobody")
		}
		var last [nonceLen]byte
		for range 1000 {
			last = p.Expect(true)
		}
		if len(p.nonces) > maxNonces {
			t.Errorf("%d nonces are remembered", len(p.nonces))
		}
		question := link.ProbeQuestion(last)
		if _, whole, is := p.match(question[:]); !whole || is != last {
			t.Error("the last nonce is not good")
		}
		p.Expect(true)
		time.Sleep(MostProbeTime + 1)
		if p.Expected() {
			t.Error("a nonce is good for ever")
		}
		p.Expect(true)
		if len(p.nonces) != 1 {
			t.Errorf("%d nonces are remembered, want what is still good", len(p.nonces))
		}
	})
}

// TestDescriptors: a socket takes a descriptor before it is opened, and gives it back when it is closed or could not be opened.
func TestDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pool := w.cfg.Descriptors
		room := w.Room()
		w.Open(one, 1)
		if n := w.Room(); n != room-1 { // at once: whoever asks next is to know
			t.Errorf("room for %d, want %d", n, room-1)
		}
		w.want(one.String())
		w.Open(one, 2) // which fails
		synctest.Wait()
		if n := w.Room(); n != room-1 {
			t.Errorf("room for %d after a failure, want %d", n, room-1)
		}
		for pool.Take(sys.ForUsers) {
		}
		w.opened = nil
		w.Open(two, 3)
		w.want(two.String() + ": " + errNoDescriptor.Error())
		w.Close(one)
		w.Open(two, 4)
		w.want(two.String())
		w.refuse = true
		w.Close(two)
		w.Open(one, 5)
		w.want(one.String())
		if n := pool.Taken(sys.ForListeners); n != 0 {
			t.Errorf("%d sockets are counted, and all are closed", n)
		}
	})
}
