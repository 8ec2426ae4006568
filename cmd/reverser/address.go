package main

import (
	"net"
	"net/netip"
	"strconv"

	"reverser/internal/config"
	"reverser/internal/grammar"
)

// reach is how bridges reach a proxy. guessed is its address where the settings say none; "": it is not known.
func reach(set config.Proxy, guessed string) grammar.Reach {
	r := grammar.Reach{SNI: set.SNI}
	addr := first(set.Advertise, guessed)
	if addr == "" {
		return r
	}
	r.Addrs = append(r.Addrs, addr)
	// The link is taken at the port of names as well. Who advertises another port than the proxy listens on, such as a router's, said
	// all that there is to say.
	host, port, _ := net.SplitHostPort(addr)
	listen, listenPort, _ := net.SplitHostPort(set.Listen)
	https, httpsPort, err := net.SplitHostPort(set.HTTPS)
	if err == nil && port == listenPort && httpsPort != port && httpsPort != "0" && (https == "" || https == listen) {
		r.Addrs = append(r.Addrs, net.JoinHostPort(host, httpsPort))
	}
	return r
}

// guessAddress is the address that bridges can dial, as far as the proxy can
// know it: the host of --listen if it names one, else a public address of an
// interface; "" if there is none, as behind a cloud provider's NAT.
func guessAddress(bound net.Addr, listen string, interfaces []netip.Addr) string {
	port := strconv.Itoa(int(grammar.PortOf(bound.String(), defaultPort)))
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return ""
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "":
	case err != nil, !ip.IsUnspecified():
		return net.JoinHostPort(host, port)
	}
	only4 := err == nil && ip.Unmap().Is4()  // 0.0.0.0 does not answer on IPv6,
	only6 := err == nil && !ip.Unmap().Is4() // nor [::] on IPv4
	var found netip.Addr
	for _, a := range interfaces {
		a = a.Unmap()
		if !isPublic(a) || only4 && !a.Is4() || only6 && a.Is4() {
			continue
		}
		// IPv4 first: it is what most bridges can dial.
		if a.Is4() {
			found = a
			break
		}
		if !found.IsValid() {
			found = a
		}
	}
	if !found.IsValid() {
		return ""
	}
	return net.JoinHostPort(found.String(), port)
}

// notPublic are the ranges of the IANA's registries of special addresses that
// are not reachable from everywhere, as far as netip does not know them.
var notPublic = prefixes(
	"0.0.0.0/8",
	"100.64.0.0/10",   // carrier-grade NAT, overlay networks
	"192.0.0.0/24",    // protocol assignments
	"192.0.2.0/24",    // documentation
	"192.88.99.0/24",  // former relays of 6to4
	"198.18.0.0/15",   // benchmarks, and the made-up addresses of VPN clients
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"240.0.0.0/4",     // reserved
	"64:ff9b::/96",    // translated IPv4
	"64:ff9b:1::/48",
	"100::/64",      // discarded
	"2001::/23",     // protocol assignments, Teredo among them
	"2001:db8::/32", // documentation
	"2002::/16",     // 6to4
	"3fff::/20",     // documentation
	"5f00::/16",     // segment routing
)

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func isPublic(a netip.Addr) bool {
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// interfaceAddrs are the addresses of this machine's interfaces that are up.
func interfaceAddrs() []netip.Addr {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		list, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range list {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					addrs = append(addrs, ip.Unmap())
				}
			}
		}
	}
	return addrs
}
