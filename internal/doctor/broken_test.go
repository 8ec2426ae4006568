package doctor

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reverser/internal/bridge"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/state"
	"reverser/internal/status"
)

// proxyIn is a world with a proxy that has files in its state directory.
func proxyIn(t *testing.T) (*World, Patient) {
	t.Helper()
	w, p := well(t)
	w.Now, w.Built = time.Now, time.Time{} // the files are of today
	w.Listen = func(string, string) (net.Listener, error) { return nowhere{}, nil }
	d, err := state.Open(p.State)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddKey("nas", grammar.DefaultPolicy(), state.Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := d.SetReach(grammar.Reach{Addrs: []string{"tunnel.example:3010"}}); err != nil {
		t.Fatal(err)
	}
	p.Role, p.Snapshot = config.RoleProxy, nil
	p.Settings = &config.Settings{Role: config.RoleProxy, Proxy: config.Proxy{Listen: ":3010"}}
	return w, p
}

// TestBroken: what keeps a process from starting, or its users out, is told with what to do.
func TestBroken(t *testing.T) {
	file := func(name, content string) func(*testing.T, *Patient) {
		return func(t *testing.T, p *Patient) {
			if err := os.WriteFile(filepath.Join(p.State, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	admin := config.Admin{Addr: "127.0.0.1:3011"}
	ends := func(after time.Duration) func(*testing.T, *Patient) {
		return func(_ *testing.T, p *Patient) {
			leaf := &x509.Certificate{NotAfter: time.Now().Add(after)}
			p.Settings.Admin = config.Admin{Addr: ":3011", CertificateFile: "admin.pem", Certificate: certificateOf(leaf)}
		}
	}
	advertised := func(listen, https, advertise string) func(*testing.T, *Patient) {
		return func(_ *testing.T, p *Patient) {
			p.Settings.Proxy.Listen, p.Settings.Proxy.HTTPS, p.Settings.Proxy.Advertise = listen, https, advertise
		}
	}
	for _, c := range []struct {
		name  string
		harm  func(*testing.T, *Patient)
		begin string // "": all is well
		words []string
	}{
		{"well", func(*testing.T, *Patient) {}, "", nil},
		{"an access log", func(_ *testing.T, p *Patient) { p.Settings.AccessLog = filepath.Join(p.State, "a.log") }, "", nil},
		{"an access log on standard output", func(_ *testing.T, p *Patient) { p.Settings.AccessLog = "-" }, "", nil},
		{"an access log nowhere", func(_ *testing.T, p *Patient) { p.Settings.AccessLog = filepath.Join(p.State, "nowhere", "a.log") },
			"access log fail ", []string{"a.log", "→ make the directory first"}},
		{"an access log that is a directory", func(_ *testing.T, p *Patient) { p.Settings.AccessLog = p.State },
			"access log fail ", []string{"this is a directory", "→ name a file, or - for standard output"}},
		{"an access log below a file", func(t *testing.T, p *Patient) {
			file("plain", "")(t, p)
			p.Settings.AccessLog = filepath.Join(p.State, "plain", "a.log")
		}, "access log fail ", []string{"a.log"}},
		{"a short admin.token", func(t *testing.T, p *Patient) {
			file("admin.token", "hello\n")(t, p)
			p.Settings.Admin = admin
		}, "admin fail ", []string{"admin.token holds no token", "→ remove the file, and the next start makes one"}},
		{"a short admin.token that nobody needs", file("admin.token", "hello\n"), "", nil},
		{"no admin.token yet", func(_ *testing.T, p *Patient) { p.Settings.Admin = admin }, "", nil},
		{"a certificate of --admin that ends soon", ends(3 * 24 * time.Hour), "admin warn the certificate in admin.pem expires on ", []string{"→ get a new one"}},
		{"a certificate of --admin that ends later", ends(30 * 24 * time.Hour), "", nil},
		{"keys.json cut off", file("keys.json", `{"keys":[`), "keys fail ", []string{"keys.json: unexpected EOF → restore it from a copy, or remove it"}},
		{"identity.pem full of garbage", file("identity.pem", "garbage"), "identity fail ", []string{"identity.pem", "→ restore it from a backup"}},
		{"usage.db is a folder", func(t *testing.T, p *Patient) {
			if err := os.Mkdir(filepath.Join(p.State, "usage.db"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "usage fail ", []string{"usage.db is no regular file", "→ remove it"}},
		{"a link port that only this machine reaches", advertised("127.0.0.1:3010", "", "tunnel.example:3010"),
			"advertised warn --listen 127.0.0.1:3010 is reached from this machine only, and tokens send bridges to tunnel.example:3010", []string{"→ listen on :3010"}},
		{"the same with IPv6", advertised("[::1]:3010", "", "203.0.113.5:3010"), "advertised warn --listen [::1]:3010", nil},
		{"a link port here, of which tokens say so", advertised("127.0.0.1:3010", "", "127.0.0.1:3010"), "", nil},
		{"a link port here, and links at --https", advertised("127.0.0.1:3010", ":443", "tunnel.example:3010"), "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, p := proxyIn(t)
			c.harm(t, &p)
			lines := look(t, w, p)
			if c.begin == "" {
				if len(lines) > 0 {
					t.Errorf("found %q, want nothing", lines)
				}
			} else {
				mustFind(t, lines, c.begin, c.words...)
			}
			for _, made := range []string{"a.log", "admin.token"} {
				if info, err := os.Stat(filepath.Join(p.State, made)); err == nil && info.Size() == 0 {
					t.Errorf("%s was made", made)
				}
			}
		})
	}
}

// TestAdvertisedHere: where the advertised address does not answer, a link port that only this machine reaches is the reason.
func TestAdvertisedHere(t *testing.T) {
	here := OnlyHere(config.Proxy{Listen: "127.0.0.1:3010", Advertise: "tunnel.example:3010"})
	try := bridge.Try{Target: "tunnel.example:3010", Addr: netip.MustParseAddrPort("203.0.113.5:3010")}
	for _, c := range []struct {
		name string
		err  error
		here []Check
		want string // "": all is well
	}{
		{"it answers, as behind a balancer here", nil, here, ""},
		{"it does not", errors.New("silence"), here, "advertised fail --listen 127.0.0.1:3010 is reached from this machine only"},
		{"it does not, and the link port is for all", errors.New("silence"), nil, "advertised warn tunnel.example:3010 (203.0.113.5:3010) does not answer this machine: silence"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, p := proxyIn(t)
			p.Settings = nil
			p.Snapshot = &status.Snapshot{Role: config.RoleProxy, Links: []status.Link{{Key: "nas", State: status.LinkUp}}}
			w.Walk = func(context.Context, bridge.Config) ([]bridge.Examined, error) {
				e := bridge.Examined{Proxy: try.Target, Addrs: []netip.AddrPort{try.Addr}, Tries: []bridge.Try{try}}
				e.Tries[0].Err = c.err
				return []bridge.Examined{e}, nil
			}
			p.Ask = func(context.Context) ([]Check, error) { return c.here, nil }
			lines := look(t, w, p)
			if c.want == "" && len(lines) == 0 {
				return
			}
			if len(lines) != 1 || !strings.HasPrefix(lines[0], c.want) || c.want == "" {
				t.Errorf("found %q, want %q", lines, c.want)
			}
		})
	}
}
