package sys

import (
	"context"
	"net"
	"syscall"
	"time"
)

// keepAlive finds peers that vanished behind an idle connection: after a minute of silence, four probes 15 s apart.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

// Listen opens a listener whose connections are born with
//   - linger 0: when this process dies, the kernel resets them, and no user takes a truncated stream for a complete one;
//   - urgent bytes in the stream (SO_OOBINLINE): the kernel would take them out, and they would be lost without a sign.
func Listen(network, addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: atBirth, KeepAliveConfig: keepAlive}
	inheritKeepAlive(&lc)
	return lc.Listen(context.Background(), network, addr)
}

// Dial connects to a target. The socket is born as those of Listen are.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if c, err := dialLocal(network, addr); c != nil || err != nil {
		return c, err
	}
	d := net.Dialer{KeepAliveConfig: keepAlive}
	if network != "unix" {
		d.Control = atBirth
	}
	c, err := d.DialContext(ctx, network, addr)
	if err == nil && network != "unix" {
		limitUnread(c)
	}
	return c, err
}

// atBirth sets the options of a TCP socket before it listens or connects.
func atBirth(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = setAtBirth(fd) }); e != nil {
		return e
	}
	return err
}
