package e2e

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A road stands between bridge and proxy, and every byte is underway on it for some time. Its length in bytes has no limit.
type road struct {
	port  int
	takes time.Duration

	mu       sync.Mutex
	underway [2]int // bytes towards the proxy, and towards the bridge; guarded by mu
	most     [2]int // that ever were; guarded by mu
}

func startRoad(t *testing.T, to int, takes time.Duration) *road {
	r := &road{takes: takes}
	r.port = serve(t, func(c *net.TCPConn) {
		up, err := net.Dial("tcp", loopback(to))
		if err != nil {
			return
		}
		defer up.Close()
		var wg sync.WaitGroup
		wg.Go(func() { r.pass(0, up, c) })
		wg.Go(func() { r.pass(1, c, up) })
		wg.Wait()
	})
	return r
}

// pass carries the bytes of one direction until one of the ends is gone.
func (r *road) pass(dir int, dst io.WriteCloser, src io.ReadCloser) {
	type load struct {
		bytes []byte
		due   time.Time
	}
	loads, gone := make(chan load, 1<<16), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(gone)
		defer src.Close()
		defer dst.Close()
		for l := range loads {
			time.Sleep(time.Until(l.due))
			_, err := dst.Write(l.bytes)
			r.count(dir, -len(l.bytes))
			if err != nil {
				return
			}
		}
	})
	for {
		b := make([]byte, 16<<10)
		n, err := src.Read(b)
		if err != nil {
			break
		}
		r.count(dir, n)
		select {
		case loads <- load{b[:n], time.Now().Add(r.takes)}:
		case <-gone:
		}
	}
	close(loads)
	wg.Wait()
}

func (r *road) count(dir, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.underway[dir] += n
	r.most[dir] = max(r.most[dir], r.underway[dir])
}

// Over a distance, as much is underway as the distance holds: a receiver that takes what comes gets a window that grows. What a machine
// does in a second times the distance is a bound as well, so that a slow machine needs a longer one to show it.
func TestWindowOverADistance(t *testing.T) {
	t.Parallel()
	// A window that does not grow is 64 KiB, and leaves less than that on the way.
	const want = 512 << 10
	for takes := 100 * time.Millisecond; ; takes *= 2 {
		most := overADistance(t, takes)
		t.Logf("over %v, at most %d bytes were underway to the proxy, %d to the bridge", takes, most[0], most[1])
		if min(most[0], most[1]) >= want || t.Failed() {
			return
		}
		if takes > time.Second {
			t.Fatalf("at most %d bytes were underway; want %d at least", most, want)
		}
	}
}

// overADistance sends bytes both ways between a bridge and a proxy that are so far from each other, and returns how many were underway at
// most towards the proxy, and towards the bridge.
func overADistance(t *testing.T, takes time.Duration) [2]int {
	const n = 8 << 20
	p := startProxy(t)
	r := startRoad(t, p.link, takes)
	towards := make(chan error, 1)
	service := serve(t, func(c *net.TCPConn) {
		var one [1]byte
		if _, err := io.ReadFull(c, one[:]); err != nil {
			return
		}
		if one[0] == 'd' {
			io.Copy(c, newPattern(n))
			return
		}
		got, err := readPattern(c)
		if err == nil && got != n {
			err = fmt.Errorf("%d bytes came, want %d", got, n)
		}
		towards <- err
	})
	public := freePort(t)
	b := startBridge(t, p.defaultToken(), fmt.Sprintf("%d=%d", public, service), "--proxy", loopback(r.port))
	defer p.Kill()
	defer b.Kill()
	b.awaitUp(fmt.Sprintf("tcp/%d", public))

	up, down := dial(t, loopback(public)), dial(t, loopback(public))
	var wg sync.WaitGroup
	wg.Go(func() {
		io.WriteString(up, "u")
		io.Copy(up, newPattern(n))
		up.CloseWrite()
	})
	io.WriteString(down, "d")
	if got, err := readPattern(down); got != n || err != nil {
		t.Errorf("from the service: %d bytes, then %s; want %d, then a clean end", got, describe(err), n)
	}
	if err := <-towards; err != nil {
		t.Errorf("to the service: %s", describe(err))
	}
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.most
}
