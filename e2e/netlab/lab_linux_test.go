package netlab

import (
	"context"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func newLab(t *testing.T) *Lab {
	t.Helper()
	if err := Available(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	lab, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lab.Close)
	return lab
}

// connect makes a connection from the lan host to an echo server on the public one.
func connect(t *testing.T, lab *Lab) *net.TCPConn {
	t.Helper()
	ln, err := lab.Public.Listen(PublicIP + ":0")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(accepted)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		accepted <- c
		io.Copy(c, c)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := lab.LAN.Dial(ctx, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		ln.Close()
		if c, ok := <-accepted; ok {
			c.Close() // it may be the end of a connection whose other address is gone
		}
		<-done
	})
	return c
}

// echo sends a byte and returns how long the answer took. The limit is that of the answer alone: the byte is sent in any case.
func echo(t *testing.T, c *net.TCPConn, limit time.Duration) (time.Duration, error) {
	t.Helper()
	begin := time.Now()
	c.SetWriteDeadline(begin.Add(time.Minute))
	if _, err := c.Write([]byte{1}); err != nil {
		return 0, err
	}
	c.SetReadDeadline(time.Now().Add(limit))
	_, err := io.ReadFull(c, make([]byte, 1))
	return time.Since(begin), err
}

func TestFaults(t *testing.T) {
	lab := newLab(t)
	c := connect(t, lab)
	if _, err := echo(t, c, time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name        string
		begin, heal func() error
	}{
		{"down", lab.Down, lab.Up},
		{"black hole to the proxy", func() error { return lab.SetLoss(ToProxy, 1) }, func() error { return lab.SetLoss(ToProxy, 0) }},
		{"black hole to the bridge", func() error { return lab.SetLoss(ToBridge, 1) }, func() error { return lab.SetLoss(ToBridge, 0) }},
	} {
		if err := f.begin(); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		if _, err := echo(t, c, 300*time.Millisecond); err == nil {
			t.Errorf("%s: the byte came back; want a timeout", f.name)
		}
		if err := f.heal(); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		// The byte that stood still comes back, and then the present one's answer is on its way as well.
		if _, err := echo(t, c, time.Minute); err != nil {
			t.Errorf("after %s: %v; want the connection to go on", f.name, err)
		}
		io.ReadFull(c, make([]byte, 1))
	}
}

func TestLargest(t *testing.T) {
	lab := newLab(t)
	c := connect(t, lab)
	for _, d := range []Direction{ToProxy, ToBridge} {
		if err := lab.SetLargest(d, 1280); err != nil {
			t.Fatal(err)
		}
		if _, err := echo(t, c, time.Minute); err != nil {
			t.Errorf("%v: %v; want a small packet to pass", d, err)
		}
		large := connect(t, lab)
		large.SetDeadline(time.Now().Add(300 * time.Millisecond))
		large.Write(make([]byte, 1400))
		if n, err := io.ReadFull(large, make([]byte, 1400)); err == nil {
			t.Errorf("%v: %d bytes came back; want a large packet to be lost", d, n)
		}
		if err := lab.SetLargest(d, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDelay(t *testing.T) {
	lab := newLab(t)
	c := connect(t, lab)
	const d = 50 * time.Millisecond
	if err := lab.SetDelay(d); err != nil {
		t.Fatal(err)
	}
	if took, err := echo(t, c, time.Minute); err != nil || took < 2*d {
		t.Errorf("echo took %v, %v; want at least %v", took, err, 2*d)
	}
	if err := lab.SetDelay(0); err != nil {
		t.Fatal(err)
	}
	if _, err := echo(t, c, time.Minute); err != nil {
		t.Error(err)
	}
}

func TestMoveAndThin(t *testing.T) {
	lab := newLab(t)
	c := connect(t, lab)
	if err := lab.SetThin("1mbit", "64kb"); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	go c.Write(make([]byte, 100<<10))
	c.SetDeadline(begin.Add(time.Minute))
	if _, err := io.ReadFull(c, make([]byte, 100<<10)); err != nil || time.Since(begin) < 400*time.Millisecond {
		t.Errorf("100 KB over 1 Mbit/s took %v, %v; want about 0.8s", time.Since(begin), err)
	}
	if err := lab.SetThin("", ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := lab.Move(); err != nil {
			t.Fatal(err)
		}
		echoNew := connect(t, lab)
		if _, err := echo(t, echoNew, time.Minute); err != nil {
			t.Error(err)
		}
	}
	if _, err := echo(t, c, time.Minute); err != nil {
		t.Errorf("back at the old address: %v; want its connection to go on", err)
	}
}
