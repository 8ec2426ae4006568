package memnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

func TestNettest(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		var n Net
		a, b := connect(t, &n)
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestNettestWithLatencyAndSmallBuffer(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := Net{Buffer: 20_000} // some times less than what is sent: each time a timer is waited for, which a busy machine serves late
		a, b := connect(t, &n)
		n.SetLatency(Both, 10*time.Microsecond)
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

// connect makes one connection and returns the dialling and the accepting end.
func connect(t *testing.T, n *Net) (dialled, accepted *Conn) {
	t.Helper()
	l, err := n.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := n.Dial(context.Background(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*Conn), s.(*Conn)
}

func write(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if n, err := c.Write(b); n != len(b) || err != nil {
		t.Fatalf("Write = %d, %v; want %d, nil", n, err, len(b))
	}
}

func wantRead(t *testing.T, c net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("Read = %d bytes, %v; want %d", n, err, len(want))
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("Read = %.40q; want %.40q", got, want)
	}
}

func wantReadError(t *testing.T, c net.Conn, want error) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, want) {
		t.Fatalf("Read = %d, %v; want 0, %v", n, err, want)
	}
}

func wantWriteError(t *testing.T, c net.Conn, want error) {
	t.Helper()
	n, err := c.Write([]byte("x"))
	if n != 0 || !errors.Is(err, want) {
		t.Fatalf("Write = %d, %v; want 0, %v", n, err, want)
	}
}

// wantSilence checks that nothing can be read, however long one waits.
func wantSilence(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Hour))
	wantReadError(t, c, os.ErrDeadlineExceeded)
	c.SetReadDeadline(time.Time{})
}

func TestHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		write(t, a, []byte("request"))
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantWriteError(t, a, syscall.EPIPE)
		wantRead(t, b, []byte("request"))
		wantReadError(t, b, io.EOF)
		write(t, b, []byte("reply"))
		wantRead(t, a, []byte("reply"))
		b.Close()
		wantReadError(t, a, io.EOF)
		a.Close()
		if got := len(n.Conns()); got != 0 {
			t.Errorf("Conns = %d after both ends were closed; want 0", got)
		}
	})
}

func TestCloseSendsTheBufferFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		data := bytes.Repeat([]byte("0123456789abcdef"), DefaultBuffer/16)
		write(t, a, data)
		a.Close()
		wantReadError(t, a, net.ErrClosed)
		wantRead(t, b, data)
		wantReadError(t, b, io.EOF)
		b.Close()
	})
}

func TestBufferIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := Net{Buffer: 100}
		a, b := connect(t, &n)
		a.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := a.Write(make([]byte, 150)); n != 100 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Write = %d, %v; want 100, %v", n, err, os.ErrDeadlineExceeded)
		}
		a.SetWriteDeadline(time.Time{})
		wantRead(t, b, make([]byte, 30))
		write(t, a, make([]byte, 30))
		a.SetBuffer(ToListener, 200)
		write(t, a, make([]byte, 100))
		wantRead(t, b, make([]byte, 200))
	})
}

func TestWritesDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := Net{Buffer: 10}
		a, b := connect(t, &n)
		var wg sync.WaitGroup
		for _, c := range []byte("abcdef") {
			wg.Go(func() { a.Write(bytes.Repeat([]byte{c}, 100)) })
		}
		for range 6 {
			got := make([]byte, 100)
			if _, err := io.ReadFull(b, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, bytes.Repeat(got[:1], 100)) {
				t.Errorf("Read = %q; want one letter", got)
			}
		}
		wg.Wait()
	})
}

func TestLingerZeroResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := Net{Buffer: 100}
		a, b := connect(t, &n)
		write(t, a, make([]byte, 80))
		a.SetLinger(0)
		a.Close()
		// Half of the buffer was on the wire, the rest was not sent yet.
		wantRead(t, b, make([]byte, 50))
		wantReadError(t, b, syscall.ECONNRESET)
		wantReadError(t, b, syscall.ECONNRESET)
		wantWriteError(t, b, syscall.ECONNRESET)
		b.Close()
	})
}

func TestResetStaysBehindTheBytesOnTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		a.SetLatency(ToListener, time.Second)
		write(t, a, []byte("last words"))
		a.SetLinger(0)
		a.Close()
		start := time.Now()
		wantRead(t, b, []byte("last words"))
		wantReadError(t, b, syscall.ECONNRESET)
		if got := time.Since(start); got != time.Second {
			t.Errorf("reset took %v; want 1s", got)
		}
	})
}

func TestResetWakesABlockedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := a.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Write = %v; want %v", err, syscall.ECONNRESET)
			}
		})
		synctest.Wait()
		b.SetLinger(0)
		b.Close()
		wg.Wait()
	})
}

func TestCloseWithUnreadDataResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		write(t, a, []byte("unread"))
		b.Close()
		wantReadError(t, a, syscall.ECONNRESET)
	})
}

func TestWriteToAClosedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		b.Close()
		write(t, a, []byte("too late")) // taken in, answered by a reset
		wantWriteError(t, a, syscall.EPIPE)
		wantReadError(t, a, io.EOF) // the end came before the reset
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		n.SetLatency(ToListener, 30*time.Millisecond)
		n.SetLatency(ToDialer, 70*time.Millisecond)
		start := time.Now()
		a, b := connect(t, &n)
		if got := time.Since(start); got != 100*time.Millisecond {
			t.Errorf("Dial took %v; want 100ms", got)
		}
		start = time.Now()
		write(t, a, []byte("ping"))
		wantRead(t, b, []byte("ping"))
		if got := time.Since(start); got != 30*time.Millisecond {
			t.Errorf("to the listener took %v; want 30ms", got)
		}
		start = time.Now()
		write(t, b, []byte("pong"))
		a.SetLatency(ToDialer, 0) // must not overtake
		b.Write([]byte("!"))
		wantRead(t, a, []byte("pong!"))
		if got := time.Since(start); got != 70*time.Millisecond {
			t.Errorf("to the dialler took %v; want 70ms", got)
		}
	})
}

func TestCutAfterBytes(t *testing.T) {
	for _, dir := range []Dir{ToListener, ToDialer} {
		for _, cut := range []int64{0, 1, 9, 10, 11, 30} {
			synctest.Test(t, func(t *testing.T) {
				var n Net
				a, b := connect(t, &n)
				from, to := a, b
				if dir == ToDialer {
					from, to = b, a
				}
				write(t, from, []byte("before"))
				a.CutAfter(dir, cut, CutReset)
				for range 4 {
					from.Write(make([]byte, 10))
				}
				wantRead(t, to, append([]byte("before"), make([]byte, cut)...))
				wantReadError(t, to, syscall.ECONNRESET)
				wantReadError(t, from, syscall.ECONNRESET)
				wantWriteError(t, from, syscall.ECONNRESET)
				wantWriteError(t, to, syscall.ECONNRESET)
			})
		}
	}
}

func TestSilentCutAfterBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		n.CutAfter(ToListener, 5, CutSilently)
		write(t, a, []byte("0123456789"))
		wantRead(t, b, []byte("01234"))
		write(t, b, []byte("reply"))
		wantSilence(t, a)
		wantSilence(t, b)
		a.Heal(Both)
		wantRead(t, b, []byte("56789"))
		wantRead(t, a, []byte("reply"))
	})
}

func TestBlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := Net{Buffer: 100}
		a, b := connect(t, &n)
		n.SetLatency(Both, time.Second)
		write(t, a, []byte("on the wire, "))
		a.BlackHole(ToListener)
		write(t, a, []byte("in the hole"))
		write(t, b, []byte("other way"))
		wantRead(t, a, []byte("other way"))
		wantSilence(t, b)
		a.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := a.Write(make([]byte, 100)); n != 76 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write = %d, %v; want 76, %v", n, err, os.ErrDeadlineExceeded)
		}
		start := time.Now()
		b.Heal(Both)
		wantRead(t, b, []byte("on the wire, in the hole"))
		if got := time.Since(start); got != time.Second {
			t.Errorf("healing took %v; want the latency, 1s", got)
		}
	})
}

func TestEndInABlackHoleArrivesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		n.BlackHole(Both)
		write(t, a, []byte("bye"))
		a.Close()
		wantSilence(t, b)
		n.Heal()
		wantRead(t, b, []byte("bye"))
		wantReadError(t, b, io.EOF)
	})
}

func TestResetInABlackHoleIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		a, b := connect(t, &n)
		n.BlackHole(Both)
		write(t, a, []byte("lost"))
		a.SetLinger(0)
		a.Close()
		n.Heal()
		wantSilence(t, b)
		write(t, b, []byte("anyone?"))
		wantReadError(t, b, syscall.ECONNRESET)
	})
}

func TestDialFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.Dial(ctx, "proxy:3010"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("Dial without a listener = %v; want %v", err, syscall.ECONNREFUSED)
		}
		l, err := n.Listen("proxy:3010")
		if err != nil {
			t.Fatal(err)
		}
		n.SetDials("", DialRefuse)
		if _, err := n.Dial(ctx, "proxy:3010"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("Dial = %v; want %v", err, syscall.ECONNREFUSED)
		}
		n.SetDials("", DialConnect)
		n.SetDials("proxy:3010", DialHang)
		_, err = n.Dial(ctx, "proxy:3010")
		var timeout net.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatalf("Dial = %v; want a timeout", err)
		}
		n.SetDials("proxy:3010", DialConnect)
		n.BlackHole(ToDialer)
		var wg sync.WaitGroup
		wg.Go(func() {
			c, err := n.Dial(t.Context(), "proxy:3010")
			if err != nil {
				t.Errorf("Dial = %v; want it to go on after Heal", err)
				return
			}
			c.Close()
		})
		time.Sleep(time.Hour)
		n.Heal()
		wg.Wait()
		if _, err := l.Accept(); err != nil {
			t.Errorf("Accept = %v", err)
		}
		l.Close()
	})
}

func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		l, err := n.Listen(":9000")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Listen("127.0.0.1:9000"); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("second Listen = %v; want %v", err, syscall.EADDRINUSE)
		}
		c, err := n.Dial(t.Context(), "192.0.2.7:9000")
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().(*net.TCPAddr).String(); got != "192.0.2.7:9000" {
			t.Errorf("RemoteAddr = %s; want 192.0.2.7:9000", got)
		}
		var wg sync.WaitGroup
		l.Close()
		wantReadError(t, c, syscall.ECONNRESET) // nobody accepted it
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept = %v; want %v", err, net.ErrClosed)
		}
		l2, err := n.Listen(":9000")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if _, err := l2.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept = %v; want %v", err, net.ErrClosed)
			}
		})
		synctest.Wait()
		l2.Close()
		wg.Wait()
	})
}

func TestFaultAtBirth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		n.OnConn(func(c *Conn) { c.CutAfter(ToListener, 3, CutReset) })
		a, b := connect(t, &n)
		a.Write([]byte("abcdef"))
		wantRead(t, b, []byte("abc"))
		wantReadError(t, b, syscall.ECONNRESET)
	})
}

func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Net
		l, err := n.Listen("192.0.2.7:9000")
		if err != nil {
			t.Fatal(err)
		}
		a, err := n.Dial(t.Context(), "192.0.2.7:9000")
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		b := accepted.(*Conn)
		home := a.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
		away := netip.MustParseAddr("10.7.0.1")
		n.Move(away)
		a.Write([]byte("x"))
		n.Heal()
		b.SetReadDeadline(time.Now().Add(time.Hour))
		wantReadError(t, b, os.ErrDeadlineExceeded)
		b.SetReadDeadline(time.Time{})
		c, err := n.Dial(t.Context(), a.RemoteAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != away {
			t.Errorf("dialled from %s; want %s", got, away)
		}
		n.Move(home)
		wantRead(t, b, []byte("x"))
	})
}

func TestResend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := Net{Resend: true}
		if _, err := n.Listen("192.0.2.7:9000"); err != nil {
			t.Fatal(err)
		}
		n.BlackHole(Both)
		time.AfterFunc(4*time.Second, n.Heal)
		begin := time.Now()
		if _, err := n.Dial(t.Context(), "192.0.2.7:9000"); err != nil || time.Since(begin) != 7*time.Second {
			t.Errorf("Dial = %v after %s; want success with the third repetition, after 7s", err, time.Since(begin))
		}
	})
}
