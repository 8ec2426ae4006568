package sys

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

// sioTCPInfo is SIO_TCP_INFO of <mstcpip.h>. Windows 10 has it since version 1703, Wine has not.
const sioTCPInfo = 0xd8000027

// tcpInfo is TCP_INFO_v0 of <mstcpip.h>.
type tcpInfo struct {
	State             uint32
	Mss               uint32
	ConnectionTimeMs  uint64
	TimestampsEnabled uint8
	RttUs             uint32
	MinRttUs          uint32
	BytesInFlight     uint32
	Cwnd              uint32
	SndWnd            uint32
	RcvWnd            uint32
	RcvBuf            uint32
	BytesOut          uint64
	BytesIn           uint64
	BytesReordered    uint32
	BytesRetrans      uint32
	FastRetrans       uint32
	DupAcksIn         uint32
	TimeoutEpisodes   uint32
	SynRetrans        uint8
}

// TellsUnacked is false: older systems do not.
const TellsUnacked = false

// Unacked returns how many bytes of a TCP socket the peer's kernel has not acknowledged yet, -1 where the system does not tell. written is
// how many were ever written.
func Unacked(fd int, written uint64) int {
	var version, n uint32
	var info tcpInfo
	err := windows.WSAIoctl(windows.Handle(fd), sioTCPInfo, (*byte)(unsafe.Pointer(&version)), uint32(unsafe.Sizeof(version)),
		(*byte)(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)), &n, nil, 0)
	if err != nil {
		return -1
	}
	unacked := uint64(info.BytesInFlight)
	if written > info.BytesOut { // waits in the system, since the peer takes no more
		unacked += written - info.BytesOut
	}
	return int(unacked)
}

// Unsent returns 0: to ask for it at each delivery would cost more than it tells.
func Unsent(int) int { return 0 }
