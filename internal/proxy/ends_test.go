package proxy

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestOrderlyEnds: what is answered at the ports that names share arrives whole, and FIN behind it, though the kernel would reset the
// connection if the process died.
func TestOrderlyEnds(t *testing.T) {
	f := newFakeCertificates(t, "a.example", "none.example", "prove.example")
	nas := key(t, "nas", "https/*", "http/*")
	w := start(t, Config{HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0", Certificates: f, Settings: Settings{Keys: []Key{nas}}})
	large := strings.Repeat("all of it ", 100_000)
	w.bridge(nas, how{instance: 1}, "https/a.example", "https/none.example", "http/plain.example").target(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, large)
	})
	secure := func(name string, protocols ...string) func() net.Conn {
		return func() net.Conn {
			t.Helper()
			c, err := w.secure(f, name, protocols...)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	http80 := func() net.Conn { return w.user(w.p.web.ln.Addr().String()) }
	for what, c := range map[string]struct {
		dial                  func() net.Conn // each when it is its turn: who says nothing is not waited for
		request, begins, ends string
	}{
		"a page":              {http80, "GET / HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n", "HTTP/1.1 404 ", ""},
		"a redirect":          {http80, "GET / HTTP/1.0\r\nHost: a.example\r\n\r\n", "HTTP/1.0 308 ", "\r\n\r\n"},
		"a refusal":           {http80, "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ", ""},
		"a proof":             {http80, "GET /.well-known/acme-challenge/token HTTP/1.0\r\nHost: a.example\r\n\r\n", "HTTP/1.0 200 ", "proof"},
		"no length":           {http80, "GET / HTTP/1.0\r\nHost: plain.example\r\n\r\n", "HTTP/1.0 200 ", large[len(large)-100:]},
		"TLS, a page":         {secure("a.example"), "GET / HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n", "HTTP/1.1 421 ", ""},
		"TLS, no length":      {secure("a.example"), "GET / HTTP/1.0\r\nHost: a.example\r\n\r\n", "HTTP/1.0 200 ", large[len(large)-100:]},
		"TLS, a proof":        {secure("prove.example", acmeProtocol), "", "", ""},
		"a request that ends": {http80, "GET / HTTP/1.1\r\nHost: plain.example\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 ", "0\r\n\r\n"},
	} {
		conn := c.dial()
		if c.request != "" {
			if _, err := io.WriteString(conn, c.request); err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
		}
		got, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), c.begins) || !strings.HasSuffix(string(got), c.ends) {
			t.Errorf("%s: %d bytes, %.80q … %q, %v; want %q … %.80q and a clean end", what, len(got), got, got[max(len(got)-100, 0):], err, c.begins, c.ends)
		}
	}
	if _, err := w.secure(f, "none.example"); err == nil || !strings.Contains(err.Error(), "remote error: tls: ") {
		t.Errorf("a handshake without a certificate: %v; want the alert", err)
	}
	idle := w.httpUser()
	if resp, _ := idle.ask(get("plain.example", "/")); resp.StatusCode != http.StatusOK {
		t.Errorf("%s", resp.Status)
	}
	page := w.httpUser() // of no service
	page.ask(get("b.example", "/"))
	w.p.Drain()
	for what, u := range map[string]*httpUser{"of a service": idle, "of none": page} {
		if got, err := io.ReadAll(u.r); len(got) > 0 || err != nil {
			t.Errorf("an idle client %s: %q, %v; want a clean end", what, got, err)
		}
	}
}
