package admin_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"reverser/internal/admin"
)

// TestProfiles: the admin socket has what the Go runtime tells, and a TCP address has not, whoever asks.
func TestProfiles(t *testing.T) {
	s := &admin.Server{Status: snapshot}
	dial := serve(t, s)
	for path, want := range map[string]string{
		"/debug/pprof/":                  "full goroutine stack dump",
		"/debug/pprof/goroutine?debug=1": "goroutine profile: total",
		"/debug/pprof/heap":              "\x1f\x8b", // gzip
	} {
		resp, body := ask(t, dial, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if resp.StatusCode != 200 || !strings.Contains(body, want) {
			t.Errorf("%s = %d %.100q, want %q", path, resp.StatusCode, body, want)
		}
	}
	tcp, addr := serveTCP(t, s, admin.Address{})
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile?seconds=1"} {
		resp, body := ask(t, tcp, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n", path, addr, bearer(adminToken)))
		if resp.StatusCode != 404 {
			t.Errorf("%s over TCP = %d %.100q, want 404", path, resp.StatusCode, body)
		}
	}
}

// TestLongProfile: a profile may take longer than another answer. One that somebody gives up is what came so far.
func TestLongProfile(t *testing.T) {
	dial := serve(t, &admin.Server{Status: snapshot})
	c, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /debug/pprof/profile?seconds=60 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	c.(*net.UnixConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || err != nil || !strings.HasPrefix(string(body), "\x1f\x8b") {
		t.Errorf("a minute of the processor = %d %.100q, %v", resp.StatusCode, body, err)
	}
}
