package attacks

import (
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// connect begins a connection and does not wait for it: a Read does. The kernel chooses the port when it knows the target, so that each
// address has as many connections as it has ports.
func connect(to netip.AddrPort, from netip.Addr) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "stranger")
	defer f.Close()
	if from.IsValid() {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return nil, err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()}); err != nil {
			return nil, err
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil && err != unix.EINPROGRESS {
		return nil, err
	}
	return net.FileConn(f)
}
