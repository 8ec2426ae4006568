package sys

import (
	"context"
	"net"
	"net/netip"
)

// DialLink connects a socket of the link, without keep-alive: the link watches over itself. It dials from the local address
// from, or from any if that is the zero value. Neither end sends TCP segments of more than segment bytes, where the system lets a
// program say so; 0 leaves their size to the system.
func DialLink(ctx context.Context, from netip.Addr, network, addr string, segment int) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	if segment > 0 {
		d.Control = maxSegment(segment)
	}
	return d.DialContext(ctx, network, addr)
}
