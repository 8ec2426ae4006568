package sys

import (
	"net"
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
		c, err := DialLink(t.Context(), "tcp", ln.Addr().String(), segment)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
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
