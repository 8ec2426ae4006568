package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
)

// TestGiven: certificates of a proxy's file, with the names that they are for; both files are watched.
func TestGiven(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, b := certificateFor(t, soon(), "*.Example.com", "example.com"), certificateFor(t, soon(), "other.example.org")
	put("a.pem", a.chain)
	put("a.key", a.key)
	put("b.pem", b.chain)
	put("b.key", b.key)
	put("none.pem", "no certificate")
	nameless := certificateFor(t, soon())
	put("nameless.pem", nameless.chain)
	put("nameless.key", nameless.key)
	tables := func(pairs ...string) string {
		text := "listen = 3010\n"
		for i := 0; i < len(pairs); i += 2 {
			text += "[[certificate]]\nchain = \"" + pairs[i] + "\"\nkey = \"" + pairs[i+1] + "\"\n"
		}
		return text
	}
	file := filepath.Join(dir, "p.toml")
	put("p.toml", tables("a.pem", "a.key", "b.pem", "b.key"))
	source := NewProxySource(ProxyArgs{Config: file})
	set, warnings, err := source.Load()
	if err != nil {
		t.Fatal(err)
	}
	// Without a port for TLS nobody gets to see them, which is told at a start, a reload and a check.
	_, checked, err := Check(file)
	for _, all := range [][]Warning{warnings, checked} {
		if err != nil || len(all) != 2 || !strings.HasPrefix(all[0].String(), file+":2: this [[certificate]] is not used: ") || !strings.HasPrefix(all[1].String(), file+":5: ") {
			t.Errorf("warnings %v, %v; want one for each certificate", all, err)
		}
	}
	if _, warnings, err := NewProxySource(ProxyArgs{Config: file, HTTPS: ":443"}).Load(); err != nil || len(warnings) != 0 {
		t.Errorf("with --https: %v, %v", warnings, err)
	}
	if g := set.Proxy.Given; len(g) != 2 || !slices.Equal(g[0].Names, []string{"*.example.com", "example.com"}) || g[0].Certificate == nil || g[1].Chain != filepath.Join(dir, "b.pem") {
		t.Errorf("%+v", g)
	}
	for _, name := range []string{"a.pem", "a.key", "b.pem", "b.key"} {
		if !slices.Contains(source.file.others, filepath.Join(dir, name)) {
			t.Errorf("%s is not watched: %q", name, source.file.others)
		}
	}
	next := certificateFor(t, soon().Add(time.Hour), "*.example.com", "example.com")
	put("a.pem", next.chain)
	put("a.key", next.key)
	put("p.toml", tables("a.pem", "a.key"))
	again, _, err := source.Load()
	if err != nil {
		t.Fatal(err)
	}
	said, err := set.Changes(again)
	if err != nil || len(said) != 2 || !strings.HasPrefix(said[0], "another certificate of *.example.com, example.com from ") || !strings.HasPrefix(said[1], "no certificate of other.example.org from ") {
		t.Errorf("changes are %q, %v", said, err)
	}

	for what, c := range map[string]struct{ text, want string }{
		"a key of another one":   {tables("a.pem", "b.key"), "p.toml:4: key: the key in " + filepath.Join(dir, "b.key") + " is not that of the certificate"},
		"no certificate":         {tables("none.pem", "a.key"), "p.toml:3: chain: there is no certificate in "},
		"a missing file":         {tables("missing.pem", "a.key"), "p.toml:3: chain: read "},
		"a certificate for none": {tables("nameless.pem", "nameless.key"), "is for no name"},
		"two for one name":       {tables("a.pem", "a.key", "a.pem", "a.key"), "are both for *.example.com"},
		"no key":                 {"listen = 3010\n[[certificate]]\nchain = \"a.pem\"\n", "key: this key is missing"},
		"no chain":               {"listen = 3010\n[[certificate]]\nkey = \"a.key\"\n", "chain: this key is missing"},
		"something else":         {"listen = 3010\n[[certificate]]\nchain = \"a.pem\"\nkey = \"a.key\"\nname = \"x\"\n", "name: there is no such key"},
		"no table":               {"listen = 3010\ncertificate = \"auto\"\n", "certificate: this is no list of tables"},
	} {
		put("p.toml", c.text)
		if _, _, err := Check(file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", what, err, c.want)
		}
	}
}

// TestHSTS: how long browsers are to come by TLS only.
func TestHSTS(t *testing.T) {
	hsts := func(s string) (time.Duration, error) {
		var e grammar.Expose
		_, err := secureOptions[0].read(nil, s, &e)
		return time.Duration(e.Options.Proxy.HSTS), err
	}
	for s, want := range map[string]time.Duration{"1h": time.Hour, "365d": 365 * 24 * time.Hour, "730d": mostHSTS} {
		if d, err := hsts(s); err != nil || d != want {
			t.Errorf("%s is %s, %v", s, d, err)
		}
	}
	for _, s := range []string{"", "d", "-1d", "1.5d", "731d", "0s", "-1h", "20000h", "65536d", "1y"} {
		if d, err := hsts(s); err == nil {
			t.Errorf("%q is %s", s, d)
		}
	}
	for public, want := range map[string]string{"https/app.example.com": "", "http/app.example.com": "this is for services of https/"} {
		path := write(t, "bridge.toml", "token_file = \"t\"\n\n[[expose]]\npublic = \""+public+"\"\ntarget = 80\nhsts = \"30d\"\n")
		write(t, filepath.Join(filepath.Dir(path), "t"), testToken(1).Encode())
		file, _, err := bridgeOf(path)
		switch {
		case want != "":
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %q", public, err, want)
			}
		case err != nil || file.Expose[0].Options.Proxy.HSTS != grammar.Duration(30*24*time.Hour):
			t.Errorf("%s: %+v, %v", public, file, err)
		}
	}
}
