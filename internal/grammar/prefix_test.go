package grammar

import (
	"strings"
	"testing"
)

func TestParsePrefix(t *testing.T) {
	for s, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "10.0.0.0/8": "10.0.0.0/8", "0.0.0.0/0": "0.0.0.0/0", "2001:db8::1": "2001:db8::1/128",
		"2001:db8::/32": "2001:db8::/32", "::ffff:192.0.2.7": "192.0.2.7/32",
	} {
		if p, err := ParsePrefix(s); err != nil || p.String() != want {
			t.Errorf("ParsePrefix(%q) = %v, %v; want %s", s, p, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "is no IP address", "balancer.example": "is no IP address", "192.0.2.7:80": "is no IP address", "fe80::1%eth0": "is no IP address",
		"10.0.0.0/33": "is no range", "10.0.0/8": "is no range", "10.0.0.0/": "is no range", "/8": "is no range", "10.0.0.0/8/8": "is no range",
		"10.0.0.1/8":          "write 10.0.0.0/8 for the whole range, or 10.0.0.1 for this one address",
		"::ffff:10.0.0.0/104": "in the form of IPv6",
	} {
		if p, err := ParsePrefix(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePrefix(%q) = %v, %v; want %q", s, p, err, want)
		}
	}
}
