package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reverser/internal/acmetest"
)

// TestACME: the authority of certificates, from the file and from the command line, which wins.
func TestACME(t *testing.T) {
	dir := t.TempDir()
	chain, key := acmetest.Certificate(t, "ca.example.com")
	for name, b := range map[string][]byte{"root.pem": chain, "key.pem": key, "p.toml": []byte("listen = 3010\nacme_email = \"a@example.com\"\nacme_directory = \"https://ca.example.com/dir\"\nacme_root = \"root.pem\"\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "p.toml")
	set, _, err := NewProxySource(ProxyArgs{Config: file}).Load()
	if err != nil {
		t.Fatal(err)
	}
	if a := set.ACME; a.Email != "a@example.com" || a.Directory != "https://ca.example.com/dir" || a.Root != filepath.Join(dir, "root.pem") || a.Roots == nil {
		t.Errorf("%+v", a)
	}
	args := ProxyArgs{Config: file}
	args.ACMEEmail, args.ACMEDirectory = "b@example.com", "http://127.0.0.1:14000/dir"
	next, _, err := NewProxySource(args).Load()
	if err != nil {
		t.Fatal(err)
	}
	if a := next.ACME; a.Email != "b@example.com" || a.Directory != "http://127.0.0.1:14000/dir" || a.Roots == nil {
		t.Errorf("%+v", a)
	}
	if _, err := set.Changes(next); err == nil || !strings.Contains(err.Error(), "acme_directory: a change from https://ca.example.com/dir to http://127.0.0.1:14000/dir needs a restart") {
		t.Errorf("a change: %v", err)
	}

	for _, c := range []struct{ line, want string }{
		{`acme_email = "nobody"`, `p.toml:1: acme_email: "nobody" is no email address`},
		{`acme_email = "a@example.com, b@example.com"`, "is no email address"},
		{`acme_directory = "ca.example.com/dir"`, `p.toml:1: acme_directory: "ca.example.com/dir" is no URL`},
		{`acme_directory = "ftp://ca.example.com/dir"`, "does not begin with https://"},
		{`acme_directory = "http://ca.example.com/dir"`, "it must be https://"},
		{`acme_directory = "https://a:b@ca.example.com/dir"`, "has a user in it"},
		{`acme_root = "missing.pem"`, "p.toml:1: acme_root: read " + filepath.Join(dir, "missing.pem")},
		{`acme_root = "key.pem"`, "has no certificate in PEM"},
		{`acme_root = "` + dir + `"`, "this is a directory"},
	} {
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(c.line, `\`, `\\`)+"\nlisten = 3010\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := NewProxySource(ProxyArgs{Config: file}).Load(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.line, err, c.want)
		}
		if _, _, err := Check(file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("check of %s: %v; want %q", c.line, err, c.want)
		}
	}
	for _, arg := range []CommonArgs{{ACMEEmail: "x"}, {ACMEDirectory: "x"}, {ACMERoot: filepath.Join(dir, "key.pem")}} {
		if _, _, err := NewProxySource(ProxyArgs{CommonArgs: arg}).Load(); err == nil || !strings.HasPrefix(err.Error(), "--acme-") {
			t.Errorf("%+v: %v", arg, err)
		}
	}
}
