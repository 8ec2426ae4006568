package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"reverser/e2e/attacks"
)

// TestFloodForNobody: strangers ask again and again for a name that nobody serves, and are sent away. Users of services notice nothing: those who
// are connected, and those who come from elsewhere meanwhile.
func TestFloodForNobody(t *testing.T) {
	t.Parallel()
	web := serve(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body := "for " + req.URL.Path
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	p, b, port := startWeb(t, "", fmt.Sprintf("http/app.example=127.0.0.1:%d", web))
	public := freePort(t)
	other := startBridge(t, addKey(t, p.state, "other", fmt.Sprintf("tcp/%d", public)), "--proxy", loopback(p.link), fmt.Sprintf("%d=%d", public, serve(t, echo)))
	other.awaitUp(fmt.Sprintf("tcp/%d", public))

	echoes := dial(t, loopback(public))
	kept := dial(t, loopback(port))
	keptReader := bufio.NewReader(kept)
	n := 0
	ask := func(c net.Conn, r *bufio.Reader) {
		t.Helper()
		n++
		path := fmt.Sprint("/", n)
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: app.example\r\n\r\n", path)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("request %d: %v", n, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != "for "+path {
			t.Fatalf("request %d was answered %q, %v", n, body, err)
		}
	}
	round := func(i int) {
		t.Helper()
		exchange(t, echoes, strings.Repeat(fmt.Sprint("echo ", i, " "), 100))
		ask(kept, keptReader)
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 101, byte(i>>8), byte(i))}}
		c, err := d.Dial("tcp", loopback(port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ask(c, bufio.NewReader(c))
	}
	round(0)
	s := &attacks.Strangers{Addr: netip.MustParseAddrPort(loopback(port)), Rate: 2000, From: attacks.Blocks(2), Says: attacks.Ask}
	s.Start()
	defer s.Stop()
	i := 0
	eventually(t, "a thousand strangers are sent away", func() bool {
		i++
		round(i)
		return s.Came.Load()-s.Answered.Load() >= 1000
	})
	eventually(t, "status says so", func() bool {
		i++
		round(i)
		for _, short := range mustStatus(t, p.state).Pressure {
			if strings.Contains(short.What, "for strangers of one network at the port for HTTP") && strings.HasPrefix(short.Largest.Client, "127.16.") {
				return true
			}
		}
		return false
	})
	if s.Answered.Load() == 0 {
		t.Error("no stranger was answered")
	}
	if n := len(p.Records("connections to the port for HTTP (http) that reached no service")); n == 0 {
		t.Error("the log does not count who was sent away")
	}
	if !b.Running() || !other.Running() || !p.Running() {
		t.Error("a program has ended")
	}
}
