package sys

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"reverser/internal/freeport"
)

// TestDialLocal: a connection that was made without net is like one of net's.
func TestDialLocal(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		port, err := freeport.Get() // when it is closed, the kernel gives it to nobody else, nor to the socket that is to be refused
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil && host == "::1" {
			t.Log("no IPv6 here")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dialLocal("tcp", ln.Addr().String())
		if conn == nil || err != nil {
			t.Fatalf("dialLocal(%s) = %v, %v", ln.Addr(), conn, err)
		}
		c := conn.(*localConn)
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if c.RemoteAddr().String() != ln.Addr().String() || c.LocalAddr().String() != far.RemoteAddr().String() {
			t.Errorf("addresses %s, %s; want %s, %s", c.LocalAddr(), c.RemoteAddr(), far.RemoteAddr(), ln.Addr())
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v, want the deadline", err)
		}
		c.SetReadDeadline(time.Time{})
		far.Write([]byte("hello"))
		p := make([]byte, 10)
		if n, err := c.Read(p); string(p[:n]) != "hello" || err != nil {
			t.Errorf("Read = %q, %v", p[:n], err)
		}
		c.Write([]byte("there"))
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(far); string(got) != "there" || err != nil {
			t.Errorf("the target read %q, %v", got, err)
		}
		c.Close() // born with linger 0
		if err := c.CloseWrite(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("CloseWrite behind Close = %v, want net.ErrClosed", err)
		}
		if _, err := far.Write([]byte("x")); err == nil {
			_, err = far.Read(p)
			for err == nil {
				_, err = far.Write([]byte("x"))
			}
		}
		far.Close()
		ln.Close()
		if c, err := dialLocal("tcp", ln.Addr().String()); c != nil || !errors.Is(err, syscall.ECONNREFUSED) || !Refused(err) {
			t.Errorf("dialLocal where nobody listens = %v, %v", c, err)
		} else if want := "dial tcp " + ln.Addr().String() + ": connect: connection refused"; err.Error() != want {
			t.Errorf("the error is %q, want %q", err, want)
		}
	}
	for _, other := range []string{"192.0.2.1:80", "localhost:80", "/run/socket", "127.0.0.1"} {
		if c, err := dialLocal("tcp", other); c != nil || err != nil {
			t.Errorf("dialLocal(%q) = %v, %v; want it left to others", other, c, err)
		}
	}
}

// TestKeepAliveIsInherited: the listener's options hold for what it accepts.
func TestKeepAliveIsInherited(t *testing.T) {
	user, accepted := accept(t)
	server, dialled := dial(t)
	for _, c := range []net.Conn{user, accepted, server, dialled} {
		defer c.Close()
	}
	for who, c := range map[string]net.Conn{"accepted": accepted, "dialled": dialled} {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			for _, o := range []struct{ level, option, want int }{
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4}, {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
				{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
			} {
				if got, err := unix.GetsockoptInt(int(fd), o.level, o.option); got != o.want || err != nil {
					t.Errorf("%s: option %d is %d, %v; want %d", who, o.option, got, err, o.want)
				}
			}
			if l, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_LINGER); l != 1 || err != nil {
				t.Errorf("%s: linger is %d, %v", who, l, err)
			}
		})
	}
}

// fewPorts leaves a socket n local ports to choose from.
func fewPorts(n int) func(fd uintptr) {
	const first = 40_123
	return func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, ipLocalPortRange, (first+n-1)<<16|first)
	}
}

// ipLocalPortRange is IP_LOCAL_PORT_RANGE of <linux/in.h>, since Linux 6.3.
const ipLocalPortRange = 51

// TestNoPort: where no local port is free, the error says so and what to do. Elsewhere the same ports are free.
func TestNoPort(t *testing.T) {
	var targets []string
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		targets = append(targets, ln.Addr().String())
	}
	for _, source := range []netip.Addr{{}, netip.MustParseAddr("127.0.0.7")} {
		for _, target := range targets { // with a source, too: the port is chosen for the connection, not for the source
			var noPort *NoPortError
			for made := 0; noPort == nil; made++ {
				c, err := dialFrom(t.Context(), source, "tcp", target, fewPorts(3))
				if err == nil {
					defer c.Close()
					if port := c.LocalAddr().(*net.TCPAddr).Port; port < 40_123 || port > 40_125 {
						t.Skip("this kernel lets no socket have a range of ports")
					}
				} else if !errors.As(err, &noPort) || made == 0 || made > 3 {
					t.Fatalf("from %v to %s, %d connections made: %v; want NoPortError behind three or less", source, target, made, err)
				}
			}
			if text := noPort.Error(); !strings.Contains(text, "ip_local_port_range") || !strings.Contains(text, target) || !errors.Is(noPort, unix.EADDRNOTAVAIL) || !NoSource(noPort) {
				t.Errorf("the error is %q", text)
			}
		}
	}
}

// TestNoPortIsNot: errors with the same number that have another cause.
func TestNoPortIsNot(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := DialFrom(t.Context(), netip.MustParseAddr("192.0.2.77"), "tcp", ln.Addr().String())
	var noPort *NoPortError
	if c != nil || err == nil || errors.As(err, &noPort) || !NoSource(err) {
		t.Errorf("from an address that is not this machine's: %v; want another error than NoPortError, for the sake of the source", err)
	}
}
