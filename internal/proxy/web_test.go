package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"reverser/internal/link"
	"reverser/internal/registry"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	"reverser/internal/web"
	"reverser/internal/wire"
)

// streamListener is the streams of a bridge as a listener of the HTTP server that plays their target.
type streamListener struct {
	b     *bridge
	close chan struct{}
	seen  atomic.Int64 // streams
}

func (l *streamListener) Accept() (net.Conn, error) {
	select {
	case s := <-l.b.streams:
		l.seen.Add(1)
		return s, nil
	case <-l.close:
		return nil, net.ErrClosed
	}
}
func (l *streamListener) Close() error   { return nil }
func (l *streamListener) Addr() net.Addr { return &net.TCPAddr{} }

// target answers the requests that reach a bridge.
func (b *bridge) target(h http.HandlerFunc) *streamListener {
	l := &streamListener{b: b, close: make(chan struct{})}
	srv := &http.Server{Handler: h, ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, streamKey{}, c) }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l)
	}()
	b.w.t.Cleanup(func() {
		close(l.close)
		srv.Close()
		<-done
	})
	return l
}

type streamKey struct{}

// openOf is the OPEN of the stream on which a request came.
func openOf(r *http.Request) wire.Open { return r.Context().Value(streamKey{}).(*link.Stream).Open() }

// httpUser is a connection to the port for HTTP.
type httpUser struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (w *world) httpUser() *httpUser {
	c := w.user(w.p.web.ln.Addr().String())
	return &httpUser{w.t, c, bufio.NewReader(c)}
}

// ask sends a request as it is, and returns the answer with its body.
func (u *httpUser) ask(request string) (*http.Response, string) {
	u.t.Helper()
	if _, err := io.WriteString(u, request); err != nil {
		u.t.Fatal(err)
	}
	resp, err := http.ReadResponse(u.r, nil)
	if err != nil {
		u.t.Fatalf("the answer to %.60q: %v", request, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		u.t.Fatalf("the answer to %.60q: %v", request, err)
	}
	return resp, string(body)
}

func get(host, path string) string { return "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }

func say(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %d %s %s", text, openOf(r).Service, r.Host, r.URL.RequestURI())
	}
}

// TestCrowdedHeads: while the memory for long heads of answers is short, status and log say so, and who has most of it.
func TestCrowdedHeads(t *testing.T) {
	evil := key(t, "evil", "http/*")
	w := prepare(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{evil}}})
	const room = 124 << 10 // a head of 50 KiB takes 60, and 64 are more than half
	w.p.web.server.HeadRoom = room
	w.run()
	b := w.bridge(evil, how{instance: 1}, "http/a.example")
	for range 2 {
		go func() { io.WriteString(<-b.streams, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 50<<10)) }() // and no end
	}
	pressure := func() *status.Pressure {
		for _, p := range w.p.Status().Pressure {
			if p.What == "bytes of memory for long heads of answers" {
				return &p
			}
		}
		return nil
	}
	io.WriteString(w.httpUser(), get("a.example", "/"))
	eventually(t, "the first one has its room", func() bool { return w.p.web.server.Taken(web.PoolAnswers).Used == 60<<10 })
	if p := pressure(); p != nil {
		t.Errorf("pressure %+v, and nobody was refused", p)
	}
	if resp, _ := w.httpUser().ask(get("a.example", "/")); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("beside it: %s, want 502", resp.Status)
	}
	p := pressure()
	if p == nil || p.Limit != room || p.Largest.Key != "evil" || p.Largest.Used < 60<<10 || p.Since.IsZero() || p.Hint == "" {
		t.Errorf("pressure %+v", p)
	}
	if n := w.log.Count("running short", "of=bytes of memory for long heads of answers", "largest_key=evil"); n != 1 {
		t.Errorf("%d lines, want 1", n)
	}
}

// TestPoolsThatAreShort: each pool of memory that refuses somebody is in status.
func TestPoolsThatAreShort(t *testing.T) {
	w := start(t, Config{HTTP: "127.0.0.1:0"})
	why := errors.New("there is none")
	w.p.web.server.Crowded(web.PoolAnswers, why)
	w.p.web.server.Crowded(web.PoolStrangers, why)
	w.p.web.server.Crowded(web.PoolUsers, why)
	w.p.names.hellos.Crowded(why)
	var got []string
	for _, p := range w.p.Status().Pressure {
		if p.Limit == 0 || p.Since.IsZero() || p.Hint == "" || p.Largest != (status.Holder{}) {
			t.Errorf("pressure %+v", p)
		}
		got = append(got, p.What)
	}
	want := []string{
		"bytes of memory for ClientHellos of more than 4 KiB", "bytes of memory for long heads of answers",
		"bytes of memory for long heads of requests of strangers", "bytes of memory for heads of requests of HTTP/2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("short are %q, want %q", got, want)
	}
}

// TestPlacesForNames: a name for which there is no place waits, status says so with who has most, and it is served when another goes.
func TestPlacesForNames(t *testing.T) {
	nas := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Names: 4, Settings: Settings{Keys: []Key{nas}}})
	b := w.bridge(nas, how{instance: 1}, "http/a.example", "http/b.example", "http/c.example")
	b.wantClaim(2, wire.ClaimRetrying, "has no place", "memory for 4 names")
	want := status.Pressure{What: "places for names", Used: 2, Limit: 4, Largest: status.Holder{Key: "nas", Used: 2}}
	list := w.p.Status().Pressure
	at := slices.IndexFunc(list, func(p status.Pressure) bool { return p.What == want.What })
	if at < 0 {
		t.Fatalf("pressure %+v", list)
	}
	if want.Hint = list[at].Hint; list[at] != want || !strings.Contains(want.Hint, "--max-services") {
		t.Errorf("pressure %+v, want %+v", list[at], want)
	}
	b.unclaim(0)
	b.wantClaim(2, wire.ClaimUp)
	if list := w.p.Status().Pressure; len(list) != 0 {
		t.Errorf("pressure %+v when all have a place", list)
	}
}

// TestWeb: host and longest path decide who answers, for each request of one connection; upstream connections are used again; the clients
// of a service are pairs.
func TestWeb(t *testing.T) {
	nas, pc := key(t, "nas", "http/*"), key(t, "pc", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{nas, pc}}})
	one := w.bridge(nas, how{instance: 1}, "http/a.example", "http/a.example/api", "http/*.example", "http/203.0.113.7", "http/[::1]")
	two := w.bridge(pc, how{instance: 2}, "http/*", "http/a.example/api/v2")
	first, second := one.target(say("nas")), two.target(say("pc"))
	u := w.httpUser()
	for _, c := range []struct{ host, path, want string }{
		{"a.example", "/", "nas 1 a.example /"},
		{"A.EXAMPLE.:8080", "/x?y=%2f;z", "nas 1 A.EXAMPLE.:8080 /x?y=%2f;z"},
		{"a.example", "/api", "nas 2 a.example /api"},
		{"a.example", "/api/v2/x%2Fy", "pc 2 a.example /api/v2/x%2Fy"},
		{"a.example", "/api/v22", "nas 2 a.example /api/v22"},
		{"a.example", "/apix", "nas 1 a.example /apix"},
		{"b.example", "/api", "nas 3 b.example /api"},
		{"b.b.example", "/", "pc 1 b.b.example /"},
		{"203.0.113.7", "/", "nas 4 203.0.113.7 /"},
		{"[0:0::1]:80", "/", "nas 5 [0:0::1]:80 /"},
		{"203.0.113.8", "/", "pc 1 203.0.113.8 /"},
	} {
		if _, body := u.ask(get(c.host, c.path)); body != c.want {
			t.Errorf("%s%s: %q, want %q", c.host, c.path, body, c.want)
		}
	}
	before := first.seen.Load() + second.seen.Load()
	for range 20 {
		u.ask(get("a.example", "/"))
	}
	if now := first.seen.Load() + second.seen.Load(); now > before+1 { // they may have been idle for too long
		t.Errorf("20 requests one after the other opened %d streams", now-before)
	}
	st := w.p.Status()
	if len(st.Pairs) != 7 {
		t.Errorf("one client at seven services is %d pairs", len(st.Pairs))
	}
	for _, p := range st.Pairs {
		if p.Service == "http/a.example" && (p.Received == 0 || p.Client != u.LocalAddr().String() || p.Target != "10.0.0.1:80") {
			t.Errorf("pair %+v", p)
		}
	}
	u.Close()
	eventually(t, "the client has left every service", func() bool { return len(w.p.Status().Pairs) == 0 })
	if n := w.log.Count("pair released service=http/a.example/api/v2", "reason=eof"); n != 1 {
		t.Errorf("the end of the visit is logged %d times", n)
	}
}

// TestWebOpen: a bridge learns who the client is, which host it asked for, and the id that a page would show.
func TestWebOpen(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	u := w.httpUser()
	io.WriteString(u, get("a.example", "/"))
	s := b.stream()
	o := s.Open()
	if o.Entrance != wire.EntranceHTTP || o.Client.String() != u.LocalAddr().String() || o.Local.String() != u.RemoteAddr().String() || o.Rest().Host != "a.example" || o.Rest().Trace == [16]byte{} {
		t.Errorf("OPEN %+v %+v", o, o.Rest())
	}
	s.Reset(wire.CodeRefused)
	resp, err := http.ReadResponse(u.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	id := fmt.Sprintf("%x", o.Rest().Trace)
	if resp.StatusCode != http.StatusBadGateway || resp.Header.Get("X-Request-Id") != id || !strings.Contains(string(body), id) || strings.Contains(string(body), "10.0.0") {
		t.Errorf("%d %v %q, want 502 with the id %s", resp.StatusCode, resp.Header, body, id)
	}
	eventually(t, "the log has the id", func() bool {
		return w.log.Count("request not answered by its target service=http/a.example", "request="+id, "status=502", "refuses connections") == 1
	})
}

// TestWebPages: each way in which a request finds no target has an answer of its own, and the connection can be used again.
func TestWebPages(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	u := w.httpUser()
	if resp, _ := u.ask(get("b.example", "/")); resp.StatusCode != http.StatusNotFound {
		t.Errorf("an unknown host: %s", resp.Status)
	}
	for code, want := range map[wire.Code]int{
		wire.CodeRefused: 502, wire.CodeUnreachable: 502, wire.CodeReset: 502, wire.CodeLimit: 503, wire.CodeDrain: 503, wire.CodeService: 404,
	} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			s := b.stream()
			io.ReadFull(s, make([]byte, 1))
			s.Reset(code)
		}()
		resp, _ := u.ask(get("a.example", "/"))
		if resp.StatusCode != want || (want == 503) != (resp.Header.Get("Retry-After") == "10") {
			t.Errorf("code %d: %s, Retry-After %q; want %d", code, resp.Status, resp.Header.Get("Retry-After"), want)
		}
		<-done
	}
}

// TestWebRetired: no request reaches a target over a connection of a service that was given back, however many are kept.
func TestWebRetired(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example", "http/*")
	b.target(say("nas"))
	u := w.httpUser()
	if _, body := u.ask(get("a.example", "/")); !strings.HasPrefix(body, "nas 1 ") {
		t.Errorf("%q", body)
	}
	rt := w.route("http/a.example")
	b.unclaim(0)
	if _, body := u.ask(get("a.example", "/")); !strings.HasPrefix(body, "nas 2 ") {
		t.Errorf("%q, want the answer of http/*", body)
	}
	if st := rt.Target(); st != "" {
		t.Errorf("the route of a removed service leads to %q", st)
	}
}

// TestWebEnd: an order ends the exchanges of a client at a service with RST, and one to another service goes on.
func TestWebEnd(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example", "http/b.example")
	hold := make(chan struct{})
	b.target(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		w.(http.Flusher).Flush()
		if openOf(r).Service == 1 {
			select {
			case <-r.Context().Done():
			case <-hold:
			}
		}
	})
	defer close(hold)
	u, other := w.httpUser(), w.httpUser()
	other.ask(get("b.example", "/"))
	io.WriteString(u, get("a.example", "/"))
	resp, err := http.ReadResponse(u.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(resp.Body, make([]byte, 5))
	if n := w.p.conns.EndKey(relay.ReasonRemoved, wire.CodeService, [16]byte{}); n != 0 {
		t.Errorf("%d connections of no key", n)
	}
	if n := w.p.conns.End(relay.ReasonRemoved, wire.CodeService, func(a *traffic.Admission) bool { return a.Service() == "http/a.example" }); n != 1 {
		t.Errorf("%d pairs ended, want 1", n)
	}
	if _, err := io.ReadAll(resp.Body); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the answer that was ended is complete: %v", err)
	}
	eventually(t, "its end is logged", func() bool {
		return w.log.Count("pair released service=http/a.example", "reason=service-removed") == 1
	})
	other.ask(get("b.example", "/"))
}

// TestWebNeedsAPort: without --http a name is denied by a word that says so.
func TestWebNeedsAPort(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	w.dial(k, how{instance: 1}, "http/a.example")
	eventually(t, "it is denied", func() bool { return w.log.Count("http/a.example denied", "--http :80") == 1 })
}

// TestSilentAtTheWeb: those who say nothing do not keep others from their services.
func TestSilentAtTheWeb(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	b.target(say("nas"))
	gate := w.p.web.gate
	gate.mu.Lock()
	gate.room.most = 8
	gate.mu.Unlock()
	var silent []*httpUser
	for range 40 {
		silent = append(silent, w.httpUser())
	}
	u := w.httpUser()
	u.ask(get("a.example", "/"))
	for i, c := range silent[:32] {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("the %d. that said nothing was answered", i)
		}
	}
	u.ask(get("a.example", "/"))
}

// TestWebStrangers: those who ask for nothing that is served here are the first to go when others come, with TLS and without, and what they
// took is given back once. A client that a service has let in stays.
func TestWebStrangers(t *testing.T) {
	f := newFakeCertificates(t, "a.example", "none.example")
	k := key(t, "nas", "http/*", "https/*")
	w := prepare(t, Config{HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{k}}})
	pool := w.p.port.descriptors
	idle := pool.Taken(sys.ForUsers)
	w.run()
	b := w.bridge(k, how{instance: 1}, "http/a.example", "https/a.example")
	b.target(say("nas"))
	eventually(t, "each port has a descriptor for who comes next", func() bool { return pool.Taken(sys.ForHellos) == 1 && pool.Taken(sys.ForUsers) == idle+1 })
	users, hellos := pool.Taken(sys.ForUsers), pool.Taken(sys.ForHellos)
	for what, c := range map[string]struct {
		gate *gate
		user func() *httpUser
	}{
		"plain": {w.p.web.gate, w.httpUser},
		"TLS": {w.p.names.gate, func() *httpUser {
			conn, err := w.secure(f, "a.example")
			if err != nil {
				t.Fatal(err)
			}
			return &httpUser{t, conn, bufio.NewReader(conn)}
		}},
	} {
		c.gate.mu.Lock()
		c.gate.room.most = 8
		c.gate.mu.Unlock()
		inside := func() int {
			c.gate.mu.Lock()
			defer c.gate.mu.Unlock()
			n, _ := c.gate.room.held()
			return n
		}
		served := c.user()
		served.ask(get("a.example", "/"))
		var strangers []*httpUser
		for i := range 40 {
			u := c.user()
			if resp, _ := u.ask(get("none.example", "/")); resp.StatusCode/100 != 4 {
				t.Errorf("%s: the %d. stranger: %s, want a page", what, i, resp.Status)
			}
			strangers = append(strangers, u)
		}
		for i, u := range strangers[:32] {
			if _, err := u.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%s: the %d. stranger was not sent away: %v", what, i, err)
			}
		}
		last := strangers[39]
		last.ask(get("none.example", "/"))
		before := inside()
		last.ask(get("a.example", "/"))
		last.ask(get("none.example", "/"))
		if now := inside(); now != before-1 {
			t.Errorf("%s: one that a service has let in has left %d places at the gate, want 1", what, before-now)
		}
		for _, u := range append(strangers, served) {
			if u == served {
				u.ask(get("a.example", "/"))
			}
			u.Close()
		}
		eventually(t, what+": all have given back what they took", func() bool {
			return inside() == 0 && pool.Taken(sys.ForUsers) == users && pool.Taken(sys.ForHellos) == hellos
		})
	}
}

// TestWebWhileAway: a request waits for a bridge that is away, and is served when it is back. When it has waited for as long as users do, its
// page says when to come again.
func TestWebWhileAway(t *testing.T) {
	t.Parallel()
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	away := func(b *bridge) {
		b.stop()
		<-b.done
		eventually(t, "the proxy knows", func() bool {
			s := w.p.Status().Services
			return len(s) == 1 && s[0].State == status.ServiceAway
		})
	}
	away(w.bridge(k, how{instance: 1}, "http/a.example"))
	waiting := w.httpUser()
	io.WriteString(waiting, get("a.example", "/"))
	eventually(t, "it waits", func() bool { return len(w.p.Status().Pairs) == 1 })
	b := w.bridge(k, how{instance: 2}, "http/a.example")
	b.target(say("nas"))
	if resp, err := http.ReadResponse(waiting.r, nil); err != nil || resp.StatusCode != 200 {
		t.Fatalf("when the bridge is back: %v, %v", resp, err)
	}
	away(b)
	late := w.httpUser()
	late.SetReadDeadline(time.Now().Add(10 * registry.Hold))
	begun := time.Now()
	resp, body := late.ask(get("a.example", "/"))
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "10" || !strings.Contains(body, "not connected") || time.Since(begun) < registry.Hold {
		t.Errorf("while the bridge stays away: %s %q after %v, Retry-After %q", resp.Status, body, time.Since(begun), resp.Header.Get("Retry-After"))
	}
}

// TestWebSessionEnds: a request that waits for a bridge when its session ends, or the proxy stops, is told to come again. One whose service
// was removed by an order is told that it is gone.
func TestWebSessionEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		event func(w *world, l *link.Link)
		want  int
	}{
		"the session ended":   {func(_ *world, l *link.Link) { l.Kill(errors.New("away for too long")) }, 503},
		"the proxy stops":     {func(w *world, _ *link.Link) { w.p.Drain() }, 503},
		"the proxy stops now": {func(w *world, _ *link.Link) { w.p.closeSockets(); w.p.conns.Shut() }, 503},
		"the policy changed":  {func(w *world, _ *link.Link) { w.setKeys(key(w.t, "nas", "http/b.example")) }, 404},
	} {
		t.Run(name, func(t *testing.T) {
			k := key(t, "nas", "http/*")
			w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
			b := w.bridge(k, how{instance: 1}, "http/a.example")
			l := w.p.port.host.Link(k.ID)
			b.stop()
			<-b.done
			eventually(t, "the proxy knows", func() bool { return !l.Connected() })
			u := w.httpUser()
			io.WriteString(u, get("a.example", "/"))
			eventually(t, "it waits", func() bool { return len(w.p.Status().Pairs) == 1 })
			c.event(w, l)
			resp, err := http.ReadResponse(u.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if again := resp.Header.Get("Retry-After"); resp.StatusCode != c.want || again != map[int]string{503: "10"}[c.want] {
				t.Errorf("%s, Retry-After %q; want %d", resp.Status, again, c.want)
			}
		})
	}
}

// TestWebRefusedIsLogged: the id on a page is in the log. What strangers ask for is there for those who look for it.
func TestWebRefusedIsLogged(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	w.bridge(k, how{instance: 1}, "http/a.example")
	for request, status := range map[string]int{get("b.example", "/"): 404, "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n": 400} {
		resp, _ := w.httpUser().ask(request)
		id := resp.Header.Get("X-Request-Id")
		if resp.StatusCode != status || id == "" {
			t.Errorf("%q: %s, id %q", request, resp.Status, id)
		}
		eventually(t, "the log has it", func() bool { return w.log.Count("request refused", id) == 1 })
	}
}

// TestWebLeftWhileAway: who leaves while the bridge is away does not keep the place of those who wait for it.
func TestWebLeftWhileAway(t *testing.T) {
	// All has to happen before the first user has waited for as long as anybody may. Where a machine is too slow for that, fewer users still
	// show that those who left are gone.
	for n := registry.MaxHeld; !leftWhileAway(t, n); n /= 4 {
		if n == 1 {
			t.Fatalf("one who left was there for %v, or no other could wait before that", registry.Hold)
		}
	}
}

// leftWhileAway has n users come and leave while the bridge is away, and then one who waits for it. It reports whether that took less than
// anybody is held.
func leftWhileAway(t *testing.T, n int) bool {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	b.stop()
	<-b.done
	eventually(t, "the proxy knows", func() bool { return w.p.Status().Services[0].State == status.ServiceAway })
	begun := time.Now()
	late := func() bool { return time.Since(begun) >= registry.Hold }
	pairs := func() int { return len(w.p.Status().Pairs) }
	var users []*httpUser
	for range n {
		u := w.httpUser()
		io.WriteString(u, get("a.example", "/"))
		users = append(users, u)
	}
	eventually(t, "all are pairs", func() bool { return pairs() == len(users) || late() })
	for _, u := range users {
		u.Close()
	}
	eventually(t, "none is", func() bool { return pairs() == 0 })
	if late() {
		return false
	}
	waits := w.httpUser()
	io.WriteString(waits, get("a.example", "/"))
	again := w.dial(k, how{instance: 2}, "http/a.example")
	again.target(say("nas"))
	resp, err := http.ReadResponse(waits.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK {
		return !late()
	}
	if !late() {
		t.Fatalf("one who came when the others had left is answered %s; want them to wait for the bridge", resp.Status)
	}
	return false
}

// TestWebManyWaitOnOneConnection: the requests of a page that is loaded by HTTP/2 wait for the bridge, and are served when it is back. Further
// connections with as many leave others room: those for which there is none are told at once.
func TestWebManyWaitOnOneConnection(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	b.stop()
	<-b.done
	eventually(t, "the proxy knows", func() bool { return w.p.Status().Services[0].State == status.ServiceAway })
	const conns, each = 3, 100
	answers := make(chan *http.Response, conns*each)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range conns {
		conn := w.user(w.p.web.ln.Addr().String())
		client, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(conn) // an http.Transport may dial once for each request
		if err != nil {
			t.Fatal(err)
		}
		for range each {
			wg.Go(func() {
				resp, err := client.RoundTrip(httptest.NewRequest("GET", "http://a.example/", nil))
				if err != nil {
					t.Error(err)
					resp = new(http.Response)
				} else {
					resp.Body.Close()
				}
				answers <- resp
			})
		}
	}
	// Of the connections whose requests come in any order, each may have a few that come when half of the places are taken.
	const most = registry.MaxHeld/2 + conns*registry.MaxHeldEach
	for range conns*each - most {
		if resp := <-answers; resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("one of too many: %s, Retry-After %q; want 503", resp.Status, resp.Header.Get("Retry-After"))
		}
	}
	w.bridge(k, how{instance: 2}, "http/a.example").target(say("nas"))
	served := 0
	for range most {
		if resp := <-answers; resp.StatusCode == http.StatusOK {
			served++
		}
	}
	if served < registry.MaxHeld/2 {
		t.Errorf("%d that waited were served, want at least %d", served, registry.MaxHeld/2)
	}
}

// TestWebDrain: a proxy that stops lets a request finish, and closes idle connections at once.
func TestWebDrain(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	begun, finish := make(chan struct{}), make(chan struct{})
	b.target(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(begun)
			<-finish
		}
		io.WriteString(w, "done")
	})
	idle, busy := w.httpUser(), w.httpUser()
	idle.ask(get("a.example", "/"))
	io.WriteString(busy, get("a.example", "/slow"))
	<-begun
	w.p.Drain()
	if b, err := io.ReadAll(idle.r); err != nil || len(b) > 0 {
		t.Errorf("an idle connection read %q, %v; want EOF", b, err)
	}
	close(finish)
	resp, err := http.ReadResponse(busy.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "done" {
		t.Errorf("the request that was under way: %q, %v", body, err)
	}
	<-w.done
	if w.err != nil {
		t.Error(w.err)
	}
}

// underAnAnswer returns a proxy with a client that has the beginning of an answer, and the stream on which the target, who says no more, has the
// request.
func underAnAnswer(t *testing.T, request string) (*world, *httpUser, *http.Response, *link.Stream) {
	t.Helper()
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	streams := make(chan *link.Stream, 1)
	b.target(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		w.(http.Flusher).Flush()
		streams <- r.Context().Value(streamKey{}).(*link.Stream)
		<-r.Context().Done()
	})
	u := w.httpUser()
	io.WriteString(u, request)
	resp, err := http.ReadResponse(u.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(resp.Body, make([]byte, 5))
	return w, u, resp, <-streams
}

// TestWebEnded: an order at the proxy ends the client's connection, and the bridge hears its reason; one at the bridge ends the connection
// to the target, and the proxy says the same.
func TestWebEnded(t *testing.T) {
	for name, atBridge := range map[string]bool{"at the proxy": false, "at the bridge": true} {
		t.Run(name, func(t *testing.T) {
			w, _, resp, s := underAnAnswer(t, get("a.example", "/"))
			if atBridge {
				s.Reset(wire.CodeEnded)
			} else if n := w.p.EndPairs(traffic.Which{Key: "nas"}); n != 1 {
				t.Errorf("%d pairs ended, want 1", n)
			}
			if _, err := io.ReadAll(resp.Body); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("the answer that was ended is complete: %v", err)
			}
			eventually(t, "its end is logged", func() bool {
				return w.log.Count("pair released service=http/a.example", "reason=ended") == 1
			})
			if !atBridge {
				eventually(t, "the bridge has the code", func() bool { return s.Code() == wire.CodeEnded })
			}
		})
	}
}

// TestWebBroken: who broke an answer off stands in the log.
func TestWebBroken(t *testing.T) {
	for name, c := range map[string]struct {
		code            wire.Code // 0: the client leaves
		request, reason string
	}{
		"the target":                        {wire.CodeReset, get("a.example", "/"), "target-reset"},
		"the target, under an upgrade":      {wire.CodeReset, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "target-reset"},
		"the bridge, for a removed service": {wire.CodeService, get("a.example", "/"), "service-removed"},
		"the client":                        {0, get("a.example", "/"), "client-reset"},
	} {
		t.Run(name, func(t *testing.T) {
			w, u, _, s := underAnAnswer(t, c.request)
			if c.code != 0 {
				s.Reset(c.code)
			} else {
				u.Close()
			}
			eventually(t, "its end is logged", func() bool {
				return w.log.Count("pair released service=http/a.example", "reason="+c.reason) == 1
			})
		})
	}
}

// TestTargetOfAName: what status says of the target of a name, for which the proxy answers while there is no target. Its own pages are not the
// target's word.
func TestTargetOfAName(t *testing.T) {
	k := key(t, "nas", "http/*")
	for _, request := range []string{get("a.example", "/"), "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n"} {
		for code, want := range map[wire.Code]string{wire.CodeRefused: status.TargetRefused, wire.CodeUnreachable: status.TargetUnreachable} {
			w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
			b := w.bridge(k, how{instance: 1}, "http/a.example")
			u := w.httpUser()
			target := func(ok bool) {
				done := make(chan struct{})
				go func() {
					defer close(done)
					s := <-b.streams
					if !ok {
						s.Reset(code)
						return
					}
					http.ReadRequest(bufio.NewReader(s))
					io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
					s.Close()
				}()
				resp, _ := u.ask(request)
				<-done
				if (resp.StatusCode == 200) != ok {
					t.Fatalf("the answer is %s", resp.Status)
				}
			}
			check := func(when, state string, received uint64) {
				t.Helper()
				if s := w.p.Status().Services[0]; s.TargetState != state || s.Received != received {
					t.Errorf("%.4s %v, %s: the target is said to be %q, and %d bytes came of it; want %q, %d", request, code, when, s.TargetState, s.Received, state, received)
				}
			}
			target(false)
			check("at once", want, 0)
			target(true)
			target(false)
			check("behind an answer", want, 2)
			u.Close()
			eventually(t, "the pair is over", func() bool { return len(w.p.Status().Pairs) == 0 })
			check("behind the client", want, 2)
		}
	}
}

// TestWebDrainNewcomers: who has connected before the proxy drains and said nothing sees an end. Whose request is read when nobody is let in any
// more is told just that.
func TestWebDrainNewcomers(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	begun, finish := make(chan struct{}), make(chan struct{})
	b.target(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-finish
	})
	busy, silent := w.httpUser(), w.httpUser()
	io.WriteString(busy, get("a.example", "/"))
	<-begun
	eventually(t, "it was accepted", func() bool {
		w.p.web.gate.mu.Lock()
		defer w.p.web.gate.mu.Unlock()
		return len(w.p.web.gate.inside) == 1
	})
	w.p.Drain()
	if b, err := io.ReadAll(silent.r); err != nil || len(b) > 0 {
		t.Errorf("who has said nothing read %q, %v; want EOF", b, err)
	}
	close(finish)
	<-w.done
}

// TestWebShut: the page for whom nobody lets in says so, and not that there are too many, or that the bridge is away.
func TestWebShut(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	w.bridge(k, how{instance: 1}, "http/a.example")
	ask := func(when string) {
		t.Helper()
		if resp, body := w.httpUser().ask(get("a.example", "/")); resp.StatusCode != 503 || !strings.Contains(body, "takes no new connections for the moment") {
			t.Errorf("%s: %s %q", when, resp.Status, body)
		}
	}
	order := DrainOrder{Key: "nas"}
	for range 2 {
		if _, err := w.p.DrainUsers(context.Background(), order); err != nil {
			t.Fatal(err)
		}
		if !order.Undo {
			ask("the service is drained")
		}
		order.Undo = true
	}
	w.p.conns.Shut()
	ask("the proxy stops")
}

// TestWebMalformed: a body that is malformed is its client's fault, for the log too.
func TestWebMalformed(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	b.target(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	resp, _ := w.httpUser().ask("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n")
	if resp.StatusCode != 400 || !resp.Close {
		t.Errorf("the answer is %s, and the connection closes: %v", resp.Status, resp.Close)
	}
	if w.log.Count("request not answered by its target") != 0 {
		t.Error("the log blames the target")
	}
	eventually(t, "those who look for it find it", func() bool { return w.log.Count("request refused", "status=400", "chunk") == 1 })
}
