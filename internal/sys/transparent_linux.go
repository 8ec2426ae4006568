package sys

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// setTransparent lets a socket have an address that is none of this machine's.
func setTransparent(fd int, ip netip.Addr) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if ip.Is6() {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, 1))
}

// CheckTransparent returns why this process cannot connect as DialAs does, nil if it can.
func CheckTransparent() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil // whoever needs a socket is told
	}
	defer unix.Close(fd)
	if err = setTransparent(fd, netip.IPv4Unspecified()); errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("it needs the capability CAP_NET_ADMIN, which root has, a unit of systemd gives with AmbientCapabilities=CAP_NET_ADMIN, and setcap cap_net_admin+ep gives a program (%w)", err)
	}
	return err
}

// TransparentRoutes says what leads the answers of a target back to this machine when they go to a user's address.
func TransparentRoutes(target netip.Addr) string {
	target = target.Unmap()
	ip, tables, all, loopback, home := "ip", "iptables", "0.0.0.0/0", "127.0.0.0/8", "127.0.0.1"
	if target.Is6() {
		ip, tables, all, loopback, home = "ip -6", "ip6tables", "::/0", "::1", "::1"
	}
	switch {
	case target.IsLoopback():
		return fmt.Sprintf("run `%s rule add from %s iif lo lookup 123` and `%s route add local %s dev lo table 123` on this machine", ip, loopback, ip, all)
	case isOwn(target):
		return fmt.Sprintf("name the target by %s: for the other addresses of this machine, answers cannot be led back", home)
	}
	return fmt.Sprintf("let the target's way to its users lead over this machine (its default route, for one), and run here "+
		"`%s -t mangle -A PREROUTING -p tcp -m socket --transparent -j MARK --set-mark 1`, `%s rule add fwmark 1 lookup 123` and `%s route add local %s dev lo table 123`",
		tables, ip, ip, all)
}

// isOwn reports whether an address is one of this machine's.
func isOwn(ip netip.Addr) bool {
	all, _ := Addrs()
	return slices.Contains(all, ip)
}
