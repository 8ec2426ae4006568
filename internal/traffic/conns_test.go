package traffic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/link"
	"reverser/internal/logtest"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// fake is a pair without a socket: it ends when it is told to.
type fake struct {
	mu             sync.Mutex
	ended          func(relay.Reason)
	reason         relay.Reason
	code           wire.Code
	sent, received uint64
}

func (f *fake) Start(_ *relay.Poller, ended func(relay.Reason)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = ended
	if f.reason != "" {
		go ended(f.reason)
	}
}

func (f *fake) End(reason relay.Reason, code wire.Code) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reason != "" {
		return
	}
	f.reason, f.code = reason, code
	if f.ended != nil {
		go f.ended(reason)
	}
}

func (f *fake) Counts() (sent, received uint64) { return f.sent, f.received }
func (f *fake) HalfClosed() bool                { return false }
func (f *fake) Paused() bool                    { return false }
func (f *fake) Resumes() uint64                 { return 3 }

func (f *fake) how() (relay.Reason, wire.Code) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reason, f.code
}

var (
	keyA, keyB = [16]byte{'a'}, [16]byte{'b'}
	alice      = netip.MustParseAddrPort("192.0.2.1:1000")
	bob        = netip.MustParseAddrPort("192.0.2.2:1000")
)

// admit lets a connection in that must be.
func admit(t testing.TB, a *Account, client netip.AddrPort) *Admission {
	t.Helper()
	ad, err := a.ledger.conns(t).Admit(a, client, NoWait)
	if err != nil {
		t.Fatalf("Admit: %v", err)
	}
	return ad
}

// conns finds the Conns of a ledger.
func (l *ledger) conns(t testing.TB) *Conns {
	c, ok := worlds.Load(l)
	if !ok {
		t.Fatal("no such world")
	}
	return c.(*Conns)
}

var worlds sync.Map // *ledger → *Conns

// bubble runs f with a Conns in a bubble, closes it, and wants nothing to be left.
func bubble(t *testing.T, cfg Config, f func(t *testing.T, c *Conns, log *logtest.Journal)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(slog.LevelDebug)
		cfg.Log = slog.New(log)
		c := New(cfg)
		worlds.Store(&c.ledger, c)
		defer worlds.Delete(&c.ledger)
		f(t, c, log)
		c.Close()
		wantNothing(t, c)
	})
}

// wantNothing: all that was taken is given back.
func wantNothing(t interface {
	Helper()
	Error(...any)
	Errorf(string, ...any)
}, c *Conns) {
	t.Helper()
	if l := c.Load(); l != (Load{}) || c.roster.busy.Load() != 0 || len(c.ledger.places.line.blocked)+len(c.room.dials) != 0 {
		t.Errorf("left behind: %+v, %d busy, %d keys that wait for a turn, %d dials", l, c.roster.busy.Load(), len(c.ledger.places.line.blocked), len(c.room.dials))
	}
	p := &c.ledger.places
	if p.used != 0 || len(p.holders)+len(p.line.users) != 0 || p.pool.Taken(sys.ForUsers) != 0 {
		t.Errorf("left behind: %d places, %d clients with some, %d who wait, %d descriptors", p.used, len(p.holders), len(p.line.users), p.pool.Taken(sys.ForUsers))
	}
	for range c.roster.each {
		t.Error("an admission is still on the list")
	}
	for _, k := range c.ledger.keys {
		if k.now != 0 || k.held.Load() != 0 || k.members.n != 0 || k.members.first != nil {
			t.Errorf("key %x: %d connections", k.Key, k.now)
		}
		for _, s := range k.services {
			if u := s.Usage(); u.Admitted != 0 || u.Pairs != 0 || s.others.now != 0 {
				t.Errorf("service %s: %+v, %d of clients without an account", s.Service, u, s.others.now)
			}
		}
	}
	for id, g := range c.ledger.guests {
		if g.now != 0 || g.idle == nil {
			t.Errorf("client %s: %d connections", id.block, g.now)
		}
	}
	if n := c.ledger.idle.Len(); n != len(c.ledger.guests) {
		t.Errorf("%d of %d clients are idle", n, len(c.ledger.guests))
	}
}

// TestLife follows one connection from Admit to the lines in the log and the counters.
func TestLife(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		acc := c.Account(keyA, "tcp/9000")
		a := admit(t, acc, alice)
		if l := c.Load(); l != (Load{Arriving: 1}) {
			t.Errorf("%+v, want one that arrives", l)
		}
		if ctx := a.Hold(); ctx.Err() != nil || c.Load() != (Load{Held: 1}) {
			t.Errorf("%+v, %v; want one that is held", c.Load(), ctx.Err())
		}
		f := &fake{sent: 5, received: 7}
		a.bind(f, "10.0.0.1:80")
		a.Leave() // as the crew does
		a.Refuse(RefusedAway, "never said")
		if c.Load() != (Load{Pairs: 1}) || acc.Usage().Pairs != 1 {
			t.Errorf("%+v, %+v; want a pair", c.Load(), acc.Usage())
		}
		for p := range c.Walk {
			st := p.Status()
			if st.ID == "" || st.Service != "tcp/9000" || st.Client != alice.String() || st.Target != "10.0.0.1:80" || st.Sent != 5 || st.Received != 7 || st.State != "open" || st.Since.IsZero() {
				t.Errorf("status %+v", st)
			}
		}
		time.Sleep(2 * time.Second)
		f.End(relay.ReasonEOF, 0)
		synctest.Wait()
		who := "service=tcp/9000 client=192.0.2.1:1000 target=10.0.0.1:80"
		want := []string{"pair created " + who, "pair released " + who + " sent=5 received=7 duration=2 reason=eof resumes=3"}
		if got := log.All(); !slices.Equal(got, want) {
			t.Errorf("the log says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if u := acc.Usage(); u.Admitted != 0 || u.Total != 1 || u.Ended[relay.ReasonEOF] != 1 || len(u.Ended) != 1 || len(u.Refused) != 0 {
			t.Errorf("usage %+v", u)
		}
		if k := c.KeyAccount(keyA).Usage(); k.Total != 1 || k.Ended[relay.ReasonEOF] != 1 {
			t.Errorf("usage of the key %+v", k)
		}
	})
}

// TestAccept: being out of descriptors passes, and what handle counts was counted before the next connection is accepted.
func TestAccept(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		ln := &script{}
		acc := c.Account(keyA, "tcp/9000")
		served := 0
		ln.steps = []func() (net.Conn, error){
			func() (net.Conn, error) { return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE} },
			func() (net.Conn, error) { return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE} },
			func() (net.Conn, error) { p, _ := net.Pipe(); return p, nil },
			func() (net.Conn, error) {
				if c.Load().Arriving != 1 || acc.Usage().Admitted != 1 {
					t.Errorf("%+v when the next one is accepted, want the first counted", c.Load())
				}
				return nil, net.ErrClosed
			},
		}
		hold := make(chan struct{})
		begin := time.Now()
		Accept(t.Context(), ln, Crowd, c.log, func(conn net.Conn) {
			a, err := c.Admit(acc, netip.AddrPort{}, Wait)
			if err != nil {
				t.Error(err)
			}
			a.Go(func() {
				<-hold
				served++
				conn.Close()
			})
		})
		if d := time.Since(begin); d != 15*time.Millisecond {
			t.Errorf("it took %s, want two pauses of 5 and 10 ms", d)
		}
		close(hold)
		synctest.Wait()
		if n := log.Count("accept failed, trying again"); n != 1 || served != 1 {
			t.Errorf("%d lines, %d served; want one each", n, served)
		}
	})
}

// TestAcceptOfAClientThatLeft: it is no fault of the listener, and nobody waits for it.
func TestAcceptOfAClientThatLeft(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		left := syscall.ENOTCONN
		if runtime.GOOS == "windows" {
			left = 10057 // WSAENOTCONN: the name that Go has there is not the system's
		}
		begin := time.Now()
		Accept(t.Context(), &script{steps: []func() (net.Conn, error){
			func() (net.Conn, error) {
				return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("acceptex", left)}
			},
			func() (net.Conn, error) { return nil, net.ErrClosed },
		}}, Crowd, c.log, nil)
		if n := log.Count("accept failed, trying again"); n != 0 || time.Since(begin) != 0 {
			t.Errorf("%d lines after %s; want none, at once", n, time.Since(begin))
		}
	})
}

// script is a listener that does one step after the other.
type script struct {
	steps []func() (net.Conn, error)
}

func (s *script) Accept() (net.Conn, error) {
	step := s.steps[0]
	s.steps = s.steps[1:]
	return step()
}
func (s *script) Close() error   { return nil }
func (s *script) Addr() net.Addr { return &net.TCPAddr{Port: 9000} }

// TestAcceptFailsNowAndThen: where connections and failures follow each other, as at the limit of descriptors, each failure is no line.
func TestAcceptFailsNowAndThen(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		fail := func() (net.Conn, error) { return nil, syscall.EMFILE }
		conn := func() (net.Conn, error) { p, _ := net.Pipe(); return p, nil }
		ln := &script{steps: slices.Repeat([]func() (net.Conn, error){fail, conn}, 1000)}
		ln.steps = append(ln.steps, func() (net.Conn, error) { time.Sleep(acceptFailedPer); return nil, syscall.EMFILE },
			func() (net.Conn, error) { return nil, net.ErrClosed })
		Accept(t.Context(), ln, Crowd, c.log, func(conn net.Conn) { conn.Close() })
		if lines := log.All("accept failed, trying again"); len(lines) != 2 || !strings.Contains(lines[1], "times=1000") {
			t.Errorf("the log says %q, want one line and one with the count", lines)
		}
	})
}

// TestAcceptIsStopped: a listener that fails again and again ends with the context.
func TestAcceptIsStopped(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		ctx, cancel := context.WithCancel(t.Context())
		fail := func() (net.Conn, error) { return nil, syscall.EMFILE }
		ln := &script{steps: slices.Repeat([]func() (net.Conn, error){fail}, 100)}
		go func() {
			time.Sleep(3 * time.Second)
			cancel()
		}()
		Accept(ctx, ln, Crowd, slog.New(slog.DiscardHandler), func(net.Conn) {})
	})
}

// TestPace: a crowd is taken in parts with pauses between them, and those who come one after the other wait for nothing.
func TestPace(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		const parts = 10
		at := Crowd * runtime.GOMAXPROCS(0)
		took := func(n, crowd int, between time.Duration) time.Duration {
			conn := func() (net.Conn, error) { time.Sleep(between); p, _ := net.Pipe(); return p, nil }
			steps := append(slices.Repeat([]func() (net.Conn, error){conn}, n), func() (net.Conn, error) { return nil, net.ErrClosed })
			begun := time.Now()
			Accept(t.Context(), &script{steps: steps}, crowd, c.log, func(conn net.Conn) { conn.Close() })
			return time.Since(begun)
		}
		if d := took(parts*at, Crowd, 0); d != parts*link.Pause {
			t.Errorf("%d who came at once were taken in %s, want %d pauses of %s", parts*at, d, parts, link.Pause)
		}
		if d := took(at-1, Crowd, 0); d != 0 {
			t.Errorf("%d who came at once were taken in %s, want at once", at-1, d)
		}
		if d := took(parts*at, 0, 0); d != 0 {
			t.Errorf("at a port that keys share %d were taken in %s, want at once", parts*at, d)
		}
		between := link.Pause/time.Duration(at-1) + time.Nanosecond
		if d := took(parts*at, Crowd, between); d != time.Duration(parts*at)*between {
			t.Errorf("%d who came one after the other were taken in %s, want no pause", parts*at, d)
		}
	})
}

// TestDials: so many at once, and a drain counts them.
func TestDials(t *testing.T) {
	bubble(t, Config{Dials: 1, Side: relay.Target}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		acc := c.Account(keyA, "tcp/9000")
		a, b := admit(t, acc, alice), admit(t, acc, bob)
		if !a.Dial() || b.Dial() {
			t.Error("want the first dial and no second one")
		}
		if c.Load() != (Load{Dialling: 1, Arriving: 1}) {
			t.Errorf("%+v", c.Load())
		}
		a.Dialled()
		a.Dialled()
		if !b.Dial() {
			t.Error("no dial when the other is over")
		}
		a.bind(&fake{}, "")
		b.Leave() // gives the dial back as well
	})
}

// TestEnd: End ends whom it means, those that are not a pair yet as soon as they are, and nobody else.
func TestEnd(t *testing.T) {
	testEnd(t, func(c *Conns) int {
		return c.End(relay.ReasonRemoved, wire.CodeService, func(a *Admission) bool { return a.Key() == keyA })
	})
}

func TestEndKey(t *testing.T) {
	testEnd(t, func(c *Conns) int { return c.EndKey(relay.ReasonRemoved, wire.CodeService, keyA) })
}

func testEnd(t *testing.T, end func(*Conns) int) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		one, other := c.Account(keyA, "tcp/9000"), c.Account(keyB, "tcp/9001")
		var early, late, stranger fake
		admit(t, one, alice).bind(&early, "")
		onTheWay, gone := admit(t, one, alice), admit(t, one, bob)
		admit(t, other, bob).bind(&stranger, "")
		if n := end(c); n != 3 {
			t.Errorf("End = %d, want 3", n)
		}
		if !onTheWay.Ended() || !gone.Ended() {
			t.Error("what is on the way does not know")
		}
		gone.Leave()
		onTheWay.bind(&late, "")
		after := &fake{}
		admit(t, one, alice).bind(after, "") // came later
		synctest.Wait()
		for name, f := range map[string]*fake{"early": &early, "late": &late} {
			if reason, code := f.how(); reason != relay.ReasonRemoved || code != wire.CodeService {
				t.Errorf("%s ended with %q, %d", name, reason, code)
			}
		}
		for name, f := range map[string]*fake{"stranger": &stranger, "after": after} {
			if reason, _ := f.how(); reason != "" {
				t.Errorf("%s ended with %q", name, reason)
			}
		}
		if log.Count("pair created") != 4 || log.Count("pair released", "reason=service-removed") != 2 {
			t.Errorf("the log says %q", log.All())
		}
	})
}

// TestFinally: what was asked for is called once, whatever became of the connection.
func TestFinally(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		n := 0
		for _, end := range []func(*Admission){
			(*Admission).Leave,
			func(a *Admission) { a.Refuse(RefusedAway, "") },
			func(a *Admission) { a.Leave(); a.Leave() },
		} {
			a, err := c.Admit(c.Account(keyA, "tcp/9000"), netip.AddrPort{}, Wait)
			if err != nil {
				t.Fatal(err)
			}
			a.Finally(func() { n++ })
			end(a)
		}
		if n != 3 {
			t.Errorf("called %d times for 3 connections", n)
		}
	})
}

// TestEndMissesNobody: whatever is bound while all are ended is ended.
func TestEndMissesNobody(t *testing.T) {
	for i := range 50 {
		c := New(Config{Max: 1 << 20})
		acc := c.Account(keyA, "tcp/9000")
		var mu sync.Mutex
		var all []*fake
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					a, err := c.Admit(acc, alice, Wait)
					if err != nil {
						return
					}
					f := &fake{}
					mu.Lock()
					all = append(all, f)
					mu.Unlock()
					a.Go(func() { a.bind(f, "") })
				}
			})
		}
		c.Shut()
		if i%2 == 0 {
			c.End(relay.ReasonDrain, wire.CodeDrain, nil)
		} else {
			c.EndKey(relay.ReasonDrain, wire.CodeDrain, keyA)
		}
		wg.Wait()
		<-c.roster.idle
		for _, f := range all {
			if reason, _ := f.how(); reason != relay.ReasonDrain {
				t.Fatalf("a pair ended with %q", reason)
			}
		}
		c.Close()
		wantNothing(t, c)
	}
}

// TestDrain: nothing enters, who waits for a bridge is let go, the others finish.
func TestDrain(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
		acc := c.Account(keyA, "tcp/9000")
		var first, second fake
		admit(t, acc, alice).bind(&first, "")
		waits := admit(t, acc, bob)
		waits.Go(func() {
			<-waits.Hold().Done()
			waits.Refuse(RefusedDrain, "")
		})
		late := admit(t, acc, bob)
		if !late.Dial() {
			t.Fatal("no dial")
		}
		begin := time.Now()
		go func() {
			time.Sleep(time.Second)
			if _, err := c.Admit(acc, alice, Wait); !errors.Is(err, ErrDraining) {
				t.Errorf("Admit = %v, want ErrDraining", err)
			}
			if c.Load() != (Load{Pairs: 1, Dialling: 1}) {
				t.Errorf("%+v, want the pair and the dial", c.Load())
			}
			late.Dialled()
			late.bind(&second, "")
			first.End(relay.ReasonEOF, 0)
			time.Sleep(time.Second)
			second.End(relay.ReasonEOF, 0)
		}()
		c.Drain(t.Context(), time.Minute)
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("Drain took %s, want 2s", d)
		}
		if log.Count("drain time is over") != 0 || log.Count("pair released", "reason=eof") != 2 {
			t.Errorf("the log says %q", log.All())
		}
		if r := acc.Usage().Refused[RefusedDrain]; r != 2 {
			t.Errorf("%d were refused, want 2", r)
		}
	})
}

// TestAwaitIdle: newcomers are let in until there is a moment without a connection.
func TestAwaitIdle(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		acc := c.Account(keyA, "tcp/9000")
		admit(t, acc, alice).Leave() // a moment of before does not count
		var first, second fake
		admit(t, acc, alice).bind(&first, "")
		newest := c.Newest()
		begin := time.Now()
		go func() {
			time.Sleep(time.Second)
			late := admit(t, acc, bob)
			if late.ID() <= newest {
				t.Errorf("a later connection has id %d, want more than %d", late.ID(), newest)
			}
			late.bind(&second, "")
			first.End(relay.ReasonEOF, 0)
			time.Sleep(time.Second)
			second.End(relay.ReasonEOF, 0)
		}()
		c.AwaitIdle(t.Context(), time.Minute)
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("idle after %s, want 2s", d)
		}
		var third fake
		admit(t, acc, alice).bind(&third, "")
		c.AwaitIdle(t.Context(), time.Second)
		if d := time.Since(begin); d != 3*time.Second {
			t.Errorf("AwaitIdle returned after %s, want its limit, 3s", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.AwaitIdle(ctx, time.Minute)
		if d := time.Since(begin); d != 4*time.Second {
			t.Errorf("AwaitIdle returned after %s, want its context's end, 4s", d)
		}
		third.End(relay.ReasonEOF, 0)
	})
}

// TestDrainIsOver: at its limit everybody is reset, what is on the way to a pair, too.
func TestDrainIsOver(t *testing.T) {
	for name, stop := range map[string]func(ctx context.Context, c *Conns, cancel func()){
		"the limit": func(ctx context.Context, c *Conns, _ func()) { c.Drain(ctx, time.Second) },
		"the context": func(ctx context.Context, c *Conns, cancel func()) {
			time.AfterFunc(time.Second, cancel)
			c.Drain(ctx, time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, c *Conns, log *logtest.Journal) {
				acc := c.Account(keyA, "tcp/9000")
				var pair, late fake
				admit(t, acc, alice).bind(&pair, "")
				opening := admit(t, acc, alice)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				begin := time.Now()
				stop(ctx, c, cancel)
				if d := time.Since(begin); d != time.Second {
					t.Errorf("Drain took %s, want 1s", d)
				}
				opening.bind(&late, "")
				synctest.Wait()
				if log.Count("pair released", "reason=drain") != 2 || c.Load() != (Load{}) {
					t.Errorf("%+v is left, the log says %q", c.Load(), log.All())
				}
			})
		})
	}
}

// TestWalkHoldsNobodyUp: while somebody looks at the pairs, others come and go.
func TestWalkHoldsNobodyUp(t *testing.T) {
	bubble(t, Config{Max: 1 << 20}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		acc := c.Account(keyA, "tcp/9000")
		const n = 1000
		for range n {
			admit(t, acc, alice).bind(&fake{}, "")
		}
		admit(t, acc, alice) // is no pair
		seen := 0
		for p := range c.Walk {
			if seen++; seen > n {
				break // those that came meanwhile
			}
			admit(t, acc, bob).bind(&fake{}, "") // would wait for ever for a lock that Walk holds
			p.endBy(&ending{relay.ReasonEOF, 0})
			if seen == n/2 {
				synctest.Wait()
			}
		}
		if seen < n {
			t.Errorf("%d seen of %d", seen, n)
		}
		seen = 0
		for range c.Walk {
			seen++
			break
		}
		if seen != 1 {
			t.Errorf("Walk went on after it was told to stop")
		}
		for a := range c.roster.each {
			a.Leave()
		}
	})
}

// TestChurn: everything at once, for the race detector.
func TestChurn(t *testing.T) {
	c := New(Config{Max: 64, Dials: 8, Clients: 16})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 500 {
				acc := c.Account([16]byte{byte(r.IntN(2))}, fmt.Sprintf("tcp/%d", r.IntN(3)))
				client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(40))}), 1)
				a, err := c.Admit(acc, client, Patience(r.IntN(2) == 0))
				if err != nil {
					continue
				}
				switch r.IntN(5) {
				case 0:
					a.Leave()
				case 1:
					a.Refuse(RefusedAway, "client refused")
				case 2:
					a.Go(func() {
						a.Dial()
						a.Dialled()
						f := &fake{sent: 1}
						a.bind(f, "")
						f.End(relay.ReasonEOF, 0)
					})
				case 3:
					a.Hold()
					a.Leave()
				case 4:
					f := &fake{}
					a.bind(f, "")
					c.End(relay.ReasonRemoved, wire.CodeService, func(x *Admission) bool { return x == a })
				}
				if r.IntN(20) == 0 {
					for p := range c.Walk {
						p.Status()
					}
					c.Load()
					acc.Usage()
					c.Show(&status.Snapshot{}, nil)
				}
			}
		})
	}
	wg.Wait()
	c.Drain(t.Context(), time.Minute)
	c.Close()
	wantNothing(t, c)
}

func BenchmarkAdmitBindEnd(b *testing.B) {
	c := New(Config{Max: 1 << 20})
	defer c.Close()
	acc := c.Account(keyA, "tcp/9000")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a, err := c.Admit(acc, alice, NoWait)
			if err != nil {
				b.Fatal(err)
			}
			a.bind(idlePair{}, "10.0.0.1:80")
			a.released(relay.ReasonEOF)
		}
	})
}

type idlePair struct{ *fake }

func (idlePair) Start(*relay.Poller, func(relay.Reason)) {}
func (idlePair) End(relay.Reason, wire.Code)             {}
func (idlePair) Counts() (sent, received uint64)         { return 1, 2 }
func (idlePair) Resumes() uint64                         { return 0 }

// BenchmarkWalk looks at 10,000 pairs.
func BenchmarkWalk(b *testing.B) {
	c := New(Config{Max: 1 << 20})
	acc := c.Account(keyA, "tcp/9000")
	var all []*Admission
	for range 10_000 {
		a, _ := c.Admit(acc, alice, NoWait)
		a.bind(idlePair{}, "")
		all = append(all, a)
	}
	b.ReportAllocs()
	for b.Loop() {
		for range c.Walk {
		}
	}
	for _, a := range all {
		a.released(relay.ReasonEOF)
	}
	c.Close()
}
