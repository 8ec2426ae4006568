package sys

import (
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDialLinkWithSmallSegments(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, segment := range []int{0, 1200} {
		from := netip.MustParseAddr("127.0.0.2")
		c, err := DialLink(t.Context(), from, "tcp", ln.Addr().String(), segment)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != from {
			t.Errorf("dialled from %s, want %s", got, from)
		}
		for name, c := range map[string]net.Conn{"dialling": c, "accepting": peer} {
			size := 0
			raw, err := c.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
			if small := size <= 1200; err != nil || small != (segment > 0) {
				t.Errorf("with %d: the %s end has segments of %d bytes, %v", segment, name, size, err)
			}
			c.Close()
		}
	}
}
