package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reverser/internal/acmetest"
	"reverser/internal/status"
)

// webTarget is a server for HTTP that says what it was asked.
func webTarget(t *testing.T, name string) (port int) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s got %s %s%s from %s", name, r.Header.Get("X-Forwarded-Proto"), r.Host, r.URL.Path, r.Header.Get("X-Forwarded-For"))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// browser is a client of HTTP that finds every name at two ports of this machine.
func browser(t *testing.T, http80, https443 int, roots *x509.CertPool) *http.Client {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := loopback(https443)
			if _, port, _ := net.SplitHostPort(addr); port == "80" || port == fmt.Sprint(http80) {
				to = loopback(http80)
			}
			return new(net.Dialer).DialContext(ctx, network, to)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// certificates are those of the status, by host.
func certificates(t *testing.T, state string) map[string]status.Certificate {
	t.Helper()
	var s status.Snapshot
	if err := json.Unmarshal([]byte(runReverser(t, "status", "--json", "--state", state)), &s); err != nil {
		t.Fatal(err)
	}
	all := make(map[string]status.Certificate)
	for _, c := range s.Certificates {
		all[c.Host] = c
	}
	return all
}

func awaitCertificate(t *testing.T, state, host, want string) (c status.Certificate) {
	t.Helper()
	eventually(t, fmt.Sprintf("the certificate of %s is %s", host, want), func() bool {
		c = certificates(t, state)[host]
		return c.State == want
	})
	return c
}

// TestHTTPS: a name and an address get certificates by themselves; browsers reach the services with HTTP/2 and 1.1, and those that come
// without TLS are sent there. The next process has the certificates without asking again.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	http80, https443 := freePort(t), freePort(t)
	a := acmetest.Start(t, acmetest.Config{HTTPPort: http80, TLSPort: https443})
	args := []string{"--http", loopback(http80), "--https", loopback(https443), "--acme-email", "admin@example.com", "--acme-directory", a.Directory, "--acme-root", a.Root}
	p := startProxy(t, args...)
	token := addKey(t, p.state, "web", "https/*", "http/*")
	b := startBridge(t, token, fmt.Sprintf("https/app.example.com=%d", webTarget(t, "app")), fmt.Sprintf("https/app.example.com/api=%d", webTarget(t, "api")),
		fmt.Sprintf("https/127.0.0.1=%d", webTarget(t, "address")), fmt.Sprintf("http/plain.example.com=%d", webTarget(t, "plain")),
		fmt.Sprintf("https/*.example.com=%d", webTarget(t, "wild")), "--proxy", loopback(p.link))
	b.awaitUp("https/app.example.com", "https/app.example.com/api", "https/127.0.0.1", "http/plain.example.com")
	if s := b.awaitService("https/*.example.com", status.ServiceDenied); !strings.Contains(s.Reason, "no certificate for a wildcard comes by itself") {
		t.Errorf("a wildcard: %+v", s)
	}
	c := awaitCertificate(t, p.state, "app.example.com", status.CertificateValid)
	if c.Key != "web" || c.From != a.Directory || c.RenewAt.IsZero() || c.NotAfter.Before(time.Now()) {
		t.Errorf("%+v", c)
	}
	awaitCertificate(t, p.state, "127.0.0.1", status.CertificateValid)
	if out := runReverser(t, "status", "--state", p.state); !strings.Contains(out, "CERTIFICATE") || !strings.Contains(out, "app.example.com") {
		t.Errorf("status says\n%s", out)
	}

	roots := a.Issuers()
	client := browser(t, http80, https443, roots)
	for url, want := range map[string]string{
		"https://app.example.com/x":         "app got https app.example.com/x from 127.0.0.1",
		"https://app.example.com/api/y":     "api got https app.example.com/api/y from 127.0.0.1",
		"https://127.0.0.1/z":               "address got https 127.0.0.1/z from 127.0.0.1",
		"http://plain.example.com/":         "plain got http plain.example.com/ from 127.0.0.1",
		"https://APP.example.com./upper%20": "app got https APP.example.com./upper  from 127.0.0.1",
	} {
		if resp, body := get(t, client, url); body != want || resp.TLS != nil && resp.ProtoMajor != 2 {
			t.Errorf("GET %s: %s %s %q; want %q", url, resp.Proto, resp.Status, body, want)
		}
	}
	one := browser(t, http80, https443, roots)
	one.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	one.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
	if resp, body := get(t, one, "https://app.example.com/"); resp.ProtoMajor != 1 || !strings.HasPrefix(body, "app got https") {
		t.Errorf("HTTP/1.1: %s %s %q", resp.Proto, resp.Status, body)
	}
	for url, want := range map[string]string{
		"http://app.example.com/a%20b?c=d":                 "https://app.example.com/a%20b?c=d",
		fmt.Sprintf("http://app.example.com:%d/x", http80): fmt.Sprintf("https://app.example.com:%d/x", https443),
	} {
		if resp, _ := get(t, client, url); resp.StatusCode != http.StatusPermanentRedirect || resp.Header.Get("Location") != want {
			t.Errorf("GET %s: %s, Location %q; want 308 and %q", url, resp.Status, resp.Header.Get("Location"), want)
		}
	}
	if resp, _ := get(t, client, "http://other.example.com/"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a host that nobody serves: %s", resp.Status)
	}
	// A host that the certificate of the connection is not for.
	req, err := http.NewRequest(http.MethodGet, "https://app.example.com/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "127.0.0.1"
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("another host on the same connection: %s; want 421", resp.Status)
	}
	if _, err := client.Get("https://other.example.com/"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that nobody serves: %v; want the alert unrecognized name", err)
	}

	before := certificates(t, p.state)["app.example.com"]
	client.CloseIdleConnections()
	one.CloseIdleConnections()
	p.stop()
	wantExit(t, p.testProcess) // or it is what tells its status below
	a.Stop()
	p = startProxyAt(t, p.state, p.link, args...)
	p.awaitRecord("service up", "service", "https/app.example.com")
	if after := awaitCertificate(t, p.state, "app.example.com", status.CertificateValid); !after.NotAfter.Equal(before.NotAfter) {
		t.Errorf("the next process has a certificate until %s; want the one until %s", after.NotAfter, before.NotAfter)
	}
	if _, body := get(t, client, "https://app.example.com/x"); !strings.HasPrefix(body, "app got https") {
		t.Errorf("after a restart: %q", body)
	}
}

// TestHTTPSWithoutAuthority: while the authority is away, all else is served, and status says what is wrong and what to do.
func TestHTTPSWithoutAuthority(t *testing.T) {
	t.Parallel()
	http80, https443, public, nobody := freePort(t), freePort(t), freePort(t), freePort(t)
	p := startProxy(t, "--http", loopback(http80), "--https", loopback(https443), "--acme-directory", "https://"+loopback(nobody)+"/dir")
	b := startBridge(t, addKey(t, p.state, "web", "https/*", "http/*", fmt.Sprint(public)), fmt.Sprintf("https/app.example.com=%d", webTarget(t, "app")),
		fmt.Sprintf("http/plain.example.com=%d", webTarget(t, "plain")), fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy", loopback(p.link))
	b.awaitUp("https/app.example.com", "http/plain.example.com")
	c := awaitCertificate(t, p.state, "app.example.com", status.CertificateFailed)
	if !strings.Contains(c.Error, "cannot be reached") || !strings.Contains(c.Error, loopback(nobody)) || c.Hint == "" || c.RetryAt.IsZero() {
		t.Errorf("%+v", c)
	}
	if out := runReverser(t, "status", "--state", p.state); !strings.Contains(out, "certificate of app.example.com: the authority at ") || !strings.Contains(out, "tried again in ") {
		t.Errorf("status says\n%s", out)
	}
	p.awaitRecord("certificate not obtained", "host", "app.example.com", "key", "web")
	client := browser(t, http80, https443, x509.NewCertPool())
	if _, body := get(t, client, "http://plain.example.com/"); !strings.HasPrefix(body, "plain got http") {
		t.Errorf("a service without TLS: %q", body)
	}
	exchange(t, dial(t, loopback(public)), "as always")
	if _, err := client.Get("https://app.example.com/"); err == nil {
		t.Error("a name without a certificate is served")
	}
}

// TestHTTPSRenewedAtStart: a certificate that is due is renewed by the process that finds it so.
func TestHTTPSRenewedAtStart(t *testing.T) {
	t.Parallel()
	https443 := freePort(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: https443, Profiles: map[string]time.Duration{"default": 30 * time.Minute}}) // less than five looks
	p := startProxy(t, "--https", loopback(https443), "--acme-directory", a.Directory, "--acme-root", a.Root)
	b := startBridge(t, addKey(t, p.state, "web", "https/*"), fmt.Sprintf("https/app.example.com=%d", webTarget(t, "app")), "--proxy", loopback(p.link))
	b.awaitUp("https/app.example.com")
	awaitCertificate(t, p.state, "app.example.com", status.CertificateValid)
	issuers := a.Issuers()
	shown := func() (cert *x509.Certificate) {
		c := browser(t, 0, https443, issuers)
		defer c.CloseIdleConnections()
		if resp, err := c.Get("https://app.example.com/"); err == nil {
			resp.Body.Close()
			cert = resp.TLS.PeerCertificates[0]
		}
		return cert
	}
	first := shown()
	if first == nil {
		t.Fatal("the first certificate is not in use")
	}
	p.stop()
	wantExit(t, p.testProcess)
	p = startProxyAt(t, p.state, p.link, "--https", loopback(https443), "--acme-directory", a.Directory, "--acme-root", a.Root)
	p.awaitRecord("certificate renewed", "host", "app.example.com", "key", "web")
	eventually(t, "the new certificate is in use", func() bool {
		next := shown()
		return next != nil && !next.Equal(first)
	})
}

// TestHTTPSFromFiles: certificates of a proxy's file go before, and stand for wildcards; they are changed while connections go on, and a
// pair that does not fit changes nothing. Browsers are told to come by TLS only where a service says so.
func TestHTTPSFromFiles(t *testing.T) {
	t.Parallel()
	https443, dir := freePort(t), t.TempDir()
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	chain, key := acmetest.Certificate(t, "*.example.com")
	next, nextKey := acmetest.Certificate(t, "*.example.com", "example.org")
	put("chain.pem", chain)
	put("key.pem", key)
	put("proxy.toml", []byte("https = \""+loopback(https443)+"\"\nacme_directory = \"https://"+loopback(freePort(t))+"/dir\"\n[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n"))
	p := startProxy(t, "--config", filepath.Join(dir, "proxy.toml"))
	put("bridge.token", []byte(addKey(t, p.state, "web", "https/*")))
	put("bridge.toml", []byte(fmt.Sprintf("token_file = \"bridge.token\"\n[[expose]]\npublic = \"https/*.example.com\"\ntarget = %d\nhsts = \"30d\"\n[[expose]]\npublic = \"https/plain.example.com\"\ntarget = %d\n",
		webTarget(t, "wild"), webTarget(t, "plain"))))
	b := startReverser(t, "bridge", nil, "bridge", "--state", t.TempDir(), "--log-format", "json", "--config", filepath.Join(dir, "bridge.toml"), "--proxy", loopback(p.link))
	b.awaitRecord("service up", "service", "https/*.example.com")
	b.awaitRecord("service up", "service", "https/plain.example.com")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	roots.AppendCertsFromPEM(next)
	shown := func(c *http.Client, host, want string) *x509.Certificate {
		t.Helper()
		resp, body := get(t, c, "https://"+host+"/")
		if !strings.HasPrefix(body, want+" got https") {
			t.Errorf("%s: %s %q", host, resp.Status, body)
		}
		if got := resp.Header.Get("Strict-Transport-Security"); (want == "wild") != (got == "max-age=2592000") {
			t.Errorf("%s: Strict-Transport-Security is %q", host, got)
		}
		return resp.TLS.PeerCertificates[0]
	}
	open := browser(t, 0, https443, roots)
	first := shown(open, "a.example.com", "wild")
	shown(open, "plain.example.com", "plain")
	if c := awaitCertificate(t, p.state, "*.example.com", status.CertificateValid); !strings.HasSuffix(c.From, "chain.pem") || !c.NotAfter.Equal(first.NotAfter) {
		t.Errorf("%+v", c)
	}

	put("key.pem", nextKey)
	run := startReverser(t, "reload", nil, "reload", "--state", p.state)
	run.quiet = true
	if code := run.awaitEnd(); code == 0 || !strings.Contains(run.Stderr.String(), "is not that of the certificate in") {
		t.Errorf("a reload with a key of another certificate: exit code %d, %s", code, run.Stderr.String())
	}
	if again := shown(browser(t, 0, https443, roots), "a.example.com", "wild"); !again.Equal(first) {
		t.Error("the certificate was changed by a reload that was refused")
	}
	put("chain.pem", next)
	eventually(t, "a new connection has the new certificate", func() bool {
		c := browser(t, 0, https443, roots)
		resp, err := c.Get("https://a.example.com/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		c.CloseIdleConnections()
		return !resp.TLS.PeerCertificates[0].Equal(first)
	})
	if again := shown(open, "a.example.com", "wild"); !again.Equal(first) {
		t.Error("the connection from before the change is another one")
	}
}
