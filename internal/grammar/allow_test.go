package grammar

import "testing"

// TestWithin: a policy is within another one if that permits all that it does.
func TestWithin(t *testing.T) {
	policy := func(list ...string) (ps Policy) {
		for _, s := range list {
			a, err := ParseAllow(s)
			if err != nil {
				t.Fatal(err)
			}
			ps = append(ps, a)
		}
		return ps
	}
	outer := policy("tcp/9000-9009", "tcp/9010-9019", "tcp/127.0.0.1:80", "http/*.example.com", "https/a.example.com/api", "tls/*", "private/db")
	for s, want := range map[string]bool{
		"tcp/9000": true, "tcp/9005-9015": true, "tcp/127.0.0.1:9001": true, "tcp/9005-9020": false, "tcp/8999-9001": false, "tcp/80": false,
		"tcp/127.0.0.1:80": true, "udp/9000": false, "http/a.example.com": true, "http/a.example.com/x": true, "http/*.example.com": true,
		"http/*": false, "http/a.b.example.com": false, "http/example.com": false, "https/a.example.com": false, "https/a.example.com/api/v1": true,
		"https/a.example.com/apix": false, "tls/*.example.com": true, "tls/*": true, "private/db": true, "private/*": false,
	} {
		if got := policy(s).Within(outer); got != want {
			t.Errorf("%s within %s: %t, want %t", s, outer, got, want)
		}
	}
	if !(Policy)(nil).Within(outer) || policy("tcp/65535").Within(nil) || !policy("tcp/1-65535").Within(policy("tcp/1-65535")) {
		t.Error("nothing is within everything, and everything within itself")
	}
}
