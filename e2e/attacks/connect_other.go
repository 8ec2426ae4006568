//go:build !linux

package attacks

import (
	"net"
	"net/netip"
	"time"
)

func connect(to netip.AddrPort, from netip.Addr) (net.Conn, error) {
	d := net.Dialer{Timeout: time.Minute} // which only bounds a proxy that hangs
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return d.Dial("tcp", to.String())
}
