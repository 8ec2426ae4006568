package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Go's sockets are overlapped on Windows and not non-blocking, but a socket can be both: calls with an Overlapped, which are Go's
// own, wait as before, and calls without one return WSAEWOULDBLOCK.

// fionbio is FIONBIO of <winsock2.h>.
const fionbio = 0x8004667e

// CanTry makes sure that a socket can be read and written without waiting. It reports whether that is so.
func CanTry(raw syscall.RawConn) (can bool) {
	raw.Control(func(fd uintptr) {
		on, n := uint32(1), uint32(0)
		can = windows.WSAIoctl(windows.Handle(fd), fionbio, (*byte)(unsafe.Pointer(&on)), 4, nil, 0, &n, nil, 0) == nil
	})
	return can
}

// WouldBlock reports whether Read or Write would have had to wait.
func WouldBlock(err error) bool { return err == windows.WSAEWOULDBLOCK }

// most is how many buffers one call takes; the rest is for the next one.
const most = 16

func vector(bufs [][]byte) (vec [most]windows.WSABuf, n uint32) {
	for _, b := range bufs[:min(len(bufs), most)] {
		if len(b) > 0 {
			vec[n] = windows.WSABuf{Len: uint32(len(b)), Buf: unsafe.SliceData(b)}
			n++
		}
	}
	return vec, n
}

// Read reads into the buffers in turn. Its error is a windows.Errno, see WouldBlock; 0 bytes without an error are the end.
func Read(fd int, bufs [][]byte) (int, error) {
	vec, k := vector(bufs)
	var n, flags uint32
	err := windows.WSARecv(windows.Handle(fd), &vec[0], k, &n, &flags, nil, nil)
	if err != nil {
		return 0, err
	}
	return int(n), nil
}

// Write writes the buffers in turn, as far as the socket takes them. Its error is a windows.Errno, see WouldBlock.
func Write(fd int, bufs [][]byte) (int, error) {
	vec, k := vector(bufs)
	if k == 0 {
		return 0, nil
	}
	var n uint32
	if err := windows.WSASend(windows.Handle(fd), &vec[0], k, &n, 0, nil, nil); err != nil {
		return 0, err
	}
	return int(n), nil
}

var procWSAPoll = windows.NewLazySystemDLL("ws2_32.dll").NewProc("WSAPoll")

// The events of WSAPoll, of <winsock2.h>.
const (
	pollErr    = 0x0001
	pollHup    = 0x0002
	pollNval   = 0x0004
	pollWrNorm = 0x0010
	pollRdNorm = 0x0100
)

// poll returns what WSAPoll says now of the events, and what it says unasked.
func poll(fd int, events int16) int16 {
	ask := struct {
		fd      windows.Handle
		events  int16
		revents int16
	}{fd: windows.Handle(fd), events: events}
	if n, _, _ := procWSAPoll.Call(uintptr(unsafe.Pointer(&ask)), 1, 0); int32(n) <= 0 {
		return 0
	}
	return ask.revents
}

// State returns what is known of a connected socket without reading it: whether the peer reset the connection, and whether both
// directions of it have ended. Windows says POLLHUP for a FIN of the peer alone, so only a reset counts as an end of both.
func State(fd int) (reset, over bool) {
	reset = poll(fd, pollWrNorm)&(pollErr|pollNval) != 0
	return reset, reset
}

// HungUp reports whether the peer of a connected socket sent its end or a reset.
func HungUp(fd int) bool { return poll(fd, pollWrNorm)&(pollErr|pollHup|pollNval) != 0 }

// Readable reports whether a read of a socket returns at once: something has arrived, or the peer's end or a reset.
func Readable(fd int) bool { return poll(fd, pollRdNorm) != 0 }

// Writable reports whether a socket takes bytes now, or is dead.
func Writable(fd int) bool { return poll(fd, pollWrNorm) != 0 }
