package relay

import (
	"context"
	"net"
	"time"
)

// keepAlive finds peers that vanished behind an idle connection: after a minute of silence, four probes 15 s apart.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

// Listen opens a listener whose connections are born with linger 0: when this process dies, the kernel resets them, and
// no user takes a truncated stream for a complete one.
func Listen(network, addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: lingerFromBirth, KeepAliveConfig: keepAlive}
	inheritKeepAlive(&lc)
	return lc.Listen(context.Background(), network, addr)
}

// Gone says whether the peer of a connection reset it, which nobody who does not read would notice. Where that cannot be known it
// says no.
func Gone(conn net.Conn) bool {
	var s socket
	s.init(conn)
	return s.gone()
}

// Dial connects to a target; the socket is born with linger 0 too.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if c, err := dialLocal(network, addr); c != nil || err != nil {
		return c, err
	}
	d := net.Dialer{KeepAliveConfig: keepAlive}
	if network != "unix" {
		d.Control = lingerFromBirth
	}
	c, err := d.DialContext(ctx, network, addr)
	if err == nil && network != "unix" {
		limitUnread(c)
	}
	return c, err
}
