package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/memnet"
	"reverser/internal/status"
)

// crowd is a process with connections that a test changes. It counts how often it was looked at.
type crowd struct {
	mu    sync.Mutex
	pairs []status.Pair
	looks int
}

func (c *crowd) status() status.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looks++
	s := snapshot()
	s.Pairs = slices.Clone(c.pairs)
	return s
}

func (c *crowd) change(f func([]status.Pair) []status.Pair) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pairs = f(c.pairs)
}

func (c *crowd) looked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.looks
}

func somePairs(n int) []status.Pair {
	all := make([]status.Pair, n)
	for i := range all {
		all[i] = status.Pair{
			ID: strconv.Itoa(i + 1), Service: fmt.Sprintf("tcp/%d", 9000+i%50), Key: fmt.Sprintf("key-%d", i%20), Client: fmt.Sprintf("203.0.%d.%d:%d", 113+i>>8, i&255, 40000+i%1000),
			Target: "192.168.1.5:9904", Sent: uint64(i), Received: uint64(2 * i), Since: time.Unix(int64(i), 0).UTC(), State: status.PairOpen,
		}
	}
	return all
}

// readers are streams of a server in a bubble, each with what it was told of.
type reader struct {
	stop    func()
	mu      sync.Mutex
	pairs   map[string]status.Pair
	told    int // of pairs
	rows    int // in the last one
	resets  int
	seconds int // of status
}

func (r *reader) take(u admin.Update) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if u.Status != nil {
		r.seconds++
		if len(u.Status.Pairs) > 0 {
			return errors.New("status has connections")
		}
		return nil
	}
	if u.Pairs.Reset {
		r.pairs = make(map[string]status.Pair)
		r.resets++
	}
	r.told++
	r.rows = len(u.Pairs.Changed) + len(u.Pairs.Gone)
	for _, p := range u.Pairs.Changed {
		r.pairs[p.ID] = p
	}
	for _, id := range u.Pairs.Gone {
		delete(r.pairs, id)
	}
	return nil
}

// TestStream: all who watch 10,000 connections share one look a second, and are told what changed. While nobody watches there is none.
func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{pairs: somePairs(10_000)}
		dial, end := socketInBubble(t, &admin.Server{Status: c.status})
		client := admin.NewClient(dial)
		var wg sync.WaitGroup
		var readers []*reader
		watch := func(ofPairs bool) *reader {
			ctx, stop := context.WithCancel(t.Context())
			r := &reader{stop: stop}
			wg.Go(func() {
				if err := client.Stream(ctx, ofPairs, r.take); err != nil {
					t.Errorf("Stream = %v", err)
				}
			})
			readers = append(readers, r)
			return r
		}
		check := func(when string, r *reader, rows int) {
			t.Helper()
			synctest.Wait()
			r.mu.Lock()
			defer r.mu.Unlock()
			c.mu.Lock()
			defer c.mu.Unlock()
			if r.rows != rows || len(r.pairs) != len(c.pairs) {
				t.Errorf("%s: %d rows, and %d connections are known; want %d and %d", when, r.rows, len(r.pairs), rows, len(c.pairs))
			}
			for _, p := range c.pairs {
				if r.pairs[p.ID] != p {
					t.Errorf("%s: connection %s is %+v, want %+v", when, p.ID, r.pairs[p.ID], p)
					break
				}
			}
		}
		a, b, plain := watch(true), watch(true), watch(false)
		time.Sleep(100 * time.Millisecond)
		check("at first", a, 10_000)
		check("at first", b, 10_000)
		before := c.looked()
		c.change(func(all []status.Pair) []status.Pair {
			for i := range 10 {
				all[i*7].Sent += 1000
			}
			all[5000].State = status.PairPaused
			return all
		})
		time.Sleep(time.Second)
		check("after 11 changes", a, 11)
		check("after 11 changes", b, 11)
		c.change(func(all []status.Pair) []status.Pair {
			late := somePairs(10_003)[10_000:]
			return append(slices.Delete(slices.Clone(all), 100, 105), late...)
		})
		time.Sleep(time.Second)
		check("after five went and three came", a, 8)
		time.Sleep(time.Second)
		check("when nothing changed", a, 0)
		late := watch(true) // is told all, of what others were told already
		time.Sleep(time.Second)
		check("whoever comes later", late, 0)
		time.Sleep(10*time.Second - 100*time.Millisecond)
		if n := c.looked() - before; n > 15 {
			t.Errorf("%d looks in 14 seconds", n)
		}
		plain.mu.Lock()
		if plain.told != 0 || plain.seconds < 13 {
			t.Errorf("without connections: told of them %d times, and how the process is %d times", plain.told, plain.seconds)
		}
		plain.mu.Unlock()
		for _, r := range readers {
			r.stop()
		}
		wg.Wait()
		synctest.Wait()
		before = c.looked()
		time.Sleep(time.Hour)
		if n := c.looked() - before; n > 0 {
			t.Errorf("%d looks while nobody watches", n)
		}
		again := watch(true)
		time.Sleep(time.Second)
		check("another one, an hour later", again, 0)
		again.stop()
		wg.Wait()
		end()
	})
}

// socketInBubble serves what stands for the admin socket, in a bubble.
func socketInBubble(t *testing.T, s *admin.Server) (dial dialer, end func()) {
	t.Helper()
	n := new(memnet.Net)
	l, err := n.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	return func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, l.Addr().String()) }, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	}
}

// TestSlowReader: a reader that stands still for a while gets what is newest then, not what it has missed; one that takes nothing for long
// is left. Others notice neither.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{pairs: somePairs(2_000)}
		dial, end := socketInBubble(t, &admin.Server{Status: c.status})
		defer end()
		follow := func() (net.Conn, *bufio.Reader) {
			conn, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			io.WriteString(conn, "GET /api/v1/stream?pairs=true HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.Header.Get("Content-Type") != "text/event-stream" {
				t.Fatalf("stream = %v, %v", resp, err)
			}
			return conn, bufio.NewReader(resp.Body)
		}
		changes := func(r *bufio.Reader) (all []admin.PairChanges, err error) {
			for {
				l, err := r.ReadString('\n')
				if err != nil {
					return all, err
				}
				data, ok := strings.CutPrefix(l, "data: ")
				if !ok || !strings.HasPrefix(data, `{"reset"`) {
					continue
				}
				var p admin.PairChanges
				if err := json.Unmarshal([]byte(data), &p); err != nil {
					return all, err
				}
				if n := len(all); n > 0 && all[n-1].More {
					p.Reset = p.Reset || all[n-1].Reset
					p.Changed = append(all[n-1].Changed, p.Changed...)
					all = all[:n-1]
				}
				all = append(all, p)
			}
		}
		move := func() {
			c.change(func(all []status.Pair) []status.Pair {
				for i := range all {
					all[i].Sent++
				}
				return all
			})
		}
		slow, slowBody := follow()
		gone, goneBody := follow()
		for range 8 { // as long as the slow one takes nothing
			time.Sleep(time.Second)
			move()
		}
		slow.SetReadDeadline(time.Now().Add(3500 * time.Millisecond))
		all, err := changes(slowBody)
		if n := len(all); n == 0 || n > 7 || !all[0].Reset || all[n-1].Reset {
			t.Fatalf("the slow one is told %d times, %v", n, err)
		}
		c.mu.Lock()
		newest := c.pairs[7].Sent
		c.mu.Unlock()
		found := false
		for _, p := range all[len(all)-1].Changed {
			found = found || p.ID == "8" && p.Sent == newest
		}
		for _, l := range all[:len(all)-1] {
			for _, p := range l.Changed {
				found = found || p.ID == "8" && p.Sent == newest
			}
		}
		if !found {
			t.Errorf("the slow one is not told what is newest")
		}
		time.Sleep(30 * time.Second)
		for range 3 {
			move()
			time.Sleep(time.Second)
		}
		gone.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := changes(goneBody); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("whoever takes nothing is not left: %v", err)
		} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			t.Errorf("whoever takes nothing is not left: %v", err)
		}
	})
}

// slowLine is a connection by which 100 kB a second come in.
type slowLine struct{ net.Conn }

func (c slowLine) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b[:min(len(b), 10_000)])
	time.Sleep(time.Duration(n) * time.Second / 100_000)
	return n, err
}

// TestSlowLine: whoever has a slow line is told of 10,000 connections all the same, though that takes longer than anything else may; at the
// socket and at a TCP address.
func TestSlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{pairs: somePairs(10_000)}
		s := &admin.Server{Status: c.status}
		dial, end := socketInBubble(t, s)
		defer end()
		atTCP, _, endTCP := inBubble(t, s, admin.Address{Connections: 4})
		defer endTCP()
		var readers sync.WaitGroup
		defer readers.Wait()
		for name, dial := range map[string]dialer{"the socket": dial, "a TCP address": func(ctx context.Context) (net.Conn, error) {
			conn, err := atTCP(ctx)
			return withToken{conn}, err
		}} {
			readers.Go(func() {
				client := admin.NewClient(func(ctx context.Context) (net.Conn, error) {
					conn, err := dial(ctx)
					return slowLine{conn}, err
				})
				begun := time.Now()
				r := new(reader)
				enough := errors.New("enough")
				err := client.Stream(t.Context(), true, func(u admin.Update) error {
					c.change(func(all []status.Pair) []status.Pair { // all of them move
						for i := range all {
							all[i].Sent++
						}
						return all
					})
					if err := r.take(u); err != nil {
						return err
					}
					if r.told == 2 {
						return enough
					}
					return nil
				})
				if err != enough || r.resets != 1 || len(r.pairs) != 10_000 || r.rows != 10_000 {
					t.Errorf("%s: told of %d connections in %d times, then %v", name, len(r.pairs), r.told, err)
				}
				if d := time.Since(begun); d < 20*time.Second {
					t.Errorf("%s: that took %s, so that the line was not slow", name, d)
				}
			})
		}
	})
}

// withToken puts the token into the one request that a connection has.
type withToken struct{ net.Conn }

func (c withToken) Write(b []byte) (int, error) {
	text := strings.Replace(string(b), "\r\nHost: ", "\r\nAuthorization: Bearer "+adminToken+"\r\nHost: ", 1)
	text = strings.Replace(text, "Host: reverser", "Host: localhost", 1)
	if _, err := c.Conn.Write([]byte(text)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// TestStreamPlaces: streams leave places to orders at the admin socket, and end with the process.
func TestStreamPlaces(t *testing.T) {
	c := &crowd{}
	s := &admin.Server{Status: c.status}
	ctx, cancel := context.WithCancel(context.Background())
	n := new(memnet.Net)
	l, err := n.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	client := admin.NewClient(func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, l.Addr().String()) })
	var streams sync.WaitGroup
	over := make(chan error, 8)
	for range 4 {
		began := make(chan struct{})
		var once sync.Once
		streams.Go(func() {
			over <- client.Stream(context.Background(), true, func(admin.Update) error {
				once.Do(func() { close(began) })
				return nil
			})
		})
		<-began
	}
	if err := client.Stream(ctx, false, func(admin.Update) error { return nil }); !isUsage(err) || !strings.Contains(err.Error(), "as many as may") {
		t.Errorf("a fifth stream = %v, want a refusal", err)
	}
	for range 8 {
		if _, err := client.Summary(ctx); err != nil {
			t.Errorf("status, beside four streams: %v", err)
		}
	}
	cancel()
	streams.Wait()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
	for range 4 {
		if err := <-over; err == nil || isUsage(err) {
			t.Errorf("a stream ended with %v, want a word about the end of the process", err)
		}
	}
}

// TestPairs: connections are found by service, key and client.
func TestPairs(t *testing.T) {
	all := somePairs(1_500)
	all[3].Client = "[2001:db8::7]:4000"
	keys := &fakeKeys{names: []string{"key-7"}}
	c := client(t, &admin.Server{Status: (&crowd{pairs: all}).status, Keys: keys})
	allow := func(s string) grammar.Allow {
		a, err := grammar.ParseAllow(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, tt := range []struct {
		name            string
		which           admin.Which
		limit           int
		listed, matched int
	}{
		{"all", admin.Which{}, 0, 1000, 1500},
		{"all of them", admin.Which{}, 2000, 1500, 1500},
		{"a few", admin.Which{}, 3, 3, 1500},
		{"a service", admin.Which{Service: allow("tcp/9001")}, 0, 30, 30},
		{"a range", admin.Which{Service: allow("tcp/9000-9009")}, 0, 300, 300},
		{"another kind", admin.Which{Service: allow("http/*")}, 0, 0, 0},
		{"a key", admin.Which{Key: "key-7"}, 0, 75, 75},
		{"nobody's key", admin.Which{Key: "other"}, 0, 0, 0},
		{"an address", admin.Which{Client: netip.MustParsePrefix("203.0.113.5/32")}, 0, 1, 1},
		{"a network", admin.Which{Client: netip.MustParsePrefix("203.0.113.0/24")}, 0, 255, 255},
		{"a network of IPv6", admin.Which{Client: netip.MustParsePrefix("2001:db8::/32")}, 0, 1, 1},
		{"all words", admin.Which{Service: allow("tcp/9007"), Key: "key-7", Client: netip.MustParsePrefix("203.0.113.0/24")}, 0, 3, 3},
	} {
		list, err := c.Pairs(t.Context(), tt.which, tt.limit)
		if err != nil || len(list.Pairs) != tt.listed || list.Matched != tt.matched {
			t.Errorf("%s: %d of %d, %v; want %d of %d", tt.name, len(list.Pairs), list.Matched, err, tt.listed, tt.matched)
		}
	}
	dial := serve(t, &admin.Server{Status: snapshot})
	for _, query := range []string{"limit=x", "limit=-1", "limit=1000000", "limit=", "service=nonsense/x/y", "client=300.1.1.1", "what=1", "key=", "key=a&key=b", "%zz"} {
		if resp, body := ask(t, dial, "GET /api/v1/pairs?"+query+" HTTP/1.1\r\nHost: x\r\n\r\n"); resp.StatusCode != 400 || !isProblem(body, 400) {
			t.Errorf("%s: %d %s", query, resp.StatusCode, body)
		}
	}
}
