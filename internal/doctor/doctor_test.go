package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/bridge"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/state"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/via"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// well is a world in which nothing is wrong, with a state directory.
func well(t *testing.T) (*World, Patient) {
	dir := t.TempDir()
	w := &World{
		Now: func() time.Time { return now }, Built: now.Add(-24 * time.Hour * 30),
		Machine: fstest.MapFS{
			"proc/sys/net/core/somaxconn":                    {Data: []byte("4096\n")},
			"proc/sys/net/ipv4/tcp_max_syn_backlog":          {Data: []byte("1024\n")},
			"proc/sys/net/ipv4/ip_local_port_range":          {Data: []byte("32768\t60999\n")},
			"proc/sys/net/ipv4/tcp_wmem":                     {Data: []byte("4096\t16384\t4194304\n")},
			"proc/sys/net/core/wmem_max":                     {Data: []byte("212992\n")},
			"proc/sys/net/ipv4/tcp_mem":                      {Data: []byte("100 200 300\n")},
			"proc/sys/fs/file-nr":                            {Data: []byte("1000 0 100000\n")},
			"proc/net/sockstat":                              {Data: []byte("sockets: used 100\nTCP: inuse 3 orphan 0 tw 0 alloc 4 mem 150\nUDP: inuse 1 mem 999\n")},
			"proc/sys/net/netfilter/nf_conntrack_max":        {Data: []byte("1000\n")},
			"proc/sys/net/netfilter/nf_conntrack_count":      {Data: []byte("10\n")},
			"proc/sys/net/ipv4/ip_unprivileged_port_start":   {Data: []byte("1024\n")},
			"proc/sys/net/netfilter/nf_conntrack_tcp_nobody": {},
		},
		Lookup: func(_ context.Context, _, host string) ([]netip.Addr, error) {
			switch host {
			case "here.example":
				return []netip.Addr{netip.MustParseAddr("::ffff:203.0.113.5")}, nil
			case "elsewhere.example":
				return []netip.Addr{netip.MustParseAddr("203.0.113.9")}, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		},
		Addrs:       func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("203.0.113.5")} },
		Route:       func(netip.AddrPort) (netip.Addr, error) { return netip.MustParseAddr("203.0.113.5"), nil },
		Dial:        func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody is there") },
		Listen:      func(string, string) (net.Listener, error) { return nil, errPortTaken },
		Holders:     func(uint16) ([]sys.Holder, bool) { return []sys.Holder{{PID: 7, Program: "nginx"}}, true },
		LookAt:      func(dir string, _ ...int) (state.Looked, error) { return state.Looked{Path: dir}, nil },
		Disk:        func(string) (sys.Disk, error) { return sys.Disk{Free: 1 << 40, Size: 1 << 41}, nil },
		Descriptors: func(int) int { return 20000 },
		Memory:      func(int) int64 { return 1 << 30 },
	}
	return w, Patient{Role: config.RoleBridge, State: dir, Snapshot: &status.Snapshot{Role: config.RoleBridge, Version: "v1"}}
}

// look examines, and returns what is not well: "NAME STATE FOUND → HINT".
func look(t *testing.T, w *World, p Patient) (lines []string) {
	t.Helper()
	w.Examine(t.Context(), p, func(c Check) {
		if c.Name == "" || c.Found == "" {
			t.Errorf("an empty check: %+v", c)
		}
		if c.State == Warn || c.State == Fail {
			lines = append(lines, fmt.Sprintf("%s %s %s → %s", c.Name, c.State, c.Found, c.Hint))
		}
	})
	return lines
}

// mustFind wants one line, which begins so and has the words.
func mustFind(t *testing.T, lines []string, begin string, words ...string) {
	t.Helper()
	if len(lines) != 1 || !strings.HasPrefix(lines[0], begin) {
		t.Fatalf("found %q, want one line that begins with %q", lines, begin)
	}
	for _, word := range words {
		if !strings.Contains(lines[0], word) {
			t.Errorf("%q does not say %q", lines[0], word)
		}
	}
}

// TestMachine: each thing that is wrong with a machine is named, and nothing else.
func TestMachine(t *testing.T) {
	number := func(name, value string) func(*World, *Patient) {
		return func(w *World, _ *Patient) {
			w.Machine.(fstest.MapFS)["proc/"+name] = &fstest.MapFile{Data: []byte(value)}
		}
	}
	proxy := func(change func(*World, *Patient)) func(*World, *Patient) {
		return func(w *World, p *Patient) {
			p.Role = config.RoleProxy
			p.Snapshot = nil
			change(w, p)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*World, *Patient)
		begin  string // "": all is well
		words  []string
	}{
		{"well", func(*World, *Patient) {}, "", nil},
		{"a clock of 1980", func(w *World, _ *Patient) {
			w.Now = func() time.Time { return time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC) }
		},
			"clock fail it says 1980-01-01 00:00:00 UTC", []string{"timedatectl"}},
		{"a clock of last year", func(w *World, _ *Patient) { w.Built = now.Add(48 * time.Hour) }, "clock fail", []string{"before this program was written"}},
		{"a clock that nobody can tell", func(w *World, _ *Patient) { w.Built = time.Time{} }, "", nil},
		{"a clock that went back", func(w *World, p *Patient) {
			touch(t, filepath.Join(p.State, "keys.json"), now.Add(48*time.Hour))
		}, "clock warn", []string{"keys.json was written at 2026-11-03"}},
		{"no descriptors", func(w *World, _ *Patient) { w.Descriptors = func(int) int { return 40 } }, "descriptors fail", []string{"may have 40 open", "LimitNOFILE="}},
		{"few descriptors", func(w *World, _ *Patient) { w.Descriptors = func(int) int { return 256 } }, "descriptors warn", []string{"256"}},
		{"no word about descriptors", func(w *World, _ *Patient) { w.Descriptors = func(int) int { return 0 } }, "", nil},
		{"little memory", func(w *World, _ *Patient) { w.Memory = func(int) int64 { return 32 << 20 } }, "memory warn 32 MiB", nil},
		{"a full disk", func(w *World, p *Patient) {
			w.LookAt = func(dir string, _ ...int) (state.Looked, error) {
				return state.Looked{Path: dir}, fmt.Errorf("write: %w", &fs.PathError{Op: "write", Path: dir, Err: errDiskFull})
			}
		}, "disk fail", []string{errDiskFull.Error(), "make room"}},
		{"a full disk on which the directory would be", func(w *World, p *Patient) {
			w.LookAt = func(dir string, _ ...int) (state.Looked, error) {
				return state.Looked{Path: dir, Missing: true}, fmt.Errorf("write: %w", &fs.PathError{Op: "write", Path: dir, Err: errDiskFull})
			}
		}, "disk fail", []string{errDiskFull.Error(), "make room"}},
		{"a disk that is nearly full", func(w *World, _ *Patient) {
			w.Disk = func(string) (sys.Disk, error) { return sys.Disk{Free: 3 << 20, Size: 1 << 30}, nil }
		}, "disk warn 3 MB free of 1.0 GB", nil},
		{"a disk that does not tell", func(w *World, _ *Patient) {
			w.Disk = func(string) (sys.Disk, error) { return sys.Disk{}, errors.ErrUnsupported }
		}, "", nil},
		{"no ports to dial from", number("sys/net/ipv4/ip_local_port_range", "60000 61000"), "kernel warn net.ipv4.ip_local_port_range has 1001 ports", []string{"--source"}},
		{"no ports to dial from, at a proxy", proxy(number("sys/net/ipv4/ip_local_port_range", "60000 61000")), "", nil},
		{"a short queue", proxy(number("sys/net/core/somaxconn", "128")), "kernel warn net.core.somaxconn is 128", []string{"sysctl"}},
		{"a short queue, at a bridge", number("sys/net/core/somaxconn", "128"), "", nil},
		{"a short queue of SYNs", proxy(number("sys/net/ipv4/tcp_max_syn_backlog", "64")), "kernel warn net.ipv4.tcp_max_syn_backlog is 64", nil},
		{"small buffers", number("sys/net/ipv4/tcp_wmem", "4096 16384 65536"), "kernel warn", []string{"416 KB", "34 Mbit/s"}},
		{"a full table of the firewall", number("sys/net/netfilter/nf_conntrack_count", "1000"), "kernel fail the table of the firewall's connections is full (1000)", nil},
		{"a table of the firewall that is nearly full", number("sys/net/netfilter/nf_conntrack_count", "900"), "kernel warn", []string{"900 of 1000"}},
		{"many files", number("sys/fs/file-nr", "95000 0 100000"), "kernel warn the machine has 95000 of 100000 files open", nil},
		{"sockets that are slowed down", number("sys/net/ipv4/tcp_mem", "50 120 300"), "kernel warn", []string{"150 pages", "from 120 on"}},
		{"garbage in /proc", number("sys/net/netfilter/nf_conntrack_count", "\x1b[31m"), "", nil},
		{"no /proc", func(w *World, _ *Patient) { w.Machine = nil }, "", nil},
		{"an empty /proc", func(w *World, _ *Patient) { w.Machine = fstest.MapFS{} }, "", nil},
		{"a process that is stopping", func(_ *World, p *Patient) { p.Snapshot.Stopping = true }, "process warn version v1", nil},
		{"a key that comes back", func(_ *World, p *Patient) {
			p.Snapshot.Unstored = &status.Unstored{Removed: []string{"nas"}, Error: "no space"}
		}, "process fail the removal of key nas is not stored", []string{"make room"}},
		{"a directory that was exchanged", func(_ *World, p *Patient) { p.Snapshot.Faults = []string{"keys.json was removed"} }, "process fail keys.json was removed", nil},
		{"pressure", func(_ *World, p *Patient) {
			p.Snapshot.Pressure = []status.Pressure{{What: "descriptors", Used: 99, Limit: 100, Largest: status.Holder{Key: "nas", Used: 90}, Hint: "raise it"}}
		}, "process warn short of descriptors: 99 of 100 used, 90 by key nas → raise it", nil},
		{"an access log without a disk", func(_ *World, p *Patient) {
			p.Snapshot.AccessLog = &status.AccessLog{File: "/x/log", Lost: 3, Error: "no space"}
		}, "access log fail /x/log cannot be written, and 3 lines are lost", nil},
		{"an access log that lost lines", func(_ *World, p *Patient) {
			p.Snapshot.AccessLog = &status.AccessLog{File: "/x/log", Lost: 3}
		}, "access log warn", nil},
		{"an access log on standard output that lost lines", func(_ *World, p *Patient) {
			p.Snapshot.AccessLog = &status.AccessLog{File: "-", Lost: 3}
		}, "access log warn standard output lost 3 lines", nil},
		{"usage without a disk", func(_ *World, p *Patient) {
			p.Snapshot.Usage = &status.Usage{File: "/x/usage.db", Error: "no space"}
		}, "usage fail /x/usage.db cannot be written", []string{"no space", "make room"}},
		{"usage that was damaged", func(_ *World, p *Patient) {
			p.Snapshot.Usage = &status.Usage{File: "/x/usage.db", PutAside: "/x/usage.db.damaged", Damage: "a bad checksum"}
		}, "usage warn a damaged file was put aside as /x/usage.db.damaged: a bad checksum", nil},
		{"a reload that was refused", func(_ *World, p *Patient) {
			p.Snapshot.Reload = &status.Reload{Error: "bridge.toml:3: unknown"}
		}, "settings fail the last reload was refused", []string{"bridge.toml:3"}},
		{"a reload on a disk that does not answer", func(_ *World, p *Patient) {
			p.Snapshot.Reloading = &status.Reloading{Since: now.Add(-time.Minute), File: "/mnt/secret"}
		}, "settings warn a reload has read /mnt/secret since 2026-11-01 11:59:00 UTC, and is not through → look at the disk", nil},
		{"a reload", func(_ *World, p *Patient) { p.Snapshot.Reloading = &status.Reloading{Since: now} }, "", nil},
		{"a process that cannot be asked", func(_ *World, p *Patient) {
			p.Snapshot, p.AskErr = nil, errors.New("permission denied")
		}, "state fail permission denied", nil},
		{"a process that does not answer", func(_ *World, p *Patient) {
			p.Snapshot, p.AskErr = nil, &state.SilentError{Path: "/x"}
		}, "process fail the process that runs on state directory /x does not answer → is it stopped, or very busy?", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, p := well(t)
			c.change(w, &p)
			lines := look(t, w, p)
			if c.begin == "" {
				if len(lines) > 0 {
					t.Errorf("found %q, want nothing", lines)
				}
				return
			}
			mustFind(t, lines, c.begin, c.words...)
		})
	}
}

func touch(t *testing.T, file string, at time.Time) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, at, at); err != nil {
		t.Fatal(err)
	}
}

// withBridge gives the patient the settings of a bridge, and no process.
func withBridge(w *World, p *Patient, e bridge.Examined) {
	p.Snapshot, p.Settings = nil, &config.Settings{Role: config.RoleBridge, Bridge: config.Bridge{Token: grammar.Token{Addrs: []string{"tunnel.example:3010"}}}}
	w.Walk = func(context.Context, bridge.Config) ([]bridge.Examined, error) { return []bridge.Examined{e}, nil }
}

// TestWay: of several addresses one is enough, and the others are named; the first step that fails hides the rest.
func TestWay(t *testing.T) {
	good, bad := netip.MustParseAddrPort("203.0.113.1:3010"), netip.MustParseAddrPort("[2001:db8::1]:3010")
	proven := bridge.Try{Target: "tunnel.example:3010", Addr: good, TCP: 1, Reached: true, Proven: 2, Local: netip.MustParseAddr("192.0.2.2")}
	failed := bridge.Try{Target: "tunnel.example:3010", Addr: bad, Err: &net.OpError{Op: "dial", Err: errors.New("silence")}}
	way, err := via.Parse("http://192.0.2.3:3128")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		e     bridge.Examined
		begin string
		words []string
	}{
		{"well", bridge.Examined{Addrs: []netip.AddrPort{good}, Tries: []bridge.Try{proven}}, "", nil},
		{"one of two", bridge.Examined{Addrs: []netip.AddrPort{bad, good}, Tries: []bridge.Try{failed, proven}},
			"link port warn another address of the proxy, [2001:db8::1]:3010, cannot be reached", nil},
		{"none of two", bridge.Examined{Addrs: []netip.AddrPort{bad, bad}, Tries: []bridge.Try{failed, failed}}, "link port fail [2001:db8::1]:3010 cannot be reached", nil},
		{"one of two, which refuses the key", bridge.Examined{Addrs: []netip.AddrPort{bad, good}, Tries: []bridge.Try{failed, {Addr: good, TCP: 1, Reached: true, Err: auth.ErrRefused}}},
			"key fail the proxy refused the key", []string{"→ it was removed"}},
		{"too old", bridge.Examined{Addrs: []netip.AddrPort{good}, Tries: []bridge.Try{{Addr: good, TCP: 1, Reached: true, Err: &auth.VersionError{Proxy: 9}}}},
			"identity fail the proxy speaks protocol version 9", []string{"update the older"}},
		{"a portal", bridge.Examined{Way: way, Addrs: []netip.AddrPort{good}, Tries: []bridge.Try{{Addr: good, TCP: 1, Err: &via.Error{Way: way, Target: "tunnel.example:3010", Kind: via.ErrPortal, Text: "it answered 302"}}}},
			"way out fail connect to tunnel.example:3010 through http://192.0.2.3:3128: it answered 302", []string{"docs/NETWORKS.md"}},
		{"stale DNS", bridge.Examined{Err: errors.New("the name is not known"), Addrs: []netip.AddrPort{good}, Tries: []bridge.Try{proven}}, "name warn the name is not known", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, p := well(t)
			c.e.Proxy = "tunnel.example:3010"
			withBridge(w, &p, c.e)
			lines := look(t, w, p)
			if c.begin == "" && len(lines) == 0 {
				return
			}
			mustFind(t, lines, c.begin, c.words...)
		})
	}
	t.Run("no route", func(t *testing.T) {
		w, p := well(t)
		withBridge(w, &p, bridge.Examined{Proxy: "203.0.113.1:3010", Addrs: []netip.AddrPort{bad}, Tries: []bridge.Try{failed}})
		w.Route = func(netip.AddrPort) (netip.Addr, error) { return netip.Addr{}, errNoWay }
		mustFind(t, look(t, w, p), "route fail this machine has no way to 2001:db8::1", "ip route")
	})
	t.Run("a link of ours", func(t *testing.T) {
		w, p := well(t)
		snap := p.Snapshot
		withBridge(w, &p, bridge.Examined{})
		w.Walk = func(context.Context, bridge.Config) ([]bridge.Examined, error) {
			t.Error("the way was gone, with a link that is up")
			return nil, nil
		}
		snap.Links = []status.Link{{State: status.LinkUp, Carriers: 1, Remote: "203.0.113.1:3010"}}
		p.Snapshot = snap
		if lines := look(t, w, p); len(lines) > 0 {
			t.Errorf("found %q", lines)
		}
	})
}

// TestWayOfRunning: without settings the process that runs goes the way, while it has no link and does not stop. Its services are told once.
func TestWayOfRunning(t *testing.T) {
	for _, c := range []struct {
		name string
		snap status.Snapshot
		way  bool
	}{
		{"down", status.Snapshot{Links: []status.Link{{State: status.LinkDown, Remote: "203.0.113.1:3010"}}}, true},
		{"up", status.Snapshot{Links: []status.Link{{State: status.LinkUp, Carriers: 1}}}, false},
		{"stopping", status.Snapshot{Stopping: true, Links: []status.Link{{State: status.LinkDraining}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, p := well(t)
			p.Snapshot = &c.snap
			asked := false
			p.Ask = func(context.Context) ([]Check, error) {
				asked = true
				return []Check{ok(stepName, "it is there"), fail(stepPort, "", "it is shut"), skip(stepKey, "not looked at"), skip(stepServices, "not looked at")}, nil
			}
			var shown []string
			w.Examine(t.Context(), p, func(c Check) { shown = append(shown, c.Name+" "+string(c.State)) })
			if !asked { // for the targets at least
				t.Error("the process was not asked")
			}
			for _, line := range []string{"name ok", "link port fail", "key skip"} {
				if slices.Contains(shown, line) != c.way {
					t.Errorf("%q is in %q, or not: want %t", line, shown, c.way)
				}
			}
			if slices.Contains(shown, "services skip") {
				t.Errorf("services are told twice: %q", shown)
			}
		})
	}
}

// TestNames: names that lead elsewhere, with and without a certificate, and certificates that expire.
func TestNames(t *testing.T) {
	w, p := well(t)
	p.Role = config.RoleProxy
	p.Snapshot = &status.Snapshot{
		Role: config.RoleProxy,
		Services: []status.Service{
			{Public: "https/here.example", State: status.ServiceUp}, {Public: "https/*.here.example", State: status.ServiceUp}, {Public: "http/*", State: status.ServiceUp},
			{Public: "https/elsewhere.example", State: status.ServiceUp}, {Public: "http/elsewhere.example/path", State: status.ServiceUp},
			{Public: "tls/nowhere.example", State: status.ServiceUp}, {Public: "http/denied.example", State: status.ServiceDenied, Key: "web"},
			{Public: "tcp/9000", State: status.ServiceRetrying, Key: "web", Reason: "in use"},
		},
		Certificates: []status.Certificate{
			{Host: "here.example", State: status.CertificateValid, NotAfter: now.Add(time.Hour)},
			{Host: "elsewhere.example", State: status.CertificateFailed, Error: "refused", Hint: "open port 80"},
		},
	}
	want := []string{
		"links warn no bridge is connected",
		"services warn http/denied.example is denied (key web) → change at the proxy",
		"services fail tcp/9000 cannot be opened (key web): in use: port 9000 is held by nginx (pid 7)",
		"advertised warn tokens carry no address",
		"names fail elsewhere.example leads to 203.0.113.9, which is no address of this machine → correct its A and AAAA records",
		"names fail nowhere.example cannot be looked up",
		"certificates warn that of here.example expires on 2026-11-01 13:00:00 UTC",
		"certificates fail that of elsewhere.example: refused → open port 80",
	}
	lines := look(t, w, p)
	if len(lines) != len(want) {
		t.Fatalf("found\n%s\nwant %d lines", strings.Join(lines, "\n"), len(want))
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, want[i]) {
			t.Errorf("found %q, want %q", line, want[i])
		}
	}
	var names []string
	w.Examine(t.Context(), p, func(c Check) {
		if c.Name == "names" && (c.State == OK || c.State == Skip) {
			names = append(names, string(c.State)+" "+c.Found)
		}
	})
	if want := []string{"ok 1 name leads to this machine: here.example", "skip 2 services with a * not looked up: DNS has no such name"}; !slices.Equal(names, want) {
		t.Errorf("found %q, want %q", names, want)
	}
}

// TestShortCertificates: one that is valid for six days from the first on is well until it should have been renewed.
func TestShortCertificates(t *testing.T) {
	for _, c := range []struct {
		renew time.Duration // from now
		err   string
		want  string
	}{
		{4 * 24 * time.Hour, "", ""},
		{-time.Minute, "", ""},
		{-2 * time.Hour, "", "certificates warn that of 203.0.113.7 expires on 2026-11-03 12:00:00 UTC, and was to be renewed at 2026-11-01 10:00:00 UTC"},
		{-2 * time.Hour, "no route", "certificates warn that of 203.0.113.7 expires on 2026-11-03 12:00:00 UTC, and was to be renewed at 2026-11-01 10:00:00 UTC: no route → look at the router"},
	} {
		w, p := well(t)
		hint := ""
		if c.err != "" {
			hint = "look at the router"
		}
		p.Snapshot.Certificates = []status.Certificate{{Host: "203.0.113.7", State: status.CertificateValid, NotAfter: now.AddDate(0, 0, 2), RenewAt: now.Add(c.renew), Error: c.err, Hint: hint}}
		lines := slices.DeleteFunc(look(t, w, p), func(line string) bool { return !strings.HasPrefix(line, "certificates ") })
		if c.want == "" {
			if len(lines) > 0 {
				t.Errorf("to be renewed in %v: found %q", c.renew, lines)
			}
			continue
		}
		mustFind(t, lines, c.want)
	}
}

// TestLastUsers: a target that did not answer its last user is named at the proxy, as status and page do.
func TestLastUsers(t *testing.T) {
	w, p := well(t)
	p.Role = config.RoleProxy
	p.Snapshot.Links = []status.Link{{Key: "nas", State: status.LinkUp}}
	p.Snapshot.Services = []status.Service{
		{Public: "tcp/9000", Target: "127.0.0.1:9904", Key: "nas", State: status.ServiceUp, TargetState: status.TargetRefused, TargetAt: now.Add(-time.Minute)},
		{Public: "tcp/9001", Target: "192.0.2.1:1", Key: "nas", State: status.ServiceUp, TargetState: status.TargetUnreachable, TargetAt: now.Add(-time.Second)},
		{Public: "tcp/9002", Target: "127.0.0.1:1", Key: "nas", State: status.ServiceUp, TargetState: status.TargetAnswers, TargetAt: now},
		{Public: "tcp/9003", Target: "127.0.0.1:2", Key: "nas", State: status.ServiceUp, TargetState: status.TargetUnknown},
	}
	lines := look(t, w, p)
	if len(lines) != 3 { // tokens carry no address
		t.Fatalf("found %q, want two targets and the address", lines)
	}
	mustFind(t, lines[:1], "targets warn 127.0.0.1:9904 of tcp/9000 (key nas) refused the last user, 1m0s ago", "`reverser doctor` at that bridge")
	mustFind(t, lines[1:2], "targets warn 192.0.2.1:1 of tcp/9001 (key nas) could not be reached for the last user, 1s ago")
}

// TestKeysWithoutBridge: with some bridges connected, the keys whose bridge is gone are named, and that is no fault.
func TestKeysWithoutBridge(t *testing.T) {
	w, p := well(t)
	p.Role, p.Settings = config.RoleProxy, &config.Settings{Role: config.RoleProxy}
	for _, k := range []struct {
		name    string
		expires time.Time
	}{{"nas", time.Time{}}, {"office", time.Time{}}, {"shop", now.Add(30 * 24 * time.Hour)}, {"old", now.Add(-time.Hour)}} {
		p.Settings.Proxy.Tables = append(p.Settings.Proxy.Tables, config.KeyTable{Name: k.name, Expires: k.expires})
	}
	p.Snapshot.Links = []status.Link{{Key: "nas", State: status.LinkUp}}
	var found []string
	w.Examine(t.Context(), p, func(c Check) {
		if c.Name == "links" {
			found = append(found, string(c.State)+" "+c.Found)
		}
	})
	want := []string{"ok 1 bridge connected", "ok no bridge is connected with 2 keys: office, shop"}
	if !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}

// TestRemovedKeyWithoutBridge: a key whose removal a full disk does not take is none that waits for its bridge.
func TestRemovedKeyWithoutBridge(t *testing.T) {
	for _, settings := range []*config.Settings{nil, {Role: config.RoleProxy}} {
		w, p := well(t)
		w.Now, w.Built = time.Now, time.Time{} // the files are of today
		p.Role, p.Settings = config.RoleProxy, settings
		d, err := state.Open(p.State)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := d.Identity(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"nas", "old", "shop"} {
			if _, err := d.AddKey(name, nil, state.Limits{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		p.Snapshot.Links = []status.Link{{Key: "nas", State: status.LinkUp}}
		p.Snapshot.Unstored = &status.Unstored{Removed: []string{"old"}, Error: "no space"}
		var found []string
		w.Examine(t.Context(), p, func(c Check) {
			if c.Name == "links" {
				found = append(found, string(c.State)+" "+c.Found)
			}
		})
		want := []string{"ok 1 bridge connected", "ok no bridge is connected with 1 key: shop"}
		if !slices.Equal(found, want) {
			t.Errorf("settings %v: found %q, want %q", settings, found, want)
		}
	}
}

// TestNoKey: a proxy runs without a key, and no bridge comes to it. Before its first start that is as it should be.
func TestNoKey(t *testing.T) {
	w, p := well(t)
	w.Listen, w.Now, w.Built = net.Listen, time.Now, time.Time{} // the files are of today
	p.Role, p.Snapshot = config.RoleProxy, nil
	p.Settings = &config.Settings{Role: config.RoleProxy, Proxy: config.Proxy{Listen: "127.0.0.1:0"}}
	if lines := look(t, w, p); len(lines) > 0 {
		t.Errorf("before the first start: found %q", lines)
	}
	d, err := state.Open(p.State)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	if err := d.SetKeys(nil); err != nil {
		t.Fatal(err)
	}
	mustFind(t, look(t, w, p), "keys warn none, so no bridge can connect", "reverser key add")
}

// TestPublicPorts: what the proxy found of its own ports, with what it means.
func TestPublicPorts(t *testing.T) {
	port := func(n int, state, text string, bridge bool) status.PortTry {
		return status.PortTry{Public: fmt.Sprintf("tcp/%d", n), Addr: fmt.Sprintf("203.0.113.5:%d", n), State: state, Text: text, Bridge: bridge}
	}
	var lines []string
	for _, c := range PublicPorts(status.PublicTry{Host: "203.0.113.5", Left: 7, Ports: []status.PortTry{
		port(1, status.TryAnswered, "", true), port(2, status.TryAnswered, "", false),
		port(3, status.TrySilent, "no answer within 3s", false), port(4, status.TrySilent, "no answer within 3s", true),
		port(5, status.TryOther, "it gives another answer than this proxy", false),
		port(6, status.TryNone, "it is bound to an address that only this machine reaches", false),
	}}) {
		lines = append(lines, fmt.Sprintf("%s %s %s → %s", c.Name, c.State, c.Found, c.Hint))
	}
	want := []string{
		"public ports ok 2 of 5 answered when this machine dialled them as users do, 1 of these answered their bridges, too",
		"public ports warn tcp/3 at 203.0.113.5:3 does not answer this machine: no answer within 3s → does a firewall or the cloud's security group block the port?",
		"public ports fail tcp/5 at 203.0.113.5:5 is not answered by this proxy: it gives another answer than this proxy → let the name, or the router, lead here",
		"public ports ok tcp/4 at 203.0.113.5:4 does not answer this machine (no answer within 3s), and answered its bridge when it came up",
		"public ports skip 1 service not tried: it is bound to an address that only this machine reaches",
		"public ports skip 7 more were not tried",
	}
	if len(lines) != len(want) {
		t.Fatalf("found %q, want %d lines", lines, len(want))
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("found %q, want %q", lines[i], want[i])
		}
	}
	// The running proxy is asked; an older one does not know of it.
	w, p := well(t)
	p.Role = config.RoleProxy
	for err, state := range map[error]State{nil: Fail, errors.ErrUnsupported: Skip, errors.New("it is gone"): Skip} {
		p.Ask = func(context.Context) ([]Check, error) {
			if err != nil {
				return nil, err
			}
			return []Check{fail(stepPublic, "", "asked")}, nil
		}
		w.Examine(t.Context(), p, func(c Check) {
			if c.Name == stepPublic && c.State != state {
				t.Errorf("with %v the process that runs finds %+v, want %s", err, c, state)
			}
		})
	}
}

// TestPublicNames: what the proxy found of the ports for names, and of the certificates that are shown there.
func TestPublicNames(t *testing.T) {
	door := func(option string, port int, state, text string) status.PortTry {
		return status.PortTry{Public: option, Addr: fmt.Sprintf("203.0.113.5:%d", port), State: state, Text: text}
	}
	shown := func(host, state, text string, days int) status.CertificateTry {
		return status.CertificateTry{Host: host, Addr: "203.0.113.5:443", State: state, Text: text, Until: now.AddDate(0, 0, days)}
	}
	for _, c := range []struct {
		try  status.PublicTry
		want []string
	}{
		{status.PublicTry{}, nil},
		{
			status.PublicTry{
				Doors:            []status.PortTry{door("--http", 80, status.TryAnswered, ""), door("--https", 443, status.TryAnswered, "")},
				CertificatesLeft: 3,
				Certificates: []status.CertificateTry{
					shown("a.example", status.TryAnswered, "", 60), shown("b.example", status.TryAnswered, "", 30), shown("c.example", status.TryOther, "it is for other names: x.example", 30),
					shown("d.example", status.TryUnknown, "it is of an authority that this machine does not know (office)", 10), shown("e.example", status.TryFailed, "no TLS: EOF", 0),
					shown("f.example", status.TryAlone, "its chain may lack the certificate of its issuer (R11), which this machine does not know", 10), shown("g.example", status.TryNone, "this machine has no list of authorities", 10),
				},
			},
			[]string{
				"ok --http at 203.0.113.5:80 and --https at 203.0.113.5:443 answered when this machine dialled as users do → ",
				"ok the certificates that users of 2 names are shown are valid until 2026-12-01 12:00:00 UTC at least: a.example, b.example → ",
				"fail users of c.example at 203.0.113.5:443 are shown a certificate that they refuse: it is for other names: x.example → `reverser status` says where it comes from",
				"warn the certificate of d.example at 203.0.113.5:443 is valid until 2026-11-11 12:00:00 UTC, and most programs refuse it: it is of an authority that this machine does not know (office) → get one of a public authority",
				"fail users of e.example at 203.0.113.5:443 are shown no certificate: no TLS: EOF → ",
				"warn the certificate of f.example at 203.0.113.5:443 is valid until 2026-11-11 12:00:00 UTC, and most programs refuse it: its chain may lack the certificate of its issuer (R11), which this machine does not know → its file is to hold the full chain",
				"skip the certificate of g.example at 203.0.113.5:443 is valid until 2026-11-11 12:00:00 UTC, its authority was not looked at: this machine has no list of authorities → ",
				"skip the certificates of 3 more names were not tried",
			},
		},
		{
			status.PublicTry{Doors: []status.PortTry{door("--https", 443, status.TryAnswered, "")}, Certificates: []status.CertificateTry{shown("a.example", status.TryAnswered, "", 60)}},
			[]string{"ok --https at 203.0.113.5:443 answered", "ok the certificate that users of a.example are shown is valid until 2026-12-31 12:00:00 UTC → "},
		},
		{
			status.PublicTry{Doors: []status.PortTry{door("--http", 80, status.TryNone, "it is bound to an address that only this machine reaches"), door("--https", 443, status.TryOther, "it gives another answer than this proxy")}},
			[]string{
				"skip --http not tried: it is bound to an address that only this machine reaches → ",
				"fail --https at 203.0.113.5:443 is not answered by this proxy: it gives another answer than this proxy → let the name, or the router, lead here",
			},
		},
		{
			status.PublicTry{Doors: []status.PortTry{door("--http", 8080, status.TryFailed, "connection refused"), door("--https", 443, status.TrySilent, "no answer within 3s")}},
			[]string{
				"warn --http at 203.0.113.5:8080 does not answer this machine: connection refused → does a firewall or the cloud's security group block the port? A router that does not let this machine reach itself by its public address is no fault, nor is one that leads port 80 to this port here",
				"warn --https at 203.0.113.5:443 does not answer this machine: no answer within 3s → does a firewall or the cloud's security group block the port? A router that does not let this machine reach itself by its public address is no fault",
			},
		},
	} {
		all := PublicPorts(c.try)
		if len(all) != len(c.want) {
			t.Errorf("found %+v, want %d lines", all, len(c.want))
			continue
		}
		for i, f := range all {
			if line := fmt.Sprintf("%s %s → %s", f.State, f.Found, f.Hint); f.Name != stepShown || !strings.HasPrefix(line, c.want[i]) {
				t.Errorf("found %s %q, want %q", f.Name, line, c.want[i])
			}
		}
	}
}

// TestExpired: a certificate of a file is told once, though its reader warns of it too.
func TestExpired(t *testing.T) {
	w, p := well(t)
	leaf := &x509.Certificate{NotAfter: now.Add(-time.Hour)}
	p.Role, p.Snapshot = config.RoleProxy, nil
	p.Settings = &config.Settings{Role: config.RoleProxy, Proxy: config.Proxy{Listen: ":3010"}}
	p.Settings.Proxy.Given = []config.Given{{Chain: "chain.pem", Certificate: certificateOf(leaf)}}
	p.Warnings = []config.Warning{{File: "proxy.toml", Line: 3, Text: "the certificate in chain.pem " + config.Dated(leaf, time.Now())}}
	lines := look(t, w, p)
	if len(lines) != 2 {
		t.Fatalf("found %q, want the port and the certificate", lines)
	}
	mustFind(t, lines[:1], "ports fail --listen :3010 cannot be opened: "+errPortTaken.Error()+": port 3010 is held by nginx (pid 7)", "another process has that port")
	mustFind(t, lines[1:], "certificates fail that in chain.pem has expired on", "→ clients refuse it, get a new one")
}

// TestBind: an address for public ports that is not this machine's is told before the start.
func TestBind(t *testing.T) {
	w, p := well(t)
	w.Listen = func(network, addr string) (net.Listener, error) {
		if addr == "192.0.2.7:0" {
			return nil, errNoWay
		}
		return net.Listen("tcp", "127.0.0.1:0")
	}
	p.Role, p.Snapshot = config.RoleProxy, nil
	p.Settings = &config.Settings{Role: config.RoleProxy, Proxy: config.Proxy{Listen: ":3010", Bind: "192.0.2.7"}}
	mustFind(t, look(t, w, p), "ports fail public ports cannot be opened at 192.0.2.7 (--bind): "+errNoWay.Error(), "give --bind an address of this machine, or leave it out")
	p.Settings.Proxy.Bind = "192.0.2.8"
	if lines := look(t, w, p); len(lines) > 0 {
		t.Errorf("with an address that is there: found %q", lines)
	}
}

// TestAdmin: who reaches the address of the API, and whether anybody does.
func TestAdmin(t *testing.T) {
	expired := certificateOf(&x509.Certificate{NotAfter: now.Add(-time.Hour)})
	for _, c := range []struct {
		name    string
		admin   config.Admin
		running bool
		want    []string
	}{
		{"here", config.Admin{Addr: "127.0.0.1:3011"}, false, nil},
		{"taken", config.Admin{Addr: "127.0.0.1:1"}, false, []string{"admin fail --admin 127.0.0.1:1 cannot be opened: " + errPortTaken.Error() + ": port 1 is held by nginx (pid 7)"}},
		{"in the clear, of which the settings warn", config.Admin{Addr: ":3011", Plain: true}, false, nil},
		{"by TLS", config.Admin{Addr: ":3011", CertificateFile: "admin.pem", Certificate: expired}, false, []string{"admin fail the certificate in admin.pem has expired on"}},
		{"not there", config.Admin{Addr: ":3011", Plain: true}, true, []string{"admin warn :3011 cannot be reached: nobody is there"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, p := well(t)
			snap := p.Snapshot
			withBridge(w, &p, bridge.Examined{})
			w.Walk = func(context.Context, bridge.Config) ([]bridge.Examined, error) { return nil, nil }
			w.Listen = func(_, addr string) (net.Listener, error) {
				if strings.HasSuffix(addr, ":1") {
					return nil, errPortTaken
				}
				return nowhere{}, nil
			}
			p.Settings.Admin = c.admin
			if c.running {
				p.Snapshot = snap
			}
			lines := look(t, w, p)
			if len(lines) != len(c.want) {
				t.Fatalf("found %q, want %q", lines, c.want)
			}
			for i, line := range lines {
				if !strings.HasPrefix(line, c.want[i]) {
					t.Errorf("found %q, want %q", line, c.want[i])
				}
			}
		})
	}
	for addr, want := range map[string]string{":3011": "127.0.0.1:3011", "0.0.0.0:3011": "127.0.0.1:3011", "[::]:3011": "[::1]:3011", "192.0.2.1:3011": "192.0.2.1:3011"} {
		if got := reachable(addr); got != want {
			t.Errorf("reachable(%s) = %s, want %s", addr, got, want)
		}
	}
}

// TestTargetsOfRunning: the process dials its targets itself, for its rights and sources are not those of whoever asks.
func TestTargetsOfRunning(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // which answers this test
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here := l.Addr().String()
	service := status.Service{Public: "tcp/9000", Target: here, State: status.ServiceUp, TargetState: status.TargetUnreachable, TargetAt: now.Add(-time.Minute), TargetError: "permission denied"}
	answers := ok(stepTargets, "1 of 1 answer: %s", here)
	refused := fail(stepTargets, "ask its owner", "%s, where tcp/9000 leads, cannot be reached: permission denied", here)
	const lastUser = "targets warn %s of tcp/9000 could not be reached for the last user, 1m0s ago: permission denied"
	for _, c := range []struct {
		name  string
		found []Check
		err   error
		ok    string // how the line begins that is well; "": there is none
		bad   string // and that of what is not well; "": as ok
	}{
		{"it cannot reach them", []Check{refused}, nil, "", "targets fail " + refused.Found},
		{"it reaches them again", []Check{answers}, nil, "ok 1 of 1 answer: " + here, fmt.Sprintf(lastUser, here)},
		{"an older one, without a link", []Check{fail(stepPort, "", "shut")}, nil, "ok 1 of 1 answer this command, which dials with its own rights: " + here, fmt.Sprintf(lastUser, here)},
		{"an older one", nil, errors.ErrUnsupported, "ok 1 of 1 answer this command, which dials with its own rights: " + here, fmt.Sprintf(lastUser, here)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, p := well(t)
			p.Snapshot.Links = []status.Link{{State: status.LinkUp, Carriers: 1}}
			p.Snapshot.Services = []status.Service{service}
			asked := 0
			p.Ask = func(context.Context) ([]Check, error) { asked++; return c.found, c.err }
			good := ""
			w.Examine(t.Context(), p, func(c Check) {
				if c.Name == stepTargets && c.State == OK {
					good += string(c.State) + " " + c.Found
				}
			})
			if good != c.ok || asked != 1 {
				t.Errorf("found %q as well, asked %d times; want %q, once", good, asked, c.ok)
			}
			mustFind(t, look(t, w, p), c.bad)
		})
	}
}

// TestSources: an address that is not this machine's is told, and the targets that cannot be dialled for that are not blamed.
func TestSources(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		name    string
		sources []string
		want    string
	}{
		{"another machine's", []string{"192.0.2.77"}, "source fail 192.0.2.77 is no address of this machine: no target is dialled from it → give --source an address of this machine"},
		{"one of two is another machine's", []string{"192.0.2.77", "127.0.0.1"}, "source warn 192.0.2.77 is no address of this machine: no target is dialled from it → give --source an address of this machine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, p := well(t)
			withBridge(w, &p, bridge.Examined{})
			w.Walk = func(context.Context, bridge.Config) ([]bridge.Examined, error) { return nil, nil }
			w.Listen = func(_, addr string) (net.Listener, error) {
				if addr == "192.0.2.77:0" {
					return nil, errNoWay
				}
				return nowhere{}, nil
			}
			public, target := grammar.Public{Kind: grammar.KindTCP, Port: 9000}, grammar.Target{Network: "tcp", Address: l.Addr().String()}
			p.Settings.Bridge.Services = []grammar.Expose{{Public: public, Target: target}}
			for _, s := range c.sources {
				p.Settings.Bridge.Sources = append(p.Settings.Bridge.Sources, netip.MustParseAddr(s))
			}
			mustFind(t, look(t, w, p), c.want)
		})
	}
}

// TestTargetsWithoutTime: what there was no time for is said, and nothing is called dead that was not tried.
func TestTargetsWithoutTime(t *testing.T) {
	w, p := well(t)
	for i := range 5000 {
		p.Snapshot.Services = append(p.Snapshot.Services, status.Service{Public: "tcp/9000", Target: fmt.Sprintf("192.0.2.1:%d", 1024+i), State: status.ServiceUp})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	all := w.dialTargets(ctx, targetsOf(p.Snapshot), nil, "%d of %d answer: %s")
	if len(all) != 1 || all[0].State != Skip || all[0].Found != "5000 of 5000 were not looked at: there was no time left" {
		t.Errorf("found %+v", all)
	}
}

// nowhere is a listener that nobody comes to.
type nowhere struct{ net.Listener }

func (nowhere) Close() error { return nil }

// TestUnsaid: steps about settings that a running process does not tell have a line that says how to see them.
func TestUnsaid(t *testing.T) {
	for _, role := range []string{config.RoleBridge, config.RoleProxy} {
		w, p := well(t)
		p.Role, p.Settings = role, nil
		var lines []string
		w.Examine(t.Context(), p, func(c Check) { lines = append(lines, fmt.Sprintf("%s %s %s", c.Name, c.State, c.Found)) })
		for _, step := range []string{"admin", "notify"} {
			if found := find(lines, step+" skip the process does not say"); !strings.Contains(found, "`reverser doctor "+role+"` with") {
				t.Errorf("%s of a %s: %q in\n%s", step, role, found, strings.Join(lines, "\n"))
			}
		}
	}
}

// TestDenied: only of what a key may not have, the hint is to let the key have it.
func TestDenied(t *testing.T) {
	w, p := well(t)
	p.Snapshot.Services = []status.Service{
		{Public: "tcp/80", State: status.ServiceDenied, Reason: `tcp/80 denied: the policy of key "nas" allows tcp/9000`},
		{Public: "http/a.example", State: status.ServiceDenied, Reason: "http/a.example denied: the proxy has no port for HTTP: start it with --http ADDR, such as --http :80"},
	}
	lines := look(t, w, p)
	if found := find(lines, "tcp/80 is denied"); !strings.Contains(found, "reverser key edit NAME --allow") {
		t.Errorf("of the policy: %q", found)
	}
	if found := find(lines, "http/a.example is denied"); !strings.Contains(found, "--http ADDR") || strings.Contains(found, "key edit") || !strings.Contains(found, "→") {
		t.Errorf("of a port that the proxy does not have: %q", found)
	}
}

// find is the line with some words.
func find(lines []string, words string) string {
	for _, line := range lines {
		if strings.Contains(line, words) {
			return line
		}
	}
	return ""
}

// TestFew: of very many faults some are told, and how many there are besides.
func TestFew(t *testing.T) {
	w, p := well(t)
	for i := range 5000 {
		p.Snapshot.Services = append(p.Snapshot.Services, status.Service{Public: fmt.Sprintf("tcp/%d", 1024+i), State: status.ServiceDenied})
	}
	lines := look(t, w, p)
	if len(lines) != mostLines+1 || !strings.Contains(lines[mostLines], "4990 more services are not up") {
		t.Errorf("found %d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
	looks := 0
	w.Holders = func(uint16) ([]sys.Holder, bool) { looks++; return nil, false }
	for i := range p.Snapshot.Services {
		p.Snapshot.Services[i].State = status.ServiceRetrying
	}
	p.Role = config.RoleProxy
	if look(t, w, p); looks > mostLines {
		t.Errorf("looked %d times who has a port, want %d at the most", looks, mostLines)
	}
}

func certificateOf(leaf *x509.Certificate) *tls.Certificate { return &tls.Certificate{Leaf: leaf} }
