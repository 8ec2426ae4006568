package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"reverser/internal/auth"
	"reverser/internal/freeport"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/logtest"
	"reverser/internal/registry"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// limit is long after everything that a test waits for.
const limit = time.Minute

func init() {
	lastWords = limit // a peer that is there has heard them, however busy the machine is
	triedDial, triedAnswer, triedAll = limit, limit, 2*limit
}

// eventually polls.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for late := time.Now().Add(limit); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

var identity = sync.OnceValue(func() tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

// world is a proxy that runs on loopback.
type world struct {
	t    *testing.T
	p    *Proxy
	log  *logtest.Journal
	stop context.CancelFunc
	done chan struct{} // closed when Run returned
	err  error         // what it returned
}

func key(t testing.TB, name string, allow ...string) Key {
	t.Helper()
	k := Key{Name: name, ID: [16]byte([]byte(name + strings.Repeat("\x00", 16-len(name)))), Secret: [32]byte{2}}
	for _, s := range allow {
		a, err := grammar.ParseAllow(s)
		if err != nil {
			t.Fatal(err)
		}
		k.Allow = append(k.Allow, a)
	}
	return k
}

// start runs a proxy until the end of the test.
func start(t *testing.T, cfg Config) *world {
	t.Helper()
	w := prepare(t, cfg)
	w.run()
	return w
}

// prepare makes a proxy that listens, and does not run yet.
func prepare(t *testing.T, cfg Config) *world {
	t.Helper()
	w := &world{t: t, log: logtest.New(slog.LevelDebug), done: make(chan struct{})}
	cfg.Identity, cfg.Log, cfg.Version = identity(), slog.New(w.log), "test"
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Drain == 0 {
		cfg.Drain = time.Hour // however busy the machine is, it is not over before the test wants that
	}
	w.p = New(cfg)
	if err := w.p.Listen(); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() {
		w.err = w.p.Run(ctx)
		close(w.done)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-w.done
		if w.t.Failed() {
			w.t.Logf("the proxy said:\n%s", strings.Join(w.log.All(), "\n"))
		}
	})
}

// setKeys puts other keys in force.
func (w *world) setKeys(keys ...Key) {
	w.t.Helper()
	set := w.p.settings()
	set.Keys = keys
	if err := w.p.Apply(context.Background(), set); err != nil {
		w.t.Errorf("Apply: %v", err)
	}
}

// route is where the users of a name go, nil if nobody serves it.
func (w *world) route(public string) *registry.Route {
	pub, err := grammar.ParsePublic(public)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.p.registry.View().Find(pub)
}

// dialled is one attempt of a bridge to connect.
type dialled struct {
	carrier bool
	addr    string
}

// bridge is a Dialer without the rest of a bridge: the test plays that.
type bridge struct {
	dialer  *link.Dialer
	w       *world
	claims  []wire.Claim
	prove   bool // show the nonces of CLAIMED, as bridges do
	streams chan *link.Stream
	stop    context.CancelFunc
	done    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	link    *link.Link
	up      map[int]bool
	claimed map[int]wire.Claimed // by the place of the claim in claims
	given   map[int][]wire.Mark  // that were given back, and what the proxy said
	answers int                  // how many CLAIMED came
	nonces  int                  // how many of them asked for a probe
	failed  []error
	leaving bool
	ended   []error
	dialled []dialled
	conns   []*net.TCPConn
	mute    bool         // dials no more
	renewed atomic.Int32 // connections whose place another one took that proves a new secret; not guarded
}

func (b *bridge) Opened(s *link.Stream) { b.streams <- s }
func (b *bridge) Message(l *link.Link, f wire.Frame) error {
	switch f.Type {
	case wire.TypeClaimed:
		id, c, err := wire.ParseClaimed(f)
		if err != nil {
			return err
		}
		b.wasClaimed(int(id-1), c)
	case wire.TypeUnclaimed:
		id, marks, err := wire.ParseUnclaimed(f)
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.given[int(id-1)] = append([]wire.Mark{}, marks...)
		b.mu.Unlock()
		return l.CheckMarks(marks)
	default:
		return link.Violation(wire.ErrUnexpected, "%s", f.Type)
	}
	return nil
}

// say claims all that b.claims holds, the ids being from 1.
func (b *bridge) say(l *link.Link) {
	for i, c := range b.claims {
		l.Say(uint64(i+1), wire.AppendClaim(nil, uint32(i+1), c))
	}
	l.Say(1<<32, wire.AppendRound(nil))
}

// unclaim gives a claim back and returns the marks of the answer.
func (b *bridge) unclaim(i int) (marks []wire.Mark) {
	b.w.t.Helper()
	b.mu.Lock()
	l := b.link
	b.mu.Unlock()
	l.Say(uint64(i+1), wire.AppendUnclaim(nil, uint32(i+1)))
	eventually(b.w.t, "the proxy answers UNCLAIM", func() (ok bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		marks, ok = b.given[i]
		return ok
	})
	return marks
}
func (b *bridge) GoingAway(*link.Link, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaving = true
}
func (b *bridge) Attached(l *link.Link, slot int) {
	b.mu.Lock()
	b.link, b.up[slot] = l, true
	b.mu.Unlock()
	if slot == 0 {
		b.say(l)
	}
}
func (b *bridge) Detached(_ *link.Link, slot int, err error) {
	if errors.Is(err, link.ErrRenewed) {
		b.renewed.Add(1)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.up[slot] = false
}
func (b *bridge) Ended(_ *link.Link, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = append(b.ended, err)
	b.up = map[int]bool{}
}
func (b *bridge) wasClaimed(id int, c wire.Claimed) {
	b.mu.Lock()
	b.claimed[id] = c
	if c.Nonce != [16]byte{} {
		b.nonces++
	}
	prove := b.prove && c.Status == wire.ClaimUp && c.Nonce != [16]byte{}
	b.mu.Unlock()
	pub, err := grammar.ParsePublic(c.Public)
	if !prove || err != nil {
		b.count()
		return
	}
	b.wg.Go(func() {
		defer b.count()
		if got, err := show(pub.ListenAddr(), c.Nonce); err != nil || got != link.ProbeAnswer(c.Nonce) {
			select {
			case <-b.w.done:
			default:
				b.w.t.Logf("probe of %s: %v", pub, err)
			}
		}
	})
}
func (b *bridge) count() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers++
}

// cut breaks all connections of the link, as a middlebox would.
func (b *bridge) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.SetLinger(0)
		c.Close()
	}
	b.conns = nil
}

// show asks at addr as a probe with that nonce does, and reads the answer up to EOF.
func show(addr string, nonce [16]byte) (answer [16]byte, err error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return answer, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	question := link.ProbeQuestion(nonce)
	if _, err := c.Write(question[:]); err != nil {
		return answer, err
	}
	b, err := io.ReadAll(c)
	copy(answer[:], b)
	return answer, err
}

// how says how a bridge differs from the usual.
type how struct {
	instance byte
	silent   bool   // does not prove its ports
	from     string // source address
	names    bool   // comes in at the port of names
}

// dial runs a bridge until the end of the test.
func (w *world) dial(k Key, h how, publics ...string) *bridge {
	b := &bridge{
		w: w, prove: !h.silent, streams: make(chan *link.Stream, 1024), done: make(chan struct{}),
		up: map[int]bool{}, claimed: map[int]wire.Claimed{}, given: map[int][]wire.Mark{},
	}
	for i, p := range publics {
		b.claims = append(b.claims, wire.Claim{Public: p, Target: fmt.Sprintf("10.0.0.%d:80", i+1)})
	}
	d := net.Dialer{KeepAlive: -1}
	if h.from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(h.from)}
	}
	ld := link.NewDialer(link.DialerConfig{
		Owner: b, Name: fmt.Sprintf("host%d", h.instance), Carriers: 1,
		Auth: auth.ClientConfig{KeyID: k.ID, Secret: k.Secret, Pin: auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{h.instance}},
		Dial: link.Direct(func(ctx context.Context, carrier bool, transfer uint16) (net.Conn, error) {
			addr := w.p.Addr().String()
			if carrier && transfer != 0 {
				addr = fmt.Sprintf("127.0.0.1:%d", transfer)
			}
			if h.names {
				addr = w.p.names.ln.Addr().String()
			}
			b.mu.Lock()
			b.dialled = append(b.dialled, dialled{carrier, addr})
			mute := b.mute
			b.mu.Unlock()
			if mute {
				return nil, errors.New("mute")
			}
			c, err := d.DialContext(ctx, "tcp", addr)
			if err == nil {
				b.mu.Lock()
				b.conns = append(b.conns, c.(*net.TCPConn))
				b.mu.Unlock()
			}
			return c, err
		}),
		Failed: func(_ int, err error, _ time.Duration) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.failed = append(b.failed, err)
		},
		Backoff: func(int, error, int) time.Duration { return 10 * time.Millisecond },
	})
	ctx, cancel := context.WithCancel(context.Background())
	b.stop, b.dialer = cancel, ld
	go func() {
		defer close(b.done)
		ld.Run(ctx)
		b.wg.Wait()
	}()
	w.t.Cleanup(func() {
		w.stop() // first, while somebody is there to hear its last words
		<-w.done
		cancel()
		<-b.done
	})
	return b
}

// bridge runs a bridge and waits until its claims are answered, proven and its carrier is up.
func (w *world) bridge(k Key, h how, publics ...string) *bridge {
	w.t.Helper()
	b := w.dial(k, h, publics...)
	b.settled()
	return b
}

func (b *bridge) settled() {
	b.w.t.Helper()
	eventually(b.w.t, "the bridge is up and its claims are answered", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.up[0] && b.up[1] && b.answers >= len(b.claims) && len(b.claimed) == len(b.claims)
	})
}

func (b *bridge) claim(id int) wire.Claimed {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.claimed[id]
}

// wantClaim waits for the answer to a claim, whose text holds all words.
func (b *bridge) wantClaim(id int, status wire.ClaimStatus, words ...string) {
	b.w.t.Helper()
	var c wire.Claimed
	ok := func() bool {
		c = b.claim(id)
		return c.Status == status && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(c.Text, w) })
	}
	for late := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			b.w.t.Fatalf("claim %d: %v %q; want %v with %q", id, c.Status, c.Text, status, words)
		}
	}
}

// stream returns the next stream that the proxy opened.
func (b *bridge) stream() *link.Stream {
	b.w.t.Helper()
	select {
	case s := <-b.streams:
		s.SetDeadline(time.Now().Add(limit))
		return s
	case <-time.After(limit):
		b.w.t.Fatal("the proxy opened no stream")
		return nil
	}
}

// idle waits until no connection of users is left, nor a bridge's probe, and all that they took is given back. The counts of those that are
// there go down before that.
func (w *world) idle() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	w.p.conns.AwaitIdle(ctx, 2*limit)
	if ctx.Err() != nil {
		w.t.Fatalf("not within %s: no connection is left", limit)
	}
}

// user connects to a public port.
func (w *world) user(addr string) *net.TCPConn {
	w.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(limit))
	w.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// pair connects a user and returns both ends, over which one byte went each way.
func (w *world) pair(b *bridge, addr string) (*net.TCPConn, *link.Stream) {
	w.t.Helper()
	u := w.user(addr)
	if _, err := u.Write([]byte("?")); err != nil {
		w.t.Fatal(err)
	}
	s := b.stream()
	talk(w.t, s, u, "!")
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		w.t.Fatal(err)
	}
	return u, s
}

// talk sends text from one connection to the other.
func talk(t testing.TB, from, to net.Conn, text string) {
	t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		t.Fatalf("Write: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v; want %q", got, err, text)
	}
}

// wantReset reads until the connection's end, which is to be a RST.
func wantReset(t testing.TB, c net.Conn) {
	t.Helper()
	got, err := io.ReadAll(c)
	if err == nil && runtime.GOOS == "windows" { // Wine tells some of those who read of an end, and a reset only when they write
		_, err = c.Write([]byte{0})
	}
	if len(got) != 0 || !sys.Reset(err) {
		t.Errorf("read %q, %v; want ECONNRESET", got, err)
	}
}

// refused reports whether nobody listens at addr.
func refused(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		c.Close()
	}
	return sys.Refused(err)
}

// free returns a loopback address where nothing listens, and what a claim of it looks like.
func free(t testing.TB) (addr, public string) {
	t.Helper()
	addr, err := freeport.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr, "tcp/" + addr
}
