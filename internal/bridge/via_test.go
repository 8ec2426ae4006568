package bridge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/logtest"
	"reverser/internal/memnet"
	"reverser/internal/via"
)

// wayOut is an HTTP proxy in memory.
type wayOut struct {
	way *via.Way

	mu    sync.Mutex
	asked []string // what it was to connect to; guarded by mu
}

// openWay runs a way out at 192.0.2.9:3128. answer says what it answers for a target, and where that leads to.
func openWay(t *testing.T, n *memnet.Net, answer func(target string) (status, addr string)) (w *wayOut, stop func()) {
	way, err := via.Parse("http://alice:s3cret@way.test:3128")
	if err != nil {
		t.Fatal(err)
	}
	w = &wayOut{way: way}
	ln, err := n.Listen("192.0.2.9:3128")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	serve := func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		w.mu.Lock()
		w.asked = append(w.asked, req.Host)
		w.mu.Unlock()
		status, addr := answer(req.Host)
		if addr == "" {
			fmt.Fprintf(c, "HTTP/1.1 %s\r\n\r\n", status)
			return
		}
		far, err := n.Dial(context.Background(), addr)
		if err != nil {
			fmt.Fprint(c, "HTTP/1.1 503 Service Unavailable\r\n\r\n")
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 %s\r\n\r\n", status)
		wg.Go(func() {
			io.Copy(far, r)
			far.Close()
		})
		io.Copy(c, far)
		far.Close()
	}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) })
		}
	})
	return w, func() { ln.Close(); n.Reset(); wg.Wait() }
}

func (w *wayOut) count(target string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.asked {
		if a == target {
			n++
		}
	}
	return n
}

// throughWay runs a bridge that goes that way out, where only the way's own name can be looked up.
func throughWay(t *testing.T, n *memnet.Net, w *wayOut, others ...string) (*Bridge, *logtest.Journal, func()) {
	var d dns
	d.set(false, nil, "192.0.2.9")
	b := onMemnet(t, n, &d)
	b.names.lookup = func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		if host != "way.test" {
			t.Errorf("%s is looked up here", host)
		}
		return d.lookup(ctx, network, host)
	}
	b.via.Store(&via.Choice{Way: w.way})
	b.uplinks[0].others = others
	j := logtest.NewWithLevels(slog.LevelInfo)
	setLog(b, j)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	return b, j, func() { cancel(); wg.Wait() }
}

// TestWayOut: all connections of the link go the way out, which looks the proxy's name up. It lets them to port 443 only, which is the
// token's second address, and they are there at once behind a break of all of them.
func TestWayOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		w, stopWay := openWay(t, &n, func(target string) (string, string) {
			if target != "proxy.test:443" {
				return "403 Forbidden", ""
			}
			return "200 OK", addrA
		})
		defer stopWay()
		defer newProxy(t).serveAs(1, identity(), &n, addrA)()
		b, j, stop := throughWay(t, &n, w, "proxy.test:443")
		defer stop()
		for range 3 {
			time.Sleep(2 * time.Second)
			if at := upAt(b); at != "192.0.2.9:3128" {
				t.Fatalf("connected to %q, want the way out; asked %v\n%s", at, w.asked, strings.Join(j.All(), "\n"))
			}
			n.Reset()
		}
		time.Sleep(500 * time.Millisecond)
		if barred := w.count("proxy.test:3010"); barred > 3 {
			t.Errorf("the address that is barred was tried %d times", barred)
		}
		if st := b.Status(); len(st.Links) != 1 || st.Links[0].Via != "http://alice@way.test:3128" {
			t.Errorf("status has the links %+v, want one with its way", st.Links)
		}
		if j.Count("s3cret") != 0 || j.Count("bridge starting", "via=http://alice@way.test:3128 (--via)") != 1 {
			t.Errorf("the log says\n%s", strings.Join(j.All(), "\n"))
		}
	})
}

// TestWayOutWantsAnotherPassword: a wrong password is told at once, tried with one address at a time, and seldom: it often locks accounts.
// With another one, which a reload brings, the link comes up.
func TestWayOutWantsAnotherPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		var mu sync.Mutex
		status := "407 Proxy Authentication Required"
		w, stopWay := openWay(t, &n, func(string) (string, string) {
			mu.Lock()
			defer mu.Unlock()
			if status == "200 OK" {
				return status, addrA
			}
			return status, ""
		})
		defer stopWay()
		defer newProxy(t).serveAs(1, identity(), &n, addrA)()
		b, j, stop := throughWay(t, &n, w, "proxy.test:443")
		defer stop()
		time.Sleep(time.Second)
		if j.Count("no connection to the proxy", "407 Proxy Authentication Required", `check user "alice"`) != 1 {
			t.Errorf("the log says\n%s", strings.Join(j.All(), "\n"))
		}
		time.Sleep(10 * time.Minute)
		if n := w.count("proxy.test:3010") + w.count("proxy.test:443"); n > 20 {
			t.Errorf("in ten minutes the wrong password was said %d times", n)
		}
		mu.Lock()
		status = "200 OK"
		mu.Unlock()
		if _, err := b.Apply(t.Context(), Settings{Services: b.cfg.Settings.Services, Via: via.Choice{Way: w.way}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if at := upAt(b); at != "192.0.2.9:3128" {
			t.Errorf("connected to %q, want the way out", at)
		}
	})
}

// TestWayOutIsGone: what cannot be reached is called the way out, and where it comes from is said.
func TestWayOutIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		w, stopWay := openWay(t, &n, func(string) (string, string) { return "", "" })
		stopWay()
		b, j, stop := throughWay(t, &n, w)
		b.via.Store(&via.Choice{Way: w.way, From: "HTTPS_PROXY"})
		time.Sleep(time.Minute)
		stop()
		if j.Count("no connection to the proxy", "dial http://alice@way.test:3128, the way out to the proxy at proxy.test:3010", "which HTTPS_PROXY says? --via none") == 0 {
			t.Errorf("the log says\n%s", strings.Join(j.All(), "\n"))
		}
	})
}
