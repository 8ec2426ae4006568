package web

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/sys"
)

// TestUnserved: the owner is asked about each answer of the server's own to a client that no service has let in, whoever answers it, and who
// may not have it is reset.
func TestUnserved(t *testing.T) {
	w := newWorld(t)
	w.site("a.example", w.target(func(http.ResponseWriter, *http.Request) {}), grammar.ProxyOptions{})
	w.site("full.example", "", grammar.ProxyOptions{}).Enter = func(*Visit) (func(error), func(uint64, uint64), error) { return nil, nil, ErrLimit }
	w.s.Away = func(_ bool, host, _ string) bool { return host == "away.example" }
	w.s.Page = func(r *http.Request) http.HandlerFunc {
		if r.Host != "moved.example" {
			return nil
		}
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPermanentRedirect) }
	}
	var asked, named, deny atomic.Int64
	w.s.Unserved = func(_ *Client, is bool) bool {
		asked.Add(1)
		if is {
			named.Add(1)
		}
		return deny.Load() == 0
	}
	get := func(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
	for _, c := range []struct {
		request              string
		status, asked, named int
	}{
		{get("none.example"), 404, 1, 0},
		{get("away.example"), 503, 1, 1},
		{get("moved.example"), 308, 1, 1},
		{get("full.example"), 503, 1, 1},
		{"OPTIONS * HTTP/1.1\r\nHost: none.example\r\n\r\n", 200, 1, 0},
		{"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n", 400, 1, 0},
		{get("a.example"), 200, 0, 0},
		{get("a.example") + get("none.example"), 200, 0, 0}, // a service has let it in
	} {
		for _, denied := range []bool{false, true} {
			asked.Store(0)
			named.Store(0)
			deny.Store(0)
			if denied {
				deny.Store(1)
			}
			conn, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(limit))
			io.WriteString(conn, c.request)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			switch {
			case denied && c.asked > 0:
				end := runtime.GOOS == "windows" && errors.Is(err, io.ErrUnexpectedEOF) // Wine tells some readers of a reset that nothing more comes
				if !sys.Reset(err) && !end {
					t.Errorf("%q of who may not have the answer: %v, want a reset", c.request, err)
				}
			case err != nil:
				t.Errorf("%q: %v", c.request, err)
			case resp.StatusCode != c.status:
				t.Errorf("%q: status %d, want %d", c.request, resp.StatusCode, c.status)
			}
			conn.Close()
			if a, n := asked.Load(), named.Load(); a != int64(c.asked) || n != int64(c.named) {
				t.Errorf("%q: asked %d times, %d of them about a name that is served; want %d, %d", c.request, a, n, c.asked, c.named)
			}
		}
	}
}
