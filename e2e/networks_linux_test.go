package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
		if r := lost.awaitRecord("no connection to the proxy, trying again"); !strings.Contains(r.Text("err"), "not the proxy that this token was made for") {
			t.Errorf("with the other proxy's name: %s", r.Text("err"))
		}
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
	const n, cuts = 16 << 20, 8
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, newPattern(n))
		sent <- err
	}()
	want, buf, expected := newPattern(n), make([]byte, n/cuts), make([]byte, n/cuts)
	for i := range cuts {
		router.cut()
		io.ReadFull(want, expected)
		if _, err := io.ReadFull(c, buf); err != nil || !bytes.Equal(buf, expected) {
			t.Fatalf("part %d of %d is wrong: %v", i+1, cuts, err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		t.Errorf("at the end %d bytes more, %v", len(rest), err)
	}
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
