package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

var _, _ Source = (*ProxySource)(nil), (*BridgeSource)(nil)

const keyTable = "[[key]]\nname = \"office\"\nsecret_file = \"office.token\"\nallow = [\"tcp/9000\"]\n"

// folder has the tokens that keyTable and the tests name.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "office.token"), testToken(1).Encode())
	write(t, filepath.Join(dir, "other.token"), testToken(2).Encode())
	return dir
}

func loaded(t *testing.T, s Source) Settings {
	t.Helper()
	set, warnings, err := s.Load()
	if err != nil || len(warnings) > 0 {
		t.Fatalf("Load = %v, %v", warnings, err)
	}
	return set
}

func TestProxySource(t *testing.T) {
	dir := folder(t)
	path := write(t, filepath.Join(dir, "proxy.toml"), `
listen = ":4000"
transfer = ":4001"
advertise = "proxy.example.com"
bind = "::ffff:192.0.2.1"
sni = "Tunnel.example.com."
state = "st"
log_format = "json"
log_level = "debug"
drain = "0s"
resume_within = "2d"
access_log = "access.log"
`+keyTable)
	set := loaded(t, NewProxySource(ProxyArgs{Config: path}))
	if set.Role != RoleProxy || set.Proxy.Listen != ":4000" || set.Proxy.Transfer != ":4001" || set.Proxy.Advertise != "proxy.example.com:4000" || set.Proxy.Bind != "192.0.2.1" || set.Proxy.SNI != "tunnel.example.com" ||
		set.State != filepath.Join(dir, "st") || set.LogFormat != "json" || set.LogLevel != slog.LevelDebug || set.Drain >= 0 || set.ResumeWithin != 48*time.Hour ||
		set.AccessLog != filepath.Join(dir, "access.log") || len(set.Proxy.Tables) != 1 || len(set.Proxy.Keys) != 0 {
		t.Errorf("of the file: %+v", set)
	}
	if got := set.Origin["drain"]; got != (Place{path, 10, "drain"}) {
		t.Errorf("origin of drain = %+v", got)
	}

	// An argument wins, and has no origin in the file.
	set = loaded(t, NewProxySource(ProxyArgs{
		Config: path, Listen: "127.0.0.1:5000", Transfer: "5001", Advertise: "other.example.com:7", Bind: "2001:DB8::1", SNI: "other",
		CommonArgs: CommonArgs{State: "here", LogFormat: "text", LogLevel: "error", AccessLog: "lines", Drain: "1d", ResumeWithin: "4s"},
	}))
	if set.AccessLog != "lines" || set.Proxy.Listen != "127.0.0.1:5000" || set.Proxy.Transfer != ":5001" || set.Proxy.Advertise != "other.example.com:7" || set.Proxy.Bind != "2001:db8::1" || set.Proxy.SNI != "other" ||
		set.State != "here" || set.LogFormat != "text" || set.LogLevel != slog.LevelError || set.Drain != 24*time.Hour || set.ResumeWithin != 4*time.Second ||
		len(set.Proxy.Tables) != 1 {
		t.Errorf("of the arguments: %+v", set)
	}
	if len(set.Origin) != 0 {
		t.Errorf("origin = %v; want none", set.Origin)
	}

	// Without a file there are defaults.
	set = loaded(t, NewProxySource(ProxyArgs{}))
	if set.Proxy.Listen != ":3010" || set.LogLevel != slog.LevelInfo || set.Drain != 0 {
		t.Errorf("by default: %+v", set)
	}
}

// The keys of the state directory come in when it is open.
func TestProxySourceKeys(t *testing.T) {
	dir := folder(t)
	path := write(t, filepath.Join(dir, "proxy.toml"), keyTable+"max_services = 3\nmax_connections = 100\n")
	s := NewProxySource(ProxyArgs{Config: path})
	loaded(t, s)
	stored := []state.Key{{Name: "nas", ID: [16]byte{9}, Secret: [32]byte{7}, Limits: state.Limits{MaxServices: 4, MaxConnections: 5}}}
	var failed error
	s.UseState(func() ([]state.Key, error) { return stored, failed }, testToken(1).Pin)
	if keys := loaded(t, s).Proxy.Keys; fmt.Sprint(keys) != "[office nas]" || keys[0].MaxServices != 3 || keys[1].MaxServices != 4 || keys[0].MaxConnections != 100 || keys[1].MaxConnections != 5 {
		t.Errorf("keys = %v", keys)
	}
	stored = append(stored, state.Key{Name: "office", ID: [16]byte{8}})
	_, _, err := s.Load()
	want(t, "a stored key of the same name", err, path+":2: name", `"office"`, "reverser key remove office")
	failed = errors.New("the disk is gone")
	if _, _, err = s.Load(); !errors.Is(err, failed) {
		t.Errorf("Load with a broken state directory = %v", err)
	}
}

func TestBridgeSource(t *testing.T) {
	dir := folder(t)
	path := write(t, filepath.Join(dir, "bridge.toml"), `
token_file = "office.token"
proxy = "a.example.com"
proxy_transfer = "a.example.com:3020"
keepalive = "2m"
sni = "tunnel.example.com"
source = ["192.0.2.1", "2001:DB8::1"]
log_level = "warn"
access_log = "-"
[[expose]]
public = 9000
target = "nas:80"
`)
	set := loaded(t, NewBridgeSource(BridgeArgs{Config: path, Expose: []string{"9001=22"}}))
	b := set.Bridge
	if set.Role != RoleBridge || b.Token.Encode() != testToken(1).Encode() || fmt.Sprint(b.Proxies) != "[a.example.com:3010]" || b.ProxyTransfer != "a.example.com:3020" || b.Keepalive != 2*time.Minute || b.SNI != "tunnel.example.com" || fmt.Sprint(b.Sources) != "[192.0.2.1 2001:db8::1]" || set.LogLevel != slog.LevelWarn || set.AccessLog != "-" {
		t.Errorf("of the file: %+v", set)
	}
	if got := fmt.Sprint(b.Services); got != "[tcp/9000=nas:80 tcp/9001=127.0.0.1:22]" {
		t.Errorf("services = %s; want those of the file and then those of the arguments", got)
	}

	// Tokens, in their order.
	write(t, filepath.Join(dir, "zero.token"), testToken(0).Encode())
	args := BridgeArgs{Config: path, Token: testToken(2).Encode(), TokenFile: filepath.Join(dir, "zero.token"), TokenEnv: testToken(1).Encode(), Proxies: []string{"b:1"}, ProxyTransfer: "b:2", SNI: "other", Keepalive: "10s", Sources: []string{"::ffff:192.0.2.2"}}
	for _, id := range []byte{2, 0, 1} {
		set := loaded(t, NewBridgeSource(args))
		if set.Bridge.Token.KeyID[0] != id || fmt.Sprint(set.Bridge.Proxies) != "[b:1]" || set.Bridge.ProxyTransfer != "b:2" || set.Bridge.Keepalive != 10*time.Second || set.Bridge.SNI != "other" || fmt.Sprint(set.Bridge.Sources) != "[192.0.2.2]" {
			t.Errorf("with a token of key %d: %+v", id, set.Bridge)
		}
		for _, option := range []string{"token_file", "proxy", "proxy_transfer", "sni", "keepalive", "source"} {
			if p, ok := set.Origin[option]; ok {
				t.Errorf("origin of %s = %v; want none", option, p)
			}
		}
		if args.Token != "" {
			args.Token = ""
		} else {
			args.TokenFile = ""
		}
	}
	set = loaded(t, NewBridgeSource(BridgeArgs{Token: testToken(1).Encode(), Expose: []string{"9000"}}))
	if len(set.Bridge.Proxies) != 0 || len(set.Bridge.Services) != 1 {
		t.Errorf("without a file: %+v", set.Bridge)
	}
}

// What the command line names may be gone the next time: standard input is, and so may be a file.
func TestBridgeSourceReadsTokenOnce(t *testing.T) {
	dir := folder(t)
	path := write(t, filepath.Join(dir, "bridge.toml"), "token_file = \"-\"\n[[expose]]\npublic = 9000\n")
	s := NewBridgeSource(BridgeArgs{Config: path, Stdin: strings.NewReader(testToken(1).Encode())})
	for range 2 {
		if got := loaded(t, s).Bridge.Token.KeyID[0]; got != 1 {
			t.Errorf("token of key %d", got)
		}
	}
	file := filepath.Join(dir, "office.token")
	s = NewBridgeSource(BridgeArgs{TokenFile: file, Expose: []string{"9000"}})
	loaded(t, s)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	loaded(t, s)
}

// Several proxies get a link each.
func TestSeveralProxies(t *testing.T) {
	tok := testToken(1).Encode()
	path := write(t, "bridge.toml", "proxy = [\"a.example.com\", \"b.example.com:7\"]\n")
	args := BridgeArgs{Config: path, Token: tok, Expose: []string{"9000"}}
	if set := loaded(t, NewBridgeSource(args)); fmt.Sprint(set.Bridge.Proxies) != "[a.example.com:3010 b.example.com:7]" {
		t.Errorf("proxies of the file = %s", set.Bridge.Proxies)
	}
	args.Proxies = []string{"c:1", "d:2"}
	set := loaded(t, NewBridgeSource(args))
	if fmt.Sprint(set.Bridge.Proxies) != "[c:1 d:2]" {
		t.Errorf("proxies = %s; want those of the command line in place of the file's", set.Bridge.Proxies)
	}
	next := set
	next.Bridge.Proxies = []string{"c:1"}
	_, err := set.Changes(next)
	want(t, "one proxy less", err, "proxy", "c:1, d:2", "needs a restart")
	xml := loaded(t, NewBridgeSource(BridgeArgs{Config: "testdata/bridge-placeholder.config", Token: tok, Proxies: args.Proxies}))
	if xml.Bridge.ProxyTransfer != "" {
		t.Errorf("the transfer port of all proxies is %s; want each to announce its own", xml.Bridge.ProxyTransfer)
	}
	args.ProxyTransfer = "c:3"
	_, _, err = NewBridgeSource(args).Load()
	want(t, "a transfer port of one", err, "--proxy-transfer c:3", "there are 2")
	args.Proxies = []string{"c:3010", "c"}
	_, _, err = NewBridgeSource(args).Load()
	want(t, "one twice", err, "--proxy", "c:3010 is there twice")
	for text, words := range map[string][]string{
		`proxy = []`:              {"1: proxy", "empty"},
		`proxy = ["a", "a:3010"]`: {"1: proxy", "a:3010 is there twice"},
		`proxy = ["a", 7]`:        {"1: proxy"},
		`proxy = ["` + tok + `"]`: {"1: proxy", "a token"},
	} {
		_, _, err := bridgeOf(write(t, "bad.toml", text+"\n"))
		want(t, text, err, words...)
		if err != nil && strings.Contains(err.Error(), tok) {
			t.Errorf("the error quotes the token: %v", err)
		}
	}
}

// The source system's XML has one host for both ports, and a flag may name another.
func TestBridgeSourceXML(t *testing.T) {
	tok := testToken(1).Encode()
	set := loaded(t, NewBridgeSource(BridgeArgs{Config: "testdata/bridge-placeholder.config", Token: tok, Proxies: []string{"server.example.com"}}))
	if fmt.Sprint(set.Bridge.Proxies) != "[server.example.com:3010]" || set.Bridge.ProxyTransfer != "server.example.com:3020" {
		t.Errorf("Load = %+v", set.Bridge)
	}
	_, _, err := NewBridgeSource(BridgeArgs{Config: "testdata/bridge-placeholder.config", Token: tok}).Load()
	want(t, "the placeholder", err, "bridge-placeholder.config:1: ProxyServerIP", "put the server's address there")
}

// TestBadSettings: every kind of bad file, and what an order to reload answers to it.
func TestBadSettings(t *testing.T) {
	tok := testToken(1).Encode()
	const exposed = "[[expose]]\npublic = 9000\n"
	for _, c := range []struct {
		name, text string
		words      []string
	}{
		{"an unknown key", "lisen = 1\nlisten = 3010", []string{"c.toml:1: lisen: there is no such key: did you mean listen?"}},
		{"no TOML", "listen = 1\nlisten", []string{"c.toml:2: this is not TOML"}},
		{"a bad port", "\nlisten = \":99999\"", []string{"c.toml:2: listen", "99999"}},
		{"a bad level", "listen = 1\nlog_level = \"loud\"", []string{"c.toml:2: log_level", `"loud"`, `"debug", "info", "warn" or "error"`}},
		{"a bad drain", "listen = 1\ndrain = 5", []string{"c.toml:2: drain", "no unit"}},
		{"no token file of a key", strings.Replace(keyTable, "office.token", "gone.token", 1), []string{"c.toml:3: secret_file", "gone.token", "check the path"}},
		{"a mistyped token of a key", strings.Replace(keyTable, "office.token", "bad.token", 1), []string{"c.toml:3: secret_file", "bad.token"}},
		{"two keys of one name", keyTable + strings.Replace(keyTable, "office.token", "other.token", 1), []string{"c.toml:6: name", `two keys with the name "office"`}},
		{"two keys of one token", keyTable + strings.Replace(keyTable, `"office"`, `"b"`, 1), []string{"c.toml:7: secret_file", "the same token"}},
		{"a bad rule", strings.Replace(keyTable, "tcp/9000", "tcp/x", 1), []string{"c.toml:4: allow", `"x"`}},

		{"a public without a kind that is served", "token_file = \"office.token\"\n[[expose]]\npublic = \"udp/53\"\ntarget = 53", []string{"c.toml:3: public", "udp/ services are not in this version"}},
		{"two services for one public", "token_file = \"office.token\"\n" + exposed + exposed, []string{"c.toml:5: public tcp/9000 is given twice"}},
		{"a bad target", "token_file = \"office.token\"\n[[expose]]\npublic = 9000\ntarget = \"x:y:z\"", []string{"c.toml:4: target"}},
		{"no service at all", "token_file = \"office.token\"\n", []string{"nothing to expose", "c.toml has no [[expose]]"}},
		{"no token file", "token_file = \"gone.token\"\n" + exposed, []string{"c.toml:1: token_file", "gone.token", "check the path"}},
		{"a mistyped token", "token_file = \"bad.token\"\n" + exposed, []string{"c.toml:1: token_file", "bad.token", "mistyped"}},
		{"no token", exposed, []string{"the bridge has no token", "c.toml has no token_file"}},
		{"both roles", "listen = 1\n" + exposed, []string{"c.toml:2: expose", "listen on line 1"}},
	} {
		dir := folder(t)
		write(t, filepath.Join(dir, "bad.token"), tok[:50]+"x"+tok[51:])
		path := write(t, filepath.Join(dir, "c.toml"), c.text)
		var s Source = NewProxySource(ProxyArgs{Config: path})
		if strings.Contains(c.text, "token_file") || strings.Contains(c.text, exposed) && !strings.Contains(c.text, "listen") {
			s = NewBridgeSource(BridgeArgs{Config: path})
		}
		set, _, err := s.Load()
		want(t, c.name, err, c.words...)
		if set.Role != "" {
			t.Errorf("%s: Load = %+v beside an error", c.name, set)
		}
	}
}

// TestBadModes: files that others could have written, or whose secret they could have read.
func TestBadModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a file's mode says nothing there")
	}
	dir := folder(t)
	path := write(t, filepath.Join(dir, "c.toml"), keyTable)
	s := NewProxySource(ProxyArgs{Config: path})
	loaded(t, s)
	for _, file := range []string{path, filepath.Join(dir, "office.token")} {
		if err := os.Chmod(file, 0o666); err != nil {
			t.Fatal(err)
		}
		_, _, err := s.Load()
		want(t, "mode 0666 of "+file, err, "c.toml", "(mode 0666)", "run chmod ")
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	loaded(t, s)
}

// TestBadArgs: the command line, and what it makes of a good file.
func TestBadArgs(t *testing.T) {
	dir := folder(t)
	proxyFile := write(t, filepath.Join(dir, "p.toml"), "listen = 4000\n")
	bridgeFile := write(t, filepath.Join(dir, "b.toml"), "proxy = \"a\"\n[[expose]]\npublic = 9000\n")
	tok := testToken(1)
	tok.Addrs = nil
	common := func(c CommonArgs) ProxyArgs { return ProxyArgs{CommonArgs: c} }
	for _, c := range []struct {
		source Source
		hint   bool
		words  []string
	}{
		{NewProxySource(ProxyArgs{Listen: "90x0"}), false, []string{"--listen: ", "90x0"}},
		{NewProxySource(ProxyArgs{Transfer: "x"}), false, []string{"--transfer: "}},
		{NewProxySource(ProxyArgs{Transfer: "127.0.0.1:3010"}), true, []string{"--listen :3010 and --transfer 127.0.0.1:3010", "the same port"}},
		{NewProxySource(ProxyArgs{Config: proxyFile, Transfer: "4000"}), true, []string{"--listen :4000 and --transfer :4000", "listen or IcPort"}},
		{NewProxySource(ProxyArgs{Advertise: "a b"}), false, []string{"--advertise: "}},
		{NewProxySource(common(CommonArgs{LogFormat: "yaml"})), false, []string{"--log-format", `"yaml"`, "text or json"}},
		{NewProxySource(common(CommonArgs{LogLevel: "loud"})), false, []string{"--log-level", `"loud"`, "debug, info, warn or error"}},
		{NewProxySource(common(CommonArgs{Drain: "30"})), false, []string{"--drain", "no unit"}},
		{NewProxySource(common(CommonArgs{ResumeWithin: "0s"})), false, []string{"--resume-within", "not between 1s and 1000h"}},
		{NewBridgeSource(BridgeArgs{Expose: []string{"9000"}}), true, []string{"the bridge has no token"}},
		{NewBridgeSource(BridgeArgs{Expose: []string{"ghp_x"}}), true, []string{`argument 1, "ghp_x", is neither a token`}},
		{NewBridgeSource(BridgeArgs{Token: "rv1_x", Expose: []string{"9000"}}), false, []string{"token of the first argument"}},
		{NewBridgeSource(BridgeArgs{TokenEnv: "rv1_x", Expose: []string{"9000"}}), false, []string{"token of REVERSER_TOKEN"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Expose: []string{"9000"}}), true, []string{"the token carries no address"}},
		{NewProxySource(ProxyArgs{SNI: "a:1"}), false, []string{"--sni: ", "write the name alone"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, SNI: "192.0.2.1", Expose: []string{"9000"}}), false, []string{"--sni: ", "is an address"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, Keepalive: "4s", Expose: []string{"9000"}}), false, []string{"--keepalive: ", "not between 5s and 1h"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, Keepalive: "61m", Expose: []string{"9000"}}), false, []string{"--keepalive: ", "not between 5s and 1h"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, Keepalive: "25", Expose: []string{"9000"}}), false, []string{"--keepalive: ", "no unit"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, Sources: []string{"127.0.0.9", "nas"}, Expose: []string{"9000"}}), false, []string{"--source: ", `"nas" is no IP address`}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, Sources: []string{"127.0.0.9:80"}, Expose: []string{"9000"}}), false, []string{"--source: ", "without a port"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, Sources: []string{"127.0.0.9", "::ffff:127.0.0.9"}, Expose: []string{"9000"}}), false, []string{"--source: 127.0.0.9 is there twice"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a:0"}, Expose: []string{"9000"}}), false, []string{"--proxy: "}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, ProxyTransfer: "a", Expose: []string{"9000"}}), false, []string{"--proxy-transfer: "}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}}), true, []string{"nothing to expose"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Proxies: []string{"a"}, Expose: []string{"9000", "tcp/9000=1"}}), false, []string{"tcp/9000 is given twice"}},
		{NewBridgeSource(BridgeArgs{Token: tok.Encode(), Config: bridgeFile, Expose: []string{"90x0"}}), false, []string{"90x0"}},
	} {
		_, _, err := c.source.Load()
		want(t, fmt.Sprintf("%+v", c.words), err, c.words...)
		ae, ok := errors.AsType[*ArgError](err)
		if !ok || (ae.Hint != "") != c.hint {
			t.Errorf("%v: %#v; want an ArgError, with a hint: %t", err, err, c.hint)
		}
	}
}

// A service of the file that is on the command line too is a fault of the file, which is the one that can be changed.
func TestExposedTwice(t *testing.T) {
	path := write(t, "b.toml", "[[expose]]\npublic = 9001\n[[expose]]\npublic = 9000\n")
	_, _, err := NewBridgeSource(BridgeArgs{Token: testToken(1).Encode(), Config: path, Expose: []string{"9002", "tcp/9000=1"}}).Load()
	want(t, "a service in both", err, "b.toml:4: public tcp/9000 is given twice", `"tcp/9000=1" on the command line`)
}

func TestInForce(t *testing.T) {
	table := func(name string, id byte) KeyTable {
		return KeyTable{Name: name, Token: testToken(id), SecretFile: name + ".token", File: "p.toml", Line: 10 * int(id), nameLine: 10*int(id) + 1, secretLine: 10*int(id) + 2}
	}
	stored := func(name string, id byte) state.Key {
		return state.Key{Name: name, ID: [16]byte{id}, Secret: [32]byte{7}, Created: time.Unix(1, 0)}
	}
	foreign := table("foreign", 5)
	foreign.Token.Pin = [32]byte{1}
	rotated := stored("nas", 2)
	rotated.Secret = [32]byte{8}
	for _, c := range []struct {
		name   string
		tables []KeyTable
		stored []state.Key
		keys   string // name, id, f for one of the file, and the stored key in whose place it stands
		words  []string
	}{
		{name: "none", keys: ""},
		{name: "stored alone", stored: []state.Key{stored("a", 1), stored("b", 2)}, keys: "a1 b2"},
		{name: "tables add to them", tables: []KeyTable{table("c", 3)}, stored: []state.Key{stored("a", 1)}, keys: "c3f a1"},
		{name: "a table of a stored token and its name", tables: []KeyTable{table("a", 1)}, stored: []state.Key{stored("a", 1), stored("b", 2)}, keys: "a1f:a b2"},
		{name: "a table of a stored token, with another name", tables: []KeyTable{table("x", 1)}, stored: []state.Key{stored("a", 1)}, keys: "x1f:a"},
		{name: "names exchanged", tables: []KeyTable{table("b", 1), table("a", 2)}, stored: []state.Key{stored("a", 1), stored("b", 2)}, keys: "b1f:a a2f:b"},
		{name: "a stored name with another token", tables: []KeyTable{table("a", 3)}, stored: []state.Key{stored("a", 1)}, words: []string{"p.toml:31: name", `"a"`, "key remove a"}},
		{name: "a stored name that another table stands for", tables: []KeyTable{table("b", 1), table("a", 3)}, stored: []state.Key{stored("a", 1)}, keys: "b1f:a a3f"},
		{name: "a token of another proxy", tables: []KeyTable{foreign}, words: []string{"p.toml:52: secret_file", "foreign.token", "token of another proxy", "key add"}},
		{name: "an old secret", tables: []KeyTable{table("nas", 2)}, stored: []state.Key{rotated}, words: []string{"p.toml:22: secret_file", "nas.token holds another secret"}},
		{name: "several faults", tables: []KeyTable{foreign, table("a", 3)}, stored: []state.Key{stored("a", 1)}, words: []string{"p.toml:52: ", "p.toml:31: "}},
	} {
		keys, err := InForce(c.tables, c.stored, testToken(1).Pin)
		if len(c.words) > 0 {
			want(t, c.name, err, c.words...)
			if keys != nil {
				t.Errorf("%s: keys %v beside an error", c.name, keys)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var got []string
		for _, k := range keys {
			s := fmt.Sprint(k.Name, k.ID[0])
			if k.InFile() {
				s += "f"
			}
			if k.Stored != "" {
				s += ":" + k.Stored
			}
			if k.Created.IsZero() != k.InFile() {
				t.Errorf("%s: %s was created %v", c.name, k.Name, k.Created)
			}
			got = append(got, s)
		}
		if s := strings.Join(got, " "); s != c.keys {
			t.Errorf("%s: %s; want %s", c.name, s, c.keys)
		}
		if s := fmt.Sprintf("%v %+v %#v", keys, keys, keys); strings.Contains(s, "7, 0, 0") || strings.Contains(s, "7 0 0") {
			t.Errorf("%s: a secret is in %s", c.name, s)
		}
	}
}

// TestOffer: the key that follows what the file offers is allowed that, and a port that is offered to nobody is said.
func TestOffer(t *testing.T) {
	allow := func(words ...string) grammar.Policy {
		policy, err := grammar.ParsePolicy(words)
		if err != nil {
			t.Fatal(err)
		}
		return policy
	}
	following := state.Key{Name: "default", ID: [16]byte{1}, Allow: allow("tcp/29000"), Offered: true}
	edited, nas := following, state.Key{Name: "nas", ID: [16]byte{2}, Allow: allow("tcp/9000-9009", "http/*")}
	edited.Offered = false
	offered := Settings{Role: RoleProxy, Proxy: Proxy{Offer: []grammar.Public{{Kind: grammar.KindTCP, Port: 29001}}}}
	const nobody = "no key may have tcp/29001, which the configuration file offers: "
	for _, c := range []struct {
		name   string
		set    Settings
		stored []state.Key
		allow  string // of the first key
		said   string
	}{
		{"it follows", offered, []state.Key{following, nas}, "tcp/29001", ""},
		{"nothing is offered", Settings{}, []state.Key{following}, "tcp/29000", ""},
		{"it was edited", offered, []state.Key{edited, nas}, "tcp/29000", nobody + "`reverser key edit default --allow tcp/29001`"},
		{"another key", offered, []state.Key{nas}, "tcp/9000-9009, http/*", nobody + "`reverser key edit nas --allow tcp/29001` gives it that in the place of tcp/9000-9009, http/*"},
		{"two other keys", offered, []state.Key{nas, {Name: "b", ID: [16]byte{3}}}, "tcp/9000-9009, http/*", nobody + "`reverser key edit NAME --allow tcp/29001`"},
		{"a key with a range", offered, []state.Key{{Name: "b", ID: [16]byte{3}, Allow: grammar.DefaultPolicy()}}, "tcp/1024-65535", ""},
	} {
		set, err := c.set.WithKeys(c.stored, testToken(1).Pin)
		if err != nil {
			t.Fatal(err)
		}
		if got := set.Proxy.Keys[0].Allow.String(); got != c.allow {
			t.Errorf("%s: allowed %s, want %s", c.name, got, c.allow)
		}
		if got := strings.Join(set.Proxy.Unclaimable(), "\n"); got != c.said {
			t.Errorf("%s: said %q, want %q", c.name, got, c.said)
		}
	}
	if following.Allow.String() != "tcp/29000" {
		t.Error("what was stored is changed")
	}
	if words := offered.Proxy.Unclaimable(); words != nil {
		t.Errorf("without a key: %q", words)
	}
}

func TestChanges(t *testing.T) {
	dir := folder(t)
	// Each case changes one file into another and says what is different, or what is refused.
	for _, c := range []struct {
		name, before, after string
		said                []string
		refused             []string
	}{
		{"a comment", "listen = 4000\n# a\n", "# b\nlisten = 4000\n", nil, nil},
		{"a limit", "listen = 4000\n", "listen = 4000\ndrain = \"0s\"\nresume_within = \"1m\"\n", []string{"drain is 0s instead of the default", "resume_within is 1m0s instead of the default"}, nil},
		{"a level", "listen = 4000\nlog_level = \"debug\"", "listen = 4000\n", []string{"log_level is info instead of debug"}, nil},
		{"an access log", "listen = 4000\n", "listen = 4000\naccess_log = \"-\"\n", []string{"access_log is - instead of none"}, nil},
		{"an SNI for tokens", "", "sni = \"a\"", []string{"sni is a instead of none"}, nil},
		{"an address for tokens", "advertise = \"a\"", "advertise = \"b:1\"", []string{"advertise is b:1 instead of a:3010"}, nil},
		{"a key more", "listen = 4000\n", "listen = 4000\n" + keyTable, []string{"key office added, allowed tcp/9000"}, nil},
		{"a key less", "listen = 4000\n" + keyTable, "listen = 4000\n", []string{"key office removed"}, nil},
		{"a key's rights", keyTable, strings.Replace(keyTable, "9000", "9001", 1), []string{"key office allowed tcp/9001 instead of tcp/9000"}, nil},
		{"a key's limit", keyTable, keyTable + "max_services = 2\n", []string{"max_services of key office is 2 instead of without limit"}, nil},
		{"a key's connections", keyTable + "max_connections = 9\n", keyTable, []string{"max_connections of key office is without limit instead of 9"}, nil},
		{"a limit and rights", keyTable + "max_services = 2\n", strings.Replace(keyTable, "9000", "9001", 1) + "max_services = 3\n",
			[]string{"key office allowed tcp/9001 instead of tcp/9000", "max_services of key office is 3 instead of 2"}, nil},
		{"a key with a limit more", "listen = 4000\n", "listen = 4000\n" + keyTable + "max_services = 2\nmax_connections = 1\n", []string{"key office added, allowed tcp/9000, 2 services, 1 connection at once"}, nil},
		{"a key's token", keyTable, strings.Replace(keyTable, "office.token", "other.token", 1), []string{"key office has another token, allowed tcp/9000"}, nil},
		{"a key's name", keyTable, strings.Replace(keyTable, `"office"`, `"b"`, 1), []string{"key b added, allowed tcp/9000", "key office removed"}, nil},

		{"the link port", "listen = 4000\n", "\nlisten = 4001\n", nil, []string{"c.toml:2: listen: a change from :4000 to :4001 needs a restart"}},
		{"the link port again by default", "listen = 4000\n" + keyTable, keyTable, nil, []string{"c.toml: listen: a change from :4000 to :3010 needs a restart"}},
		{"a transfer port", "listen = 4000\n", "listen = 4000\ntransfer = 4001", nil, []string{"c.toml:2: transfer: a change from none to :4001 needs a restart"}},
		{"an address of public ports", "listen = 4000\n", "listen = 4000\nbind = \"192.0.2.1\"", nil, []string{"c.toml:2: bind: a change from every address to 192.0.2.1 needs a restart"}},
		{"a state directory", "listen = 1\n", "listen = 1\nstate = \"x\"", nil, []string{"c.toml:2: state: a change from the default directory to ", "needs a restart"}},
		{"a format", "listen = 1\n", "listen = 1\nlog_format = \"json\"", nil, []string{"c.toml:2: log_format: a change from text to json needs a restart"}},
		{"several", "listen = 1\ntransfer = 2", "listen = 3\ntransfer = 4\ndrain = \"1s\"", []string{"drain is 1s instead of the default"}, []string{"c.toml:1: listen", "c.toml:2: transfer"}},

		{"services", "token_file = \"office.token\"\n[[expose]]\npublic = 9000\n[[expose]]\npublic = 9001\n", "token_file = \"office.token\"\n[[expose]]\npublic = 9001\ntarget = 22\n[[expose]]\npublic = 9002\n",
			[]string{"service tcp/9000 removed", "service tcp/9001 has target 127.0.0.1:22 instead of 127.0.0.1:9001", "service tcp/9002 added, target 127.0.0.1:9002"}, nil},
		{"their order", "token_file = \"office.token\"\n[[expose]]\npublic = 9000\n[[expose]]\npublic = 9001\n", "token_file = \"office.token\"\n[[expose]]\npublic = 9001\n[[expose]]\npublic = 9000\n", nil, nil},
		{"a token", "token_file = \"office.token\"\n[[expose]]\npublic = 9000", "token_file = \"other.token\"\n[[expose]]\npublic = 9000", nil, []string{"c.toml:1: token_file: another token needs a restart"}},
		{"a token in the file", "token_file = \"office.token\"\n[[expose]]\npublic = 9000", "\ntoken = \"" + testToken(2).Encode() + "\"\n[[expose]]\npublic = 9000", nil, []string{"c.toml:2: token: another token needs a restart"}},
		{"the same token elsewhere", "token_file = \"office.token\"\n[[expose]]\npublic = 9000", "token = \"" + testToken(1).Encode() + "\"\n[[expose]]\npublic = 9000", nil, nil},
		{"a proxy", "token_file = \"office.token\"\n[[expose]]\npublic = 9000", "token_file = \"office.token\"\nproxy = \"a\"\n[[expose]]\npublic = 9000", nil, []string{"c.toml:2: proxy: a change from the token's address to a:3010 needs a restart"}},
		{"a bridge's keepalive", "token_file = \"office.token\"\n[[expose]]\npublic = 9000", "token_file = \"office.token\"\nkeepalive = \"5m\"\n[[expose]]\npublic = 9000", nil, []string{"c.toml:2: keepalive: a change from the default to 5m0s needs a restart"}},
		{"a source", "token_file = \"office.token\"\n[[expose]]\npublic = 9000", "token_file = \"office.token\"\nsource = \"127.0.0.9\"\n[[expose]]\npublic = 9000", []string{"source is 127.0.0.9 instead of the system's choice"}, nil},
		{"sources", "token_file = \"office.token\"\nsource = \"127.0.0.9\"\n[[expose]]\npublic = 9000", "token_file = \"office.token\"\nsource = [\"127.0.0.8\", \"::1\"]\n[[expose]]\npublic = 9000", []string{"source is 127.0.0.8, ::1 instead of 127.0.0.9"}, nil},
		{"a bridge's patience", "token_file = \"office.token\"\n[[expose]]\npublic = 9000", "token_file = \"office.token\"\nresume_within = \"9s\"\n[[expose]]\npublic = 9000", nil, []string{"c.toml:2: resume_within: a change from the default to 9s needs a restart"}},
	} {
		path := write(t, filepath.Join(dir, "c.toml"), c.before)
		var s Source
		if strings.Contains(c.before, "expose") {
			s = NewBridgeSource(BridgeArgs{Config: path})
		} else {
			p := NewProxySource(ProxyArgs{Config: path})
			p.UseState(func() ([]state.Key, error) { return nil, nil }, testToken(1).Pin)
			s = p
		}
		before := loaded(t, s)
		write(t, path, c.after)
		said, err := before.Changes(loaded(t, s))
		if !slices.Equal(said, c.said) {
			t.Errorf("%s: Changes = %q; want %q", c.name, said, c.said)
		}
		if len(c.refused) == 0 && err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if len(c.refused) > 0 {
			want(t, c.name, err, c.refused...)
			if !errors.Is(err, ErrNeedsRestart) {
				t.Errorf("%s: %v is no ErrNeedsRestart", c.name, err)
			}
		}
	}

	// The source system's words.
	path := write(t, filepath.Join(dir, "p.config"), proxyXML)
	s := NewProxySource(ProxyArgs{Config: path})
	before := loaded(t, s)
	write(t, path, strings.NewReplacer("9000", "9001", "3010", "3011").Replace(proxyXML))
	said, err := before.Changes(loaded(t, s))
	if !slices.Equal(said, []string{"port tcp/9001 offered", "port tcp/9000 offered no longer"}) {
		t.Errorf("WorkPort: %q", said)
	}
	want(t, "IcPort", err, "p.config:2: IcPort: a change from :3010 to :3011 needs a restart")
}

// Tokens with an address of this machine alone are of no use to another one, unless the proxy serves no other.
func TestUselessAddress(t *testing.T) {
	for _, c := range []struct {
		listen, advertise string
		warned            bool
	}{
		{"", "127.0.0.1", true}, {":3010", "localhost:3010", true}, {"0.0.0.0:3010", "[::1]", true}, {"192.168.1.7:3010", "127.0.0.2", true},
		{"127.0.0.1:3010", "127.0.0.1", false}, {"[::1]:3010", "localhost", false}, {":3010", "192.168.1.7", false}, {":3010", "example.com", false}, {":3010", "", false},
	} {
		_, warnings, err := NewProxySource(ProxyArgs{Listen: c.listen, Advertise: c.advertise}).Load()
		if err != nil || (len(warnings) == 1) != c.warned {
			t.Errorf("--listen %q --advertise %q: %v, %v; want a warning: %v", c.listen, c.advertise, warnings, err, c.warned)
		}
		if len(warnings) == 1 && (!strings.HasPrefix(warnings[0].String(), "--advertise: ") || !strings.Contains(warnings[0].String(), "public address of this server")) {
			t.Errorf("--advertise %q: %s", c.advertise, warnings[0])
		}
	}
	path := write(t, "p.toml", "listen = 3010\nadvertise = \"localhost\"\n")
	if _, warnings, err := NewProxySource(ProxyArgs{Config: path}).Load(); err != nil || len(warnings) != 1 || !strings.HasPrefix(warnings[0].String(), path+":2: ") {
		t.Errorf("advertise in a file: %v, %v", warnings, err)
	}
}
