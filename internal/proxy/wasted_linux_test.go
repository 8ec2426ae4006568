package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"reverser/internal/sys"
)

// reach asks for a host at the port for HTTP, from an address, and returns the status of the answer; 0: a reset.
func (w *world) reach(from, host string) int {
	w.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", w.p.web.ln.Addr().String())
	if sys.Reset(err) {
		return 0
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	return statusOver(w.t, c, host)
}

func statusOver(t *testing.T, c net.Conn, host string) (status int) {
	t.Helper()
	c.SetDeadline(time.Now().Add(limit))
	io.WriteString(c, strings.Replace(get(host, "/"), "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))
	b, err := io.ReadAll(c)
	if len(b) == 0 {
		if isTimeout(err) {
			t.Fatal("no answer, and no end")
		}
		return 0
	}
	fmt.Sscanf(string(b), "HTTP/1.1 %d", &status)
	return status
}

// TestStrangersAtHTTP: strangers who ask again and again for what nobody serves are sent away; who reaches a service, also behind their
// address, is served.
func TestStrangersAtHTTP(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}}})
	w.bridge(k, how{instance: 1}, "http/a.example").target(say("nas"))
	w.fillWasted(w.p.web.gate, "127.1.1.2")
	if got := w.reach("127.1.1.1", "none.example"); got != 0 {
		t.Errorf("one more of a network that had too many: %d, want a reset", got)
	}
	if got := w.reach("127.2.1.1", "none.example"); got != 404 {
		t.Errorf("a stranger of another network: %d, want 404", got)
	}
	for range 3 * strangerBurst { // the first one makes the address known
		if got := w.reach("127.2.1.1", "a.example"); got != 200 {
			t.Fatalf("a user of another network: %d", got)
		}
	}
	w.fillWasted(w.p.web.gate, "127.2.1.2")
	for range 3 {
		if got := w.reach("127.2.1.1", "a.example"); got != 200 {
			t.Errorf("a user whose network has too many strangers: %d", got)
		}
	}
	w.eventually("status and log say so", func() bool {
		return w.log.Count("connections to the port for HTTP (http) that reached no service") == 1 && strings.Contains(fmt.Sprint(w.p.Status().Pressure), "port for HTTP")
	})
}

// TestPagesOfAConnection: a browser that loads many things of a name that nobody serves has a page for each of them, and its neighbours are
// let in meanwhile.
func TestPagesOfAConnection(t *testing.T) {
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{key(t, "nas", "http/*")}}})
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.3.1.1")}}
	c, err := d.Dial("tcp", w.p.web.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	r := bufio.NewReader(c)
	for i := range 2 * strangerBurst {
		io.WriteString(c, get("none.example", fmt.Sprint("/", i)))
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 404 {
			t.Fatalf("page %d: %v, %v, want 404", i, resp, err)
		}
		io.Copy(io.Discard, resp.Body)
	}
	if got := w.reach("127.3.1.2", "none.example"); got != 404 {
		t.Errorf("a neighbour: %d, want 404", got)
	}
}

// TestKnownUsersOutliveTheProcess: the address of a user who reached a service by its name is known at all ports of names after a stop or a
// drain, and is no bridge's.
func TestKnownUsersOutliveTheProcess(t *testing.T) {
	k := key(t, "nas", "http/*")
	user := netip.MustParseAddr("127.2.1.1")
	for _, drain := range []bool{false, true} {
		var bridges, users []Known
		var saves int
		cfg := Config{
			HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}, Drain: -1},
			SaveKnown:      func(list []Known) error { bridges = list; return nil },
			SaveKnownUsers: func(list []Known) error { users = list; saves++; return nil },
		}
		w := start(t, cfg)
		w.bridge(k, how{instance: 1}, "http/a.example").target(say("nas"))
		if got := w.reach(user.String(), "a.example"); got != 200 {
			t.Fatalf("a user: %d", got)
		}
		w.p.names.gate.mu.Lock()
		w.p.names.gate.room.known.add(netip.MustParseAddr("192.0.2.1"), time.Now())
		w.p.names.gate.mu.Unlock()
		if drain {
			w.p.Drain()
		} else {
			w.stop()
		}
		<-w.done
		if len(users) != 2 || !slices.ContainsFunc(users, func(k Known) bool { return k.Block.Addr() == user }) || saves != 1 {
			t.Fatalf("with drain %t, the users that were saved are %v, %d times; want %s and another one, once", drain, users, saves, user)
		}
		cfg.Known, cfg.KnownUsers = bridges, append(users, Known{netip.MustParsePrefix("192.0.2.9/32"), time.Now().Add(-rememberAddress - time.Hour)})
		w = start(t, cfg)
		for _, g := range w.p.namesGates() {
			w.fillWasted(g, user.String())
		}
		if got := w.reach(user.String(), "a.example"); got != 404 {
			t.Errorf("the user at the next process, before the bridge is back: %d, want 404", got)
		}
		if got := w.reach("127.2.1.2", "a.example"); got != 0 {
			t.Errorf("a stranger there: %d, want a reset", got)
		}
		for _, c := range []struct {
			what string
			gate *gate
			at   netip.Addr
			want bool
		}{
			{"the user at the port for HTTP", w.p.web.gate, user, true},
			{"the user at the port of names", w.p.names.gate, user, true},
			{"the user at the link port", w.p.port.gate, user, false},
			{"who was there long ago", w.p.web.gate, netip.MustParseAddr("192.0.2.9"), false},
		} {
			c.gate.mu.Lock()
			if got := c.gate.room.known.has(c.at, time.Now()); got != c.want {
				t.Errorf("%s is known to the next process: %t, want %t", c.what, got, c.want)
			}
			c.gate.mu.Unlock()
		}
	}
}

// fillWasted has strangers of an address reach no service until no more may, for as long as a test takes.
func (w *world) fillWasted(g *gate, addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	wasted := &g.judge.wasted
	wasted.add(netip.MustParseAddr(addr), time.Now())
	had, _ := wasted.blocks.get(wastedBlock(netip.MustParseAddr(addr)))
	had.whole = time.Now().Add(time.Hour)
	wasted.blocks.put(wastedBlock(netip.MustParseAddr(addr)), had, wasted.most)
}

// TestStrangersBehindABalancer: a balancer is sent away for none of its users, and those are by the addresses that it names.
func TestStrangersBehindABalancer(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}})
	w.bridge(k, how{instance: 1}, "http/a.example").target(say("nas"))
	w.fillWasted(w.p.web.gate, "127.0.0.1")
	w.fillWasted(w.p.web.gate, "198.51.100.1")
	ask := func(user, host string) int {
		c := w.through(w.p.web.ln.Addr().String(), 2, user, "")
		return statusOver(t, c, host)
	}
	for _, c := range []struct {
		user, host string
		want       int
	}{
		{"198.51.100.7:4711", "a.example", 0},
		{"203.0.113.7:4711", "none.example", 404},
		{"203.0.113.7:4711", "a.example", 200},
	} {
		if got := ask(c.user, c.host); got != c.want {
			t.Errorf("the user %s at %s: %d, want %d", c.user, c.host, got, c.want)
		}
	}
	g := w.p.web.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.room.known.has(netip.MustParseAddr("203.0.113.7"), time.Now()) || g.room.known.has(netip.MustParseAddr("127.0.0.1"), time.Now()) {
		t.Error("not the user's address is known, or the balancer's")
	}
}

// TestStrangersAtHTTPS: the same at the port of names, whether TLS ends here or not.
func TestStrangersAtHTTPS(t *testing.T) {
	k := key(t, "nas", "https/*", "tls/*")
	f := newFakeCertificates(t, "a.example")
	w := start(t, Config{HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "https/a.example", "tls/b.example")
	w.eventually("the certificate is wanted", func() bool { return w.p.registry.View().Secure("a.example") })
	reach := func(from, name string) error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.DialContext(context.Background(), "tcp", w.p.names.ln.Addr().String())
		if sys.Reset(err) {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		return tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}).Handshake()
	}
	unrecognized := func(err error) bool { return err != nil && strings.Contains(err.Error(), "unrecognized name") }
	if err := reach("127.1.1.1", "none.example"); !unrecognized(err) {
		t.Errorf("a stranger: %v, want unrecognized_name", err)
	}
	if err := reach("127.1.1.1", "a.example"); err != nil {
		t.Errorf("a handshake that no request follows: %v", err)
	}
	counted := func(from string) (n int) {
		g := w.p.names.gate
		g.mu.Lock()
		defer g.mu.Unlock()
		_, had := g.judge.wasted.blocks.get(wastedBlock(netip.MustParseAddr(from)))
		if had {
			n++
		}
		return n
	}
	w.eventually("both are counted", func() bool { return counted("127.1.1.1") == 1 })
	w.fillWasted(w.p.names.gate, "127.1.1.1")
	if err := reach("127.1.1.2", "a.example"); err == nil || unrecognized(err) {
		t.Errorf("one more of a network that had too many: %v, want a reset", err)
	}
	if c, hello := w.hello("b.example"); len(hello) == 0 {
		t.Error("no hello")
	} else {
		s := b.stream()
		talk(t, s, c, "!")
		s.Close()
	}
	g := w.p.names.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.room.known.has(netip.MustParseAddr("127.0.0.1"), time.Now()) {
		t.Error("the address of a user of a tls/ name is not known")
	}
}
