package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"reverser/internal/acmetest"
	"reverser/internal/entrance"
	"reverser/internal/status"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// fakeCertificates has one certificate, and is being asked for a proof of prove.example.
type fakeCertificates struct {
	cert  tls.Certificate
	roots *x509.CertPool

	states []status.Certificate // that it tells of

	mu     sync.Mutex
	wanted map[string]string // guarded by mu
}

func newFakeCertificates(t *testing.T, names ...string) *fakeCertificates {
	t.Helper()
	chain, key := acmetest.Certificate(t, names...)
	f := &fakeCertificates{roots: x509.NewCertPool()}
	var err error
	if f.cert, err = tls.X509KeyPair(chain, key); err != nil {
		t.Fatal(err)
	}
	f.roots.AppendCertsFromPEM(chain)
	return f
}

func (f *fakeCertificates) Want(hosts map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = hosts
}

func (f *fakeCertificates) GetCertificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if h.ServerName == "none.example" {
		return nil, errors.New("there is none yet")
	}
	return &f.cert, nil
}

func (f *fakeCertificates) Proves(name string) bool { return name == "prove.example" }

func (f *fakeCertificates) Page(host, path string) (string, bool) {
	return "proof", host == "a.example" && path == "/.well-known/acme-challenge/token"
}

func (f *fakeCertificates) Status() []status.Certificate { return f.states }

// secure connects to the port of names, and speaks TLS.
func (w *world) secure(f *fakeCertificates, name string, protocols ...string) (*tls.Conn, error) {
	w.t.Helper()
	c := tls.Client(w.user(w.p.names.ln.Addr().String()), &tls.Config{ServerName: name, RootCAs: f.roots, NextProtos: protocols})
	return c, c.Handshake()
}

// TestHandshakesAreBounded: a client has as much for the rest of its handshake as that takes. What follows does not count.
func TestHandshakesAreBounded(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	hello := &entrance.Hello{Read: make([]byte, 6000)}
	h := &turned{server, traffic.NewHandshakes(1).Handshake(), hello.MostBehind()}
	h.handshake.Heard()
	if h.left < 6000 || h.left > 9000 {
		t.Fatalf("%d bytes may follow a hello of 6,000", h.left)
	}
	go client.Write(make([]byte, h.left+2))
	n, err := io.Copy(io.Discard, h)
	if !errors.Is(err, entrance.ErrTooMuch) || n != int64(hello.MostBehind()) {
		t.Errorf("%d bytes were read: %v; want ErrTooMuch after %d", n, err, hello.MostBehind())
	}
	h.over()
	if _, err := io.ReadFull(h, make([]byte, 2)); err != nil {
		t.Errorf("behind the handshake: %v", err)
	}
}

// TestSecure: the most specific name decides where TLS ends, and the certificate which hosts may be asked for.
func TestSecure(t *testing.T) {
	f := newFakeCertificates(t, "a.example", "c.example", "none.example", "prove.example")
	nas, pc := key(t, "nas", "https/*", "http/*"), key(t, "pc", "tls/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{nas, pc}}})
	one := w.bridge(nas, how{instance: 1}, "https/a.example", "https/a.example/api", "https/c.example", "https/d.example", "https/none.example", "http/a.example/plain")
	two := w.bridge(pc, how{instance: 2}, "tls/*.example")
	target := one.target(say("nas"))
	w.eventually("certificates are wanted for what is served", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.wanted) == 4 && f.wanted["a.example"] == "nas" && f.wanted["none.example"] == "nas"
	})

	conn, err := w.secure(f, "A.Example")
	if err != nil {
		t.Fatal(err)
	}
	u := &httpUser{t, conn, bufio.NewReader(conn)}
	for _, c := range []struct {
		host, path, want string
		status           int
	}{
		{"a.example", "/x", "nas 1 a.example /x", http.StatusOK},
		{"a.example:8443", "/api/y", "nas 2 a.example:8443 /api/y", http.StatusOK},
		{"c.example", "/", "nas 3 c.example /", http.StatusOK},
		{"d.example", "/", "", http.StatusMisdirectedRequest},
		{"a.example", "/plain", "nas 1 a.example /plain", http.StatusOK},
	} {
		resp, body := u.ask(get(c.host, c.path))
		if resp.StatusCode != c.status || c.want != "" && body != c.want {
			t.Errorf("%s%s: %s %q; want %d %q", c.host, c.path, resp.Status, body, c.status, c.want)
		}
	}
	if n := target.seen.Load(); n == 0 {
		t.Error("no stream was opened")
	}
	conn.Close()

	h2, err := w.secure(f, "c.example", "h2", "http/1.1")
	if err != nil || h2.ConnectionState().NegotiatedProtocol != "h2" {
		t.Errorf("%q, %v; want h2", h2.ConnectionState().NegotiatedProtocol, err)
	}
	h2.Close()

	raw, sent := w.hello("b.example") // tls/*.example is the most specific one
	s := two.stream()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != string(sent) || s.Open().Entrance != wire.EntranceTLS {
		t.Errorf("a tls/ name beside: %d bytes, %v, OPEN %+v", len(got), err, s.Open())
	}
	s.Reset(wire.CodeReset)
	wantReset(t, raw)

	if _, err := w.secure(f, "none.example"); err == nil {
		t.Error("a name without a certificate is served")
	}
	w.wantUnrecognized("elsewhere.invalid")
	w.wantUnrecognized("")

	proof, err := w.secure(f, "prove.example", acmeProtocol)
	if err != nil || proof.ConnectionState().NegotiatedProtocol != acmeProtocol {
		t.Errorf("an authority that asks for a proof: %v", err)
	}
	proof.Close()

	plain := w.httpUser()
	if _, body := plain.ask(get("a.example", "/.well-known/acme-challenge/token")); body != "proof" {
		t.Errorf("an authority at the port for HTTP: %q", body)
	}
	for _, c := range []struct{ host, path, want string }{
		{"a.example", "/x?y=%2f", "https://a.example/x?y=%2f"},
		{"c.example", "/.well-known/acme-challenge/token", "https://c.example/.well-known/acme-challenge/token"},
		{"a.example:80", "/", "https://a.example:" + port(w.p.names.ln.Addr()) + "/"},
	} {
		resp, _ := plain.ask(get(c.host, c.path))
		if resp.StatusCode != http.StatusPermanentRedirect || resp.Header.Get("Location") != c.want {
			t.Errorf("%s%s: %s to %q; want 308 to %q", c.host, c.path, resp.Status, resp.Header.Get("Location"), c.want)
		}
	}
	if resp, body := plain.ask(get("a.example", "/plain")); resp.StatusCode != http.StatusOK || body != "nas 6 a.example /plain" {
		t.Errorf("a service without TLS on the same host: %s %q", resp.Status, body)
	}
}

// TestNamesAway: who asks for a service whose bridge is away, and whose session is over, is told at once to come again: at the port for HTTP, by
// the way from there to TLS, and with TLS where there is a certificate. That ends when the policy does not allow the name any more.
func TestNamesAway(t *testing.T) {
	f := newFakeCertificates(t, "a.example", "none.example")
	k := key(t, "nas", "http/*", "https/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1}, "http/b.example/x", "http/gone.example", "https/a.example", "https/none.example")
	b.unclaim(1)
	l := w.p.port.host.Link(k.ID)
	b.stop()
	<-b.done
	l.Kill(errors.New("away for too long"))
	wanted := func(hosts ...string) func() bool {
		return func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return slices.Equal(slices.Sorted(maps.Keys(f.wanted)), hosts)
		}
	}
	ask := func(u *httpUser, host, path string, status int) {
		t.Helper()
		resp, body := u.ask(get(host, path))
		if again := resp.Header.Get("Retry-After"); resp.StatusCode != status || status == 503 && (again != "10" || !strings.Contains(body, "not connected")) {
			t.Errorf("%s%s: %s, Retry-After %q, %q; want %d", host, path, resp.Status, again, body, status)
		}
	}
	plain := w.httpUser()
	ask(plain, "b.example", "/x/y", 503)
	ask(plain, "b.example", "/z", 404)
	ask(plain, "gone.example", "/", 404)
	ask(plain, "a.example", "/", http.StatusPermanentRedirect)
	eventually(t, "the certificate that is there stays, and no other one is wanted", wanted("a.example"))
	conn, err := w.secure(f, "a.example")
	if err != nil {
		t.Fatal(err)
	}
	ask(&httpUser{t, conn, bufio.NewReader(conn)}, "a.example", "/", 503)
	w.wantUnrecognized("none.example")

	w.setKeys(key(t, "nas", "http/c.example"))
	ask(plain, "b.example", "/x/y", 404)
	ask(plain, "a.example", "/", 404)
	eventually(t, "no certificate is wanted", wanted())
	w.wantUnrecognized("a.example")
}

// TestRedirectBeforeTheBody: neither the way to TLS nor a proof waits for the body of its request. A client whose body does not come is let go.
func TestRedirectBeforeTheBody(t *testing.T) {
	f := newFakeCertificates(t, "a.example")
	nas := key(t, "nas", "https/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{nas}}})
	w.bridge(nas, how{instance: 1}, "https/a.example")
	const proof = "GET /.well-known/acme-challenge/token"
	users := make(map[string]*httpUser)
	for request, want := range map[string]int{
		"POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n":                          308,
		"POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nhalf":                           308,
		"POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\nbody":                            308,
		"PUT /x HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n":          308,
		"PUT /x HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n":        308,
		"POST /x HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\nContent-Length: 10\r\n\r\nhalf": 308,
		proof + " HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\n":                              200,
		proof + " HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n":        200,
	} {
		u := w.httpUser()
		resp, _ := u.ask(request)
		if resp.StatusCode != want || !resp.Close || want == 308 && resp.Header.Get("Location") != "https://a.example/x" {
			t.Errorf("%q: %s to %q, close %v; want %d and the end of the connection", request, resp.Status, resp.Header.Get("Location"), resp.Close, want)
		}
		users[request] = u
	}
	for request, u := range users {
		if _, err := u.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: the connection stays: %v", request, err)
		}
	}
	again := w.httpUser() // one without a body may go on
	for range 2 {
		if resp, _ := again.ask(get("a.example", "/x")); resp.StatusCode != http.StatusPermanentRedirect || resp.Close {
			t.Errorf("%s, close %v; want 308 on a connection that stays", resp.Status, resp.Close)
		}
	}
}

// TestSecureBesidePassedOn: a connection of a https/ service is none for a host whose TLS is passed on, though the certificate is for both.
// Browsers try that, and come with a connection of its own then.
func TestSecureBesidePassedOn(t *testing.T) {
	f := newFakeCertificates(t, "*.a.example")
	nas, pc := key(t, "nas", "https/*"), key(t, "pc", "tls/*")
	w := start(t, Config{HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{nas, pc}, Given: []string{"*.a.example"}}})
	w.bridge(nas, how{instance: 1}, "https/*.a.example").target(say("nas"))
	w.bridge(pc, how{instance: 2}, "tls/own.a.example")
	conn, err := w.secure(f, "one.a.example")
	if err != nil {
		t.Fatal(err)
	}
	u := &httpUser{t, conn, bufio.NewReader(conn)}
	for host, want := range map[string]int{"one.a.example": http.StatusOK, "two.a.example": http.StatusOK, "own.a.example": http.StatusMisdirectedRequest, "Own.A.example.": http.StatusMisdirectedRequest} {
		if resp, body := u.ask(get(host, "/")); resp.StatusCode != want {
			t.Errorf("%s: %s %q; want %d", host, resp.Status, body, want)
		}
	}
}

func port(a net.Addr) string {
	_, p, _ := net.SplitHostPort(a.String())
	return p
}

// eventually waits until something is true.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("never: %s", what)
		}
	}
}

// crowded counts who is in GetCertificate at once, and keeps each there until too many are, or for a moment.
type crowded struct {
	*fakeCertificates
	most    int32
	inside  atomic.Int32
	tooMany chan struct{} // closed when more than most are inside
	once    sync.Once
}

func (c *crowded) GetCertificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	defer c.inside.Add(-1)
	if c.inside.Add(1) > c.most {
		c.once.Do(func() { close(c.tooMany) })
	}
	select {
	case <-c.tooMany:
	case <-time.After(10 * time.Millisecond):
	}
	return c.fakeCertificates.GetCertificate(h)
}

// TestSecureTurns: half of the processors compute the handshakes of strangers, also those of whoever looks for a proof. A client that is
// waited for keeps nobody out.
func TestSecureTurns(t *testing.T) {
	f := &crowded{fakeCertificates: newFakeCertificates(t, "a.example", "none.example", "prove.example"), tooMany: make(chan struct{})}
	f.most = int32(max(runtime.GOMAXPROCS(0)/2, 1))
	nas := key(t, "nas", "https/*")
	w := start(t, Config{HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{nas}}})
	w.bridge(nas, how{instance: 1}, "https/a.example", "https/none.example").target(say("nas"))

	var wg sync.WaitGroup
	for i := range int(f.most) + 12 {
		conn := w.user(w.p.names.ln.Addr().String())
		name := []string{"a.example", "none.example", "prove.example"}[i%3]
		cfg := &tls.Config{ServerName: name, RootCAs: f.roots}
		if name == "prove.example" {
			cfg.NextProtos = []string{acmeProtocol}
		}
		wg.Go(func() {
			if err := tls.Client(conn, cfg).Handshake(); (err == nil) == (name == "none.example") {
				t.Errorf("a handshake for %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	select {
	case <-f.tooMany:
		t.Errorf("more than %d handshakes are computed at once", f.most)
	default:
	}

	// They say hello, and nothing more.
	var silent []net.Conn
	for range f.most + 4 {
		conn, _ := w.hello("a.example")
		silent = append(silent, conn)
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatalf("the server's part of the handshake: %s", err)
		}
	}
	conn, err := w.secure(f.fakeCertificates, "a.example")
	if err != nil {
		t.Fatalf("beside clients that say nothing: %s", err)
	}
	u := &httpUser{t, conn, bufio.NewReader(conn)}
	if resp, body := u.ask(get("a.example", "/")); resp.StatusCode != http.StatusOK {
		t.Errorf("beside clients that say nothing: %s %q", resp.Status, body)
	}
	for _, conn := range silent {
		conn.Close()
	}
	w.eventually("no turn is taken", func() bool { return w.p.names.handshakes.Computing() == 0 })
}
