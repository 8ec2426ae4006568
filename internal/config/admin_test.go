package config

import (
	"crypto/tls"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAdmin: the admin address comes from command line and file; one that other machines reach needs TLS, or somebody who says that it
// needs none.
func TestAdmin(t *testing.T) {
	dir := folder(t)
	c := certificateFor(t, soon(), "admin.example.com")
	chain, key := write(t, filepath.Join(dir, "chain.pem"), c.chain), write(t, filepath.Join(dir, "key.pem"), c.key)
	old := certificateFor(t, time.Now().Add(-time.Hour), "admin.example.com")
	expired, expiredKey := write(t, filepath.Join(dir, "expired.pem"), old.chain), write(t, filepath.Join(dir, "expired.key"), old.key)
	const admin = "admin = \"127.0.0.1:3011\"\n"
	for _, tt := range []struct {
		name, file string
		args       AdminArgs
		want       Admin
		words      []string // of the error or, where there is none, of the warning
	}{
		{"nothing", "", AdminArgs{}, Admin{}, nil},
		{"loopback", admin, AdminArgs{}, Admin{Addr: "127.0.0.1:3011"}, nil},
		{"loopback in IPv6", "", AdminArgs{Addr: "[::1]:3011"}, Admin{Addr: "[::1]:3011"}, nil},
		{"loopback by name", "", AdminArgs{Addr: "localhost:3011"}, Admin{Addr: "localhost:3011"}, nil},
		{"the command line wins", admin, AdminArgs{Addr: "127.0.0.1:4000", Hosts: []string{"A.example.com"}}, Admin{Addr: "127.0.0.1:4000", Hosts: []string{"a.example.com"}}, nil},
		{"names of the file", admin + "admin_host = [\"A.example.com\", \"192.0.2.1\"]\n", AdminArgs{}, Admin{Addr: "127.0.0.1:3011", Hosts: []string{"a.example.com", "192.0.2.1"}}, nil},
		{"open to others", "admin = \":3011\"\n", AdminArgs{}, Admin{}, []string{"p.toml:1: admin: other machines may reach :3011", "admin_certificate", "admin_plain = true"}},
		{"a port alone", "admin = 3011\n", AdminArgs{}, Admin{}, []string{"p.toml:1: admin: other machines may reach :3011"}},
		{"open to others by the command line", admin, AdminArgs{Addr: "192.0.2.1:3011"}, Admin{}, []string{"--admin: other machines may reach 192.0.2.1:3011"}},
		{"open to others, and said so", "admin = \":3011\"\nadmin_plain = true\n", AdminArgs{}, Admin{Addr: ":3011", Plain: true}, []string{"p.toml:1: the page and the API at :3011 are without TLS"}},
		{"with a certificate", "admin = \":3011\"\nadmin_certificate = \"chain.pem\"\nadmin_certificate_key = \"key.pem\"\n", AdminArgs{}, Admin{Addr: ":3011", CertificateFile: chain, KeyFile: key}, nil},
		{"with one of the command line", "", AdminArgs{Addr: ":3011", CertificateFile: chain, KeyFile: key}, Admin{Addr: ":3011", CertificateFile: chain, KeyFile: key}, nil},
		{"with an expired one", "", AdminArgs{Addr: ":3011", CertificateFile: expired, KeyFile: expiredKey}, Admin{Addr: ":3011", CertificateFile: expired, KeyFile: expiredKey}, []string{"has expired"}},
		{"half a certificate", admin + "admin_certificate = \"chain.pem\"\n", AdminArgs{}, Admin{}, []string{"p.toml:2: admin_certificate: there is a certificate, and no key"}},
		{"the other half", admin + "admin_certificate_key = \"key.pem\"\n", AdminArgs{}, Admin{}, []string{"p.toml:2: admin_certificate_key: there is a key, and no certificate"}},
		{"a key of another", admin + "admin_certificate = \"chain.pem\"\nadmin_certificate_key = \"expired.key\"\n", AdminArgs{}, Admin{}, []string{"p.toml:3: admin_certificate_key: the key in "}},
		{"no file", admin + "admin_certificate = \"x.pem\"\nadmin_certificate_key = \"key.pem\"\n", AdminArgs{}, Admin{}, []string{"p.toml:2: admin_certificate: read "}},
		{"a certificate of nothing", "", AdminArgs{CertificateFile: chain, KeyFile: key}, Admin{}, []string{"about the address of --admin, and there is none"}},
		{"plain nothing", "admin_plain = true\n", AdminArgs{}, Admin{}, []string{"about the address of --admin, and there is none"}},
		{"a socket", "admin = \"unix:/run/admin.sock\"\n", AdminArgs{}, Admin{}, []string{"p.toml:1: admin: ", "is there without it"}},
		{"a token", "", AdminArgs{Addr: testToken(1).Encode()}, Admin{}, []string{"--admin: "}},
		{"a port of the link", "listen = 3011\n" + admin, AdminArgs{}, Admin{}, []string{"--admin 127.0.0.1:3011 (in a file: admin) has port 3011, which is that of --listen :3011"}},
		{"a name that is none", "", AdminArgs{Addr: "127.0.0.1:3011", Hosts: []string{"http://x"}}, Admin{}, []string{"--admin-host: "}},
	} {
		path := write(t, filepath.Join(dir, "p.toml"), tt.file)
		set, warnings, err := NewProxySource(ProxyArgs{Config: path, CommonArgs: CommonArgs{Admin: tt.args}}).Load()
		if tt.want.Addr == "" && tt.words != nil {
			want(t, tt.name, err, tt.words...)
			continue
		}
		got := set.Admin
		if hasTLS := got.Certificate != nil; err != nil || hasTLS != (tt.want.CertificateFile != "") {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
		if got.Addr != tt.want.Addr || strings.Join(got.Hosts, ",") != strings.Join(tt.want.Hosts, ",") || got.Plain != tt.want.Plain || got.CertificateFile != tt.want.CertificateFile || got.KeyFile != tt.want.KeyFile {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		if len(warnings) != len(tt.words) || len(warnings) == 1 && !strings.Contains(warnings[0].String(), tt.words[0]) {
			t.Errorf("%s: warnings %v, want %q", tt.name, warnings, tt.words)
		}
	}
}

// TestAdminChanges: where the admin address is, and whether it has TLS, is read at the start only. Names and another certificate count
// at once.
func TestAdminChanges(t *testing.T) {
	pair := func() *tls.Certificate {
		c := certificateFor(t, soon(), "a.example.com")
		p, err := tls.X509KeyPair([]byte(c.chain), []byte(c.key))
		if err != nil {
			t.Fatal(err)
		}
		return &p
	}
	a, b := pair(), pair()
	for _, tt := range []struct {
		name      string
		old, next Admin
		want      string
		restart   bool
	}{
		{"the address", Admin{Addr: "127.0.0.1:1"}, Admin{Addr: "127.0.0.1:2"}, "admin: a change from 127.0.0.1:1 to 127.0.0.1:2", true},
		{"none any more", Admin{Addr: "127.0.0.1:1"}, Admin{}, "admin: a change from 127.0.0.1:1 to none", true},
		{"TLS", Admin{Addr: ":1", Plain: true}, Admin{Addr: ":1", Plain: true, Certificate: a, CertificateFile: "f"}, "admin_certificate: a change from none to f", true},
		{"a name", Admin{Addr: ":1"}, Admin{Addr: ":1", Hosts: []string{"x"}}, "admin_host is x instead of none", false},
		{"a renewed certificate", Admin{Addr: ":1", Certificate: a, CertificateFile: "f"}, Admin{Addr: ":1", Certificate: b, CertificateFile: "f"}, "the admin address has another certificate, valid until ", false},
		{"the same", Admin{Addr: ":1", Certificate: a}, Admin{Addr: ":1", Certificate: a}, "", false},
	} {
		old, next := Settings{Role: RoleProxy}, Settings{Role: RoleProxy}
		old.Admin, next.Admin = tt.old, tt.next
		said, err := old.Changes(next)
		if tt.restart {
			want(t, tt.name, err, tt.want, "needs a restart")
			continue
		}
		if err != nil || !strings.HasPrefix(strings.Join(said, "|"), tt.want) || tt.want == "" && len(said) > 0 {
			t.Errorf("%s: %q, %v; want %q", tt.name, said, err, tt.want)
		}
	}
}
