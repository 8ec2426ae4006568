package sys

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// DialLink connects a socket of the link, without keep-alive: see KeepAlive. It dials from the local address
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
	c, err := d.DialContext(ctx, network, addr)
	if err == nil && segment > 0 {
		withDescriptor(c, func(fd int) { maxSegmentConnected(fd, segment) })
	}
	return c, err
}

// KeepAlive has the kernel probe an idle connection of the link. It is for connections on which the link itself sends no PING.
func KeepAlive(c net.Conn, every time.Duration) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: every, Interval: min(every, 15*time.Second), Count: 4})
	}
}
