package entrance

import (
	"strings"
	"testing"

	"reverser/internal/grammar"
)

func TestNames(t *testing.T) {
	for _, c := range []struct{ kind, host, path, want string }{
		{"tls", "a.b.example", "", "tls/a.b.example tls/*.b.example tls/*"},
		{"tls", "localhost", "", "tls/localhost tls/*"},
		{"tls", "", "", ""},
		{"http", "a.b", "/", "http/a.b http/*.b http/*"},
		{"http", "a.b", "*", "http/a.b http/*.b http/*"},
		{"http", "a.b", "/x/y/", "http/a.b/x/y http/a.b/x http/a.b http/*.b/x/y http/*.b/x http/*.b http/*/x/y http/*/x http/*"},
		{"https", "1.2.3.4", "/x", "https/1.2.3.4/x https/1.2.3.4 https/*/x https/*"},
		{"https", "::1", "", "https/[::1] https/*"},
	} {
		var got []string
		for n := range Names(grammar.Kind(c.kind), c.host, c.path) {
			got = append(got, n.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s %q %q: %q, want %q", c.kind, c.host, c.path, got, c.want)
		}
	}
	// A path of any length is compared with a bounded number of names.
	n := 0
	for range Names(grammar.KindHTTP, "a.b", strings.Repeat("/x", 100_000)) {
		n++
	}
	if n > 3*(mostPrefix/2+1) {
		t.Errorf("%d names for one long path", n)
	}
}

// FuzzNames: every name that stands for a host and a path is one that a service may have, and the path is below its own.
func FuzzNames(f *testing.F) {
	f.Add("a.example", "/x/y")
	f.Add("[::1]:80", "/")
	f.Add("1.2.3.4", "*")
	f.Fuzz(func(t *testing.T, host, path string) {
		host, err := grammar.RequestHost(host)
		if err != nil {
			return
		}
		for n := range Names(grammar.KindHTTP, host, path) {
			if !grammar.Covers(n.Path, path) {
				t.Errorf("%v stands for path %q", n, path)
			}
			if n.Host != host && n.Host != "*" && !strings.HasSuffix(host, n.Host[1:]) {
				t.Errorf("%v stands for host %q", n, host)
			}
		}
	})
}
