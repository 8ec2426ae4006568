package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"reverser/internal/acmetest"
	"reverser/internal/lines"
	"reverser/internal/logtest"
	"reverser/internal/state"
	"reverser/internal/status"
)

// world is a Manager, and whoever accepts connections for it at two ports.
type world struct {
	*Manager                         // the one that runs, for the test itself
	now      atomic.Pointer[Manager] // the same, for connections
	t        *testing.T
	dir      string
	journal  *logtest.Journal
	https    net.Listener
	http     *httptest.Server
	stop     func()
	wrap     func(Files) Files // nil: the manager has the files as they are
}

// listen opens the ports that an authority connects to.
func listen(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), journal: logtest.New(slog.LevelInfo)}
	var err error
	if w.https, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	w.http = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if text, ok := w.now.Load().Page(r.Host, r.URL.Path); ok {
			fmt.Fprint(rw, text)
			return
		}
		http.NotFound(rw, r)
	}))
	t.Cleanup(w.http.Close)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := w.https.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				c := tls.Server(conn, &tls.Config{GetCertificate: w.now.Load().GetCertificate, NextProtos: []string{"http/1.1", Protocol}})
				if c.Handshake() == nil {
					io.WriteString(c, "served\n")
				}
			})
		}
	})
	t.Cleanup(func() { w.https.Close(); wg.Wait() })
	return w
}

func port(a net.Addr) int { return a.(*net.TCPAddr).Port }

// run starts the manager on the world's directory.
func (w *world) run(cfg Config) {
	w.t.Helper()
	dir, err := state.Open(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	say := lines.New(slog.New(w.journal))
	go say.Run()
	cfg.Files, cfg.Log = dir.TLS(), say
	if w.wrap != nil {
		cfg.Files = w.wrap(cfg.Files)
	}
	if cfg.LookEvery == 0 {
		cfg.LookEvery = 100 * time.Millisecond
	}
	if cfg.FirstRetry == 0 {
		cfg.FirstRetry = 100 * time.Millisecond
	}
	w.Manager = New(cfg)
	w.now.Store(w.Manager)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx) })
	w.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		say.Stop()
		dir.Close()
	})
	w.t.Cleanup(w.stop)
}

// get connects as a client that wants a host ("" names none) and returns the certificate that it got.
func (w *world) get(host string, roots *x509.CertPool) (*x509.Certificate, error) {
	conf := &tls.Config{RootCAs: roots, ServerName: host}
	if net.ParseIP(host) != nil {
		conf.ServerName = host // checked, and not sent
	}
	conn, err := tls.Dial("tcp", w.https.Addr().String(), conf)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); string(b) != "served\n" {
		return nil, fmt.Errorf("read %q, %w", b, err)
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

// await waits until the status of a host is as wanted.
func (w *world) await(host string, ok func(status.Certificate) bool) status.Certificate {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		for _, c := range w.Status() {
			if c.Host == host && ok(c) {
				return c
			}
		}
		if time.Now().After(end) {
			w.t.Fatalf("the certificate of %s is %+v\n%s", host, w.Status(), w.said())
		}
	}
}

func valid(c status.Certificate) bool  { return c.State == status.CertificateValid }
func failed(c status.Certificate) bool { return c.State == status.CertificateFailed }

// TestProofs: a certificate is obtained by either kind of proof, for names and addresses, and a second process finds it on the disk.
func TestProofs(t *testing.T) {
	for name, cfg := range map[string]Config{"TLS-ALPN-01": {TLS: true}, "HTTP-01": {HTTP: true}} {
		t.Run(name, func(t *testing.T) {
			w := listen(t)
			// The authority takes any profile where none is asked for.
			c := acmetest.Config{Profiles: map[string]time.Duration{"shortlived": 6 * 24 * time.Hour}}
			for i := range 30 {
				c.Profiles[fmt.Sprint("long", i)] = 90 * 24 * time.Hour
			}
			if cfg.HTTP {
				c.HTTPPort = port(w.http.Listener.Addr())
			} else {
				c.TLSPort = port(w.https.Addr())
			}
			a := acmetest.Start(t, c)
			cfg.Directory, cfg.Roots, cfg.Email = a.Directory, a.Roots, "admin@example.com"
			w.run(cfg)
			issuers := a.Issuers()
			if _, err := w.get("app.example.com", issuers); err == nil {
				t.Fatal("a name that nobody wants has a certificate")
			}
			w.Want(map[string]string{"app.example.com": "nas", "127.0.0.1": "nas"})
			first := w.await("app.example.com", valid)
			if first.RenewAt.Before(time.Now()) || first.RenewAt.After(first.NotAfter) || first.Key != "nas" {
				t.Errorf("status is %+v", first)
			}
			short := w.await("127.0.0.1", valid)
			if left := time.Until(short.NotAfter); left > 7*24*time.Hour {
				t.Errorf("the certificate of an address is valid for %s; the profile shortlived has 6 days", left)
			}
			cert, err := w.get("app.example.com", issuers)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.get("127.0.0.1", issuers); err != nil {
				t.Errorf("an address, which is no server name: %s", err)
			}
			if _, err := w.get("other.example.com", issuers); err == nil {
				t.Error("a name that nobody wants has a certificate")
			}
			w.await("app.example.com", func(status.Certificate) bool { return w.journal.Count("") >= 2 }) // lines are written behind what they tell
			if n := w.journal.Count(""); n != 2 {
				t.Errorf("%d lines were logged; want one for each certificate:\n%s", n, w.said())
			}
			w.stop()
			a.Stop() // it is not needed

			w.run(cfg)
			w.Want(map[string]string{"app.example.com": "nas"})
			w.await("app.example.com", valid)
			again, err := w.get("app.example.com", issuers)
			if err != nil || !again.Equal(cert) {
				t.Errorf("the next process has another certificate, %v", err)
			}
			w.Want(nil)
			if _, err := w.get("app.example.com", issuers); err == nil || len(w.Status()) != 0 {
				t.Errorf("a name that is not wanted any more has a certificate; status %+v", w.Status())
			}
			private(t, filepath.Join(w.dir, "tls"))
		})
	}
}

// private: all is readable for its owner only.
func private(t *testing.T, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, info.Mode())
		}
		if !d.IsDir() {
			n++
		}
		return nil
	})
	if err != nil || n < 4 {
		t.Errorf("%d files, %v", n, err)
	}
}

// TestRenewal: a certificate is replaced before it expires, the authority is told which one is replaced, and a host that is served goes on.
func TestRenewal(t *testing.T) {
	// A certificate is renewed when a third of its time is left, which may be too short for a machine that is busy.
	for valid := 6 * time.Second; !renews(t, valid); valid *= 2 {
		if valid > 2*time.Minute {
			t.Fatalf("a certificate that is valid for %v expired before another one was there", valid)
		}
	}
}

// renews reports whether a certificate was replaced before it expired.
func renews(t *testing.T, lifetime time.Duration) bool {
	w := listen(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: port(w.https.Addr()), Profiles: map[string]time.Duration{"default": lifetime}})
	w.run(Config{TLS: true, Directory: a.Directory, Roots: a.Roots})
	defer w.stop()
	w.Want(map[string]string{"app.example.com": "nas"})
	w.await("app.example.com", func(c status.Certificate) bool { // the log says so a moment before the certificate is used
		return !c.NotAfter.IsZero() && strings.Contains(w.said(), "certificate obtained")
	})
	issuers := a.Issuers()
	asked := time.Now()
	first, err := w.get("app.example.com", issuers)
	if err != nil {
		if time.Since(asked) < lifetime/2 && !strings.Contains(err.Error(), "expired") {
			t.Fatal(err)
		}
		return false
	}
	next := first
	for end := first.NotAfter.Add(time.Minute); next.Equal(first); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it was not renewed:\n%s", w.said())
		}
		if next, err = w.get("app.example.com", issuers); err != nil {
			if time.Now().After(first.NotAfter) {
				return false
			}
			t.Fatalf("while it was renewed: %s", err)
		}
	}
	for end := time.Now().Add(time.Minute); !strings.Contains(w.said(), "certificate renewed host=app.example.com"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log does not say so:\n%s", w.said())
		}
	}
	if !strings.Contains(a.Output(), "replace") {
		t.Logf("the authority does not speak of a replacement:\n%s", a.Output())
	}
	return true
}

// TestRefusal: what the authority said, and what to do, is in the status and in the log. It is asked again, and gets what it wants.
func TestRefusal(t *testing.T) {
	w := listen(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: port(w.https.Addr()), Blocked: []string{"blocked.example.com"}})
	a.Point("away.example.com", "127.0.0.9") // nobody listens there
	w.run(Config{TLS: true, Directory: a.Directory, Roots: a.Roots, FirstRetry: time.Second})
	w.Want(map[string]string{"blocked.example.com": "nas", "away.example.com": "nas", "app.example.com": "pi"})
	w.await("app.example.com", valid) // others are none of its business
	// While it is asked again there is no time at which it will be.
	c := w.await("blocked.example.com", func(c status.Certificate) bool { return failed(c) && c.RetryAt.After(time.Now()) })
	if !strings.Contains(c.Error, "rejectedIdentifier: ") || !strings.Contains(c.Hint, "--acme-directory") {
		t.Errorf("a blocked name: %+v", c)
	}
	c = w.await("away.example.com", failed)
	if !strings.Contains(c.Error, "connect to 127.0.0.9") || !strings.Contains(c.Hint, "A or AAAA record") {
		t.Errorf("a name that leads elsewhere: %+v", c)
	}
	w.await("away.example.com", func(status.Certificate) bool { // and the log says so, a moment later
		said := w.said()
		return strings.Contains(said, "certificate not obtained host=away.example.com key=nas") && strings.Contains(said, "hint=")
	})
	a.Point("away.example.com", "127.0.0.1")
	w.Again()
	w.await("away.example.com", valid)
	if c := w.await("away.example.com", valid); c.Error != "" || c.Hint != "" {
		t.Errorf("what was wrong is still there: %+v", c)
	}
}

// TestUnderscore: a name with an underscore gets no certificate. The authority is asked once, and again when somebody orders a reload.
func TestUnderscore(t *testing.T) {
	w := listen(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: port(w.https.Addr()), Blocked: []string{"blocked.example.com"}})
	w.run(Config{TLS: true, Directory: a.Directory, Roots: a.Roots, FirstRetry: 10 * time.Millisecond})
	w.Want(map[string]string{"a_b.example.com": "nas", "blocked.example.com": "pi"})
	asked := func(host string) int { return strings.Count(w.said(), "certificate not obtained host="+host) }
	await := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s:\n%s", what, w.said())
			}
		}
	}
	for n := range 2 {
		await("the authority is not asked", func() bool { return asked("a_b.example.com") == n+1 })
		c := w.await("a_b.example.com", func(c status.Certificate) bool { return failed(c) && c.Hint != "" })
		if !c.RetryAt.IsZero() || !strings.Contains(c.Hint, "no public authority issues a certificate for a name with _ in it") || !strings.Contains(c.Hint, "from files") {
			t.Errorf("%+v; want the reason, and no time at which it is asked again", c)
		}
		others := asked("blocked.example.com")
		await("another name is not asked for again", func() bool { return asked("blocked.example.com") >= others+2 })
		if got := asked("a_b.example.com"); got != n+1 {
			t.Errorf("it was asked for %d times, want %d:\n%s", got, n+1, w.said())
		}
		w.Again()
	}
}

// TestNoAuthority: an authority that is away, or none at all, is said; it is asked again.
func TestNoAuthority(t *testing.T) {
	page := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"hello":"world"}`) }))
	defer page.Close()
	page.Config.ErrorLog = log.New(io.Discard, "", 0)
	trusted := x509.NewCertPool()
	trusted.AddCert(page.Certificate())
	for name, c := range map[string]struct {
		directory string
		roots     *x509.CertPool
		want      string
		hint      string
	}{
		"away":         {"https://127.0.0.1:1/dir", nil, "/dir cannot be reached: dial tcp ", "reaches it"},
		"no directory": {page.URL, trusted, "is no ACME directory", "--acme-directory"},
		"unknown root": {page.URL, nil, "certificate", "--acme-root"},
	} {
		t.Run(name, func(t *testing.T) {
			w := listen(t)
			w.run(Config{TLS: true, Directory: c.directory, Roots: c.roots})
			w.Want(map[string]string{"app.example.com": "nas"})
			s := w.await("app.example.com", failed)
			if !strings.Contains(s.Error, c.want) || !strings.Contains(s.Error, c.directory) || !strings.Contains(s.Hint, c.hint) {
				t.Errorf("status is %+v; want %q", s, c.want)
			}
			failures := func() int { return strings.Count(w.said(), "certificate not obtained") }
			for end := time.Now().Add(time.Minute); failures() < 2; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("it was not asked again:\n%s", w.said())
				}
			}
		})
	}
}

// TestGiven: a certificate from files goes before, and no authority is asked for what it covers.
func TestGiven(t *testing.T) {
	w := listen(t)
	chain, key := acmetest.Certificate(t, "*.example.com", "example.org")
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	w.run(Config{TLS: true, Directory: "https://127.0.0.1:1/dir"})
	w.Give([]Given{{Certificate: pair, Names: []string{"*.example.com", "example.org"}, File: "wild.pem"}})
	w.Want(map[string]string{"app.example.com": "nas", "example.org": "nas"})
	for _, host := range []string{"app.example.com", "example.org"} {
		if c := w.await(host, valid); c.From != "wild.pem" || !c.NotAfter.Equal(pair.Leaf.NotAfter) || c.Error != "" {
			t.Errorf("%+v", c)
		}
		if _, err := w.get(host, roots); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.get("a.b.example.com", roots); err == nil {
		t.Error("a wildcard stands for two labels")
	}
	w.Give(nil)
	w.await("app.example.com", failed)
}

// TestGivenForLater: a certificate from a file that is not valid yet is not called valid, and status says from when on it is.
func TestGivenForLater(t *testing.T) {
	w := listen(t)
	from := time.Now().Add(100 * time.Hour).UTC().Truncate(time.Second)
	leaf := &x509.Certificate{NotBefore: from, NotAfter: from.Add(time.Hour)}
	w.run(Config{TLS: true, Directory: "https://127.0.0.1:1/dir"})
	w.Give([]Given{{Certificate: tls.Certificate{Leaf: leaf}, Names: []string{"app.example.com"}, File: "later.pem"}})
	w.Want(map[string]string{"app.example.com": "nas"})
	c := w.await("app.example.com", failed)
	if want := "it is not valid before " + from.Format(time.DateTime) + " UTC: clients refuse it until then"; c.Error != want || !strings.Contains(c.Hint, "later.pem") || !c.NotAfter.Equal(leaf.NotAfter) {
		t.Errorf("%+v; want %q", c, want)
	}
}

// TestAccount: one that the authority has forgotten is made anew, one that cannot be read is said.
func TestAccount(t *testing.T) {
	w := listen(t)
	first := acmetest.Start(t, acmetest.Config{TLSPort: port(w.https.Addr())})
	cfg := Config{TLS: true, Directory: first.Directory, Roots: first.Roots}
	w.run(cfg)
	w.Want(map[string]string{"app.example.com": "nas"})
	w.await("app.example.com", valid)
	w.ask.mu.Lock()
	w.ask.account.Location = "https://" + strings.Split(first.Directory, "/")[2] + "/my-account/unknown"
	w.ask.mu.Unlock()
	w.Want(map[string]string{"app.example.com": "nas", "next.example.com": "nas"})
	w.await("next.example.com", valid)

	w.stop()
	file := filepath.Join(w.dir, "tls", "acme", w.ask.key, "account.json")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.run(cfg)
	w.Want(map[string]string{"third.example.com": "nas"})
	if c := w.await("third.example.com", failed); !strings.Contains(c.Error, "account") {
		t.Errorf("%+v", c)
	}
}

// TestTurns: an owner with thousands of names does not take the turns of another one.
func TestTurns(t *testing.T) {
	var ts turns
	ts.init(8, 3)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var greedy []func()
	for range 3 {
		give, err := ts.take(ctx, "greedy")
		if err != nil {
			t.Fatal(err)
		}
		greedy = append(greedy, give)
	}
	got := make(chan error, 100)
	for range 100 {
		go func() {
			_, err := ts.take(ctx, "greedy")
			got <- err
		}()
	}
	give, err := ts.take(ctx, "other")
	if err != nil {
		t.Fatal(err)
	}
	give()
	select {
	case err := <-got:
		t.Fatalf("a fourth turn of one owner: %v", err)
	default:
	}
	greedy[0]()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	cancel()
	for range 99 {
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}

	now := time.Now()
	for i := range burst {
		if _, ok := ts.count("greedy", now); !ok {
			t.Fatalf("order %d is refused", i)
		}
	}
	again, ok := ts.count("greedy", now)
	if ok || !again.Equal(now.Add(each)) {
		t.Errorf("order %d: %t, again %s later; want %s", burst+1, ok, again.Sub(now), each)
	}
	if _, ok := ts.count("other", now); !ok {
		t.Error("another owner is refused")
	}
	if _, ok := ts.count("greedy", again); !ok {
		t.Error("it is refused when its time has come")
	}
}

// TestPage: only what an authority was told of is answered.
func TestPage(t *testing.T) {
	var p proofs
	if err := (pageSolver{&p}).Present(t.Context(), challenge("app.example.com")); err != nil {
		t.Fatal(err)
	}
	if err := (pageSolver{&p}).Present(t.Context(), challenge("2001:db8::1")); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"app.example.com", "APP.example.com:80", "app.example.com.", "[2001:db8::1]", "[2001:db8::1]:80"} {
		if text, ok := p.page(host, Pages+"token"); !ok || text != "token.thumb" {
			t.Errorf("%s: %q, %t", host, text, ok)
		}
	}
	for host, path := range map[string]string{"other.example.com": Pages + "token", "app.example.com": Pages + "other", "": Pages + "token", "app.example.com:80": "/token"} {
		if text, ok := p.page(host, path); ok {
			t.Errorf("%s%s: %q", host, path, text)
		}
	}
	for host, want := range map[string]string{
		"app.example.com": "app.example.com", "192.0.2.7": "7.2.0.192.in-addr.arpa",
		"2001:db8::1": "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := askedAs(host); got != want {
			t.Errorf("askedAs(%s) = %s; want %s", host, got, want)
		}
	}
}

func challenge(host string) acme.Challenge {
	return acme.Challenge{Token: "token", KeyAuthorization: "token.thumb", Identifier: acme.Identifier{Value: host}}
}

func (w *world) said() string { return strings.Join(w.journal.All(), "\n") }
