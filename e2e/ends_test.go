package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// ended is a service whose TLS the bridge ends.
type ended struct {
	proxy     *proxyProcess
	bridge    *bridgeProcess
	https     int // the proxy's port of names
	dir, file string
	cert, key string
	pool      *x509.CertPool
}

const endedName = "app.example"

// startEnded starts a proxy and a bridge that ends the TLS of users of app.example and passes the plain text on to target. The link goes
// through port link, if that is not 0; more is for the service's table.
func startEnded(t *testing.T, target int, link func(port int) int, more string) *ended {
	t.Helper()
	e := &ended{https: freePort(t), dir: t.TempDir()}
	e.proxy = startProxy(t, "--https", loopback(e.https))
	token := addKey(t, e.proxy.state, "web", "tls/*")
	e.cert, e.key, e.pool = certificate(t, e.dir, endedName)
	e.file = filepath.Join(e.dir, "bridge.toml")
	text := fmt.Sprintf("[[expose]]\npublic = \"tls/%s\"\ntarget = %d\ncertificate = \"%[1]s.crt\"\ncertificate_key = \"%[1]s.key\"\n%[3]s", endedName, target, more)
	if err := os.WriteFile(e.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	port := e.proxy.link
	if link != nil {
		port = link(port)
	}
	e.bridge = startBridge(t, token, "--config", e.file, "--proxy", loopback(port))
	e.bridge.awaitUp("tls/" + endedName)
	return e
}

// client is a user's TLS connection.
func (e *ended) client(t *testing.T, version uint16) *tls.Conn {
	t.Helper()
	c := tls.Client(dial(t, loopback(e.https)), &tls.Config{RootCAs: e.pool, ServerName: endedName, MinVersion: version, MaxVersion: version})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c
}

// curl gets /big and returns the version of HTTP.
func (e *ended) curl(t *testing.T, host, cert, to string, args ...string) (version string) {
	t.Helper()
	return run(t, curl.path(t), append([]string{"--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "120", "--cacert", cert,
		"--connect-to", fmt.Sprintf("%s:443:%s", host, loopback(e.https)), "--output", to, "--write-out", "%{http_version}", "https://" + host + "/big"}, args...)...)
}

// sclient runs openssl s_client with what a shell command prints.
func (e *ended) sclient(t *testing.T, input string, args ...string) string {
	t.Helper()
	script := fmt.Sprintf(`(%s) | %s s_client -connect %s -servername %s -CAfile %s "$@" 2>&1 || true`, input, openssl.path(t), loopback(e.https), endedName, e.cert)
	return runInput(t, os.DevNull, "/bin/sh", append([]string{"-c", script, "sh"}, args...)...)
}

// TestTLSEndsAtTheBridge: a web server that knows nothing of TLS is reached by https. Its certificate is renewed under way: who comes then
// gets the new one, and who was there resumes its session.
func TestTLSEndsAtTheBridge(t *testing.T) {
	t.Parallel()
	need(t, nginx, curl, openssl)
	www, port, h2 := t.TempDir(), freePort(t), freePort(t)
	sum := randomFile(t, filepath.Join(www, "big"), 8<<20)
	startNginx(t, www, fmt.Sprintf(`
		listen 127.0.0.1:%d;
		listen 127.0.0.1:%d http2;
		root %s;
`, port, h2, www))
	const h2Name = "h2.example"
	cert2, key2, _ := certificate(t, t.TempDir(), h2Name)
	e := startEnded(t, port, nil, fmt.Sprintf("[[expose]]\npublic = \"tls/%s\"\ntarget = %d\ncertificate = '%s'\ncertificate_key = '%s'\nalpn = [\"h2\"]\n", h2Name, h2, cert2, key2))
	e.bridge.awaitUp("tls/" + h2Name)
	got := filepath.Join(e.dir, "got")
	for _, args := range [][]string{{"--http2"}, {"--http1.1"}, {"--http2", "--tls-max", "1.2"}, {"--http1.1", "--no-alpn"}, {"--http1.1", "--header", "Connection: close"}} {
		if version := e.curl(t, endedName, e.cert, got, args...); version != "1.1" || sumOfFile(t, got) != sum {
			t.Errorf("curl %s: HTTP %s, checksum %s; want HTTP 1.1, %s", args, version, sumOfFile(t, got), sum)
		}
	}
	if version := e.curl(t, h2Name, cert2, got, "--http2"); version != "2" || sumOfFile(t, got) != sum {
		t.Errorf("curl to a target of HTTP/2: HTTP %s, checksum %s; want HTTP 2, %s", version, sumOfFile(t, got), sum)
	}
	r := e.bridge.awaitRecord("pair released", "service", "tls/"+endedName)
	if r.Text("reason") != "eof" || r.Number("received") < 8<<20 || r.Text("target") != loopback(port) {
		t.Errorf("the bridge's line about a pair is %v", r)
	}

	session := filepath.Join(e.dir, "session")
	const request = `printf 'GET /nothing HTTP/1.0\r\n\r\n'`
	out := e.sclient(t, request, "-sess_out", session, "-tls1_3", "-ign_eof")
	if !strings.Contains(out, "Verification: OK") || !strings.Contains(out, "404 Not Found") || !strings.Contains(out, "closed") {
		t.Errorf("s_client says %.3000q", out)
	}
	serial := func(out string) string { return regexp.MustCompile(`NotAfter: [^\n]*`).FindString(out) }
	before := serial(out)
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // certificates have seconds: the next one differs
	old := e.pool
	e.cert, e.key, e.pool = certificate(t, e.dir, endedName)
	e.bridge.awaitLogged("service tls/" + endedName + " has another certificate")
	if out = e.sclient(t, request, "-sess_in", session, "-tls1_3", "-ign_eof"); !strings.Contains(out, "Reused, TLSv1.3") || !strings.Contains(out, "404 Not Found") {
		t.Errorf("behind the reload a session is not resumed: %.3000q", out)
	}
	if out = e.sclient(t, request, "-tls1_2", "-ign_eof"); !strings.Contains(out, "Verification: OK") || serial(out) == before {
		t.Errorf("the new certificate is not served: %.3000q", out)
	}
	c := tls.Client(dial(t, loopback(e.https)), &tls.Config{RootCAs: old, ServerName: endedName})
	if err := c.Handshake(); err == nil {
		t.Error("the old certificate is still served")
	}

	// A key update, which s_client makes of a line with a K read by itself, and what is no protocol of the target.
	talk := prepare(t, "s_client", openssl.path(t), nil, "s_client", "-connect", loopback(e.https), "-servername", endedName, "-CAfile", e.cert, "-tls1_3")
	typed, err := talk.Cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	talk.start()
	io.WriteString(typed, "K\n")
	talk.awaitOutput("KEYUPDATE")
	io.WriteString(typed, "GET /nothing HTTP/1.0\r\n\r\n")
	talk.awaitOutput("404 Not Found")
	typed.Close()
	talk.awaitEnd()
	if out = e.sclient(t, ":", "-alpn", "smtp"); !strings.Contains(out, "no application protocol") {
		t.Errorf("another protocol: %.3000q", out)
	}
	e.bridge.awaitRecord("client refused", "service", "tls/"+endedName)

	// What does not fit is refused, and the old one goes on.
	other, _, _ := certificate(t, e.dir, "other.example")
	e.bridge.mustRefuse(t, func() { copyFile(t, other, e.cert) }, "is not that of the certificate in")
	if got1 := e.curl(t, endedName, other, got, "--insecure"); got1 == "" || sumOfFile(t, got) != sum {
		t.Error("behind a refused certificate nothing is served")
	}
}

// mustRefuse does something to the bridge's files, and waits until a reload was refused for it.
func (b *bridgeProcess) mustRefuse(t *testing.T, change func(), why string) {
	t.Helper()
	change()
	b.awaitLogged("reload refused", why)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestEndedTLSSurvivesCuts: both ways at once, in both versions, through 20 breaks of the link, to the byte.
func TestEndedTLSSurvivesCuts(t *testing.T) {
	t.Parallel()
	target := serve(t, func(c *net.TCPConn) {
		io.Copy(c, c)
		c.CloseWrite()
	})
	var r *router
	e := startEnded(t, target, func(port int) int { r = startRouter(t, port); return r.port }, "")
	const n, cuts = 20 << 20, 20
	var wg sync.WaitGroup
	steps := make(map[uint16]chan struct{})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		step := make(chan struct{})
		steps[version] = step
		c := e.client(t, version)
		wg.Go(func() {
			sent := make(chan error, 1)
			go func() {
				_, err := io.Copy(c, newPattern(n))
				sent <- err
			}()
			want, buf, expected := newPattern(n), make([]byte, n/cuts), make([]byte, n/cuts)
			for i := range cuts {
				<-step
				io.ReadFull(want, expected)
				if _, err := io.ReadFull(c, buf); err != nil || !bytes.Equal(buf, expected) {
					t.Errorf("%s: part %d of %d is wrong: %v", tls.VersionName(version), i+1, cuts, err)
					for range step {
					}
					return
				}
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			c.CloseWrite()
			if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
				t.Errorf("%s: at the end %d bytes more, %v", tls.VersionName(version), len(rest), err)
			}
			c.Close()
		})
	}
	for range cuts {
		r.cut()
		for _, step := range steps {
			step <- struct{}{}
		}
	}
	for _, step := range steps {
		close(step)
	}
	wg.Wait()
	if r := e.bridge.awaitRecord("pair released", "service", "tls/"+endedName); r.Text("reason") != "eof" || r.Number("resumes") == 0 || r.Number("sent") != n || r.Number("received") != n {
		t.Errorf("the pair ended as %q after %v resumes, %v bytes sent, %v received", r.Text("reason"), r.Number("resumes"), r.Number("sent"), r.Number("received"))
	}
	if r := e.proxy.awaitRecord("pair released", "service", "tls/"+endedName); r.Number("sent") <= n {
		t.Errorf("at the proxy the pair had %v bytes: TLS of %d is more", r.Number("sent"), n)
	}
}
