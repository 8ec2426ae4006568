package sys

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
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
	l, err := lc.Listen(context.Background(), network, addr)
	return l, wordListenError(err)
}

// Plain gives a connection of Listen what other listeners give theirs: the kernel closes it in order when this process dies, and does
// not watch over it. Urgent bytes stay in the stream.
func Plain(conn net.Conn) {
	if c, ok := conn.(interface {
		SetLinger(int) error
		SetKeepAlive(bool) error
	}); ok {
		c.SetLinger(-1)
		c.SetKeepAlive(false)
	}
}

// Dial connects to a target. The socket is born as those of Listen are.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return DialFrom(ctx, netip.Addr{}, network, addr)
}

// DialFrom is Dial from an address of this machine. With the zero Addr the kernel chooses.
func DialFrom(ctx context.Context, source netip.Addr, network, addr string) (net.Conn, error) {
	return dialFrom(ctx, source, network, addr, nil)
}

// DialAs is DialFrom from the address of a user, which this machine need not have. CheckTransparent says whether this process may, and
// TransparentRoutes what else it takes.
func DialAs(ctx context.Context, user netip.Addr, network, addr string) (net.Conn, error) {
	user = user.Unmap().WithZone("")
	var failed error
	c, err := dialFrom(ctx, user, network, addr, func(fd uintptr) { failed = setTransparent(int(fd), user) })
	if failed != nil {
		err = &net.OpError{Op: "dial", Net: network, Err: failed}
	}
	return c, err
}

// dialFrom is DialFrom with more options for the socket.
func dialFrom(ctx context.Context, source netip.Addr, network, addr string, options func(fd uintptr)) (net.Conn, error) {
	if !source.IsValid() && options == nil {
		if c, err := dialLocal(network, addr); c != nil || err != nil {
			return c, err
		}
	}
	d := net.Dialer{KeepAliveConfig: keepAlive}
	if network == "unix" {
		return d.DialContext(ctx, network, addr)
	}
	d.Control = atBirth
	if source.IsValid() || options != nil {
		d.Control = func(network, addr string, c syscall.RawConn) error {
			c.Control(func(fd uintptr) {
				if source.IsValid() {
					bindNoPort(fd)
				}
				if options != nil {
					options(fd)
				}
			})
			return atBirth(network, addr, c)
		}
	}
	if source.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: source.AsSlice(), Zone: source.Zone()}
	}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		if outOfPorts(err) && reachable(ctx, source, addr) {
			err = &NoPortError{addr, err}
		}
		return nil, err
	}
	limitUnread(c)
	return c, nil
}

// NoPortError is why a dial failed for want of a local port: all of them are in use towards that address, or were until a minute ago.
type NoPortError struct {
	Addr string // that was dialled
	Err  error
}

func (e *NoPortError) Error() string {
	return "no local port is free for another connection to " + e.Addr + " (" + portsHint + "): " + e.Err.Error()
}

func (e *NoPortError) Unwrap() error { return e.Err }

// NoSource reports whether a dial failed for the sake of its source: no port is free there, or it is no address of this machine.
func NoSource(err error) bool {
	if _, noPort := errors.AsType[*NoPortError](err); noPort {
		return true
	}
	call, ok := errors.AsType[*os.SyscallError](err)
	return ok && call.Syscall == "bind"
}

// reachable reports whether the kernel would send something to addr. If not, the cause was another one than ports: a host without
// an IPv6 address has the same error. To connect a UDP socket sends nothing.
func reachable(ctx context.Context, source netip.Addr, addr string) bool {
	d := net.Dialer{}
	if source.IsValid() {
		d.LocalAddr = &net.UDPAddr{IP: source.AsSlice(), Zone: source.Zone()}
	}
	c, err := d.DialContext(ctx, "udp", addr)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// atBirth sets the options of a TCP socket before it listens or connects.
func atBirth(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = setAtBirth(fd) }); e != nil {
		return e
	}
	return err
}

// Gone reports whether the peer of a connection reset it, which nobody who does not read would notice. It is false where that
// cannot be known.
func Gone(conn net.Conn) (gone bool) {
	withDescriptor(conn, func(fd int) { gone, _ = State(fd) })
	return gone
}

// withDescriptor calls f with the descriptor of c, if it has one.
func withDescriptor(c net.Conn, f func(fd int)) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
