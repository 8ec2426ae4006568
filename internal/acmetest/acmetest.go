// Package acmetest runs an authority of ACME for tests: Pebble, that of Let's Encrypt's own developers, with a name server of its own.
//
// Both programs are built from the module in e2e/pebble. Where they cannot be had, a test that needs them is skipped, and fails with
// CI=true. Nothing but loopback addresses is used.
package acmetest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/freeport"
)

// Config says what an authority does.
type Config struct {
	HTTPPort, TLSPort int                      // where it connects to for a proof, in place of 80 and 443; 0: a port where nobody listens
	Profiles          map[string]time.Duration // how long certificates are valid; nil: 90 days, and 6 with the profile shortlived
	Blocked           []string                 // names for which it issues nothing
}

// Authority is one that runs until the test ends.
type Authority struct {
	Directory string // its URL
	Root      string // file with the root of its own certificate, for --acme-root
	Roots     *x509.CertPool

	t          testing.TB
	client     *http.Client
	management string
	names      string // management of the name server
	out        *output
	stop       func()
}

// Start starts an authority, which sees every name at 127.0.0.1.
func Start(t testing.TB, c Config) *Authority {
	t.Helper()
	pebble, names := program(t, "pebble"), program(t, "pebble-challtestsrv")
	dir := t.TempDir()
	a := &Authority{t: t, Root: filepath.Join(dir, "root.pem"), out: new(output)}
	root := certify(t, dir)
	a.Roots = x509.NewCertPool()
	a.Roots.AppendCertsFromPEM(root)
	if err := os.WriteFile(a.Root, root, 0o600); err != nil {
		t.Fatal(err)
	}
	a.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.Roots}}}
	t.Cleanup(a.client.CloseIdleConnections)

	listen, management, dns, namesAt := free(t), free(t), free(t), free(t)
	a.Directory = "https://" + listen + "/dir"
	a.management, a.names = "https://"+management, "http://"+namesAt
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	a.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		a.client.CloseIdleConnections()
	})
	t.Cleanup(a.stop)
	run := func(cmd *exec.Cmd) {
		cmd.Stdout, cmd.Stderr, cmd.WaitDelay = a.out, a.out, 10*time.Second
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { _ = cmd.Wait() }) // it is killed
	}
	run(exec.CommandContext(ctx, names, "-dnsserver", dns, "-management", namesAt, "-defaultIPv6", "", "-http01", "", "-https01", "", "-doh", "", "-tlsalpn01", ""))
	server := exec.CommandContext(ctx, pebble, "-config", configure(t, dir, c, listen, management), "-dnsserver", dns)
	server.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "PEBBLE_WFE_NONCEREJECT=0")
	run(server)
	a.await(a.Directory)
	a.await(a.management + "/roots/0")
	a.await(a.names)
	return a
}

// Stop ends the authority before the test does.
func (a *Authority) Stop() { a.stop() }

// Output is what it has logged.
func (a *Authority) Output() string { return a.out.String() }

// Issuers are the roots of the certificates that it issues.
func (a *Authority) Issuers() *x509.CertPool {
	a.t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.get(a.management + "/roots/0")) {
		a.t.Fatal("the authority's root cannot be read")
	}
	return pool
}

// Point has a name lead to an address.
func (a *Authority) Point(host, address string) {
	a.t.Helper()
	a.post(a.names+"/clear-a", map[string]any{"host": host + "."})
	a.post(a.names+"/add-a", map[string]any{"host": host + ".", "addresses": []string{address}})
}

func (a *Authority) get(url string) []byte {
	a.t.Helper()
	resp, err := a.client.Get(url)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		a.t.Fatalf("GET %s: %s, %v", url, resp.Status, err)
	}
	return b
}

func (a *Authority) post(url string, v any) {
	a.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := a.client.Post(url, "application/json", bytes.NewReader(b))
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(resp.Body)
		a.t.Fatalf("POST %s: %s: %s", url, resp.Status, said)
	}
}

// await waits until somebody answers at a URL, whatever it is.
func (a *Authority) await(url string) {
	a.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		resp, err := a.client.Get(url)
		if err == nil {
			resp.Body.Close()
			return
		}
		if time.Now().After(end) {
			a.t.Fatalf("%s: %s\n%s", url, err, a.out)
		}
	}
}

func configure(t testing.TB, dir string, c Config, listen, management string) string {
	t.Helper()
	profiles := make(map[string]any)
	for name, valid := range c.Profiles {
		profiles[name] = map[string]any{"description": name, "validityPeriod": int(valid.Seconds())}
	}
	if c.Profiles == nil {
		profiles["default"] = map[string]any{"description": "the usual one", "validityPeriod": 90 * 24 * 3600}
		profiles["shortlived"] = map[string]any{"description": "six days", "validityPeriod": 6 * 24 * 3600}
	}
	port := func(n int) int {
		if n != 0 {
			return n
		}
		n, err := freeport.Get()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	b, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": management,
		"certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": port(c.HTTPPort), "tlsPort": port(c.TLSPort), "domainBlocklist": c.Blocked, "keyAlgorithm": "ecdsa", "profiles": profiles,
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "pebble.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// certify makes the certificate with which the authority itself is reached, and returns it.
func certify(t testing.TB, dir string) []byte {
	t.Helper()
	chain, key := Certificate(t, "127.0.0.1", "localhost")
	for name, b := range map[string][]byte{"cert.pem": chain, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return chain
}

// Certificate makes a certificate that is its own root, and its key, both in PEM.
func Certificate(t testing.TB, names ...string) (chain, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "reverser test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

// programsEnv names a directory with the programs of the authority, for tests where no Go is: .ci/wine builds those of Windows.
const programsEnv = "REVERSER_ACMETEST_PROGRAMS"

// program builds a program of the module in e2e/pebble, unless it was built before, and returns its path.
func program(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv(programsEnv); dir != "" {
		if runtime.GOOS == "windows" {
			name += ".exe"
		}
		return filepath.Join(dir, name)
	}
	_, here, _, _ := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(here), "..", "..", "e2e", "pebble")
	cmd := exec.Command("go", "tool", "-n", name)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PWD="+dir, "GOOS=", "GOARCH=", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	out, err := cmd.Output()
	path := strings.TrimSpace(string(out))
	if err == nil && path != "" {
		return path
	}
	said := ""
	if exit, ok := err.(*exec.ExitError); ok {
		said = string(exit.Stderr)
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s cannot be built: %v\n%s", name, err, said)
	}
	t.Skipf("%s cannot be built here: %v\n%s", name, err, said)
	return ""
}

func free(t testing.TB) string {
	t.Helper()
	addr, err := freeport.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// output keeps what the programs write.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
