package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"reverser/internal/config"
	"reverser/internal/status"
)

func TestGuessAddress(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	local := addrs("127.0.0.1", "::1", "10.1.2.3", "192.168.1.4", "172.16.0.1", "169.254.1.1", "fe80::1", "fd00::1", "100.64.0.1", "198.18.0.1",
		"192.0.2.2", "198.51.100.9", "203.0.113.7", "192.0.0.8", "192.88.99.1", "240.0.0.1", "0.1.2.3",
		"2001:db8::5", "2002:c000:204::1", "2001::1", "64:ff9b::1", "3fff::1", "100::1", "5f00::1")
	public := append(local, addrs("2001:500:8::5", "203.0.114.7")...)
	tests := []struct {
		listen     string
		interfaces []netip.Addr
		want       string
	}{
		{":3010", local, ""},
		{":3010", nil, ""},
		{":3010", public, "203.0.114.7:3010"},
		{"0.0.0.0:3010", public, "203.0.114.7:3010"},
		{"[::]:3010", public, "[2001:500:8::5]:3010"},
		{":3010", addrs("10.0.0.1", "2001:500:8::5"), "[2001:500:8::5]:3010"},
		{"0.0.0.0:3010", addrs("2001:500:8::5"), ""},
		{":3010", addrs("::ffff:203.0.114.7"), "203.0.114.7:3010"},
		{"127.0.0.1:3010", public, "127.0.0.1:3010"},
		{"192.168.1.4:3010", public, "192.168.1.4:3010"},
		{"tunnel.example.com:3010", public, "tunnel.example.com:3010"},
		{"[::1]:3010", public, "[::1]:3010"},
	}
	for _, tt := range tests {
		got := guessAddress(&net.TCPAddr{Port: 3010}, tt.listen, tt.interfaces)
		if got != tt.want {
			t.Errorf("guessAddress(%s, %v) = %q, want %q", tt.listen, tt.interfaces, got, tt.want)
		}
	}
}

// TestReach: tokens carry the port of names behind the link's, where both are ports of one address.
func TestReach(t *testing.T) {
	for _, tt := range []struct {
		set     config.Proxy
		guessed string
		want    string
	}{
		{config.Proxy{Listen: ":3010"}, "", "no address"},
		{config.Proxy{Listen: ":3010", HTTPS: ":443"}, "", "no address"},
		{config.Proxy{Listen: ":3010", SNI: "a.example"}, "8.8.8.8:3010", "8.8.8.8:3010 (SNI a.example)"},
		{config.Proxy{Listen: ":3010", HTTPS: ":443"}, "8.8.8.8:3010", "8.8.8.8:3010, 8.8.8.8:443"},
		{config.Proxy{Listen: ":3010", HTTPS: ":443", Advertise: "a.example:3010"}, "8.8.8.8:3010", "a.example:3010, a.example:443"},
		{config.Proxy{Listen: "[2001:db8::1]:3010", HTTPS: "[2001:db8::1]:443"}, "[2001:db8::1]:3010", "[2001:db8::1]:3010, [2001:db8::1]:443"},
		{config.Proxy{Listen: ":443", HTTPS: ":443"}, "8.8.8.8:443", "8.8.8.8:443"},
		{config.Proxy{Listen: ":3010", HTTPS: "127.0.0.1:443"}, "8.8.8.8:3010", "8.8.8.8:3010"},
		{config.Proxy{Listen: ":3010", HTTPS: ":443", Advertise: "a.example:8443"}, "", "a.example:8443"},
	} {
		if got := reach(tt.set, tt.guessed).String(); got != tt.want {
			t.Errorf("reach(%+v, %q) = %s, want %s", tt.set, tt.guessed, got, tt.want)
		}
	}
}

func TestRedact(t *testing.T) {
	got := redact(`bad value "rv1_abcDEF-_09" and rv12_x`)
	if want := `bad value "rv1_…" and rv1_…`; got != want {
		t.Errorf("redact = %s, want %s", got, want)
	}
}

func TestPrintStatus(t *testing.T) {
	now := time.Date(2026, 7, 1, 8, 0, 0, 0, time.UTC)
	s := status.Snapshot{
		Role: "proxy", Version: "v1", UptimeSeconds: 3700,
		Links:    []status.Link{{Key: "nas", Bridge: "b1", Remote: "192.0.2.1:5", State: status.LinkUp, RTTMillis: 12.34, Carriers: 4, Resumes: 3, Since: now.Add(-time.Minute)}},
		Services: []status.Service{{Public: "tcp/9000", Key: "nas", Target: "evil\x1b[2J\tx", State: status.ServiceRetrying, Reason: "port in use", TargetState: status.TargetRefused, TargetAt: now.Add(-5 * time.Second), TargetError: "no\x1b"}},
		Pairs:    []status.Pair{{ID: "7", Service: "tcp/9000", Client: "c:1", Target: "t:2", Sent: 999, Received: 1234567, Since: now.Add(-26 * time.Hour), State: status.PairOpen}},
		Keys: []status.Key{
			{Key: "nas", Connections: 1, Total: 20, Sent: 1234567, Received: 5, Refused: 2},
			{Key: "pi", Total: 3, Received: 7},
		},
		Clients: []status.Client{{Client: "192.0.2.9", Service: "tcp/9000", Key: "n\x1bas", Connections: 1, Total: 4, Sent: 10}},
		Removed: []status.Service{{Public: "tcp/22"}},
		Pressure: []status.Pressure{
			{What: "descriptors", Used: 90, Limit: 100, Largest: status.Holder{Key: "nas", Service: "tcp/9000", Client: "192.0.2.9", Used: 50}, Hint: "raise it", Since: now.Add(-time.Second)},
			{What: "places", Used: 3, Limit: 4, Largest: status.Holder{Client: "192.0.2.0/24"}, Hint: "firewall"},
			{What: "things", Used: 1, Limit: 1, Hint: "wait"},
		},
	}
	var b bytes.Buffer
	if err := printStatus(&b, s, now, 1); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimLeft(`
proxy v1, up 1h1m
short of descriptors: 90 of 100 used, 50 by key nas, most for 192.0.2.9 at tcp/9000, since 1s ago
  raise it
short of places: 3 of 4 used, most for 192.0.2.0/24
  firewall
short of things: 1 of 1 used
  wait

LINK  STATE  REMOTE       BRIDGE  RTT      CARRIERS  RESUMES  SINCE
nas   up     192.0.2.1:5  b1      12.3 ms  4         3        1m0s ago

SERVICE   STATE     TARGET            CONNECTIONS  KEY  TARGET STATE               REASON
tcp/9000  retrying  evil\u001b[2J\tx  0            nas  refused, 5s ago: no\u001b  port in use

23 connections in all, 1 now, 1.2 MB sent, 12 B received, 2 refused; 1 of the services was removed
the most from 192.0.2.9 to tcp/9000 of n\u001bas: 1 now, 4 in all, 10 B sent, 0 B received

PAIR  SERVICE   CLIENT  TARGET  STATE  SENT   RECEIVED  SINCE
7     tcp/9000  c:1     t:2     open   999 B  1.2 MB    1d2h ago
`, "\n")
	if b.String() != want {
		t.Errorf("printStatus =\n%s\nwant\n%s", b.String(), want)
	}
}

// TestStatusOfManyServices: a terminal is shown so many services of a key, first those to look at, and all else is counted. What is written
// takes few writes.
func TestStatusOfManyServices(t *testing.T) {
	s := status.Snapshot{Role: "proxy"}
	for i := range 1000 {
		v := status.Service{Public: fmt.Sprintf("http/%03d.example.com", i), Key: "many", State: status.ServiceUp}
		switch i {
		case 998:
			v.Connections = 1
		case 999:
			v.State, v.Reason = status.ServiceRetrying, "held"
		}
		s.Services = append(s.Services, v)
	}
	s.Services = append(s.Services, status.Service{Public: "tcp/9000", Key: "few", State: status.ServiceUp})
	services := func(most int) (names []string, text string, writes int) {
		var b countedWrites
		if err := printStatus(&b, s, time.Now(), most); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if name, _, _ := strings.Cut(line, " "); strings.Contains(name, "/") {
				names = append(names, name)
			}
		}
		return names, b.String(), b.n
	}
	names, text, _ := services(4)
	if want := []string{"http/000.example.com", "http/001.example.com", "http/998.example.com", "http/999.example.com", "tcp/9000"}; !slices.Equal(names, want) {
		t.Errorf("shown: %v, want %v", names, want)
	}
	if want := "996 more services of key many (996 up): `reverser status --all` shows them\n"; !strings.Contains(text, want) || strings.Contains(text, "of key few") {
		t.Errorf("status of many services =\n%s\nwant the line %s", text, want)
	}
	names, text, writes := services(0)
	if len(names) != 1001 || strings.Contains(text, "--all") || writes > 20 {
		t.Errorf("%d services of 1001 in %d writes", len(names), writes)
	}
}

type countedWrites struct {
	bytes.Buffer
	n int
}

func (c *countedWrites) Write(p []byte) (int, error) {
	c.n++
	return c.Buffer.Write(p)
}

// TestStatusOfAnAccessLog: where lines were lost is named, standard output too.
func TestStatusOfAnAccessLog(t *testing.T) {
	for file, want := range map[string]string{
		"access.log": "the access log access.log lost 932 lines, and cannot be written: no space\n",
		"-":          "the access log on standard output lost 932 lines, and cannot be written: no space\n",
	} {
		var b bytes.Buffer
		if err := printStatus(&b, status.Snapshot{Role: "proxy", AccessLog: &status.AccessLog{File: file, Lost: 932, Error: "no space"}}, time.Now(), 0); err != nil || !strings.Contains(b.String(), "\n"+want) {
			t.Errorf("%s: %v, %q; want the line %q", file, err, b.String(), want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 1<<64 - 1: "18.4 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 25 * time.Hour: "1d1h",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %s, want %s", d, got, want)
		}
	}
}

// Nothing may print a token that landed in the wrong place.
func TestTokenInTheWrongPlace(t *testing.T) {
	secret := "rv1_" + strings.Repeat("x", 120)
	for _, args := range [][]string{
		{secret},
		{"key", "add", secret, "--allow", "tcp/9000", "--state", t.TempDir()},
		{"key", "add", "nas", "--allow", secret, "--state", t.TempDir()},
		{"bridge", "9000=" + secret},
		{"bridge", "--proxy", secret, secret, "9000"},
		{"bridge", "--token-file", secret, "9000"},
		{"bridge", "--log-format", secret},
		{"bridge", "--admin", secret},
		{"check", secret},
		{"proxy", secret},
	} {
		var out, errOut bytes.Buffer
		code := run(args, strings.NewReader(""), &out, &errOut)
		if code != exitUsage {
			t.Errorf("%v exits with %d, want %d", args[:1], code, exitUsage)
		}
		if strings.Contains(out.String()+errOut.String(), strings.Repeat("x", 20)) {
			t.Errorf("%v prints the token: %s", args[:1], errOut.String())
		}
	}
}

// What a person reads at a terminal of 80 columns does not wrap.
func TestWidth(t *testing.T) {
	texts := map[string]string{}
	for _, offered := range []bool{false, true} {
		for _, noAddress := range []bool{false, true} {
			texts[fmt.Sprintf("first start, %v %v", offered, noAddress)] = firstStartWords(offered, noAddress)
		}
	}
	for _, command := range []string{"", "proxy", "bridge", "key", "key add", "key list", "key edit", "key rotate", "key remove", "end", "drain", "status", "check", "demo", "version",
		"service", "service install", "service install proxy", "service install bridge", "service uninstall", "service start", "service stop", "service status"} {
		var out bytes.Buffer
		if code := run(append(strings.Fields(command), "--help"), strings.NewReader(""), &out, &out); code != exitOK {
			t.Errorf("%s --help exits with %d", command, code)
		}
		texts[command+" --help"] = out.String()
	}
	for name, text := range texts {
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%s: a line of %d columns: %s", name, n, line)
			}
		}
	}
}

// Another user's process does not answer: whose it is helps.
func TestNotMine(t *testing.T) {
	dir := t.TempDir()
	err := notMine(usage(fmt.Errorf("open %s: %w", dir, fs.ErrPermission)), dir, "status")
	ee, ok := errors.AsType[*exitError](err)
	if !ok || ee.code != exitUsage || !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("notMine = %v, want the error with its exit code", err)
	}
	if owner := ownerOf(dir); owner != "" && !strings.Contains(ee.hint, "sudo -u "+owner+" reverser status --state "+dir) {
		t.Errorf("hint %q, want one that names %s", ee.hint, owner)
	}
	if other := errors.New("other"); notMine(other, dir, "status") != other {
		t.Error("another error is changed")
	}
}
