package bridge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/auth"
	"reverser/internal/freeport"
	"reverser/internal/grammar"
	"reverser/internal/lines"
	"reverser/internal/link"
	"reverser/internal/logtest"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// limit is long after everything that a test waits for.
const limit = time.Minute

// However busy the machine is, within that a peer that is there has heard the last words, and a user has made its handshake.
func init() { lastWords, flushLimit, handshakeTime = limit, limit, limit }

// eventually polls.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for late := time.Now().Add(limit); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

var identity = sync.OnceValue(newIdentity)

func newIdentity() tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// setLog has the bridge write its log to j.
func setLog(b *Bridge, j *logtest.Journal) {
	b.log, b.say = slog.New(j), lines.New(slog.New(j))
	for _, u := range b.uplinks {
		u.report = newReporter(b.log, u.proxy)
	}
}

var (
	keyID  = [16]byte{1}
	secret = [32]byte{2}
)

func tokenFor(addr string) grammar.Token {
	return grammar.Token{Addrs: []string{addr}, KeyID: keyID, Secret: secret, Pin: auth.Pin(identity().Leaf.RawSubjectPublicKeyInfo)}
}

// proxy is a Host without the rest of a proxy: the test plays that.
type proxy struct {
	t        *testing.T
	host     *link.Host
	features wire.Features // of a proxy on memnet
	transfer uint16        // that it announces
	ln       []net.Listener
	wg       sync.WaitGroup
	closing  sync.Once

	mu      sync.Mutex
	known   bool // the key; guarded by mu, as all below
	link    *link.Link
	up      map[int]bool
	via     map[string]string // local address that each proven connection came in at, by its remote one
	claims  map[uint32]wire.Claim
	round   int  // how often all claims had come
	keep    bool // answer no UNCLAIM
	leaving time.Duration
	ended   []error
	conns   []net.Conn    // of the link, as accepted
	hold    chan struct{} // unless nil, for which new connections wait
	answer  func(l *link.Link, id uint32, c wire.Claim)
}

func (p *proxy) Opened(*link.Stream) {}
func (p *proxy) Message(l *link.Link, f wire.Frame) error {
	if f.Type == wire.TypeRound {
		p.mu.Lock()
		p.round++
		p.mu.Unlock()
		return nil
	}
	if f.Type == wire.TypeUnclaim {
		id, err := wire.ParseUnclaim(f)
		p.mu.Lock()
		keep := p.keep
		delete(p.claims, id)
		p.mu.Unlock()
		if err == nil && !keep {
			l.Say(uint64(id), wire.AppendUnclaimed(nil, id, l.Marks()))
		}
		return err
	}
	id, c, err := wire.ParseClaim(f)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.claims[id] = c
	answer := p.answer
	p.mu.Unlock()
	if answer == nil {
		claimed(l, id, wire.Claimed{Status: wire.ClaimUp, Public: c.Public})
		return nil
	}
	answer(l, id, c)
	return nil
}

// claimed answers a claim.
func claimed(l *link.Link, id uint32, c wire.Claimed) {
	l.Say(uint64(id), wire.AppendClaimed(nil, id, c))
}
func (p *proxy) Attached(l *link.Link, slot int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.link, p.up[slot] = l, true
}
func (p *proxy) Detached(_ *link.Link, slot int, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up[slot] = false
}
func (p *proxy) GoingAway(_ *link.Link, drain time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaving = drain
}
func (p *proxy) Ended(_ *link.Link, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = append(p.ended, err)
}

func newProxy(t *testing.T) *proxy {
	return &proxy{t: t, known: true, up: map[int]bool{}, via: map[string]string{}, claims: map[uint32]wire.Claim{}}
}

// listen runs a proxy at addr until the end of the test; with transfer it has a second port, which it announces.
func listen(t *testing.T, addr string, transfer bool) *proxy {
	t.Helper()
	p := newProxy(t)
	var instance [16]byte
	rand.Read(instance[:])
	sc := &auth.ServerConfig{Identity: identity(), Instance: instance, Lookup: func(id [16]byte) ([32]byte, bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return secret, p.known && id == keyID
	}}
	var port uint16
	for i := range 2 {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		p.ln = append(p.ln, ln)
		if !transfer {
			break
		}
		addr = "127.0.0.1:0"
		if i == 1 {
			port = uint16(ln.Addr().(*net.TCPAddr).Port)
		}
	}
	p.host = link.NewHost(link.HostConfig{
		Owner: p, Instance: instance, Carriers: 2, Transfer: port,
		Admit: func([16]byte, [32]byte, bool) error { return nil }, Draining: func() bool { return false },
	})
	tc := sc.TLS()
	for _, ln := range p.ln {
		p.wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				p.mu.Lock()
				p.conns = append(p.conns, c)
				hold := p.hold
				p.mu.Unlock()
				p.wg.Go(func() {
					if hold != nil {
						<-hold
					}
					if ac, err := auth.Server(c, tc, sc); err == nil {
						p.mu.Lock()
						p.via[c.RemoteAddr().String()] = ln.Addr().String()
						p.mu.Unlock()
						p.host.Serve(ac)
					}
				})
			}
		})
	}
	t.Cleanup(p.close)
	return p
}

func (p *proxy) addr() string { return p.ln[0].Addr().String() }

// close stops the proxy as if its process had ended.
func (p *proxy) close() {
	p.closing.Do(func() {
		for _, ln := range p.ln {
			ln.Close()
		}
		p.host.Close(errors.New("the proxy's process ended"))
		p.wg.Wait()
	})
}

// cut breaks every connection of the link, as a network does.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// ready waits for a bridge with its claims and carriers.
func (p *proxy) ready() {
	p.t.Helper()
	eventually(p.t, "the bridge is connected", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.up[0] && p.up[1] && p.up[2] && p.round > 0
	})
}

// session is the bridge's latest.
func (p *proxy) session() *link.Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link
}

// open opens a stream as for a user.
func (p *proxy) open(id uint32) *link.Stream {
	p.t.Helper()
	s, err := p.session().Open(wire.Open{Service: id})
	if err != nil {
		p.t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(limit))
	return s
}

// sink is a Receiver that keeps what it is told.
type sink struct {
	got  []byte
	over chan wire.Code
}

func (k *sink) Receive(bufs [][]byte) (n int) {
	for _, b := range bufs {
		k.got = append(k.got, b...)
		n += len(b)
	}
	return n
}
func (k *sink) Behind() bool { return false }
func (k *sink) Backlogged()  {}
func (k *sink) Ended(kind wire.EndKind, code wire.Code) {
	if kind == wire.RST {
		k.over <- code
	}
}
func (k *sink) Abort(code wire.Code) { k.over <- code }

// wantCode waits for the RST of a stream.
func wantCode(t *testing.T, s *link.Stream, want wire.Code) {
	t.Helper()
	k := &sink{over: make(chan wire.Code, 2)}
	s.SetReceiver(k)
	select {
	case got := <-k.over:
		if got != want {
			t.Errorf("RST with code %v, want %v", got, want)
		}
	case <-time.After(limit):
		t.Errorf("no RST, want one with code %v", want)
	}
}

// running is a bridge that runs.
type running struct {
	*Bridge
	log  *logtest.Journal
	stop context.CancelFunc
	done chan struct{} // closed when Run returned
	err  error         // what it returned
}

// start runs a bridge until the end of the test.
func start(t *testing.T, cfg Config) *running {
	t.Helper()
	r := &running{log: logtest.NewWithLevels(slog.LevelInfo), done: make(chan struct{})}
	cfg.Log, cfg.Version = slog.New(r.log), "test"
	var err error
	if r.Bridge, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() {
		r.err = r.Run(ctx)
		close(r.done)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
		if t.Failed() {
			t.Logf("the bridge said:\n%s", strings.Join(r.log.All(), "\n"))
		}
	})
	return r
}

// server is a real server in the LAN.
type server struct {
	t  *testing.T
	ln net.Listener
}

func serve(t *testing.T, network, addr string) *server {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return &server{t, ln}
}

func (s *server) target() grammar.Target {
	return grammar.Target{Network: s.ln.Addr().Network(), Address: s.ln.Addr().String()}
}

// accept returns the bridge's next connection.
func (s *server) accept() net.Conn {
	s.t.Helper()
	if ln, ok := s.ln.(interface{ SetDeadline(time.Time) error }); ok {
		ln.SetDeadline(time.Now().Add(limit))
	}
	c, err := s.ln.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(limit))
	s.t.Cleanup(func() { c.Close() })
	return c
}

// public is a service's public side.
func public(t testing.TB, s string) grammar.Public {
	t.Helper()
	p, err := grammar.ParsePublic(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
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
	if got, err := io.ReadAll(c); len(got) != 0 || !sys.Reset(err) {
		t.Errorf("read %q, %v; want ECONNRESET", got, err)
	}
}

// nobody is an address where nothing listens.
func nobody(t testing.TB) string {
	t.Helper()
	addr, err := freeport.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
