package sys

import (
	"net/netip"
	"strings"
	"testing"
)

func TestTransparentRoutes(t *testing.T) {
	for target, want := range map[string][]string{
		"127.0.0.1": {"ip rule add from 127.0.0.0/8 iif lo lookup 123", "ip route add local 0.0.0.0/0 dev lo table 123"},
		"::1":       {"ip -6 rule add from ::1 iif lo lookup 123", "ip -6 route add local ::/0 dev lo table 123"},
		"192.0.2.5": {"iptables -t mangle -A PREROUTING -p tcp -m socket --transparent -j MARK --set-mark 1", "ip rule add fwmark 1 lookup 123",
			"ip route add local 0.0.0.0/0 dev lo table 123"},
		"2001:db8::5": {"ip6tables -t mangle -A PREROUTING -p tcp -m socket --transparent -j MARK --set-mark 1", "ip -6 rule add fwmark 1 lookup 123",
			"ip -6 route add local ::/0 dev lo table 123"},
	} {
		got := TransparentRoutes(netip.MustParseAddr(target))
		for _, w := range want {
			if !strings.Contains(got, "`"+w+"`") {
				t.Errorf("%s: %q does not say %q", target, got, w)
			}
		}
	}
}
