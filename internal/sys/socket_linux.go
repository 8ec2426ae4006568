package sys

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads into the buffers in turn. Its error is an unix.Errno, EAGAIN when nothing is there yet; 0 bytes without an
// error are the end.
func Read(fd int, bufs [][]byte) (int, error) {
	if len(bufs) == 1 {
		return call(unix.SYS_READ, fd, unsafe.Pointer(unsafe.SliceData(bufs[0])), len(bufs[0]))
	}
	return vector(unix.SYS_READV, fd, bufs)
}

// Write writes the buffers in turn, as far as the socket takes them. Its error is an unix.Errno, EAGAIN when it took nothing.
func Write(fd int, bufs [][]byte) (int, error) {
	if len(bufs) == 1 {
		return call(unix.SYS_WRITE, fd, unsafe.Pointer(unsafe.SliceData(bufs[0])), len(bufs[0]))
	}
	return vector(unix.SYS_WRITEV, fd, bufs)
}

// Events takes events of an epoll set, as many as there are and have room, without waiting.
func Events(epfd int, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// most is how many buffers one call takes; the rest is for the next one.
const most = 16

func vector(trap uintptr, fd int, bufs [][]byte) (int, error) {
	var vec [most]unix.Iovec
	n := 0
	for _, b := range bufs[:min(len(bufs), most)] {
		if len(b) > 0 {
			vec[n].Base = unsafe.SliceData(b)
			vec[n].SetLen(len(b))
			n++
		}
	}
	return call(trap, fd, unsafe.Pointer(&vec[0]), n)
}

func call(trap uintptr, fd int, p unsafe.Pointer, n int) (int, error) {
	for {
		got, _, errno := unix.RawSyscall(trap, uintptr(fd), uintptr(p), uintptr(n))
		switch errno {
		case 0:
			return int(got), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// HungUp reports whether the peer of a connected socket sent its end or a reset, also behind bytes that nobody has read yet.
func HungUp(fd int) bool { return Poll(fd, unix.POLLRDHUP) != 0 }

// Poll returns what poll(2) says now of the events, and what it says unasked.
func Poll(fd int, events int16) int16 {
	ask := unix.PollFd{Fd: int32(fd), Events: events}
	now := unix.Timespec{}
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&ask)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	if errno != 0 || n == 0 {
		return 0
	}
	return ask.Revents
}

// Connect begins to connect a socket that does not block. Its error is an unix.Errno, EINPROGRESS as a rule.
func Connect(fd int, to netip.AddrPort) error {
	var v4 unix.RawSockaddrInet4
	var v6 unix.RawSockaddrInet6
	p, size, port := unsafe.Pointer(&v6), unsafe.Sizeof(v6), &v6.Port
	if ip := to.Addr().Unmap(); ip.Is4() {
		p, size, port = unsafe.Pointer(&v4), unsafe.Sizeof(v4), &v4.Port
		v4.Family, v4.Addr = unix.AF_INET, ip.As4()
	} else {
		v6.Family, v6.Addr = unix.AF_INET6, ip.As16()
	}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(port))[:], to.Port())
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(p), size)
	if errno != 0 {
		return errno
	}
	return nil
}
