package relay

import (
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
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/memnet"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// world is a link over a network in memory: streams for pairs to be bound to.
type world struct {
	budget  *link.Budget // of the proxy
	t       testing.TB
	net     *memnet.Net
	px, br  owner
	streams chan *link.Stream // that the bridge was asked to connect
	wg      sync.WaitGroup
	poller  Poller
	alone   Poller // watches no socket
	close   func()
}

// owner remembers the link it was told of.
type owner struct {
	streams chan *link.Stream
	up      chan *link.Link // a link, once for each slot that is up
}

func (o *owner) Opened(s *link.Stream) { o.streams <- s }
func (o *owner) Attached(l *link.Link, _ int) {
	select {
	case o.up <- l:
	default: // it is long known
	}
}
func (o *owner) Detached(*link.Link, int, error)      {}
func (o *owner) Message(*link.Link, wire.Frame) error { return nil }
func (o *owner) GoingAway(*link.Link, time.Duration)  {}
func (o *owner) Ended(*link.Link, error)              {}

var identity = sync.OnceValue(func() tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

// newWorld returns when the link is up. The caller closes it; pairs are to be over by then or end by it.
func newWorld(t testing.TB) (*world, *link.Link) {
	const carriers = 1
	w := &world{t: t, net: &memnet.Net{}, streams: make(chan *link.Stream, 1024)}
	w.alone.unwatched = true
	w.poller.patience, w.alone.patience = limit, limit // however slowly a busy machine lets a user read
	w.px = owner{w.streams, make(chan *link.Link, 64)}
	w.br = owner{w.streams, make(chan *link.Link, 64)}
	key, secret := [16]byte{1}, [32]byte{2}
	sc := &auth.ServerConfig{Identity: identity(), Instance: [16]byte{9}, Lookup: func(id [16]byte) ([32]byte, bool) { return secret, id == key }}
	w.budget = link.NewBudget(0)
	host := link.NewHost(link.HostConfig{
		Owner: &w.px, Budget: w.budget, Instance: sc.Instance, Carriers: carriers,
		Admit: func([16]byte, [32]byte, bool) error { return nil }, Draining: func() bool { return false },
	})
	ln, err := w.net.Listen("proxy:3010")
	if err != nil {
		t.Fatal(err)
	}
	tc := sc.TLS()
	w.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				if ac, err := auth.Server(c, tc, sc); err == nil {
					host.Serve(ac)
				}
			})
		}
	})
	d := link.NewDialer(link.DialerConfig{
		Owner: &w.br, Carriers: carriers,
		Auth:    auth.ClientConfig{KeyID: key, Secret: secret, Pin: auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{7}},
		Dial:    link.Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) { return w.net.Dial(ctx, "proxy:3010") }),
		Failed:  func(int, error, time.Duration) {},
		Backoff: func(int, error, int) time.Duration { return 10 * time.Millisecond },
	})
	ctx, cancel := context.WithCancel(context.Background())
	w.wg.Go(func() { d.Run(ctx) })
	w.close = func() {
		cancel()
		ln.Close()
		host.Close(errors.New("test over"))
		w.wg.Wait()
		w.poller.Close()
		w.alone.Close()
	}
	var l *link.Link
	for range carriers + 1 {
		l = <-w.px.up
		<-w.br.up
	}
	return w, l
}

// open opens a stream and returns both ends.
func (w *world) open(l *link.Link) (px, br *link.Stream) {
	w.t.Helper()
	s, err := l.Open(wire.Open{})
	if err != nil {
		w.t.Fatal(err)
	}
	return s, <-w.streams
}

// conn is what tests do to the far end of a pair's socket.
type conn interface {
	net.Conn
	CloseWrite() error
	SetLinger(int) error
}

// sockets makes connections, born as those of a pair are: from a user to the proxy, and from the bridge to a server.
type sockets struct {
	name   string
	alone  bool // no poller watches them
	user   func(t testing.TB) (user conn, accepted net.Conn)
	server func(t testing.TB) (server conn, dialled net.Conn)
}

var loopback = sockets{
	name: "tcp",
	user: func(t testing.TB) (conn, net.Conn) {
		ln, err := sys.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		user, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return user.(*net.TCPConn), accepted
	},
	server: func(t testing.TB) (conn, net.Conn) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		dialled, err := sys.Dial(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return server.(*net.TCPConn), dialled
	},
}

// alone has sockets for which pairs wait with a goroutine each, as on systems without a poller.
var alone = sockets{name: "tcp, no poller", alone: true, user: loopback.user, server: loopback.server}

// inMemory has sockets without a descriptor: no waiting for readiness, and all writing is drain's.
var inMemory = sockets{
	name: "memory",
	user: func(t testing.TB) (conn, net.Conn) {
		c, a := memoryConn(t)
		return c, a
	},
	server: func(t testing.TB) (conn, net.Conn) {
		d, s := memoryConn(t)
		return s.(conn), d
	},
}

func memoryConn(t testing.TB) (dialled conn, accepted net.Conn) {
	var n memnet.Net
	ln, err := n.Listen("host:1")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d, err := n.Dial(t.Context(), "host:1")
	if err != nil {
		t.Fatal(err)
	}
	if accepted, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return d.(conn), accepted
}

// tunnel is the whole way: user – pair – stream – pair – server.
type tunnel struct {
	user, server   conn
	client, target *end
	wg             sync.WaitGroup
}

// end is a pair that runs.
type end struct {
	*Pair
	over   chan struct{}
	reason Reason // once over is closed
}

// run starts a pair.
func run(wg *sync.WaitGroup, poller *Poller, p *Pair) *end {
	e := &end{Pair: p, over: make(chan struct{})}
	wg.Add(1)
	p.Start(poller, func(r Reason) {
		e.reason = r
		close(e.over)
		wg.Done()
	})
	return e
}

func (w *world) tunnel(l *link.Link, k sockets) *tunnel {
	w.t.Helper()
	px, br := w.open(l)
	tu := &tunnel{}
	var accepted, dialled net.Conn
	tu.user, accepted = k.user(w.t)
	tu.server, dialled = k.server(w.t)
	tu.client = run(&tu.wg, w.pollerFor(k), New(Client, accepted, px, nil))
	tu.target = run(&tu.wg, w.pollerFor(k), New(Target, dialled, br, nil))
	return tu
}

// pollerFor returns the poller of pairs with such sockets.
func (w *world) pollerFor(k sockets) *Poller {
	if k.alone {
		return &w.alone
	}
	return &w.poller
}

// close ends what is left of the tunnel.
func (tu *tunnel) close() {
	for _, c := range []conn{tu.user, tu.server} {
		c.SetLinger(0)
		c.Close()
	}
	tu.wg.Wait()
}

// wantReasons waits for both pairs to be over.
func (tu *tunnel) wantReasons(t testing.TB, client, target Reason) {
	t.Helper()
	tu.wg.Wait()
	if tu.client.reason != client || tu.target.reason != target {
		t.Errorf("reasons %q at the client and %q at the target; want %q and %q", tu.client.reason, tu.target.reason, client, target)
	}
}

// wantCounts compares what both pairs counted.
func (tu *tunnel) wantCounts(t testing.TB, sent, received int) {
	t.Helper()
	for name, p := range map[string]*end{"client": tu.client, "target": tu.target} {
		if s, r := p.Counts(); s != uint64(sent) || r != uint64(received) {
			t.Errorf("%s counts %d sent, %d received; want %d, %d", name, s, r, sent, received)
		}
	}
}

// limit is long after everything that a test waits for.
const limit = time.Minute

// eventually polls: the kernel tells nobody when it has moved bytes.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for late := time.Now().Add(limit); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// readAll reads to the end, in a bounded time.
func readAll(c conn) ([]byte, error) {
	c.SetReadDeadline(time.Now().Add(limit))
	b, err := io.ReadAll(c)
	if err == nil && runtime.GOOS == "windows" && sys.Gone(c) {
		// Under Wine a read now and then ends cleanly though the system says that the connection was reset. It says nothing of the
		// kind behind a clean end.
		err = syscall.ECONNRESET
	}
	return b, err
}

// noise is n bytes that do not repeat, the same for the same seed.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

// fill writes b to a socket until nothing is taken any more, and returns how much was. It writes little at a time: Wine can forget to end a
// write that is given up while a part of it goes.
func fill(t *testing.T, c net.Conn, b []byte) (n int) {
	t.Helper()
	for {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		m, err := c.Write(b[n:min(n+16<<10, len(b))])
		n += m
		switch {
		case n == len(b):
			t.Fatalf("all %d bytes were taken: nothing stopped them", n)
		case err == nil, errors.Is(err, os.ErrDeadlineExceeded) && (m > 0 || n == 0): // a busy machine may let the time pass before the first byte
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.SetWriteDeadline(time.Time{})
			return n
		default:
			t.Fatalf("%d bytes went, then %v", n, err)
		}
	}
}
