package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"reverser/internal/grammar"
)

// What stands between a bridge and its proxy: routers by name, and ports that are shared.

// TestSNIRouter: two proxies stand behind one port of HAProxy, which leads connections by the name in their ClientHello. The tokens
// carry that name.
func TestSNIRouter(t *testing.T) {
	t.Parallel()
	need(t, haproxy)
	front := freePort(t)
	var proxies [2]*proxyProcess
	rules, backends := "", ""
	for i := range proxies {
		name := fmt.Sprintf("proxy%d", i)
		p := startProxy(t, "--sni", name+".example", "--advertise", loopback(front))
		rules += fmt.Sprintf("\tuse_backend %s if { req.ssl_sni -i %[1]s.example }\n", name)
		backends += fmt.Sprintf("backend %s\n\tserver proxy %s\n", name, loopback(p.link))
		proxies[i] = p
	}
	conf := fmt.Sprintf(`defaults
	mode tcp
	timeout connect 10s
	timeout client 1m
	timeout server 1m
frontend links
	bind 127.0.0.1:%d
	tcp-request inspect-delay 5s
	tcp-request content accept if { req.ssl_hello_type 1 }
`, front) + rules + backends
	start(t, "haproxy", haproxy.path(t), nil, "-db", "-f", writeFile(t, filepath.Join(t.TempDir(), "haproxy.cfg"), conf)).awaitListener(front)
	for i, p := range proxies {
		public := freePort(t)
		token := addKey(t, p.state, "nas", fmt.Sprintf("tcp/%d", public))
		startBridge(t, token, fmt.Sprintf("%d=%d", public, serve(t, echo))).awaitUp(fmt.Sprintf("tcp/%d", public))
		exchange(t, dial(t, loopback(public)), "through proxy "+strconv.Itoa(i))
		if st := mustStatus(t, p.state); len(st.Links) != 1 {
			t.Errorf("proxy %d has %d links, want 1", i, len(st.Links))
		}
		// A name leads somewhere, and the pin says who is there.
		lost := startBridge(t, token, strconv.Itoa(public), "--sni", fmt.Sprintf("proxy%d.example", 1-i))
		lost.awaitLogged(`"no connection to the proxy, trying again"`, "not the proxy that this token was made for")
	}
}

// TestOneOpenPort: only port 443, as it were, is open between bridge and proxy, and the services by name share it. What goes through the
// link survives breaks; the token leads there from the first address, which is closed.
func TestOneOpenPort(t *testing.T) {
	t.Parallel()
	need(t, openssl)
	https := freePort(t)
	p := startProxyAt(t, t.TempDir(), https, "--https", loopback(https))
	token, err := grammar.ParseToken(addKey(t, p.state, "nas", "tls/*"))
	if err != nil {
		t.Fatal(err)
	}
	router := startRouter(t, https)
	token.Addrs = []string{loopback(freePort(t)), loopback(router.port)}
	cert, key, pool := certificate(t, t.TempDir(), "app.example")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	port := serve(t, func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})
		io.Copy(s, s)
		s.CloseWrite()
	})
	startBridge(t, token.Encode(), fmt.Sprintf("tls/*=%d", port)).awaitUp("tls/*")
	c := tls.Client(dial(t, loopback(https)), &tls.Config{RootCAs: pool, ServerName: "app.example"})
	echoThrough(t, c, 16<<20, 8, router.cut)
	c.Close()
	if r := p.awaitRecord("pair released", "service", "tls/*"); r.Text("reason") != "eof" || r.Number("resumes") == 0 {
		t.Errorf("the pair ended as %q after %d resumes", r.Text("reason"), int(r.Number("resumes")))
	}
	// The ALPN decides, not the name.
	for alpn, subject := range map[string]string{"h2": "CN = app.example", "reverser/1": "CN = reverser"} {
		out := runInput(t, os.DevNull, "/bin/sh", "-c", openssl.path(t)+` s_client -connect "$@" 2>&1 || true`, "sh", loopback(https), "-servername", "app.example", "-alpn", alpn)
		if !strings.Contains(strings.ReplaceAll(out, "CN=", "CN = "), subject) {
			t.Errorf("with the ALPN %s s_client says %.600q, want a certificate of %s", alpn, out, subject)
		}
	}
}

var (
	tinyproxy  = program{"tinyproxy", "tinyproxy-bin"}
	microsocks = program{"microsocks", "microsocks"}
	danted     = program{"danted", "dante-server"}
)

// TestWaysOut: the link goes through programs that networks have on their way out, with and without a password, and survives that they
// are killed and started again. A wrong password is told, with what to do, and not tried over and over.
func TestWaysOut(t *testing.T) {
	const user, password = "alice", "s3cretpassword"
	type server struct {
		program program
		scheme  string
		auth    bool
		args    func(dir string, port int) []string
	}
	conf := func(dir, format string, args ...any) string {
		return writeFile(t, filepath.Join(dir, "conf"), fmt.Sprintf(format, args...))
	}
	tiny := func(more string) func(string, int) []string {
		return func(dir string, port int) []string {
			return []string{"-d", "-c", conf(dir, "Port %d\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 600\nMaxClients 100\n%s", port, more)}
		}
	}
	socks := func(more ...string) func(string, int) []string {
		return func(_ string, port int) []string {
			return append([]string{"-i", "127.0.0.1", "-p", strconv.Itoa(port)}, more...)
		}
	}
	for name, s := range map[string]server{
		"tinyproxy":                 {tinyproxy, "http", false, tiny("")},
		"tinyproxy with passwords":  {tinyproxy, "http", true, tiny("BasicAuth " + user + " " + password + "\n")},
		"microsocks":                {microsocks, "socks5", false, socks()},
		"microsocks with passwords": {microsocks, "socks5", true, socks("-u", user, "-P", password)},
		"dante": {danted, "socks5", false, func(dir string, port int) []string {
			return []string{"-f", conf(dir, "logoutput: stderr\ninternal: 127.0.0.1 port = %d\nexternal: 127.0.0.1\nclientmethod: none\nsocksmethod: none\n"+
				"client pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }\nsocks pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }\n", port)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			need(t, s.program)
			dir, port, public := t.TempDir(), freePort(t), freePort(t)
			args := s.args(dir, port)
			run := func() *testProcess {
				way := start(t, s.program.name, s.program.path(t), nil, args...)
				way.awaitListener(port)
				return way
			}
			way := run()
			p := startProxy(t)
			token := addKey(t, p.state, "nas", fmt.Sprintf("tcp/%d", public))
			service, expose := fmt.Sprintf("tcp/%d", public), fmt.Sprintf("%d=%d", public, serve(t, echo))
			right := []string{"--via", fmt.Sprintf("%s://%s", s.scheme, loopback(port))}
			if s.auth {
				right = []string{"--via-file", writeFile(t, filepath.Join(dir, "via"), fmt.Sprintf("%s://%s:%s@%s\n", s.scheme, user, password, loopback(port)))}
				for i, wrong := range []string{loopback(port), user + ":" + password + "wrong@" + loopback(port)} {
					b := startBridge(t, token, expose, "--proxy", loopback(p.link), "--via", s.scheme+"://"+wrong)
					r := b.awaitRecord("no connection to the proxy, trying again")
					if word := []string{"USER:PASSWORD", `check user "alice"`}[i]; !strings.Contains(r.Text("err"), word) || r.Number("retry_in") < 1 {
						t.Errorf("with %s: %s, again in %v s; want %q, and no haste", wrong, r.Text("err"), r.Number("retry_in"), word)
					}
					b.Kill()
				}
			}
			b := startBridge(t, token, append(right, expose, "--proxy", loopback(p.link))...)
			b.awaitUp(service)
			c := dial(t, loopback(public))
			echoThrough(t, c, 16<<20, 4, func() {
				way.Kill()
				way = run()
			})
			c.Close()
			if r := p.awaitRecord("pair released", "service", service); r.Text("reason") != "eof" || r.Number("resumes") == 0 {
				t.Errorf("the pair ended as %q after %d resumes", r.Text("reason"), int(r.Number("resumes")))
			}
			status := runReverser(t, "status", "--json", "--state", b.state) + runReverser(t, "status", "--state", b.state)
			if !strings.Contains(status, s.scheme+"://") || !strings.Contains(status, loopback(port)) {
				t.Errorf("status does not name the way out: %s", status)
			}
			if said := status + b.Stdout.String() + b.Stderr.String(); strings.Contains(said, password) {
				t.Error("the password is in status or log")
			}
			way.Kill() // nothing is beside it
			eventually(t, "the proxy has no connection of the bridge", func() bool {
				links := mustStatus(t, p.state).Links
				return len(links) == 0 || links[0].State == "down" // its session may have ended by now
			})
		})
	}
}

// connectServer is an HTTP proxy that knows one name, which leads to port, and counts who came.
func connectServer(t *testing.T, name string, port int, asked *atomic.Int64) (at int) {
	return serve(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.Method != http.MethodConnect || req.Host != name {
			fmt.Fprint(c, "HTTP/1.1 403 Forbidden\r\n\r\n")
			return
		}
		asked.Add(1)
		far, err := net.Dial("tcp", loopback(port))
		if err != nil {
			fmt.Fprint(c, "HTTP/1.1 503 Service Unavailable\r\n\r\n")
			return
		}
		defer far.Close()
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			io.Copy(far, r)
			far.Close()
		}()
		io.Copy(c, far)
	})
}

// TestWayOutToTheAuthority: a proxy reaches the authority for certificates as its environment says.
func TestWayOutToTheAuthority(t *testing.T) {
	t.Parallel()
	const authority = "authority.invalid:443"
	for _, tt := range []struct {
		env []string
		by  bool
	}{
		{nil, true},
		{[]string{"NO_PROXY=.invalid"}, false},
	} {
		var asked atomic.Int64 // by this process
		tt.env = append(tt.env, "HTTPS_PROXY=http://"+loopback(connectServer(t, authority, freePort(t), &asked)))
		p := &proxyProcess{state: t.TempDir(), link: freePort(t)}
		env := append([]string{"HTTP_PROXY=", "https_proxy=", "ALL_PROXY=", "no_proxy=", "NO_PROXY="}, tt.env...)
		p.testProcess = startReverser(t, "proxy", env, "proxy", "--listen", loopback(p.link), "--https", loopback(freePort(t)), "--state", p.state, "--log-format", "json",
			"--acme-directory", "https://"+authority+"/dir")
		p.awaitReady()
		b := startBridge(t, addKey(t, p.state, "web", "https/*"), fmt.Sprintf("https/app.example.com=%d", webTarget(t, "app")), "--proxy", loopback(p.link))
		b.awaitUp("https/app.example.com")
		p.awaitRecord("certificate not obtained", "host", "app.example.com") // nobody is there
		if n := asked.Load(); n > 0 != tt.by {
			t.Errorf("%v: the server on the way out was asked %d times", tt.env, n)
		}
		b.Kill()
		p.Kill() // before it tries again
	}
}

// TestWayOutOfTheEnvironment: HTTPS_PROXY, ALL_PROXY and NO_PROXY count where nothing else is said. The name of the proxy, which
// this machine cannot look up, is looked up on the way out.
func TestWayOutOfTheEnvironment(t *testing.T) {
	t.Parallel()
	p := startProxy(t)
	const name = "tunnel.invalid:443"
	for i, tt := range []struct {
		env  []string
		args []string
		up   bool
	}{
		{[]string{"HTTPS_PROXY=http://WAY"}, []string{"--proxy", name}, true},
		{[]string{"HTTPS_PROXY=", "all_proxy=WAY"}, []string{"--proxy", name}, true},
		{[]string{"HTTPS_PROXY=http://WAY", "NO_PROXY=.invalid"}, []string{"--proxy", name}, false},
		{[]string{"HTTPS_PROXY=http://WAY"}, []string{"--proxy", name, "--via", "none"}, false},
		{[]string{"HTTPS_PROXY=http://127.0.0.1:1"}, []string{"--proxy", name, "--via", "http://WAY"}, true},
	} {
		var asked atomic.Int64 // by this bridge: those before it may still dial
		way := loopback(connectServer(t, name, p.link, &asked))
		for _, words := range [][]string{tt.env, tt.args} {
			for i := range words {
				words[i] = strings.ReplaceAll(words[i], "WAY", way)
			}
		}
		public := freePort(t)
		token := addKey(t, p.state, fmt.Sprintf("key%d", i), fmt.Sprintf("tcp/%d", public))
		b := &bridgeProcess{state: t.TempDir()}
		env := append([]string{"HTTP_PROXY=", "https_proxy=", "ALL_PROXY=", "no_proxy=", "NO_PROXY="}, tt.env...)
		b.testProcess = startReverser(t, "bridge", env, append([]string{"bridge", token, fmt.Sprintf("%d=%d", public, serve(t, echo)), "--state", b.state, "--log-format", "json"}, tt.args...)...)
		if !tt.up {
			if r := b.awaitRecord("no connection to the proxy, trying again"); !strings.Contains(r.Text("err"), "dial the proxy at "+name) || asked.Load() != 0 {
				t.Errorf("%v: %s", tt, r.Text("err"))
			}
			b.Kill()
			continue
		}
		b.awaitUp(fmt.Sprintf("tcp/%d", public))
		exchange(t, dial(t, loopback(public)), "hello")
		if r := b.awaitRecord("service up"); !strings.Contains(r.Text("public"), "goes through http://"+way) {
			t.Errorf("%v: the log says %q of the public port", tt, r.Text("public"))
		}
	}
}
