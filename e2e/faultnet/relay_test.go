package faultnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// world is a relay with one connection through it.
func world(t *testing.T, f Fault) (r *Relay, dialler, dialled *net.TCPConn) {
	t.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r = Start(ln, func() (*net.TCPConn, error) {
		c, err := net.Dial("tcp", server.Addr().String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}, func(int) Fault { return f })
	t.Cleanup(r.Close)
	c, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{c, s} {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
	}
	return r, c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestCutAfterExactlySoManyBytes(t *testing.T) {
	for _, fin := range []bool{false, true} {
		for _, n := range []int64{1, 1000, 200_000} {
			r, dialler, dialled := world(t, Fault{After: n, FIN: fin})
			go dialler.Write(make([]byte, n+5000))
			got, err := io.Copy(io.Discard, dialled)
			if got != n || fin != (err == nil) || !fin && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("cut after %d, FIN %v: read %d bytes, %v", n, fin, got, err)
			}
			if r.Cuts() != 1 || r.Passed() != n {
				t.Errorf("Cuts = %d, Passed = %d; want 1, %d", r.Cuts(), r.Passed(), n)
			}
		}
	}
}

func TestCutWaitsForItsTime(t *testing.T) {
	const age = 100 * time.Millisecond
	begin := time.Now()
	_, dialler, dialled := world(t, Fault{After: 3, Of: Down, NotBefore: age})
	dialled.Write(make([]byte, 10))
	got, _ := io.Copy(io.Discard, dialler)
	if got != 3 || time.Since(begin) < age {
		t.Errorf("read %d bytes in %v; want 3, then a cut after %v", got, time.Since(begin), age)
	}
}

func TestFlip(t *testing.T) {
	r, dialler, dialled := world(t, Fault{FlipEvery: 1000})
	go func() {
		dialler.Write(make([]byte, 10_500))
		dialler.CloseWrite()
	}()
	got, err := io.ReadAll(dialled)
	if err != nil || len(got) != 10_500 {
		t.Fatalf("read %d bytes, %v; want 10500", len(got), err)
	}
	wrong := 0
	for i := range got {
		if got[i] != 0 {
			wrong++
			if (i+1)%1000 != 0 {
				t.Errorf("byte %d is wrong", i)
			}
		}
	}
	if wrong != 10 || r.Flips() != 10 {
		t.Errorf("%d bytes are wrong, Flips = %d; want 10, 10", wrong, r.Flips())
	}
}

func TestStallAndHeal(t *testing.T) {
	r, dialler, dialled := world(t, Fault{})
	r.Stall(Up)
	dialler.Write([]byte("up"))
	dialled.Write([]byte("down"))
	got := make([]byte, 4)
	if _, err := io.ReadFull(dialler, got); err != nil || !bytes.Equal(got, []byte("down")) {
		t.Errorf("the direction that is not stalled gave %q, %v", got, err)
	}
	dialled.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := dialled.Read(got); err == nil {
		t.Errorf("the direction that is stalled gave %q", got[:n])
	}
	r.Heal()
	dialled.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(dialled, got[:2]); err != nil || string(got[:2]) != "up" {
		t.Errorf("after the stall came %q, %v", got[:2], err)
	}
}

func TestLimit(t *testing.T) {
	r, dialler, dialled := world(t, Fault{})
	r.Limit(Up, 1<<20)
	begin := time.Now()
	go func() {
		dialler.Write(make([]byte, 200<<10))
		dialler.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, dialled); n != 200<<10 || err != nil || time.Since(begin) < 150*time.Millisecond {
		t.Errorf("200 KB at 1 MB/s: %d bytes, %v in %v", n, err, time.Since(begin))
	}
}
