package grammar

import (
	"fmt"
	"net"
	"net/netip"
)

// ParseBind parses the address at which public ports without an address of their own are opened: an IP address of this machine, and
// nothing else. 0.0.0.0 is every IPv4 address, :: every IPv6 address. Whether the machine has it is seen when it is used.
func ParseBind(s string) (string, error) {
	if looksSecret(s) {
		return "", errTokenAsAddress
	}
	const remedy = "write one of this machine, such as 203.0.113.5, without a port"
	ip, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q is no IP address: %s", s, remedy)
	case ip.IsMulticast() || ip.Unmap() == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "", fmt.Errorf("%q is an address of many machines: %s", s, remedy)
	}
	return canonicalIP(ip)
}

// ListenNetwork is what net.Listen needs as its network ("tcp" or "udp" by kind) to take the address literally: 0.0.0.0 and
// every other IPv4 address is IPv4 only, [::] and every other IPv6 address is IPv6 only, and no address is both. With plain
// "tcp" the net package takes 0.0.0.0 and [::] to mean both.
func ListenNetwork(kind, addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return kind
	case ip.Unmap().Is4():
		return kind + "4"
	default:
		return kind + "6"
	}
}

// ListenOverlap reports whether two addresses to listen on stand in each other's way.
func ListenOverlap(a, b string) bool {
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	return portA == portB && hostsOverlap(hostA, hostB)
}

func hostsOverlap(a, b string) bool {
	if a == b || a == "" || b == "" {
		return true
	}
	ipA, errA := netip.ParseAddr(a)
	ipB, errB := netip.ParseAddr(b)
	ipA, ipB = ipA.Unmap(), ipB.Unmap()
	return errA == nil && errB == nil && ipA.Is4() == ipB.Is4() && (ipA == ipB || ipA.IsUnspecified() || ipB.IsUnspecified())
}
