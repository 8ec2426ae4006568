package sys

import (
	"net"

	"golang.org/x/sys/unix"
)

// What the kernel may hold of a near target ahead of this process. Left alone it lets that grow to tcp_rmem, tens of megabytes,
// and what targets have sent to users who do not read then fills the memory that the kernel has for all TCP connections
// (tcp_mem), which slows down all others. A user who did not read left 9 MB in sockets, and 3.8 MB with this limit; half a megabyte is
// what 2 Gbit/s carry in a round trip of near.
const (
	mostUnread = 512 << 10
	near       = 2000 // microseconds of round trip
)

func limitUnread(c net.Conn) {
	withDescriptor(c, func(fd int) {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Rtt < near {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, mostUnread)
		}
	})
}
