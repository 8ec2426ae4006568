package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/proxyproto"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

var balancersHere = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// header is a header of the PROXY protocol for a user's address at 198.51.100.2:443; "": it names nobody.
func header(version int, user string) []byte {
	var h proxyproto.Header
	if user != "" {
		h = proxyproto.Header{Client: netip.MustParseAddrPort(user), Local: netip.MustParseAddrPort("198.51.100.2:443")}
	}
	return proxyproto.Append(nil, version, h)
}

// through connects to a public port as a balancer does for a user.
func (w *world) through(addr string, version int, user, says string) *net.TCPConn {
	w.t.Helper()
	c := w.user(addr)
	if _, err := c.Write(append(header(version, user), says...)); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// TestBalancer: the address in the header of a balancer is the user's everywhere, and the header is not the user's.
func TestBalancer(t *testing.T) {
	k := key(t, "nas", "tcp/1-65535", "tls/*")
	w := start(t, Config{HTTPS: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: balancersHere}})
	addr, public := free(t)
	b := w.bridge(k, how{instance: 1}, public, "tls/a.example") // and proves the port from an address of which a header is required
	if !proven(w, public) {
		t.Error("the port is not proven")
	}
	for version := 1; version <= 2; version++ {
		user := fmt.Sprintf("192.0.2.%d:1234", version)
		c := w.through(addr, version, user, "hello")
		s := b.stream()
		if o := s.Open(); o.Client.String() != user || o.Local.String() != "198.51.100.2:443" || o.Entrance != wire.EntranceTCP {
			t.Errorf("version %d: OPEN %+v", version, o)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(s, got); err != nil || string(got) != "hello" {
			t.Errorf("version %d: the bridge read %q, %v", version, got, err)
		}
		talk(t, s, c, "there")
		if st := w.p.Status(); len(st.Pairs) != 1 || st.Pairs[0].Client != user || st.Pairs[0].Sent != 5 {
			t.Errorf("version %d: status has %+v", version, st.Pairs)
		}
		c.CloseWrite()
		if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
			t.Errorf("version %d: behind half a close %q, %v", version, rest, err)
		}
		s.CloseWrite()
		eventually(t, "the log has the user's address", func() bool {
			return w.log.Count("pair created", "client="+user) == 1 && w.log.Count("pair released", "client="+user, "sent=5", "received=5") == 1
		})
	}
	c := w.user(w.p.names.ln.Addr().String())
	c.Write(header(2, "[2001:db8::1]:1"))
	_, hello := w.hello("a.example")
	c.Write(hello)
	s := b.stream()
	if o := s.Open(); o.Client.String() != "[2001:db8::1]:1" || o.Entrance != wire.EntranceTLS {
		t.Errorf("by a name: OPEN %+v", o)
	}
	got := make([]byte, len(hello))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != string(hello) {
		t.Errorf("by a name: the bridge read %d bytes, %v", len(got), err)
	}
	s.Reset(wire.CodeReset)
	wantReset(t, c)
}

// proven reports whether a bridge has shown that the port of a service answers.
func proven(w *world, public string) bool {
	return w.p.service(w.route(public)).probes.Expect(false) == [16]byte{}
}

// TestNoHeader: what a balancer sends without a header reaches nobody, and is counted and told once. From other addresses, a header is the
// user's.
func TestNoHeader(t *testing.T) {
	k := key(t, "nas", "tcp/1-65535", "tls/*")
	w := start(t, Config{HTTPS: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: balancersHere}})
	addr, public := free(t)
	b := w.bridge(k, how{instance: 1}, public, "tls/a.example")
	for _, says := range []string{"GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 192.0.2.1 198.51.100.2 1 99999\r\n", "\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c"} {
		for _, at := range []string{addr, w.p.names.ln.Addr().String()} {
			c := w.user(at)
			c.Write([]byte(says))
			wantReset(t, c)
		}
	}
	if n := w.log.Count("without a header of the PROXY protocol", "count=1", "last_remote=127.0.0.1:", "no PROXY header"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, strings.Join(w.log.All(), "\n"))
	}
	eventually(t, "the service has counted its three", func() bool { return w.p.Status().Services[0].Refused == 3 })
	for range 3 { // checks of the port
		w.user(addr).Close()
	}
	last := w.user(addr) // it is accepted behind them
	last.Write([]byte("GET /"))
	wantReset(t, last)
	gate := w.p.balancers.gate
	eventually(t, "nobody is waited for", func() bool {
		gate.mu.Lock()
		defer gate.mu.Unlock()
		return len(gate.inside) == 0
	})
	if st := w.p.Status(); st.Services[0].Refused != 4 {
		t.Errorf("%d connections are refused, want 4: those that said nothing are not counted", st.Services[0].Refused)
	}
	select {
	case s := <-b.streams:
		t.Errorf("a stream was opened for %v", s.Open().Client)
	default:
	}

	set := w.p.settings()
	set.ProxyProtocolFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("10.0.0.0/8")}
	if err := w.p.Apply(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	const says = "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n"
	u := w.user(addr)
	u.Write([]byte(says))
	s := b.stream()
	got := make([]byte, len(says))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != says || s.Open().Client.String() != u.LocalAddr().String() {
		t.Errorf("from elsewhere: %q of %v, %v", got, s.Open().Client, err)
	}
}

// TestBalancerReload: a connection whose address is taken off the list while its header is awaited does not get in.
func TestBalancerReload(t *testing.T) {
	k := key(t, "nas", "tcp/1-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}}})
	addr, public := free(t)
	b := w.bridge(k, how{instance: 1}, public)
	w.pair(b, addr)
	set := w.p.settings()
	set.ProxyProtocolFrom = balancersHere
	if err := w.p.Apply(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	c, late := w.through(addr, 2, "192.0.2.1:1", "hello"), w.user(addr)
	if s := b.stream(); s.Open().Client.String() != "192.0.2.1:1" {
		t.Errorf("OPEN %+v", s.Open())
	}
	c.Close()
	gate := w.p.balancers.gate
	eventually(t, "the late one is waited for", func() bool {
		gate.mu.Lock()
		defer gate.mu.Unlock()
		return len(gate.inside) == 1
	})
	set.ProxyProtocolFrom = nil
	if err := w.p.Apply(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	late.Write(header(1, "192.0.2.1:2"))
	wantReset(t, late)
	w.pair(b, addr)
}

// TestBalancersShare: users who come through one balancer have shares of their own, and those whom it does not name are not taken for one
// client that has too many.
func TestBalancersShare(t *testing.T) {
	k := key(t, "nas", "tcp/1-65535")
	w := start(t, Config{MaxConns: 16, Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: balancersHere}})
	addr, public := free(t)
	b := w.bridge(k, how{instance: 1}, public)
	for _, c := range []struct {
		what, user string
		enter      int // users who do
		full       bool
	}{{"one user", "192.0.2.1:1", 8, true}, {"several users", "192.0.2.%d:1", 12, false}, {"nobody", "", 12, false}} {
		var conns []*net.TCPConn
		come := func() *net.TCPConn {
			user := c.user
			if strings.Contains(user, "%") {
				user = fmt.Sprintf(user, len(conns))
			}
			conns = append(conns, w.through(addr, 2, user, "?"))
			return conns[len(conns)-1]
		}
		for range c.enter {
			come()
			if s := b.stream(); s.Open().Client.IsValid() != (c.user != "") {
				t.Errorf("%s: OPEN %+v", c.what, s.Open())
			}
		}
		if c.full {
			wantReset(t, come())
		}
		for _, conn := range conns {
			conn.SetLinger(0)
			conn.Close()
		}
		w.idle()
	}
	if st := w.p.Status(); len(st.Clients) == 0 || strings.HasPrefix(st.Clients[0].Client, "127.") {
		t.Errorf("status has the clients %+v", st.Clients)
	}
}

// TestBalancerOfRequests: a target of HTTP, and the access log, get the address that a balancer names. Where it names none, they get none, and
// not the balancer's.
func TestBalancerOfRequests(t *testing.T) {
	f := newFakeCertificates(t, "a.example", "b.example")
	k := key(t, "nas", "http/*", "https/*")
	logged := make(chan Request, 4)
	w := start(t, Config{
		HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: balancersHere},
		Requests: func() func(Request) { return func(r Request) { logged <- r } },
	})
	b := w.bridge(k, how{instance: 1}, "http/a.example", "https/a.example", "http/b.example", "https/b.example")
	b.target(func(rw http.ResponseWriter, r *http.Request) {
		o := openOf(r)
		fmt.Fprintf(rw, "%v %q %q %q %q", o.Client.IsValid(), r.Header["X-Forwarded-For"], r.Header["X-Real-Ip"], r.Header["Forwarded"], r.Header["X-Forwarded-Proto"])
	})
	for _, c := range []struct{ scheme, user, want string }{
		{"http", "192.0.2.7:77", `true ["192.0.2.7"] ["192.0.2.7"] ["for=192.0.2.7;host=a.example;proto=http"] ["http"]`},
		{"https", "192.0.2.7:77", `true ["192.0.2.7"] ["192.0.2.7"] ["for=192.0.2.7;host=a.example;proto=https"] ["https"]`},
		{"http", "", `false [] [] ["host=b.example;proto=http"] ["http"]`},
		{"https", "", `false [] [] ["host=b.example;proto=https"] ["https"]`},
	} {
		host := map[bool]string{true: "a.example", false: "b.example"}[c.user != ""] // connections to a target are used again
		var conn net.Conn
		if c.scheme == "http" {
			conn = w.through(w.p.web.ln.Addr().String(), 2, c.user, "")
		} else {
			conn = tls.Client(w.through(w.p.names.ln.Addr().String(), 2, c.user, ""), &tls.Config{ServerName: host, RootCAs: f.roots})
		}
		u := &httpUser{t, conn, bufio.NewReader(conn)}
		if _, body := u.ask(get(host, "/")); body != c.want {
			t.Errorf("%s of %q: the target sees %s; want %s", c.scheme, c.user, body, c.want)
		}
		if r := <-logged; r.Client != c.user {
			t.Errorf("%s of %q: the access log has the client %q", c.scheme, c.user, r.Client)
		}
		conn.Close()
	}
}

// TestReplayThroughABalancer: an exchange that is sent again has the addresses that it had, and none if nobody knew the client's.
func TestReplayThroughABalancer(t *testing.T) {
	k := key(t, "nas", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: balancersHere}})
	b := w.bridge(k, how{instance: 1}, "http/a.example")
	opened := make(chan wire.Open, 1)
	b.target(func(_ http.ResponseWriter, r *http.Request) { opened <- openOf(r) })
	options, err := grammar.ProxyOptions{Inspect: true, OneClient: true}.Encode() // as of a target that gets a header of the PROXY protocol
	if err != nil {
		t.Fatal(err)
	}
	c := b.claims[0]
	c.Options = options
	b.mu.Lock()
	l := b.link
	b.mu.Unlock()
	l.Say(1, wire.AppendClaim(nil, 1, c))
	public, err := grammar.ParsePublic("http/a.example")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service is inspected", func() bool { return w.p.Inspected(public) != nil })
	for _, user := range []string{"192.0.2.7:77", "[2001:db8::1]:77", ""} {
		u := &httpUser{t, w.through(w.p.web.ln.Addr().String(), 2, user, ""), nil}
		u.r = bufio.NewReader(u.Conn)
		u.ask(get("a.example", "/"))
		first := <-opened
		if first.Client.IsValid() != (user != "") {
			t.Errorf("of %q: OPEN %+v", user, first)
		}
		list := w.p.Inspected(public).List()
		kept := list[0]
		for _, x := range list {
			if x.Begun.After(kept.Begun) {
				kept = x
			}
		}
		if kept.Client != user {
			t.Errorf("of %q: the exchange has the client %q", user, kept.Client)
		}
		if _, err := w.p.Inspected(public).Replay(t.Context(), kept.ID); err != nil {
			t.Errorf("of %q: %v", user, err)
			continue
		}
		if again := <-opened; again.Client != first.Client || again.Local != first.Local {
			t.Errorf("of %q: sent again from %v to %v; want from %v to %v", user, again.Client, again.Local, first.Client, first.Local)
		}
	}
}

// TestBalancerChecks: a balancer that looks whether the port answers opens no connection to the target, unless it says or waits for
// something.
func TestBalancerChecks(t *testing.T) {
	t.Cleanup(func() { checkTime = entrance.CheckTime }) // when the proxy has ended
	checkTime = 10 * time.Millisecond
	k := key(t, "nas", "tcp/1-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: balancersHere}})
	addr, public := free(t)
	b := w.bridge(k, how{instance: 1}, public)
	waits := w.through(addr, 2, "", "")
	s := b.stream()
	if s.Open().Client.IsValid() {
		t.Errorf("OPEN %+v, want no client", s.Open())
	}
	talk(t, s, waits, "220 ready")
	waits.SetLinger(0)
	waits.Close()
	w.idle()

	checkTime = limit // on a busy machine a check may take long to end
	before := w.p.conns.Newest()
	for _, graceful := range []bool{true, false} {
		c := w.through(addr, 2, "", "")
		if !graceful {
			c.SetLinger(0)
		}
		c.Close()
	}
	// The proxy may not hear of the one that was reset. Somebody who comes behind both shows that they were not passed on.
	u := w.through(addr, 2, "192.0.2.9:1", "")
	s = b.stream()
	if got := s.Open().Client.String(); got != "192.0.2.9:1" {
		t.Errorf("the target hears of %s", got)
	}
	talk(t, u, s, "a user")
	eventually(t, "the check that ended was let in", func() bool { return w.p.conns.Newest() >= before+2 })
	u.SetLinger(0)
	u.Close()
	w.idle()
	if n := w.log.Count("pair created"); n != 2 {
		t.Errorf("%d pairs, want that of the check that waits, and the user's", n)
	}
}

// TestProbeThroughABalancer: a bridge proves its port through a balancer, which says that the connection is the bridge's, or does not know.
func TestProbeThroughABalancer(t *testing.T) {
	k := key(t, "nas", "tcp/1-65535")
	w := start(t, Config{Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: balancersHere}})
	for i, user := range []string{"192.0.2.1:1", "127.0.0.1:1", ""} {
		addr, public := free(t)
		b := w.bridge(k, how{instance: byte(i + 1), silent: true}, public)
		nonce := b.claim(0).Nonce
		question, want := link.ProbeQuestion(nonce), link.ProbeAnswer(nonce)
		c := w.through(addr, 2, user, string(question[:]))
		if got, err := io.ReadAll(c); string(got) != string(want[:]) || err != nil {
			t.Errorf("of %q: %x, %v; want the answer", user, got, err)
		}
		if !proven(w, public) {
			t.Errorf("of %q: the port is not proven", user)
		}
		b.stop()
		<-b.done
	}
}

// TestSilentBalancer: connections whose header does not come keep nobody from the port, and take nothing when they are gone.
func TestSilentBalancer(t *testing.T) {
	k := key(t, "nas", "tcp/1-65535")
	pool := sys.NewPool(512, 0)
	w := start(t, Config{Descriptors: pool, Settings: Settings{Keys: []Key{k}, ProxyProtocolFrom: balancersHere}})
	addr, public := free(t)
	b := w.bridge(k, how{instance: 1}, public)
	gate := w.p.balancers.gate
	gate.mu.Lock()
	gate.room.most = 8
	gate.mu.Unlock()
	before := pool.Taken(sys.ForUsers)
	var silent []*net.TCPConn
	for i := range 40 {
		c := w.user(addr)
		if i%2 == 1 {
			c.Write([]byte("PROXY TCP4 192.0.2.1 "))
		}
		silent = append(silent, c)
	}
	u := w.through(addr, 1, "192.0.2.9:1", "?")
	if s := b.stream(); s.Open().Client.String() != "192.0.2.9:1" {
		t.Errorf("OPEN %+v", s.Open())
	}
	for _, c := range silent[:32] {
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("one of the first that said nothing is still there: %v", err)
		}
	}
	for _, c := range append(silent, u) {
		c.SetLinger(0)
		c.Close()
	}
	// The bridge's probe of the port may have been counted before.
	eventually(t, "all descriptors are given back", func() bool { return pool.Taken(sys.ForUsers) <= before })
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// at is a connection from an address.
type at struct {
	net.Conn
	from net.TCPAddr
}

func (a at) RemoteAddr() net.Addr { return &a.from }

// TestSentByABalancer: an IPv4 address is one also where a socket of both families shows it as IPv6, and a zone is no part of an address.
func TestSentByABalancer(t *testing.T) {
	var b balancers
	if b.sent(at{from: net.TCPAddr{IP: net.IPv4(10, 0, 0, 5)}}) {
		t.Error("there are balancers before any was set")
	}
	b.from.Store(&[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("fe80::/64")})
	for from, want := range map[string]bool{
		"10.0.0.5": true, "::ffff:10.0.0.5": true, "10.0.1.5": false, "192.0.2.7": true, "192.0.2.8": false,
		"fe80::1%eth0": true, "fe80:0:0:1::1": false, "::a00:5": false,
	} {
		ip := netip.MustParseAddr(from)
		if got := b.sent(at{from: net.TCPAddr{IP: ip.AsSlice(), Zone: ip.Zone()}}); got != want {
			t.Errorf("%s: %v, want %v", from, got, want)
		}
	}
}
