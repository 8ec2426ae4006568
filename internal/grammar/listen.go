package grammar

import (
	"net"
	"net/netip"
)

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
