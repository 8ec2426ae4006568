package certs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"reverser/internal/acmetest"
	"reverser/internal/status"
)

// triple is the files of one certificate, by what they hold.
type triple struct{ key, cert, meta string }

func (w *world) files(host string) triple {
	file := func(name string) string { return filepath.Join(w.dir, "tls", filepath.FromSlash(name)) }
	k := certmagic.StorageKeys
	return triple{file(k.SitePrivateKey(w.ask.key, host)), file(k.SiteCert(w.ask.key, host)), file(k.SiteMeta(w.ask.key, host))}
}

func contents(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// breaks is what a crash, or a disk, leaves of the three files of a certificate: by name, what is done to them. Those of other are of
// another certificate, as after a death in the middle of a renewal.
var breaks = map[string]func(t *testing.T, own, other triple){
	"other key":          func(t *testing.T, own, other triple) { put(t, own.key, contents(t, other.key)) },
	"other certificate":  func(t *testing.T, own, other triple) { put(t, own.cert, contents(t, other.cert)) },
	"empty key":          func(t *testing.T, own, _ triple) { put(t, own.key, nil) },
	"empty certificate":  func(t *testing.T, own, _ triple) { put(t, own.cert, nil) },
	"empty meta":         func(t *testing.T, own, _ triple) { put(t, own.meta, nil) },
	"half a key":         func(t *testing.T, own, _ triple) { half(t, own.key) },
	"half a certificate": func(t *testing.T, own, _ triple) { half(t, own.cert); half(t, own.cert); half(t, own.cert) }, // less than the first of the chain
	"half a meta":        func(t *testing.T, own, _ triple) { half(t, own.meta) },
	"zeros": func(t *testing.T, own, _ triple) {
		for _, file := range []string{own.key, own.cert, own.meta} {
			put(t, file, make([]byte, len(contents(t, file))))
		}
	},
	"no key":         func(t *testing.T, own, _ triple) { gone(t, own.key) },
	"no certificate": func(t *testing.T, own, _ triple) { gone(t, own.cert) },
	"no meta":        func(t *testing.T, own, _ triple) { gone(t, own.meta) },
}

func half(t *testing.T, file string) {
	t.Helper()
	b := contents(t, file)
	put(t, file, b[:len(b)/2])
}

func gone(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// TestBroken: files that make no certificate are as good as none. The authority is asked for another one, whoever finds out.
func TestBroken(t *testing.T) {
	w := listen(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: port(w.https.Addr())})
	cfg := Config{TLS: true, Directory: a.Directory, Roots: a.Roots}
	hosts := map[string]string{"other.example.com": "nas"}
	of := make(map[string]string) // the host whose files are broken in that way
	for name := range breaks {
		of[name] = strings.ReplaceAll(name, " ", "-") + ".example.com"
		hosts[of[name]] = name // as many may be asked for as there are
	}
	w.run(cfg)
	w.Want(hosts)
	for host := range hosts {
		w.await(host, valid)
	}
	other := w.files("other.example.com")
	issuers := a.Issuers()
	check := func(name, host string, before []byte) {
		t.Helper()
		if _, err := w.get(host, issuers); err != nil {
			t.Errorf("%s: %s", name, err)
		}
		if string(contents(t, w.files(host).cert)) == string(before) {
			t.Errorf("%s: the certificate is the one from before", name)
		}
		found := func(status.Certificate) bool {
			return strings.Contains(w.said(), "certificate on the disk cannot be used, another one is asked for host="+host)
		}
		if !strings.HasPrefix(name, "no ") {
			w.await(host, found) // lines are written behind what they tell
		} else if found(status.Certificate{}) {
			t.Errorf("%s: the log says that there was one\n%s", name, w.said())
		}
	}

	// The next process reads them.
	w.stop()
	before := make(map[string][]byte)
	for name, broken := range breaks {
		before[name] = contents(t, w.files(of[name]).cert)
		broken(t, w.files(of[name]), other)
	}
	w.run(cfg)
	w.Want(hosts)
	for name, host := range of {
		w.await(host, valid)
		check(name, host, before[name])
	}

	// They are read to be renewed.
	for name, broken := range breaks {
		host := of[name]
		before := contents(t, w.files(host).cert)
		broken(t, w.files(host), other)
		if err := w.obtain(t.Context(), host); err != nil {
			t.Errorf("%s: obtain: %s", name, err)
		}
		check(name, host, before)
	}
}

// unreadable is Files of which one name cannot be read.
type unreadable struct {
	Files
	suffix string
}

func (u unreadable) Read(name string) ([]byte, error) {
	if strings.HasSuffix(name, u.suffix) {
		return nil, errors.New("too many open files")
	}
	return u.Files.Read(name)
}

// full is Files on a disk that is full when it says so.
type full struct {
	Files
	is *atomic.Bool
}

func (f full) Write(ctx context.Context, name string, data []byte) error {
	if f.is.Load() {
		return errors.New("no space left on device")
	}
	return f.Files.Write(ctx, name, data)
}

// TestUnstored: a certificate that cannot be stored is told, also behind a refusal, and no other one is asked for until there is room.
func TestUnstored(t *testing.T) {
	w := listen(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: port(w.https.Addr())})
	a.Point("app.example.com", "127.0.0.9") // nobody listens there
	var disk atomic.Bool
	w.wrap = func(f Files) Files { return full{f, &disk} }
	w.run(Config{TLS: true, Directory: a.Directory, Roots: a.Roots})
	w.Want(map[string]string{"app.example.com": "nas"})
	w.await("app.example.com", failed)
	disk.Store(true)
	a.Point("app.example.com", "127.0.0.1")
	w.await("app.example.com", func(c status.Certificate) bool { return failed(c) && strings.Contains(c.Error, "no space left") })
	said := func() int { return strings.Count(w.said(), "no space left") }
	for end := time.Now().Add(time.Minute); said() < 3; time.Sleep(5 * time.Millisecond) {
		w.Again()
		if time.Now().After(end) {
			t.Fatalf("it is not told:\n%s", w.said())
		}
	}
	if n := strings.Count(a.Output(), "Issued certificate"); n != 1 {
		t.Errorf("the authority issued %d certificates that cannot be stored, want 1", n)
	}
	disk.Store(false)
	w.Again()
	if c := w.await("app.example.com", valid); c.Error != "" {
		t.Errorf("what was wrong is still there: %+v", c)
	}
}

// TestUnreadable: a file that cannot be read now may be whole. Nothing is removed, and no other certificate is asked for.
func TestUnreadable(t *testing.T) {
	w := listen(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: port(w.https.Addr())})
	cfg := Config{TLS: true, Directory: a.Directory, Roots: a.Roots}
	hosts := map[string]string{"app.example.com": "nas"}
	w.run(cfg)
	w.Want(hosts)
	w.await("app.example.com", valid)
	w.stop()
	files := w.files("app.example.com")
	before := string(contents(t, files.cert))
	for _, suffix := range []string{".key", ".crt", ".json"} {
		w.wrap = func(f Files) Files { return unreadable{f, "app.example.com" + suffix} }
		w.run(cfg)
		w.Want(hosts)
		if c := w.await("app.example.com", failed); !strings.Contains(c.Error, "too many open files") {
			t.Errorf("%s: status is %+v", suffix, c)
		}
		w.stop()
	}
	w.wrap = nil
	w.run(cfg)
	w.Want(hosts)
	w.await("app.example.com", valid)
	if string(contents(t, files.cert)) != before {
		t.Error("another certificate was asked for")
	}
}
