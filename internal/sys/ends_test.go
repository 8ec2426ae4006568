//go:build unix

package sys

import (
	"net"
	"testing"
	"time"
)

// TestEnds: what a socket that nobody reads tells of its peer. It is the same on all Unix systems, however they are asked.
func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		do                  func(t *testing.T, own, peer *net.TCPConn)
		hungUp, reset, over bool
	}{
		"nothing": {do: func(*testing.T, *net.TCPConn, *net.TCPConn) {}},
		"bytes":   {do: func(_ *testing.T, _, peer *net.TCPConn) { peer.Write([]byte("unread")) }},
		"an end": {
			do:     func(_ *testing.T, _, peer *net.TCPConn) { peer.CloseWrite() },
			hungUp: true,
		},
		"an end of one's own": {
			do: func(_ *testing.T, own, _ *net.TCPConn) { own.CloseWrite() },
		},
		"both ends": {
			do:     func(_ *testing.T, own, peer *net.TCPConn) { own.CloseWrite(); peer.CloseWrite() },
			hungUp: true, over: true,
		},
		"a reset": {
			do:     func(_ *testing.T, _, peer *net.TCPConn) { peer.SetLinger(0); peer.Close() },
			hungUp: true, reset: true, over: true,
		},
		"a reset behind bytes": {
			do: func(_ *testing.T, _, peer *net.TCPConn) {
				peer.Write([]byte("unread"))
				peer.SetLinger(0)
				peer.Close()
			},
			hungUp: true, reset: true, over: true,
		},
		"a reset behind an end": {
			do: func(t *testing.T, own, peer *net.TCPConn) {
				peer.CloseWrite()
				await(t, own, "the end", func(hungUp, _, _ bool) bool { return hungUp })
				peer.SetLinger(0)
				peer.Close()
			},
			hungUp: true, reset: true, over: true,
		},
		"a reset behind an end of one's own": {
			do: func(_ *testing.T, own, peer *net.TCPConn) {
				own.CloseWrite()
				peer.SetLinger(0)
				peer.Close()
			},
			hungUp: true, reset: true, over: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			own, peer := tcpPair(t)
			c.do(t, own, peer)
			want := func(hungUp, reset, over bool) bool { return hungUp == c.hungUp && reset == c.reset && over == c.over }
			await(t, own, name, want)
			await(t, own, name+", asked again", want) // to ask changes nothing
			// To close in peace takes an option, also when both directions have ended.
			if err := own.SetLinger(-1); err != nil && !c.reset {
				t.Errorf("SetLinger: %v", err)
			}
		})
	}
}

func await(t *testing.T, c *net.TCPConn, what string, is func(hungUp, reset, over bool) bool) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		var hungUp, reset, over bool
		withDescriptor(c, func(fd int) {
			hungUp = HungUp(fd)
			reset, over = State(fd)
		})
		if is(hungUp, reset, over) {
			return
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("%s: hung up %v, reset %v, over %v", what, hungUp, reset, over)
		}
	}
}

// tcpPair returns both ends of a connection, born as those of users and targets are.
func tcpPair(t *testing.T) (own, peer *net.TCPConn) {
	t.Helper()
	l, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := net.Dialer{Control: atBirth} // Dial has connections of its own for this machine
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a.(*net.TCPConn), c.(*net.TCPConn)
}
