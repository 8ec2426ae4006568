package sys

import (
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// TuneLink makes a write of a link's socket to a vanished peer fail by itself, and lets as much be under way as the system allows.
// No more than unsent bytes wait in the kernel: see LimitUnsent. The options are wishes: what the kernel refuses is not missed.
func TuneLink(c net.Conn, unsent int) {
	size := sendBuffer()
	withDescriptor(c, func(fd int) {
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000)
		if size > 0 {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
		}
	})
	LimitUnsent(c, unsent)
}

// sendBuffer is the send buffer to ask for; 0: the kernel's own choice may become larger. It bounds what is under way and not
// acknowledged, so it bounds speed over a long round trip: with 4 MiB, the usual most of the kernel's choice (tcp(7), tcp_wmem),
// one stream over 100 ms reached 224 Mbit/s, and 437 with the 8 MiB that the same machine gave for the asking. Nothing more
// waits unsent for it: see LimitUnsent.
var sendBuffer = sync.OnceValue(func() int {
	most, auto := sysctl("net/core/wmem_max", 0), sysctl("net/ipv4/tcp_wmem", 2)
	return sendBufferOf(most, auto)
})

// mostSendBuffer is the most that a link's socket buffers: what the kernel makes of half of it.
const mostSendBuffer = 8 << 20

// sendBufferOf decides by the most that a program may ask for, which the kernel doubles (socket(7)), and the most of its own choice.
func sendBufferOf(most, auto int) int {
	most = min(most, mostSendBuffer/2)
	if auto == 0 || 2*most <= auto {
		return 0
	}
	return most
}

// sysctl is a number of a kernel setting, 0 if there is none.
func sysctl(name string, field int) int {
	b, _ := os.ReadFile("/proc/sys/" + name)
	f := strings.Fields(string(b))
	if field >= len(f) {
		return 0
	}
	n, _ := strconv.Atoi(f[field])
	return n
}

// LimitUnsent bounds what waits unsent in the kernel, where nothing can pass it: a PING or a keystroke would queue behind
// megabytes.
func LimitUnsent(c net.Conn, n int) {
	withDescriptor(c, func(fd int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n) })
}
