package e2e

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// A router stands between bridge and proxy and can break every connection.
type router struct {
	port int
	mu   sync.Mutex // guards what follows
	ends []*net.TCPConn
}

func startRouter(t *testing.T, to int) *router {
	r := new(router)
	r.port = serve(t, func(c *net.TCPConn) {
		up, err := net.Dial("tcp", loopback(to))
		if err != nil {
			return
		}
		defer up.Close()
		r.mu.Lock()
		r.ends = append(r.ends, c, up.(*net.TCPConn))
		r.mu.Unlock()
		done := make(chan struct{}, 2)
		pass := func(dst, src *net.TCPConn) {
			io.Copy(dst, src)
			dst.Close()
			src.Close()
			done <- struct{}{}
		}
		go pass(up.(*net.TCPConn), c)
		go pass(c, up.(*net.TCPConn))
		<-done
		<-done
	})
	return r
}

// cut resets everything that is connected now.
func (r *router) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.ends {
		c.SetLinger(0)
		c.Close()
	}
	r.ends = nil
}

// A stream goes on after a break of the link as if nothing had been.
func TestStreamSurvivesABreak(t *testing.T) {
	t.Parallel()
	p := startProxy(t)
	r := startRouter(t, p.link)
	public := freePort(t)
	service := fmt.Sprintf("tcp/%d", public)
	b := startBridge(t, p.defaultToken(), fmt.Sprintf("%d=%d", public, serve(t, echo)), "--proxy", loopback(r.port))
	b.awaitUp(service)

	const n, breaks = 40 << 20, 20
	c := dial(t, loopback(public))
	client := c.LocalAddr().String()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, newPattern(n))
		c.CloseWrite()
		done <- err
	}()
	got, err := readPattern(&interrupting{r: c, every: n / (breaks + 1), interrupt: r.cut})
	if got != n || err != nil {
		t.Errorf("read %d bytes, then %s; want %d, then a clean end", got, describe(err), n)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, side := range []*testProcess{p.testProcess, b.testProcess} {
		if r := side.awaitRecord("pair released", "client", client); r.Number("resumes") < 1 {
			t.Errorf("%s: resumes %v; want at least 1", side.Name, r["resumes"])
		}
	}
}

// An interrupting reader calls interrupt each time so many bytes have come.
type interrupting struct {
	r         io.Reader
	every     int
	interrupt func()
	n         int
}

func (i *interrupting) Read(b []byte) (int, error) {
	n, err := i.r.Read(b)
	if before := i.n / i.every; (i.n+n)/i.every > before {
		i.interrupt()
	}
	i.n += n
	return n, err
}
