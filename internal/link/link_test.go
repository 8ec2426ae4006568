package link

import (
	"bytes"
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
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"reverser/internal/auth"
	"reverser/internal/memnet"
	"reverser/internal/wire"
)

// world is a proxy's Host and a bridge's Dialer on a network in memory.
type world struct {
	t      testing.TB
	net    *memnet.Net
	host   *Host
	dialer *Dialer
	px, br *recorder
	stop   context.CancelFunc
	wg     sync.WaitGroup
	ln     net.Listener
	log    logBook

	ctx          context.Context
	hostConfig   HostConfig
	dialerConfig DialerConfig
	stopDialer   context.CancelFunc
	mu           sync.Mutex // guards host where a test replaces it
}

// logBook is what both ends logged.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// recorder is an Owner that remembers what it was told.
type recorder struct {
	mu      sync.Mutex
	change  *sync.Cond
	link    *Link
	up      map[int]bool
	said    map[wire.Type]int // frames of the peer about claims
	wrong   error             // what Message returns
	message func(wire.Frame)  // called by Message, if it is set
	ended   []error
	control []error // why control connections ended
	streams chan *Stream
}

func newRecorder() *recorder {
	r := &recorder{up: map[int]bool{}, said: map[wire.Type]int{}, streams: make(chan *Stream, 1<<15)}
	r.change = sync.NewCond(&r.mu)
	return r
}

func (r *recorder) note(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	r.change.Broadcast()
}

// wait returns when cond holds.
func (r *recorder) wait(cond func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !cond() {
		r.change.Wait()
	}
}

func (r *recorder) Opened(s *Stream) { r.streams <- s }
func (r *recorder) Message(_ *Link, f wire.Frame) (err error) {
	var hook func(wire.Frame)
	r.note(func() { r.said[f.Type]++; err, hook = r.wrong, r.message })
	if hook != nil {
		hook(f)
	}
	return err
}
func (r *recorder) Attached(l *Link, slot int) { r.note(func() { r.link, r.up[slot] = l, true }) }
func (r *recorder) Detached(_ *Link, slot int, err error) {
	r.note(func() {
		r.up[slot] = false
		if slot == 0 {
			r.control = append(r.control, err)
		}
	})
}
func (r *recorder) GoingAway(*Link, time.Duration) {}
func (r *recorder) Ended(_ *Link, err error) {
	r.note(func() { r.ended = append(r.ended, err); r.up = map[int]bool{} })
}
func (r *recorder) allUp(carriers int) func() bool {
	return func() bool {
		for i := range carriers + 1 {
			if !r.up[i] {
				return false
			}
		}
		return true
	}
}

const testCarriers = 2

var testIdentity = sync.OnceValue(func() tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	leaf, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

func newWorld(t testing.TB, detach time.Duration) *world { return newUnlikeWorld(t, detach, detach) }

// newUnlikeWorld has ends with limits of their own.
func newUnlikeWorld(t testing.TB, detach, bridgeDetach time.Duration) *world {
	n := &memnet.Net{}
	ln, err := n.Listen("proxy:3010")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldOn(t, detach, bridgeDetach, ln, func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, "proxy:3010") })
	w.net = n
	return w
}

// newWorldWith has a proxy with these features.
func newWorldWith(t testing.TB, f wire.Features) *world {
	n := &memnet.Net{}
	ln, err := n.Listen("proxy:3010")
	if err != nil {
		t.Fatal(err)
	}
	return startWorld(t, f, 0, 0, ln, func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, "proxy:3010") })
}

// newWorldOn is newWorld on any network.
func newWorldOn(t testing.TB, detach, bridgeDetach time.Duration, ln net.Listener, dial func(context.Context) (net.Conn, error)) *world {
	return startWorld(t, wire.FeatureDialOpens, detach, bridgeDetach, ln, dial)
}

// say is the log of both ends.
func (w *world) say(_ *Link, level slog.Level, msg string, args ...any) {
	slog.New(slog.NewTextHandler(&w.log, nil)).Log(context.Background(), level, msg, args...)
}

func startWorld(t testing.TB, f wire.Features, detach, bridgeDetach time.Duration, ln net.Listener, dial func(context.Context) (net.Conn, error), changes ...func(*DialerConfig)) *world {
	w := &world{t: t, ln: ln, px: newRecorder(), br: newRecorder()}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	key := [16]byte{1}
	secret := [32]byte{2}
	cfg := &auth.ServerConfig{Identity: testIdentity(), Instance: [16]byte{9}, Features: f, Lookup: func(id [16]byte) ([32]byte, bool) { return secret, id == key }}
	w.ctx = ctx
	w.hostConfig = HostConfig{
		Owner: w.px, Say: w.say, Instance: cfg.Instance, Carriers: testCarriers, Detach: detach,
		Admit: func([16]byte, [32]byte, bool) error { return nil }, Draining: func() bool { return false },
	}
	w.host = NewHost(w.hostConfig)
	tc := cfg.TLS()
	w.wg.Go(func() {
		for {
			c, err := w.ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				ac, err := auth.Server(c, tc, cfg)
				if err != nil {
					return
				}
				w.mu.Lock()
				host := w.host
				w.mu.Unlock()
				host.Serve(ac)
			})
		}
	})
	w.dialerConfig = DialerConfig{
		Owner: w.br, Say: w.say, Carriers: testCarriers, Detach: bridgeDetach,
		Auth:   auth.ClientConfig{KeyID: key, Secret: secret, Pin: auth.Pin(testIdentity().Leaf.RawSubjectPublicKeyInfo), Instance: [16]byte{7}, Features: wire.FeatureDialOpens | Features},
		Dial:   Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) { return dial(ctx) }),
		Failed: func(int, error, time.Duration) {},
	}
	for _, change := range changes {
		change(&w.dialerConfig)
	}
	w.dialer = NewDialer(w.dialerConfig)
	dialing, stop := context.WithCancel(ctx)
	w.stopDialer = stop
	w.wg.Go(func() { w.dialer.Run(dialing) })
	carriers := testCarriers
	if f&wire.FeatureIdle != 0 {
		carriers = idleCarriers
	}
	w.px.wait(w.px.allUp(carriers))
	w.br.wait(w.br.allUp(carriers))
	return w
}

func (w *world) close() {
	w.stop()
	w.ln.Close()
	w.host.Close(errors.New("test over"))
	w.wg.Wait()
}

// open opens a stream at the proxy and returns both ends.
func (w *world) open() (px, br *Stream) { return w.openAt(w.px, w.br) }

// openAt opens a stream at one end and returns both, its own first.
func (w *world) openAt(opener, other *recorder) (own, peer *Stream) {
	opener.mu.Lock()
	l := opener.link
	opener.mu.Unlock()
	s, err := l.Open(wire.Open{})
	if err != nil {
		w.t.Fatal(err)
	}
	return s, <-other.streams
}

func TestStreamIsANetConn(t *testing.T) {
	for _, name := range []string{"proxy", "bridge"} {
		t.Run("opened by the "+name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				w := newWorld(t, 0)
				opener, other := w.px, w.br
				if name == "bridge" {
					opener, other = w.br, w.px
				}
				a, b := w.openAt(opener, other)
				return a, b, func() { a.Close(); b.Close(); w.close() }, nil
			})
		})
	}
}

// TestQuiet: a stream is quiet while Read would wait, and no longer once the other end has said something, or has ended it in any way: who keeps
// a connection for later must not write to one that is over.
func TestQuiet(t *testing.T) {
	for name, end := range map[string]func(br *Stream){
		"a byte":  func(br *Stream) { br.Write([]byte("x")) },
		"a FIN":   func(br *Stream) { br.CloseWrite() },
		"a close": func(br *Stream) { br.Close() },
		"a reset": func(br *Stream) { br.Reset(wire.CodeReset) },
		"its own": nil,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			px, br := w.open()
			if end == nil {
				end = func(*Stream) { px.Close() }
			}
			go px.Write([]byte("x"))
			if _, err := io.ReadFull(br, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if !px.Quiet() {
				t.Errorf("%s: it is not quiet before that", name)
			}
			end(br)
			synctest.Wait()
			if px.Quiet() {
				t.Errorf("%s: it is quiet behind that", name)
			}
		})
	}
}

// TestSetSecret: the control connection that proves another secret takes the place of the one before in order. Neither end takes that for a
// break.
func TestSetSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		px, br := w.open()
		w.dialer.SetSecret(w.dialerConfig.Auth.Secret)
		time.Sleep(time.Second)
		synctest.Wait()
		for name, c := range map[string]struct {
			r    *recorder
			want error
		}{"proxy": {w.px, errFenced}, "bridge": {w.br, ErrRenewed}} {
			c.r.note(func() {
				if len(c.r.control) != 1 || c.r.control[0] != c.want || c.r.link.RemoteAddr() == nil {
					t.Errorf("%s: control connections ended with %v, the present one leads to %v; want %v, and another one", name, c.r.control, c.r.link.RemoteAddr(), c.want)
				}
			})
		}
		if n := w.br.link.Status()[0].Resumes; n != 1 {
			t.Errorf("%d resumes; want 1", n)
		}
		go px.Write([]byte("x"))
		if _, err := io.ReadFull(br, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
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

func TestTransferBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		var wg sync.WaitGroup
		for i := range 8 {
			opener, other := w.px, w.br
			if i%2 == 1 {
				opener, other = w.br, w.px
			}
			a, b := w.openAt(opener, other)
			up, down := noise(byte(i), 3<<20+i), noise(byte(i+100), 1<<20+i)
			send := func(s *Stream, p []byte) {
				if _, err := s.Write(p); err != nil {
					t.Errorf("Write: %v", err)
				}
				s.CloseWrite()
			}
			check := func(s *Stream, want []byte) {
				got, err := io.ReadAll(s)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("read %d bytes, %v; want %d equal ones", len(got), err, len(want))
				}
			}
			wg.Go(func() { send(a, up) })
			wg.Go(func() { send(b, down) })
			wg.Go(func() { check(b, up) })
			wg.Go(func() { check(a, down) })
		}
		wg.Wait()
		time.Sleep(time.Second)
		for _, l := range []*Link{w.px.link, w.br.link} {
			for _, st := range l.Status() {
				if st.Streams != 0 {
					t.Errorf("%d streams are left after all ended", st.Streams)
				}
				if st.Duplicates != 0 || st.ChecksumFails != 0 {
					t.Errorf("duplicates %d, checksum failures %d; want none", st.Duplicates, st.ChecksumFails)
				}
			}
			if n := l.share.pool.Used(); n != 0 {
				t.Errorf("budget: %d bytes are still charged", n)
			}
		}
	})
}

// TestChecksumErrorIsSaid: a byte that changes in a sender's memory is never delivered as if nothing had happened: both ends
// get a reset, and both say so. A resume finds it as the end of the direction does.
func TestChecksumErrorIsSaid(t *testing.T) {
	for _, resume := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			a, b := w.open()
			a.Write([]byte("abc"))
			io.ReadFull(b, make([]byte, 3))
			time.Sleep(time.Second) // acknowledged
			if resume {
				a.slot.mu.Lock()
				a.send.q.crc ^= 1 // of what the peer has: it says another checksum when it resumes
				a.slot.mu.Unlock()
				w.net.Reset()
			} else {
				a.slot.mu.Lock()
				a.send.q.write([]byte("defg"))
				a.send.q.tail.data()[a.send.q.tail.n-1] ^= 1
				a.slot.core.touch(&a.streamCore)
				a.slot.wake()
				a.slot.mu.Unlock()
				a.CloseWrite()
			}
			for _, s := range []*Stream{a, b} {
				if _, err := io.ReadAll(s); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("ReadAll: %v; want a reset", err)
				}
			}
			synctest.Wait()
			if n := strings.Count(w.log.String(), "did not arrive as they were sent"); n != 2 {
				t.Errorf("%d lines in the logs of both ends; want 2:\n%s", n, w.log.String())
			}
			if n := w.px.link.Snapshot("", "", false).ChecksumErrors + w.br.link.Snapshot("", "", false).ChecksumErrors; n == 0 {
				t.Error("no checksum error was counted")
			}
		})
	}
}

// TestWindowOfAPathThatGrewLonger: a link that came back by a longer way, or whose way became longer while it was busy and no
// PING was due, gets the windows of the new way.
func TestWindowOfAPathThatGrewLonger(t *testing.T) {
	for _, roams := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0)
			defer w.close()
			w.net.Buffer = 16 << 20
			w.net.SetLatency(memnet.Both, time.Millisecond)
			w.net.Reset()
			time.Sleep(time.Minute)
			a, b := w.open()
			go io.Copy(io.Discard, b)
			busy := time.Now()
			for time.Since(busy) < 10*time.Second { // no PING is due for silence
				a.Write([]byte("k"))
				time.Sleep(20 * time.Millisecond)
			}
			w.net.SetLatency(memnet.Both, 50*time.Millisecond)
			if roams {
				w.net.Reset()
			}
			const size = 64 << 20
			begin := time.Now()
			a.Write(make([]byte, size))
			// A window of 64 KiB a round trip would take 100 s, one that grows by itself a few.
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("roams %t: %d MiB took %s over a round trip of 100 ms", roams, size>>20, took)
			}
			a.Close()
		})
	}
}

// TestEveryAckHasItsTime: an ACK that may wait for 25 ms does not wait longer because another one, in the same batch, could not.
func TestEveryAckHasItsTime(t *testing.T) {
	w := loopback(t)
	_, b1 := w.open()
	_, b2 := w.open()
	for b2.slot != b1.slot {
		_, b2 = w.open()
	}
	sl := b1.slot
	frames := append(wire.AppendHeader(nil, wire.TypeData, b1.id, 0, 5), "hello"...)
	frames = wire.AppendEnd(frames, b2.id, 0, wire.End{Kind: wire.FIN})
	sl.mu.Lock()
	defer sl.mu.Unlock()
	c := sl.cur
	if _, err := c.applyLocked(frames); err != nil { // the connection has a reader meanwhile
		t.Fatal(err)
	}
	if b1.ackWaits && !c.ackArmed {
		t.Error("nothing will wake the writer for the ACK of the data")
	}
}

// Reset passes over streams that were refused because there were too many: nobody has them.
func TestResetBesideRefusedStreams(t *testing.T) {
	l := newLink(true, nil, nil, NewBudget(0).only(), 1)
	sl := l.slots[1]
	sl.core.limits.accept = 1
	for i := range uint64(2) {
		open := wire.AppendOpen(nil, (i+1)<<8|1, 0, wire.Open{})
		ev, err := sl.core.receive(wire.Frame{Type: wire.TypeOpen, Stream: (i+1)<<8 | 1, Payload: open[wire.HeaderLen:]}, l.now())
		if err != nil {
			t.Fatal(err)
		}
		if ev.kind == evOpened {
			ev.stream.whole.bind(sl)
		}
	}
	l.Reset(wire.CodeDrain)
	for _, s := range sl.core.streams {
		if !s.send.reset() {
			t.Errorf("stream %d goes on", s.id)
		}
	}
}

// What a socket left when it was reset is sent as credit comes, whatever the path does meanwhile; it is given up when nobody reads.
func TestRestOfASocket(t *testing.T) {
	for name, c := range map[string]struct {
		silence time.Duration // of the path
		pause   time.Duration // of the reader
		whole   bool
	}{
		"a reader that pauses":      {0, 8 * time.Second, true},
		"a path that is away":       {12 * time.Second, 0, true},
		"a path that is away, long": {3 * time.Minute, 0, true},
		"nobody reads":              {0, 30 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				defer w.close()
				px, br := w.open()
				sent := 0
				put := func(send func(*Chunk)) {
					c := NewChunk()
					c.Grow(copy(c.Room(), noise(byte(sent), 10_000)))
					sent += 10_000
					send(c)
				}
				for px.TryRoom() >= 10_000 {
					put(func(c *Chunk) { px.Send(c) })
				}
				time.Sleep(time.Second)
				if c.silence > 0 {
					w.net.BlackHole(memnet.Both)
				}
				for range 20 {
					put(func(c *Chunk) {
						if !px.SendRest(c) {
							t.Fatal("no memory")
						}
					})
				}
				px.Reset(wire.CodeReset)
				time.Sleep(c.silence)
				w.net.Heal()
				time.Sleep(c.pause)
				got, err := io.ReadAll(br)
				if !errors.Is(err, syscall.ECONNRESET) || len(got) > sent || c.whole != (len(got) == sent) {
					t.Errorf("read %d of %d bytes, then %v; want all: %t, then ECONNRESET", len(got), sent, err, c.whole)
				}
				time.Sleep(time.Minute)
				if n := px.slot.link.Streams(); n != 0 {
					t.Errorf("%d streams are left", n)
				}
			})
		})
	}
}

// What two goroutines Write at the same time is not mixed.
func TestTwoWriters(t *testing.T) {
	w := newWorld(t, 0)
	defer w.close()
	px, br := w.open()
	const n = 4 * openWindow // more than there is room for
	var wg sync.WaitGroup
	for _, c := range []byte("ab") {
		wg.Go(func() { br.Write(bytes.Repeat([]byte{c}, n)) })
	}
	got := make([]byte, 2*n)
	if _, err := io.ReadFull(px, got); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if half := got[:n]; !bytes.Equal(half, bytes.Repeat(half[:1], n)) {
		t.Error("two Writes are mixed")
	}
}

func TestHalfCloseThenAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		go func() { a.Write(noise(1, 100_000)); a.CloseWrite() }()
		if got, err := io.ReadAll(b); err != nil || len(got) != 100_000 {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		time.Sleep(10 * time.Minute) // no limit on a half-closed stream
		b.Write([]byte("answer"))
		b.CloseWrite()
		if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
			t.Fatalf("read %q, %v", got, err)
		}
	})
}

func TestResetComesBehindTheBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, afterFIN := range []bool{false, true} {
			w := newWorld(t, 0)
			a, b := w.open()
			want := noise(1, 10_000)
			b.Write(want)
			if afterFIN {
				b.CloseWrite()
			}
			b.Reset(wire.CodeReset)
			got, err := io.ReadAll(a)
			if !bytes.Equal(got, want) {
				t.Errorf("read %d bytes, want %d", len(got), len(want))
			}
			if !afterFIN && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("then %v, want ECONNRESET", err)
			}
			synctest.Wait()
			if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Write = %v, want ECONNRESET", err)
			}
			w.close()
		}
	})
}

func TestBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		n, err := a.Write(make([]byte, 4*maxWindow))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || n != floorWindow {
			t.Fatalf("Write = %d, %v; want the credit of %d and a timeout", n, err, floorWindow)
		}
		// Another stream is not stopped by it.
		c, d := w.open()
		c.Write([]byte("x"))
		if _, err := io.ReadFull(d, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		b.Close()
	})
}

// TestSurvivesCuts cuts connections again and again while streams run, and checks every byte.
func TestSurvivesCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		w.net.SetLatency(memnet.Both, 2*time.Millisecond)
		done := make(chan struct{})
		var cutter sync.WaitGroup
		cutter.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-time.After(time.Duration(20+7*(i%5)) * time.Millisecond):
				}
				for j, c := range w.net.Conns() {
					if (i+j)%3 == 0 {
						c.CutAfter(memnet.Both, int64(i*37%5000), memnet.CutReset)
					}
				}
			}
		})
		var wg sync.WaitGroup
		for i := range 6 {
			a, b := w.open()
			up, down := noise(byte(i), 2<<20), noise(byte(i+50), 2<<20)
			wg.Go(func() { a.Write(up); a.CloseWrite() })
			wg.Go(func() { b.Write(down); b.CloseWrite() })
			wg.Go(func() {
				if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, up) {
					t.Errorf("stream %d up: %d bytes, %v", i, len(got), err)
				}
			})
			wg.Go(func() {
				if got, err := io.ReadAll(a); err != nil || !bytes.Equal(got, down) {
					t.Errorf("stream %d down: %d bytes, %v", i, len(got), err)
				}
			})
		}
		wg.Wait()
		close(done)
		cutter.Wait()
		if len(w.px.ended) != 0 {
			t.Errorf("the session ended: %v", w.px.ended)
		}
		resumes := uint64(0)
		for _, st := range w.br.link.Status() {
			resumes += st.Resumes
		}
		if resumes == 0 {
			t.Error("nothing was ever cut")
		}
		t.Logf("%d resumes", resumes)
	})
}

func TestBlackHoleHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.open()
		want := noise(3, 5<<20)
		go func() { a.Write(want); a.CloseWrite() }()
		io.ReadFull(b, make([]byte, 1000))
		w.net.BlackHole(memnet.Both)
		w.net.SetDials("proxy:3010", memnet.DialHang)
		time.Sleep(time.Minute)
		w.net.SetDials("proxy:3010", memnet.DialConnect)
		w.net.Heal()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, want[1000:]) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
	})
}

// The shorter of the two limits counts, at both ends.
func TestLimitOfAnOutage(t *testing.T) {
	for _, limits := range [][2]time.Duration{{20 * time.Second, 20 * time.Second}, {20 * time.Second, time.Hour}, {time.Hour, 20 * time.Second}} {
		t.Run(fmt.Sprint(limits), func(t *testing.T) { testLimitOfAnOutage(t, limits[0], limits[1]) })
	}
}

func testLimitOfAnOutage(t *testing.T, proxy, bridge time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		w := newUnlikeWorld(t, proxy, bridge)
		defer w.close()
		a, b := w.open()
		w.net.SetDials("proxy:3010", memnet.DialRefuse)
		w.net.Reset()
		begin := time.Now()
		for _, s := range []*Stream{a, b} {
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read = %v, want ECONNRESET", err)
			}
			if after, limit := time.Since(begin), min(proxy, bridge); after < limit || after > limit+time.Second {
				t.Errorf("reset after %s, want %s", after, limit)
			}
		}
		w.net.SetDials("proxy:3010", memnet.DialConnect)
		w.px.wait(func() bool { return len(w.px.ended) == 1 && w.px.allUp(testCarriers)() })
		w.br.wait(func() bool { return len(w.br.ended) == 1 && w.br.allUp(testCarriers)() })
		c, d := w.open()
		c.Write([]byte("x"))
		if _, err := io.ReadFull(d, make([]byte, 1)); err != nil {
			t.Fatalf("the next session: %v", err)
		}
	})
}

// TestWriteOfNothing: it does not wait for credit, and tells of an error all the same.
func TestWriteOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, _ := w.open()
		a.Write(noise(1, a.TryRoom()))
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		if n, err := a.Write(nil); n != 0 || err != nil {
			t.Errorf("Write(nil) without credit = %d, %v; want 0 and no error", n, err)
		}
		a.CloseWrite()
		if _, err := a.Write(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write(nil) behind CloseWrite = %v, want net.ErrClosed", err)
		}
	})
}
