package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reverser/internal/acmetest"
)

// Balancers in front of the proxy that say whose connection one is, and servers behind the bridge that are told.

// balancerIP is where the balancers of these tests connect from, and nobody else.
const balancerIP = "127.0.0.9"

// dialFrom is dial from another address of this machine.
func dialFrom(t *testing.T, ip, addr string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(lifetime))
	return c.(*net.TCPConn)
}

// startHAProxy starts HAProxy with these sections, waits until it listens, and returns its socket for statistics.
func startHAProxy(t *testing.T, port int, sections string) (stats string) {
	t.Helper()
	dir := t.TempDir()
	stats = filepath.Join(dir, "stats")
	conf := writeFile(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`global
	stats socket %s mode 600 level admin
defaults
	timeout connect 10s
	timeout check 10s
	timeout client 90s
	timeout server 90s
%s`, stats, sections))
	start(t, "haproxy", haproxy.path(t), nil, "-db", "-f", conf).awaitListener(port)
	return stats
}

// TestBalancersInFront: HAProxy says with both versions of the header whose connection one is, on a port and on a name, and checks the
// port in every way that it has. Who does not come through it is who they are.
func TestBalancersInFront(t *testing.T) {
	t.Parallel()
	need(t, haproxy)
	https, public := freePort(t), freePort(t)
	p := startProxy(t, "--https", loopback(https), "--proxy-protocol-from", balancerIP)
	service := fmt.Sprintf("tcp/%d", public)
	b := startBridge(t, addKey(t, p.state, "nas", service, "tls/*"), fmt.Sprintf("%d=%d", public, serve(t, echo)),
		fmt.Sprintf("tls/a.example=%d", serve(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)) })), "--proxy", loopback(p.link))
	b.awaitUp(service, "tls/a.example")
	front := map[string]int{"send-proxy": freePort(t), "send-proxy-v2": freePort(t), "names": freePort(t)}
	stats := startHAProxy(t, front["names"], fmt.Sprintf(`	mode tcp
	source %[1]s
	default-server inter 50ms fall 1
listen v1
	bind 127.0.0.1:%[4]d
	server tunnel %[2]s send-proxy
listen v2
	bind 127.0.0.1:%[5]d
	server tunnel %[2]s send-proxy-v2 proxy-v2-options crc32c,authority
listen checks
	bind 127.0.0.1:%[7]d
	server bare %[2]s check
	server own %[2]s send-proxy-v2 check
listen talks
	bind 127.0.0.1:%[8]d
	option tcp-check
	tcp-check send PING
	tcp-check expect string PING
	server own %[2]s send-proxy check
listen names
	bind 127.0.0.1:%[6]d
	server tunnel %[3]s send-proxy-v2
`, balancerIP, loopback(public), loopback(https), front["send-proxy"], front["send-proxy-v2"], front["names"], freePort(t), freePort(t)))

	users := make(map[string]bool)
	for how, port := range front {
		for i := range 5 {
			user := dialFrom(t, fmt.Sprintf("127.0.1.%d", i+1), loopback(port))
			name := service
			switch {
			case how == "names":
				name = "tls/a.example"
				go tls.Client(user, &tls.Config{ServerName: "a.example"}).Handshake() // which ends with the connection
			case i > 0: // else one who never says anything
				exchange(t, user, how)
			}
			users[user.LocalAddr().String()] = true
			for _, side := range []*testProcess{p.testProcess, b.testProcess} {
				side.awaitRecord("pair created", "client", user.LocalAddr().String(), "service", name)
			}
			if how == "names" {
				continue
			}
			user.CloseWrite()
			if n, err := io.Copy(io.Discard, user); n != 0 || err != nil {
				t.Errorf("%s: at the end %d bytes more, %v", how, n, err)
			}
		}
	}
	direct := dialFrom(t, "127.0.0.8", loopback(public))
	exchange(t, direct, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
	users[direct.LocalAddr().String()] = true

	eventually(t, "HAProxy has checked the tunnel by words ten times", func() bool { return len(p.Records("pair released", "client", "", "sent", 4.0, "received", 4.0)) >= 10 })
	// A check of it has the time between two of them to connect. When HAProxy itself has no turn for so long, it fails, and the next one does not.
	eventually(t, "HAProxy calls the tunnel up by all checks", func() bool {
		text := haproxyStats(t, stats)
		return strings.Count(text, ",UP,") == 3 && strings.Count(text, ",L4OK,") == 2 && strings.Count(text, ",L7OK,") == 1
	})
	for _, r := range p.Records("pair created") {
		if client := r.Text("client"); client != "" && !users[client] {
			t.Errorf("a pair of %q, who is no user", client)
		}
	}
	for _, r := range p.Records("pair released", "client", "") {
		if r.Number("sent") != 4 {
			t.Errorf("a check that says nothing has become a pair: %v", r)
		}
	}
	for _, said := range []string{"connections from an address of proxy_protocol_from", "client refused"} {
		if n := len(p.Said(said)); n != 0 {
			t.Errorf("%d lines that say %q, want none", n, said)
		}
	}
}

// TestBalancerWithoutHeader: what comes from a balancer's address without a header is reset and told.
func TestBalancerWithoutHeader(t *testing.T) {
	t.Parallel()
	public := freePort(t)
	p := startProxy(t, "--proxy-protocol-from", "127.0.0.0/8") // the bridge's own address, too
	service := fmt.Sprintf("tcp/%d", public)
	b := startBridge(t, addKey(t, p.state, "nas", service), fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy", loopback(p.link))
	b.awaitUp(service)
	if r := b.awaitRecord("service up", "service", service); r.Text("public") != loopback(public) {
		t.Errorf("the bridge has not proven its port: %v", r)
	}
	c := dial(t, loopback(public))
	io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	wantReset(t, c, 0)
	if r := p.awaitRecord("connections from an address of proxy_protocol_from without a header of the PROXY protocol, reset"); !strings.Contains(r.Text("last_err"), `"GET / `) {
		t.Errorf("the line is %v", r)
	}
}

// TestBridgeThroughABalancer: a bridge whose link shares the port of names comes through a balancer as users do, and is who it is.
func TestBridgeThroughABalancer(t *testing.T) {
	t.Parallel()
	need(t, haproxy)
	https, front, public := freePort(t), freePort(t), freePort(t)
	p := startProxy(t, "--https", loopback(https), "--proxy-protocol-from", balancerIP)
	startHAProxy(t, front, fmt.Sprintf(`	mode tcp
	source %s
listen names
	bind 127.0.0.1:%d
	server tunnel %s send-proxy-v2
`, balancerIP, front, loopback(https)))
	b := startBridge(t, p.defaultToken(), fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy", loopback(front))
	b.awaitUp(fmt.Sprintf("tcp/%d", public))
	exchange(t, dial(t, loopback(public)), "hello")
	if links := mustStatus(t, p.state).Links; len(links) != 1 || !strings.HasPrefix(links[0].Remote, "127.0.0.1:") {
		t.Errorf("the links are %+v; want the one of the bridge's own address", links)
	}
}

// startTold starts a proxy that believes balancerIP and a bridge whose services tell their targets, by that version of the header, whose
// connection one is. It returns the public port for each target.
func startTold(t *testing.T, version string, targets ...int) (p *proxyProcess, b *bridgeProcess, r *router, public []int) {
	t.Helper()
	p = startProxy(t, "--proxy-protocol-from", balancerIP)
	r = startRouter(t, p.link)
	var conf strings.Builder
	fmt.Fprintf(&conf, "proxy = %q\n", loopback(r.port))
	var services []string
	for _, target := range targets {
		public = append(public, freePort(t))
		fmt.Fprintf(&conf, "[[expose]]\npublic = \"tcp/%d\"\ntarget = \"%d\"\nproxy_protocol = %q\n", public[len(public)-1], target, version)
		services = append(services, fmt.Sprintf("tcp/%d", public[len(public)-1]))
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "bridge.toml"), conf.String())
	b = startBridge(t, addKey(t, p.state, "nas", "tcp/1024-65535"), "--config", file)
	b.awaitUp(services...)
	return p, b, r, public
}

// TestServersBehind: HAProxy and nginx hear of each user's address, of those who come directly and of those who come through a balancer in
// front. What a balancer's own check says reaches them with no address but the bridge's.
func TestServersBehind(t *testing.T) {
	t.Parallel()
	need(t, haproxy, nginx, curl)
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			first, second, dir := freePort(t), freePort(t), t.TempDir()
			startHAProxy(t, first, fmt.Sprintf(`	mode http
frontend told
	bind 127.0.0.1:%d accept-proxy
	http-request return status 200 content-type text/plain lf-string "%%[src]:%%[src_port] %%[dst]:%%[dst_port]"
`, first))
			startNginx(t, dir, fmt.Sprintf(`
		listen 127.0.0.1:%d proxy_protocol;
		set_real_ip_from 127.0.0.1;
		real_ip_header proxy_protocol;
		location / { return 200 "$remote_addr is $proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port"; }
`, second))
			_, b, _, public := startTold(t, version, first, second)
			front, checks := []int{freePort(t), freePort(t)}, freePort(t)
			send := map[string]string{"v1": "send-proxy", "v2": "send-proxy-v2"}[version]
			stats := startHAProxy(t, checks, fmt.Sprintf(`	mode tcp
	source %[1]s
listen first
	bind 127.0.0.1:%[2]d
	server tunnel 127.0.0.1:%[3]d %[7]s
listen second
	bind 127.0.0.1:%[4]d
	server tunnel 127.0.0.1:%[5]d %[7]s
listen checks
	bind 127.0.0.1:%[6]d
	mode http
	option httpchk GET /check
	server first 127.0.0.1:%[3]d %[7]s check inter 50ms fall 1
`, balancerIP, front[0], public[0], front[1], public[1], checks, send))
			for i := range public {
				for j, at := range []int{public[i], front[i]} {
					for k := range 3 {
						user := dialFrom(t, fmt.Sprintf("127.0.%d.%d", 2+j, k+1), loopback(at))
						fmt.Fprintf(user, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
						got, err := io.ReadAll(user)
						// A balancer tells where the user reached it.
						if want := fmt.Sprintf("%s %s", user.LocalAddr(), loopback(at)); err != nil || !strings.HasSuffix(string(got), want) {
							t.Errorf("server %d behind balancer %d: %q, %v; want %q", i, j, got, err, want)
						}
						if want := user.LocalAddr().(*net.TCPAddr).IP.String() + " is "; i == 1 && !strings.Contains(string(got), want) {
							t.Errorf("behind balancer %d, nginx says %q; want %q", j, got, want)
						}
					}
				}
			}
			eventually(t, "HAProxy has checked the server behind ten times", func() bool {
				return len(b.Records("pair created", "client", "")) >= 10
			})
			eventually(t, "HAProxy calls the server up", func() bool { // see TestBalancersInFront
				text := haproxyStats(t, stats)
				return strings.Contains(text, ",L7OK,") && strings.Contains(text, ",UP,")
			})
		})
	}
}

// TestHTTPToldByBalancers: what holds for ports holds for the port of HTTP. The target hears of each client on connections that are that
// client's alone, though requests of several come in turn.
func TestHTTPToldByBalancers(t *testing.T) {
	t.Parallel()
	need(t, haproxy, nginx)
	dir, target, port, front := t.TempDir(), freePort(t), freePort(t), freePort(t)
	startNginx(t, dir, fmt.Sprintf(`
		listen 127.0.0.1:%d proxy_protocol;
		location / { return 200 "$proxy_protocol_addr:$proxy_protocol_port for $http_x_forwarded_for on $connection\n"; }
`, target))
	p := startProxy(t, "--http", loopback(port), "--proxy-protocol-from", balancerIP)
	conf := fmt.Sprintf("proxy = %q\n[[expose]]\npublic = \"http/a.example\"\ntarget = \"%d\"\nproxy_protocol = \"v2\"\n", loopback(p.link), target)
	b := startBridge(t, addKey(t, p.state, "web", "http/*"), "--config", writeFile(t, filepath.Join(dir, "bridge.toml"), conf))
	b.awaitUp("http/a.example")
	startHAProxy(t, front, fmt.Sprintf(`	mode tcp
	source %s
listen web
	bind 127.0.0.1:%d
	server tunnel %s send-proxy-v2
`, balancerIP, front, loopback(port)))
	type client struct {
		*net.TCPConn
		answers *bufio.Reader
	}
	var clients []client
	for i := range 4 {
		c := dialFrom(t, fmt.Sprintf("127.0.4.%d", i+1), loopback([]int{port, front}[i%2]))
		clients = append(clients, client{c, bufio.NewReader(c)})
	}
	on := make(map[string]int) // whose each connection to the target is
	for range 5 {
		for i, c := range clients {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
			resp, err := http.ReadResponse(c.answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			got, number, _ := strings.Cut(string(body), " on ")
			if want := fmt.Sprintf("%s for %s", c.LocalAddr(), c.LocalAddr().(*net.TCPAddr).IP); err != nil || got != want {
				t.Errorf("client %d: the target was told %q, %v; want %q", i, got, err, want)
			}
			if other, ok := on[number]; ok && other != i {
				t.Errorf("clients %d and %d share a connection to the target", i, other)
			}
			on[number] = i
		}
	}
	if len(on) > 3*len(clients) {
		t.Errorf("%d connections to the target for %d clients: none was used again", len(on), len(clients))
	}
}

// TestHTTPSToldByBalancers: what HAProxy says with either version of the header, before the client's TLS begins, is who the client of a
// https/ name is: for the target, with HTTP/1.1 and HTTP/2, and for the log. What the client says itself does not count.
func TestHTTPSToldByBalancers(t *testing.T) {
	t.Parallel()
	need(t, haproxy)
	dir, port, public := t.TempDir(), freePort(t), "https/a.example"
	chain, key := acmetest.Certificate(t, "a.example")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	writeFile(t, filepath.Join(dir, "chain.pem"), string(chain))
	writeFile(t, filepath.Join(dir, "key.pem"), string(key))
	target := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		h := r.Header
		fmt.Fprintf(w, "%q %q %q %q", h["X-Forwarded-For"], h["X-Real-Ip"], h["X-Forwarded-Proto"], h["Forwarded"])
	})
	p := startProxy(t, "--https", loopback(port), "--proxy-protocol-from", balancerIP,
		"--config", writeFile(t, filepath.Join(dir, "proxy.toml"), "[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n"))
	b := startBridge(t, addKey(t, p.state, "web", "https/*"), fmt.Sprintf("%s=%d", public, target), "--proxy", loopback(p.link))
	b.awaitUp(public)
	ways := map[string]int{"directly": port, "send-proxy": freePort(t), "send-proxy-v2": freePort(t)}
	startHAProxy(t, ways["send-proxy-v2"], fmt.Sprintf(`	mode tcp
	source %[1]s
listen v1
	bind 127.0.0.1:%[3]d
	server tunnel %[2]s send-proxy
listen v2
	bind 127.0.0.1:%[4]d
	server tunnel %[2]s send-proxy-v2 proxy-v2-options crc32c,ssl,authority
`, balancerIP, loopback(port), ways["send-proxy"], ways["send-proxy-v2"]))
	n := 0
	for way, at := range ways {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			n++
			user := fmt.Sprintf("127.0.5.%d", n)
			var from []string // of the connections
			tr := &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: new(http.Protocols),
				DialContext: func(context.Context, string, string) (net.Conn, error) {
					c := dialFrom(t, user, loopback(at))
					from = append(from, c.LocalAddr().String())
					return c, nil
				},
			}
			tr.Protocols.SetHTTP1(proto == "HTTP/1.1")
			tr.Protocols.SetHTTP2(proto == "HTTP/2.0")
			for range 2 {
				r, err := http.NewRequest("GET", "https://a.example/", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header = http.Header{"X-Forwarded-For": {"192.0.2.1"}, "Forwarded": {"for=192.0.2.1"}, "X-Real-Ip": {"192.0.2.1"}}
				resp, err := tr.RoundTrip(r)
				if err != nil {
					t.Fatalf("%s, %s: %v", way, proto, err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if want := fmt.Sprintf(`["%s"] ["%[1]s"] ["https"] ["for=%[1]s;host=a.example;proto=https"]`, user); err != nil || resp.Proto != proto || string(body) != want {
					t.Errorf("%s, %s: %s, the target was told %s, %v; want %s", way, proto, resp.Proto, body, err, want)
				}
			}
			tr.CloseIdleConnections()
			if len(from) != 1 {
				t.Errorf("%s, %s: %d connections for two requests", way, proto, len(from))
			}
			p.awaitRecord("pair released", "service", public, "client", from[0])
		}
	}
}

// TestToldThroughCuts: the header comes first and once, whatever happens to the link, and every byte behind it is the user's.
func TestToldThroughCuts(t *testing.T) {
	t.Parallel()
	const n, cuts = 8 << 20, 20
	headers := make(chan string, 1)
	target := serve(t, func(c *net.TCPConn) {
		line := make([]byte, 0, 107)
		for b := make([]byte, 1); len(line) < cap(line) && !strings.HasSuffix(string(line), "\r\n"); line = append(line, b[0]) {
			if _, err := c.Read(b); err != nil {
				break
			}
		}
		headers <- string(line)
		io.Copy(c, c)
	})
	_, b, r, public := startTold(t, "v1", target)
	c := dialFrom(t, balancerIP, loopback(public[0]))
	io.WriteString(c, "PROXY TCP6 2001:db8::7 2001:db8::1 1234 443\r\n")
	if got, want := <-headers, "PROXY TCP6 2001:db8::7 2001:db8::1 1234 443\r\n"; got != want { // though the user has not said anything
		t.Errorf("the target is told %q, want %q", got, want)
	}
	go func() {
		io.Copy(c, newPattern(n))
		c.CloseWrite()
	}()
	got, err := readPattern(&interrupting{r: c, every: n / (cuts + 1), interrupt: r.cut})
	if got != n || err != nil {
		t.Errorf("%d bytes came back, then %s; want %d and a clean end", got, describe(err), n)
	}
	if r := b.awaitRecord("pair released", "client", "[2001:db8::7]:1234"); r.Number("sent") != n || r.Number("received") != n || r.Text("reason") != "eof" {
		t.Errorf("the pair ended as %v", r)
	}
}
