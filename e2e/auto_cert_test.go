package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"reverser/internal/acmetest"
	"reverser/internal/status"
)

// certificateOf waits for the state of a host's certificate in the bridge's status.
func (b *bridgeProcess) certificateOf(host, state string) (c status.Certificate) {
	b.t.Helper()
	eventually(b.t, fmt.Sprintf("the certificate of %s is %s", host, state), func() bool {
		st, err := statusOf(b.t, b.state)
		if err != nil {
			return false
		}
		for _, c = range st.Certificates {
			if c.Host == host && c.State == state {
				return true
			}
		}
		return false
	})
	return c
}

// echoOverTLS talks to a service by its name and returns the certificate that it showed.
func echoOverTLS(t *testing.T, https int, host string, roots *x509.CertPool) *x509.Certificate {
	t.Helper()
	c := tls.Client(dial(t, loopback(https)), &tls.Config{RootCAs: roots, ServerName: host})
	if err := c.Handshake(); err != nil {
		t.Fatalf("%s: %v", host, err)
	}
	exchange(t, c, "hello")
	c.CloseWrite()
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
	return c.ConnectionState().PeerCertificates[0]
}

// TestAutoCert: a bridge gets the certificates of its services from an authority that looks at the public port, through the tunnel. It keeps
// them, serves them while the authority is away, and renews one that is due.
func TestAutoCert(t *testing.T) {
	t.Parallel()
	https := freePort(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: https})
	p := startProxy(t, "--https", loopback(https))
	token := addKey(t, p.state, "web", "tls/*")
	target := serve(t, func(c *net.TCPConn) {
		io.Copy(c, c)
		c.CloseWrite()
	})
	args := []string{"tls/app.example=" + strconv.Itoa(target), "tls/git.example=" + strconv.Itoa(target), "--auto-cert", "--proxy", loopback(p.link),
		"--acme-directory", a.Directory, "--acme-root", a.Root, "--acme-email", "admin@app.example"}
	b := startBridge(t, token, args...)
	for _, host := range []string{"app.example", "git.example"} {
		if c := b.certificateOf(host, "valid"); c.From != a.Directory || c.NotAfter.Before(time.Now()) || c.RenewAt.IsZero() {
			t.Errorf("status has %+v", c)
		}
	}
	roots := a.Issuers()
	for _, host := range []string{"app.example", "git.example"} {
		echoOverTLS(t, https, host, roots)
	}
	b.awaitLogged("certificate obtained", "app.example")
	if r := b.awaitRecord("pair released", "service", "tls/app.example"); r.Text("reason") != "eof" {
		t.Errorf("a pair ended as %q", r.Text("reason"))
	}
	// The proxy has nothing of it.
	filepath.WalkDir(p.state, func(path string, d fs.DirEntry, err error) error {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), "app.example") {
			t.Errorf("%s at the proxy has something of app.example", path)
		}
		return nil
	})

	// What is on the disk is served at once, also while the authority is away, unless it is due.
	first := echoOverTLS(t, https, "app.example", roots)
	b.stop()
	wantExit(t, b.testProcess) // or it is what tells its status below
	file := storedCertificate(t, b.state, "git.example")
	plant(t, file)
	again := func() *bridgeProcess {
		next := &bridgeProcess{state: b.state}
		next.testProcess = startReverser(t, "bridge", nil, append([]string{"bridge", token, "--state", b.state, "--log-format", "json"}, args...)...)
		next.awaitUp("tls/app.example", "tls/git.example")
		return next
	}
	b = again()
	b.certificateOf("app.example", "valid")
	if c := echoOverTLS(t, https, "app.example", roots); c.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Error("behind a restart there is another certificate, though the first was not due")
	}
	eventually(t, "the certificate that is due is renewed", func() bool {
		return b.certificateOf("git.example", "valid").NotAfter.After(time.Now().Add(time.Hour))
	})
	b.awaitLogged("certificate renewed", "git.example")
	echoOverTLS(t, https, "git.example", roots)
	b.stop()
	wantExit(t, b.testProcess)
	a.Stop()
	b = again()
	b.certificateOf("app.example", "valid")
	echoOverTLS(t, https, "app.example", roots)
}

// storedCertificate is the file of a certificate in a state directory.
func storedCertificate(t *testing.T, state, host string) (file string) {
	t.Helper()
	filepath.WalkDir(filepath.Join(state, "tls"), func(path string, d fs.DirEntry, err error) error {
		if filepath.Base(path) == host+".crt" {
			file = path
		}
		return err
	})
	if file == "" {
		t.Fatalf("no certificate of %s in %s", host, state)
	}
	return file
}

// plant puts a certificate of the same key that expires within minutes in the place of a stored one.
func plant(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), DNSNames: leaf.DNSNames, NotBefore: time.Now().Add(-89 * 24 * time.Hour), NotAfter: time.Now().Add(5 * time.Minute)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{file: {Type: "CERTIFICATE", Bytes: der}, strings.TrimSuffix(file, ".crt") + ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAutoCertWithoutAuthority: while the authority is away, the bridge serves what needs no certificate, and says what is missing.
func TestAutoCertWithoutAuthority(t *testing.T) {
	t.Parallel()
	https, public, nobody := freePort(t), freePort(t), freePort(t)
	p := startProxy(t, "--https", loopback(https))
	target := serve(t, echo)
	file := filepath.Join(t.TempDir(), "bridge.toml")
	text := fmt.Sprintf("acme_directory = \"https://%s/dir\"\n[[expose]]\npublic = \"tls/app.example\"\ntarget = %d\ncertificate = \"auto\"\n", loopback(nobody), target)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b := startBridge(t, addKey(t, p.state, "web", "tls/*", fmt.Sprintf("tcp/%d", public)), fmt.Sprintf("%d=%d", public, target), "--config", file, "--proxy", loopback(p.link))
	b.awaitUp("tls/app.example", fmt.Sprintf("tcp/%d", public))
	exchange(t, dial(t, loopback(public)), "hello")
	b.awaitLogged("certificate not obtained", "app.example")
	if c := b.certificateOf("app.example", "failed"); c.Error == "" || c.RetryAt.IsZero() {
		t.Errorf("status has %+v, want the error and when it is tried again", c)
	}
	c := tls.Client(dial(t, loopback(https)), &tls.Config{ServerName: "app.example"})
	if err := c.Handshake(); err == nil || !strings.HasPrefix(err.Error(), "remote error: tls: ") {
		t.Errorf("without a certificate the handshake ends with %v, want an alert", err)
	}
	if r := b.awaitRecord("client refused", "service", "tls/app.example"); !strings.Contains(r.Text("err"), "there is no certificate for") {
		t.Errorf("the log says %v", r)
	}
	exchange(t, dial(t, loopback(public)), "hello again")
}

// TestAutoCertThroughAWayOut: the authority is asked through the way out that the link takes.
func TestAutoCertThroughAWayOut(t *testing.T) {
	t.Parallel()
	https := freePort(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: https})
	p := startProxy(t, "--https", loopback(https))
	token := addKey(t, p.state, "web", "tls/*")
	asked := make(chan string, 1000)
	way := serve(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil || req.Method != http.MethodConnect {
			return
		}
		asked <- req.Host
		far, err := net.Dial("tcp", req.Host)
		if err != nil {
			return
		}
		defer far.Close()
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			io.Copy(far, r)
			far.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(c, far)
	})
	b := startBridge(t, token, fmt.Sprintf("tls/app.example=%d", serve(t, func(c *net.TCPConn) { io.Copy(c, c) })), "--auto-cert", "--proxy", loopback(p.link),
		"--via", "http://"+loopback(way), "--acme-directory", a.Directory, "--acme-root", a.Root)
	b.certificateOf("app.example", "valid")
	authority := strings.TrimSuffix(strings.TrimPrefix(a.Directory, "https://"), "/dir")
	for len(asked) > 0 {
		if <-asked == authority {
			return
		}
	}
	t.Errorf("the way out was not asked for the authority at %s", authority)
}
