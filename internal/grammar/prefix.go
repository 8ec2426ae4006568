package grammar

import (
	"fmt"
	"net/netip"
	"strings"
)

// ParsePrefix parses an address or a range of addresses (CIDR): 192.0.2.7 or 10.0.0.0/8.
func ParsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is no IP address and no range of them: write 192.0.2.7 or 10.0.0.0/8", s)
		}
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is no range of IP addresses: write 192.0.2.7 or 10.0.0.0/8", s)
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is a range of IPv4 addresses in the form of IPv6: write it as 10.0.0.0/8", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits behind the first %d: write %s for the whole range, or %s for this one address", s, p.Bits(), p.Masked(), p.Addr())
	}
	return p, nil
}
