package certs

import (
	"errors"
	"strings"
	"testing"

	"reverser/internal/acmetest"
	"reverser/internal/status"
)

// unreadableCerts holds certificates that can be written, and not be read.
type unreadableCerts struct{ Files }

func (u unreadableCerts) Read(name string) ([]byte, error) {
	b, err := u.Files.Read(name)
	if err == nil && strings.HasSuffix(name, "app.example.com.crt") {
		return nil, errors.New("too many open files")
	}
	return b, err
}

// TestUnreadableBehindARefusal: a certificate that is issued behind a refusal, and cannot be read, is told as any other failure.
func TestUnreadableBehindARefusal(t *testing.T) {
	w := listen(t)
	a := acmetest.Start(t, acmetest.Config{TLSPort: port(w.https.Addr())})
	a.Point("app.example.com", "127.0.0.9") // nobody listens there
	w.wrap = func(f Files) Files { return unreadableCerts{f} }
	w.run(Config{TLS: true, Directory: a.Directory, Roots: a.Roots})
	w.Want(map[string]string{"app.example.com": "nas"})
	w.await("app.example.com", failed)
	a.Point("app.example.com", "127.0.0.1")
	w.Again()
	w.await("app.example.com", func(status.Certificate) bool { return strings.Contains(w.said(), "too many open files") })
}
