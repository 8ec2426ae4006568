package sys

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inheritKeepAlive has the listener's connections inherit keepAlive from it, instead of four system calls for each.
func inheritKeepAlive(lc *net.ListenConfig) {
	before := lc.Control
	lc.KeepAliveConfig, lc.KeepAlive = net.KeepAliveConfig{}, -1
	lc.SetMultipathTCP(false) // older kernels refuse these options on such a socket
	lc.Control = func(network, addr string, c syscall.RawConn) error {
		c.Control(func(fd uintptr) { setKeepAlive(int(fd)) })
		return before(network, addr, c)
	}
}

func setKeepAlive(fd int) {
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAlive.Idle.Seconds()))
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAlive.Interval.Seconds()))
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlive.Count)
}

// bindNoPort leaves the choice of the local port to connect, which may use a port again that has a connection to somewhere else.
func bindNoPort(fd uintptr) {
	unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
}

// portsHint is what helps where no local port is free.
const portsHint = "widen net.ipv4.ip_local_port_range, set net.ipv4.tcp_tw_reuse=1, or give the bridge more addresses with --source"

// dialLocal connects to a TCP target on this machine, which answers within the system call: there is nothing to wait for. It
// returns nothing where that is not so; then somebody has to wait. A connection cost the bridge a sixth less than by net.Dialer.
func dialLocal(network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if network != "tcp" || err != nil || !to.Addr().IsLoopback() || to.Addr().Zone() != "" {
		return nil, nil
	}
	family := unix.AF_INET6
	if to.Addr().Unmap().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil // net says it better
	}
	setAtBirth(uintptr(fd))
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, mostUnread) // see limitUnread
	setKeepAlive(fd)
	remote := net.TCPAddrFromAddrPort(to)
	if err = Connect(fd, to); err == unix.EINPROGRESS {
		err = connected(fd)
	}
	switch err {
	case nil:
	case unix.EINPROGRESS, unix.EADDRNOTAVAIL:
		unix.Close(fd)
		return nil, nil
	default:
		unix.Close(fd)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: remote, Err: os.NewSyscallError("connect", err)}
	}
	c := newLocalConn(fd, remote)
	// Where nobody listens, a socket may be given the very port that it goes to, and meet itself there.
	local := c.LocalAddr().(*net.TCPAddr)
	if local.Port == remote.Port && local.IP.Equal(remote.IP) || c.SetReadDeadline(time.Time{}) != nil { // or Go's poller did not take it
		c.Close()
		return nil, nil
	}
	return c, nil
}

// connected says what became of a connect; EINPROGRESS: nothing yet.
func connected(fd int) error {
	switch events := Poll(fd, unix.POLLOUT); {
	case events == 0:
		return unix.EINPROGRESS
	case events&(unix.POLLERR|unix.POLLHUP) == 0:
		return nil
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil || code == 0 {
		return err
	}
	return unix.Errno(code)
}

// localConn is a TCP socket that net did not make: of dialLocal, or of another process (Adopt). It is a file, since net would make a
// copy of the descriptor first.
type localConn struct {
	*os.File
	raw    syscall.RawConn
	remote *net.TCPAddr
}

// newLocalConn takes fd over.
func newLocalConn(fd int, remote *net.TCPAddr) *localConn {
	f := os.NewFile(uintptr(fd), "tcp")
	raw, _ := f.SyscallConn() // fails for no file only
	return &localConn{f, raw, remote}
}

// SyscallConn is for those who wait for readiness and then read.
func (c *localConn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// RemoteAddr is the target.
func (c *localConn) RemoteAddr() net.Addr { return c.remote }

// LocalAddr is asked of the kernel.
func (c *localConn) LocalAddr() net.Addr {
	var at unix.Sockaddr
	c.raw.Control(func(fd uintptr) { at, _ = unix.Getsockname(int(fd)) })
	return tcpAddr(at)
}

// tcpAddr returns the zero address for none.
func tcpAddr(at unix.Sockaddr) *net.TCPAddr {
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: at.Addr[:], Port: at.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: at.Addr[:], Port: at.Port}
	}
	return &net.TCPAddr{}
}

// CloseWrite sends FIN.
func (c *localConn) CloseWrite() error {
	var err error
	if c.raw.Control(func(fd uintptr) { err = os.NewSyscallError("shutdown", unix.Shutdown(int(fd), unix.SHUT_WR)) }) != nil {
		return net.ErrClosed
	}
	return err
}

// SetLinger is as that of [net.TCPConn].
func (c *localConn) SetLinger(sec int) error {
	l := unix.Linger{Onoff: 1, Linger: int32(sec)}
	if sec < 0 {
		l = unix.Linger{}
	}
	var err error
	if c.raw.Control(func(fd uintptr) { err = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &l) }) != nil {
		return net.ErrClosed
	}
	return os.NewSyscallError("setsockopt", err)
}
