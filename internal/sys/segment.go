package sys

import (
	"context"
	"net"
)

// DialLink connects a socket of the link, without keep-alive: the link watches over itself. Neither end sends TCP segments of
// more than segment bytes, where the system lets a program say so; 0 leaves their size to the system.
func DialLink(ctx context.Context, network, addr string, segment int) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if segment > 0 {
		d.Control = maxSegment(segment)
	}
	return d.DialContext(ctx, network, addr)
}
