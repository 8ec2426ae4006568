package registry

import (
	"strings"
	"testing"
	"unicode/utf8"

	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// TestDenialFits: whatever the length of a name, the bridge is told in one frame that it is denied, and why. The proxy's operator reads all.
func TestDenialFits(t *testing.T) {
	host := strings.Repeat("long.", 49) + "example" // 252 bytes
	for _, c := range []struct{ public, allow, text string }{
		{"tcp/80", "tcp/9000", `tcp/80 denied: the policy of key "key0" allows tcp/9000`},
		{"http/" + host[:68], "tcp/9000", `http/` + host[:68] + ` denied: the policy of key "key0" allows tcp/9000`}, // it fits
		{"http/" + host[:70] + "a", "tcp/9000-9010", `denied: the policy of key "key0" allows tcp/9000-9010`},
		{"http/" + host, "tcp/9000", `denied: the policy of key "key0" allows tcp/9000`},
		{"http/" + host, "http/*", "denied: the proxy has no port for HTTP: start it with --http ADDR, such as --http :80"},
		{"https/*.example", "https/*", "denied: no certificate for a wildcard comes by itself: give the proxy one ([[certificate]] in its file), or claim each host"},
	} {
		k := testKey(0, c.allow)
		p := Policy{Keys: []Key{k}}
		if strings.HasPrefix(c.public, "https") {
			p.Named = []grammar.Kind{grammar.KindHTTPS}
		}
		w := newWorld(t, k)
		w.Configure(p)
		s, _ := w.begin(k, 0)
		w.claim(s, 1, c.public)
		w.do()
		a := w.d.answers[1]
		said := a.Claimed()
		if said.Status != wire.ClaimDenied || said.Text != c.text || said.Public != c.public {
			t.Errorf("%s: told %+v; want %q", c.public, said, c.text)
		}
		if want := c.public + " " + strings.TrimPrefix(c.text, c.public+" "); a.Reason != want {
			t.Errorf("%s: the proxy's operator reads %q; want %q", c.public, a.Reason, want)
		}
	}
}

// TestFit: an end that is cut is no half character, and shows.
func TestFit(t *testing.T) {
	for n := range 10 {
		long := strings.Repeat("x", n) + strings.Repeat("中文", 40)
		got := fit("tcp/80 "+long, "tcp/80")
		if len(got) > wire.MaxText || len(got) < wire.MaxText-utf8.UTFMax || !utf8.ValidString(got) || !strings.HasSuffix(got, "…") || !strings.HasPrefix(long, strings.TrimSuffix(got, "…")) {
			t.Errorf("fit = %q", got)
		}
	}
	if got := fit("tcp/80 denied", "tcp/80"); got != "tcp/80 denied" {
		t.Errorf("a short text becomes %q", got)
	}
}
