package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var openssl = program{"openssl", "openssl"}

// certificate writes a certificate for a name and its key into dir, and returns both paths and what a client is to trust.
func certificate(t *testing.T, dir, name string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	return certificateUntil(t, dir, name, time.Now().Add(24*time.Hour))
}

// certificateUntil is certificate for one that is valid until then, since two days before.
func certificateUntil(t *testing.T, dir, name string, until time.Time) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: until.Add(-48 * time.Hour), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write := func(kind, ext string, der []byte) string {
		path := filepath.Join(dir, name+ext)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, key, pool = write("CERTIFICATE", ".crt", der), write("PRIVATE KEY", ".key", secret), x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return cert, key, pool
}

// TestTLSNames: two web servers with names of their own share one public port. Each ends its own TLS, which the proxy passes on unread.
func TestTLSNames(t *testing.T) {
	t.Parallel()
	need(t, nginx, curl, openssl)
	dir, https := t.TempDir(), freePort(t)
	p := startProxy(t, "--https", loopback(https))
	token := addKey(t, p.state, "web", "tls/*")
	var exposes, services []string
	sums := make(map[string]string)
	for _, host := range []string{"a.example", "b.example"} {
		cert, key, _ := certificate(t, dir, host)
		www, port := filepath.Join(dir, host), freePort(t)
		if err := os.Mkdir(www, 0o755); err != nil {
			t.Fatal(err)
		}
		sums[host] = randomFile(t, filepath.Join(www, "big"), 8<<20)
		startNginx(t, www, fmt.Sprintf(`
		listen 127.0.0.1:%d ssl http2;
		ssl_certificate %s;
		ssl_certificate_key %s;
		root %s;
`, port, cert, key, www))
		exposes, services = append(exposes, fmt.Sprintf("tls/%s=%d", host, port)), append(services, "tls/"+host)
	}
	b := startBridge(t, token, append(exposes, "--proxy", loopback(p.link))...)
	b.awaitUp(services...)
	for host, want := range sums {
		got := filepath.Join(dir, "got")
		version := run(t, curl.path(t), "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "120", "--http2",
			"--cacert", filepath.Join(dir, host+".crt"), "--connect-to", fmt.Sprintf("%s:443:%s", host, loopback(https)),
			"--output", got, "--write-out", "%{http_version}", "https://"+host+"/big")
		if sum := sumOfFile(t, got); sum != want || version != "2" {
			t.Errorf("%s: checksum %s over HTTP %s, want %s over HTTP 2", host, sum, version, want)
		}
	}
	for what, args := range map[string][]string{"another name": {"-servername", "c.example"}, "no name": {"-noservername"}} {
		out := runInput(t, os.DevNull, "/bin/sh", append([]string{"-c", openssl.path(t) + ` s_client -connect "$@" 2>&1 || true`, "sh", loopback(https)}, args...)...)
		if !strings.Contains(out, "unrecognized name") {
			t.Errorf("%s: s_client says %.400q, want the alert unrecognized name", what, out)
		}
	}
	if r := p.awaitRecord("pair released", "service", "tls/b.example"); r.Text("reason") != "eof" {
		t.Errorf("a pair ended as %q, want eof", r.Text("reason"))
	}
}

// TestTLSNamesSurviveABreak: what goes through a name goes on behind a break of the link like everything else.
func TestTLSNamesSurviveABreak(t *testing.T) {
	t.Parallel()
	https := freePort(t)
	p := startProxy(t, "--https", loopback(https))
	r := startRouter(t, p.link)
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
	b := startBridge(t, addKey(t, p.state, "web", "tls/app.example"), "tls/app.example="+strconv.Itoa(port), "--proxy", loopback(r.port))
	b.awaitUp("tls/app.example")
	c := tls.Client(dial(t, loopback(https)), &tls.Config{RootCAs: pool, ServerName: "app.example"})
	echoThrough(t, c, 20<<20, 4, r.cut)
	c.Close()
	if r := p.awaitRecord("pair released", "service", "tls/app.example"); r.Text("reason") != "eof" || r.Number("resumes") == 0 {
		t.Errorf("the pair ended as %q after %d resumes", r.Text("reason"), int(r.Number("resumes")))
	}
}

// echoThrough sends n bytes to a service that echoes them, and checks each of them, while what is in between is cut again and again.
func echoThrough(t *testing.T, c interface {
	net.Conn
	CloseWrite() error
}, n int64, cuts int, cut func(),
) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, newPattern(n))
		sent <- err
	}()
	want, buf, expected := newPattern(n), make([]byte, n/int64(cuts)), make([]byte, n/int64(cuts))
	for i := range cuts {
		cut()
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
}
