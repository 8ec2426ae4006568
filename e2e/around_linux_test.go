package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What stands around a tunnel: balancers in front of it, scanners, and clients with another kind of TCP.

var (
	haproxy = program{"haproxy", "haproxy"}
	nmap    = program{"nmap", "nmap"}
)

// A HAProxy in front of the public port checks it by HTTP, carries requests, and ends idle connections at both ends.
func TestHAProxyInFront(t *testing.T) {
	need(t, haproxy, curl)
	heavy(t)
	server := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "path "+r.URL.Path) })
	raw := serve(t, echo)
	web, plain := startTunnel(t, strconv.Itoa(server)), startTunnel(t, strconv.Itoa(raw))
	front, frontPlain, stats := freePort(t), freePort(t), filepath.Join(t.TempDir(), "stats")
	conf := writeFile(t, filepath.Join(t.TempDir(), "haproxy.cfg"), fmt.Sprintf(`global
	stats socket %s mode 600 level admin
defaults
	timeout connect 60s
	timeout client 60s
	timeout server 60s
	timeout check 5s
listen web
	mode http
	bind 127.0.0.1:%d
	option httpchk GET /check
	server tunnel %s check inter 200ms fall 3 rise 2
listen plain
	mode tcp
	bind 127.0.0.1:%d
	timeout client 1s
	timeout server 1s
	server tunnel %s check inter 200ms fall 3 rise 2
`, stats, front, web.addr(), frontPlain, plain.addr()))
	start(t, "haproxy", haproxy.path(t), nil, "-db", "-f", conf).awaitListener(frontPlain)

	get := func(path string) string {
		t.Helper()
		return run(t, curl.path(t), "--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "http://"+loopback(front)+path)
	}
	for i := range 50 {
		if got, want := get(fmt.Sprintf("/%d", i)), fmt.Sprintf("path /%d", i); got != want {
			t.Errorf("request %d: %q; want %q", i, got, want)
		}
	}
	// Ten checks of each kind later, none of which has done harm, an idle connection is ended by HAProxy alone.
	before := len(web.bridge.Records("pair created"))
	eventually(t, "HAProxy has checked the tunnel ten times more", func() bool { return len(web.bridge.Records("pair created")) >= before+10 })
	eventually(t, "HAProxy calls both tunnels up", func() bool { return strings.Count(haproxyStats(t, stats), ",UP,") == 2 })
	var idle net.Conn
	eventually(t, "somebody is faster than HAProxy ends an idle connection", func() bool {
		idle = dial(t, loopback(frontPlain))
		io.WriteString(idle, "hello")
		got := make([]byte, len("hello"))
		_, err := io.ReadFull(idle, got)
		return err == nil && string(got) == "hello"
	})
	if n, err := idle.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("Read = %d, %v; want the end that HAProxy makes", n, err)
	}
	for _, side := range []*testProcess{plain.proxy.testProcess, plain.bridge.testProcess} {
		side.awaitRecord("pair released", "sent", float64(len("hello")), "received", float64(len("hello")))
	}
	// A bridge that dies is noticed by the HTTP check, and so is its return.
	web.bridge.Kill()
	eventually(t, "HAProxy calls the tunnel down", func() bool { return strings.Contains(haproxyStats(t, stats), ",DOWN,") })
	startBridge(t, web.token, fmt.Sprintf("%d=%d", web.public, server)).awaitUp(web.service)
	eventually(t, "HAProxy calls the tunnel up", func() bool { return strings.Count(haproxyStats(t, stats), ",UP,") == 2 })
	if got := get("/again"); got != "path /again" {
		t.Errorf("the first request behind the return: %q", got)
	}
}

func haproxyStats(t *testing.T, socket string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, "show stat -1 4 -1") // servers alone
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), ",* L", ",L") // with a star while the next check is under way
}

// A scan of the public port and of the link port costs nobody anything.
func TestNmap(t *testing.T) {
	need(t, nmap)
	heavy(t)
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	c := tun.dial(t)
	exchange(t, c, "before")
	out := run(t, nmap.path(t), "-n", "-Pn", "-sT", "-sV", "--version-intensity", "0", "-T5", "-p", fmt.Sprintf("%d,%d", tun.public, tun.proxy.link), "127.0.0.1")
	if strings.Count(out, "/tcp open") != 2 {
		t.Errorf("nmap says\n%s\nwant both ports open", out)
	}
	exchange(t, c, "after")
	exchange(t, tun.dial(t), "new")
	for _, st := range []statusJSON{mustStatus(t, tun.proxy.state), mustStatus(t, tun.bridge.state)} {
		if len(st.Links) != 1 || st.Links[0].Resumes != 0 {
			t.Errorf("the links of the %s behind the scan: %+v; want one that was never broken", st.Role, st.Links)
		}
	}
}

// Clients with Multipath TCP are users as others are, whether they get it or fall back.
func TestMultipathTCPClients(t *testing.T) {
	t.Parallel()
	if b, err := os.ReadFile("/proc/sys/net/mptcp/enabled"); err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Skip("this system has no Multipath TCP")
	}
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	d := net.Dialer{Timeout: patience}
	d.SetMultipathTCP(true)
	for range 5 {
		conn, err := d.DialContext(context.Background(), "tcp", tun.addr())
		if err != nil {
			t.Fatal(err)
		}
		c := conn.(*net.TCPConn)
		defer c.Close()
		c.SetDeadline(time.Now().Add(lifetime))
		const size = 8 << 20
		go func() {
			io.Copy(c, newPattern(size))
			c.CloseWrite()
		}()
		if n, err := readPattern(c); n != size || err != nil {
			t.Errorf("%d bytes came back, %v; want %d and a clean end", n, err, size)
		}
	}
	// A reset is one there too.
	resetting := startTunnel(t, strconv.Itoa(serve(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	})))
	conn, err := d.DialContext(context.Background(), "tcp", resetting.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, "x")
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("Read = %d, %v; want a reset", n, err)
	}
}
