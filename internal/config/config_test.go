package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"reverser/internal/access"
	"reverser/internal/acmetest"
	"reverser/internal/grammar"
)

const examples = "../../examples/config/"

func testToken(id byte) grammar.Token {
	return grammar.Token{Addrs: []string{"proxy.example.com:3010"}, KeyID: [16]byte{id}, Secret: [32]byte{7}, Pin: [32]byte{9}}
}

// write makes a file of mode 600 in a folder of its own, or next to another.
func write(t *testing.T, path, text string) string {
	t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(t.TempDir(), path)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// want checks an error for every one of some words, and for the token's absence.
func want(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s is taken; want an error with %q", what, words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v; want %q in it", what, err, w)
		}
	}
	for id := range byte(3) {
		if s := testToken(id).Encode(); strings.Contains(err.Error(), s[30:60]) {
			t.Errorf("%s: %v; the token is in it", what, err)
		}
	}
}

func proxyOf(path string) (*proxyFile, []Warning, error)   { return loadProxy(path, access.Rules{}) }
func bridgeOf(path string) (*bridgeFile, []Warning, error) { return loadBridge(path, access.Rules{}) }

func TestProxyTOML(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "office.token"), testToken(1).Encode()+"\n")
	path := write(t, filepath.Join(dir, "proxy.toml"), `
listen = 3010
transfer = "127.0.0.1:3020"
advertise = "proxy.example.com"
state = "state"
log_format = "json"

[[key]]
name = "office"
secret_file = "office.token"
allow = ["tcp/9000", 9001, "tcp/9100-9110", "http/*.example.com", "private/*"]
`)
	p, warnings, err := proxyOf(path)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("loadProxy = %v, %v", warnings, err)
	}
	if p.Listen != ":3010" || p.Transfer != "127.0.0.1:3020" || p.Advertise != "proxy.example.com" || p.LogFormat != "json" {
		t.Errorf("loadProxy = %+v", p)
	}
	if p.State != filepath.Join(dir, "state") {
		t.Errorf("State = %q; want it next to the file", p.State)
	}
	if len(p.Tables) != 1 || p.Tables[0].Name != "office" || p.Tables[0].Token.Encode() != testToken(1).Encode() ||
		p.Tables[0].SecretFile != filepath.Join(dir, "office.token") ||
		p.Tables[0].Allow.String() != "tcp/9000, tcp/9001, tcp/9100-9110, http/*.example.com, private/*" {
		t.Errorf("Keys = %+v", p.Tables)
	}
	if got, want := p.origin["transfer"], (Place{path, 3, "transfer"}); got != want {
		t.Errorf("origin of transfer = %v; want %v", got, want)
	}
	if role, _, err := Check(path); role != RoleProxy || err != nil {
		t.Errorf("Check = %q, %v", role, err)
	}
	_, _, err = bridgeOf(path)
	want(t, "a proxy's file for a bridge", err, path, "configuration of a proxy", "reverser proxy --config")
}

func TestBridgeTOML(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "bridge.toml"), `
token_file = "sub/bridge.token"
proxy = "Proxy.Example.com:3010"
proxy_transfer = "[2001:DB8::1]:3020"
[[expose]]
public = 9000
target = 9904
[[expose]]
public = "tcp/9001"
[[expose]]
public = "tcp/[::1]:9002"
target = "nas:80"
`)
	b, warnings, err := bridgeOf(path)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("loadBridge = %v, %v", warnings, err)
	}
	if b.TokenFile != filepath.Join(dir, "sub", "bridge.token") || fmt.Sprint(b.Proxies) != "[proxy.example.com:3010]" || b.ProxyTransfer != "[2001:db8::1]:3020" {
		t.Errorf("loadBridge = %+v", b)
	}
	if got := fmt.Sprint(b.Expose); got != "[tcp/9000=127.0.0.1:9904 tcp/9001=127.0.0.1:9001 tcp/[::1]:9002=nas:80]" {
		t.Errorf("Expose = %s", got)
	}
	bare := write(t, "bare.toml", `proxy = "Proxy.Example.com"`)
	if b, _, err := bridgeOf(bare); err != nil || fmt.Sprint(b.Proxies) != "[proxy.example.com:3010]" {
		t.Errorf("loadBridge without a port = %+v, %v; want port 3010", b, err)
	}
	_, _, err = proxyOf(path)
	want(t, "a bridge's file for a proxy", err, path, "configuration of a bridge", "reverser bridge --config")

	_, _, err = Check(path)
	want(t, "a missing token file", err, path+":2: token_file", filepath.Join(dir, "sub", "bridge.token"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Check = %v; want fs.ErrNotExist", err)
	}

	path = write(t, "bridge.toml", "token = ' "+testToken(1).Encode()+"'")
	b, _, err = bridgeOf(path)
	if err != nil || b.Token != testToken(1).Encode() {
		t.Errorf("loadBridge with a token = %v", err)
	}
	role, warnings, err := Check(path)
	if role != RoleBridge || err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].String(), "no [[expose]]") {
		t.Errorf("Check = %q, %v, %v", role, warnings, err)
	}
}

// An empty file is one in which every option has its default.
func TestEmptyTOML(t *testing.T) {
	path := write(t, "empty.toml", "# nothing\n")
	if _, _, err := proxyOf(path); err != nil {
		t.Error(err)
	}
	if _, _, err := bridgeOf(path); err != nil {
		t.Error(err)
	}
	role, _, err := Check(path)
	want(t, "an empty file", err, "nothing in it tells a proxy from a bridge")
	if role != "" {
		t.Errorf("Check = %q", role)
	}
}

// What is there twice is no matter of quotes.
func TestTOMLTwice(t *testing.T) {
	for text, remedy := range map[string]string{
		"listen = 1\nlisten = 2":                         "already defined: keep one of the two",
		"[[key]]\nname = \"a\"\nname = \"b\"":            "already defined: keep one of the two",
		"[[expose]]\npublic = 1\n[expose]\npublic = 2\n": "already exists as an array of tables",
		"listen = 1\n[listen]\na = 1":                    "should be a table, not a value",
	} {
		_, _, err := Check(write(t, "c.toml", text))
		want(t, text, err, "not TOML", remedy)
		if err != nil && strings.Contains(err.Error(), "quotes") {
			t.Errorf("%s: %v, with a hint at quotes", text, err)
		}
	}
}

func TestTOMLErrors(t *testing.T) {
	tok := testToken(1).Encode()
	const key = "[[key]]\nname = \"a\"\nsecret_file = \"good.token\"\nallow = [\"tcp/9000\"]\n"
	for _, c := range []struct {
		name, text string
		words      []string
	}{
		{"an unknown key", "listen = 3010\nlissten = 1\n", []string{":2: lissten", "no such key", "did you mean listen?"}},
		{"hyphens", "proxy-transfer = \"a:1\"", []string{":1: proxy-transfer", "did you mean proxy_transfer?"}},
		{"a far key", "bandwidth = 1", []string{":1: bandwidth", "the keys here are listen, transfer"}},
		{"a plural", "[[exposes]]\npublic = 1", []string{":1: exposes", "did you mean expose?"}},
		{"a later key", "listen = 1\nkeys_from = \"a\"", []string{":2: keys_from: this is not in this version yet"}},
		{"a later key of a key", key + "allow_connect = [\"db\"]", []string{":5: allow_connect", "not in this version"}},
		{"an unknown key of a key", key + "secretfile = 1", []string{":5: secretfile", "did you mean secret_file?"}},
		{"an unknown key of an expose", "[[expose]]\npublic = 1\ntarge = 2", []string{":3: targe", "did you mean target?"}},
		{"both roles", "listen = 3010\n\n[[expose]]\npublic = 1", []string{":3: expose", "a bridge's", "listen on line 1", "two files"}},
		{"both roles reversed", "proxy = \"a:1\"\n[[key]]\n", []string{":2: key", "a proxy's", "proxy on line 1"}},
		{"a notice without a url", "listen = 1\n[[notify]]\nformat = \"json\"", []string{":2: url", "webhook"}},
		{"a notice to no web server", "listen = 1\n[[notify]]\nurl = \"ftp://secret.example.com/x\"", []string{":3: url", "https://"}},
		{"a notice to nowhere", "listen = 1\n[[notify]]\nurl = \"secret\"", []string{":3: url", "no address of a web server"}},
		{"a notice of an unknown kind", "listen = 1\n[[notify]]\nurl = \"https://a/b\"\nformat = \"telegram\"", []string{":4: format", "json, slack, wecom, dingtalk, feishu"}},
		{"a notice of an unknown event", "listen = 1\n[[notify]]\nurl = \"https://a/b\"\non = [\"bridge-lost\"]", []string{":4: on", "bridge-lost", "bridge-down"}},
		{"a notice of no events", "listen = 1\n[[notify]]\nurl = \"https://a/b\"\non = []", []string{":4: on", "leave it out"}},
		{"a notice after no time", "listen = 1\n[[notify]]\nurl = \"https://a/b\"\nafter = \"soon\"", []string{":4: after", "30s"}},
		{"too many notices", "listen = 1\n" + strings.Repeat("[[notify]]\nurl = \"https://a/b\"\n", 21), []string{":2: notify", "at most 20"}},
		{"no list of tables", "[expose]\npublic = 1", []string{":1: expose", "write [[expose]]"}},
		{"no table", "key = [1]", []string{":1: key", "write [[key]]"}},
		{"an inline table", "expose = [\n{public = 9000},\n{publik = 9001}]", []string{"publik", "did you mean public?"}},
		{"a port without quotes", "listen = 127.0.0.1:3010", []string{":1: ", "not TOML", "double quotes"}},
		{"a port without quotes, with what to write", "listen = :3010", []string{":1: ", `write listen = ":3010"`}},
		{"a duration without quotes", "listen = 1\ndrain = 30s # seconds", []string{":2: ", `write drain = "30s"`}},
		{"curly quotes", "proxy = “a”", []string{":1: ", "not TOML", "curly quotes", "Latin keyboard"}},
		{"single curly quotes", "proxy = ‘a’", []string{":1: ", "curly quotes"}},
		{"a full-width sign", "listen = 1\nproxy ＝ \"a\"", []string{":2: ", "full-width", "Latin keyboard"}},
		{"a full-width space", "proxy = \"a\"\u3000# x", []string{":1: ", "full-width"}},
		{"a full-width comma in a comment", "proxy = a # 一，二", []string{":1: ", `write proxy = "a"`}},
		{"a Windows path", `token_file = "C:\Users\x\t.txt"`, []string{":1: ", "single quotes, such as 'C:"}},
		{"a Windows path that happens to be TOML", `token_file = "C:\temp\new.token"`, []string{":1: token_file", "single quotes, such as 'C:"}},
		{"such a path of a key", strings.Replace(key, `"good.token"`, `"C:\temp\n.token"`, 1), []string{":3: secret_file", "single quotes"}},
		{"such a path of the state", "listen = 1\nstate = \"C:\\temp\"", []string{":2: state", "single quotes"}},
		{"YAML", "proxy: a", []string{":1: ", "YAML", `write proxy = "…"`}},
		{"JSON", "{\"proxy\": \"a\"}", []string{":1: ", `key = "value"`}},
		{"nginx", "server {\n listen 80;\n}", []string{":1: ", `key = "value"`}},
		{"frp", "serverAddr = \"x\"\nserverPort = 7000\n[[proxies]]\nname = \"a\"", []string{":1: serverAddr", `it is proxy = "HOST:PORT"`, ":2: serverPort", ":3: proxies", "[[expose]]"}},
		{"old frp", "[common]\nserver_addr = \"x\"", []string{":1: common", "without a section"}},
		{"rathole", "[client]\nremote_addr = \"x:2333\"\n", []string{":1: client", "without a section"}},
		{"a service as on the command line", "[[expose]]\npublic = \"9000=9904\"", []string{":2: public", `write public = "9000" and target = "9904"`}},
		{"a service as ssh has it", "[[expose]]\npublic = \"9000:nas:9904\"", []string{":2: public", `write public = "9000" and target = "nas:9904"`}},
		{"not text", "listen = true", []string{":1: listen", "write it in quotes"}},
		{"a list", "listen = [1]", []string{":1: listen", "one text in quotes"}},
		{"an empty value", "listen = \"\"", []string{":1: listen", "empty"}},
		{"twice", "listen = 1\nlisten = 2", []string{":2"}},
		{"the same port twice", "transfer = 3010", []string{":1: transfer", "address of listen"}},
		{"a bad bind", "listen = 1\nbind = \"203.0.113.5:9000\"", []string{":2: bind", "no IP address", "without a port"}},
		{"a bind of many machines", "listen = 1\nbind = \"239.1.2.3\"", []string{":2: bind", "many machines"}},
		{"a bad advertise", "listen = 1\nadvertise = \"a b\"", []string{":2: advertise", "HOST or HOST:PORT"}},
		{"a bad format", "log_format = \"xml\"\nlisten = 1", []string{":1: log_format", `"text" or "json"`}},
		{"a short keepalive", "proxy = \"a\"\nkeepalive = \"4s\"", []string{":2: keepalive", "not between 5s and 1h"}},
		{"a source of many machines", "source = \"224.0.0.1\"", []string{":1: source", "address of many machines"}},
		{"sources that are none", "source = [\n]", []string{":1: source", "the list is empty"}},
		{"a source of a proxy", "listen = 1\nsource = \"127.0.0.9\"", []string{":2: source", "this key is a bridge's"}},
		{"an open admin address", "listen = 1\nadmin = \":3011\"", []string{":2: admin", "other machines may reach"}},
		{"what is to come", "listen = 1\ncluster = \"x\"", []string{":2: cluster: this is not in this version yet: leave it out"}},
		{"the placeholder", "proxy = \"47.109.*.*:3010\"", []string{":1: proxy", "put the server's address there"}},
		{"the printed placeholder", "proxy = \"YOUR.SERVER:3010\"", []string{":1: proxy", "put the server's address there"}},
		{"no port", "proxy_transfer = \"example.com\"", []string{":1: proxy_transfer", "port is missing"}},
		{"no host", "proxy = \":3010\"", []string{":1: proxy", "host before the port is missing"}},

		{"a key without anything", "[[key]]\n", []string{":1: name: this key is missing", ":1: secret_file: this key is missing", ":1: allow: this key is missing"}},
		{"a bad name", strings.Replace(key, `"a"`, `"a b"`, 1), []string{":2: name", `"a b"`}},
		{"two names", key + strings.Replace(key, "good", "other", 1), []string{":6: name", `two keys with the name "a"`}},
		{"two keys of a token", key + strings.Replace(key, `"a"`, `"b"`, 1), []string{":7: secret_file", "the same token", "key add"}},
		{"no secret file", strings.Replace(key, "good", "none", 1), []string{":3: secret_file", "none.token", "check the path"}},
		{"an empty secret file", strings.Replace(key, "good", "empty", 1), []string{":3: secret_file", "empty.token is empty"}},
		{"a mistyped secret file", strings.Replace(key, "good", "bad", 1), []string{":3: secret_file", "bad.token", "mistyped"}},
		{"a directory", strings.Replace(key, "good.token", ".", 1), []string{":3: secret_file", "directory"}},
		{"a token for a secret file", strings.Replace(key, "good.token", tok, 1), []string{":3: secret_file", "the value is a token"}},
		{"allow is no list", strings.Replace(key, `["tcp/9000"]`, `"tcp/9000"`, 1), []string{":4: allow", `write allow = ["tcp/9000"]`}},
		{"a limit that is none", key + "max_services = 0", []string{":5: max_services", "leave it out"}},
		{"a limit of the wrong type", key + `max_services = "3"`, []string{":5: max_services", "max_services = 10"}},
		{"no connections", key + "max_connections = 0", []string{":5: max_connections", "1 or more", "max_connections = 100"}},
		{"allow is empty", strings.Replace(key, `["tcp/9000"]`, `[]`, 1), []string{":4: allow", "empty"}},
		{"a bad rule", strings.Replace(key, `tcp/9000`, `tcp/90x0`, 1), []string{":4: allow", `port "90x0"`}},
		{"a rule of the wrong type", strings.Replace(key, `"tcp/9000"`, `true`, 1), []string{":4: allow", "quotes"}},

		{"a mistyped token", "token = \"" + tok[:50] + "x" + tok[51:] + "\"", []string{":1: token", "mistyped"}},
		{"a token without quotes", "token = " + tok, []string{":1: ", "not TOML"}},
		{"half a string", "token = \"" + tok, []string{":1: ", "not TOML"}},
		{"a token as a key", tok + " = 1", []string{":1: ", "token_file"}},
		{"a token as a proxy", "proxy = \"" + tok + "\"", []string{":1: proxy", "the value is a token"}},
		{"a token as a public", "[[expose]]\npublic = \"" + tok + "\"", []string{":2: public", "the value is a token"}},
		{"two tokens", "token = \"" + tok + "\"\ntoken_file = \"x\"", []string{":2: token_file", "token on line 1"}},

		{"no public", "[[expose]]\ntarget = 9904", []string{":1: public: this key is missing"}},
		{"an empty public", "[[expose]]\npublic = \"\"", []string{":2: public is empty"}},
		{"no target", "[[expose]]\npublic = \"tcp/127.0.0.1:9000\"", []string{":2: public", "target is missing"}},
		{"an empty target", "[[expose]]\npublic = 9000\ntarget = \"\"", []string{":3: target", "empty"}},
		{"no version of a header", "[[expose]]\npublic = 9000\nproxy_protocol = 2", []string{":3: proxy_protocol", "no version of the PROXY protocol", `write "v1" or "v2"`}},
		{"a version that there is not", "[[expose]]\npublic = 9000\nproxy_protocol = \"v3\"", []string{":3: proxy_protocol", `write "v1" or "v2"`}},
		{"neither true nor false", "[[expose]]\npublic = 9000\ntransparent = \"true\"", []string{":3: transparent", "without quotes"}},
		{"a unix socket that sees addresses", "[[expose]]\npublic = 9000\ntarget = \"unix:/run/app.sock\"\ntransparent = true", []string{":4: transparent", "come from no address", "proxy_protocol"}},
		{"a bad target", "[[expose]]\npublic = 9000\ntarget = \"localhost\"", []string{":3: target", "no port"}},
		{"a kind of another version", "[[expose]]\npublic = \"udp/53\"\ntarget = 53", []string{":2: public", "udp/ services are not in this version"}},
		{"two for one", "[[expose]]\npublic = 9000\n[[expose]]\npublic = \"tcp/9000\"\ntarget = 1", []string{":4: public tcp/9000 is given twice"}},
		{"overlapping", "[[expose]]\npublic = 9000\n[[expose]]\npublic = \"tcp/127.0.0.1:9000\"\ntarget = 1", []string{":4: ", "overlap"}},
		{"several faults", "listen = \"x\"\nadvertise = \"\"\nfoo_bar = 1", []string{":1: listen", ":2: advertise", ":3: foo_bar"}},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "good.token"), tok)
		write(t, filepath.Join(dir, "other.token"), testToken(2).Encode())
		write(t, filepath.Join(dir, "bad.token"), tok[:50]+"x"+tok[51:])
		write(t, filepath.Join(dir, "empty.token"), "\n")
		path := write(t, filepath.Join(dir, "c.toml"), c.text)
		_, _, err := Check(path)
		want(t, c.name, err, append(c.words, path)...)
	}
}

// TestExpires: the moment of a key is a time as TOML has it, or a text.
func TestExpires(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "good.token"), testToken(1).Encode())
	const key = "[[key]]\nname = \"a\"\nsecret_file = \"good.token\"\nallow = [\"tcp/9000\"]\nexpires = "
	at := time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)
	for _, value := range []string{"2027-01-31T00:00:00Z", `"2027-01-31T00:00:00Z"`, "2027-01-31 01:00:00+01:00", "2027-01-31T00:00:00.7Z"} {
		p, _, err := proxyOf(write(t, filepath.Join(dir, "p.toml"), key+value+"\n"))
		if err != nil || !p.Tables[0].Expires.Equal(at) {
			t.Errorf("expires = %s: %+v, %v; want %s", value, p.Tables, err, at)
		}
	}
	for value, word := range map[string]string{
		"2027-01-31T00:00:00": "2027-01-31T00:00:00 is no moment: it has no time zone", "2027-01-31": "2027-01-31 is no moment", "07:32:00": "is no moment",
		"1801353600": "the value is a number", "true": "the value is no text", `"30d"`: "a file has no now to count from", "1969-01-01T00:00:00Z": "is no time",
	} {
		path := write(t, filepath.Join(dir, "p.toml"), key+value+"\n")
		_, _, err := proxyOf(path)
		want(t, "expires = "+value, err, path+":5: expires: ", word)
	}
}

// TestLaterKeys: a file of a version to come is told from one with a slip in it, also where the key looks like one of ours.
func TestLaterKeys(t *testing.T) {
	for table, keys := range later {
		head := "proxy = \"a\"\n\n"
		if table != "" {
			head = "\n[[" + table + "]]\n"
		}
		for _, key := range keys {
			path := write(t, "c.toml", head+key+" = [\"a\"]\n")
			_, _, err := Check(path)
			if err == nil || !strings.Contains(err.Error(), path+":3: "+key+": this is not in this version yet: ") || strings.Contains(err.Error(), "did you mean") {
				t.Errorf("%s of [[%s]]: %v; want the word that it comes later", key, table, err)
			}
		}
	}
	path := write(t, "c.toml", "listen = 1\n[[policy]]\npublic = \"tcp/9000\"\nbandwidth = \"1mbit\"\n")
	_, _, err := Check(path)
	if want := path + ":2: policy: this is not in this version yet: leave it out"; err == nil || err.Error() != want {
		t.Errorf("a policy: %v; want %s", err, want)
	}
	path = write(t, "c.toml", "[[expose]]\npublic = \"tcp/127.0.0.1:9000\"\ntargets = [\"a:1\", \"b:1\"]\n")
	_, _, err = Check(path)
	if want := path + `:3: targets: this is not in this version yet: give one: target = "…"`; err == nil || err.Error() != want {
		t.Errorf("several targets: %v; want %s", err, want)
	}
}

func TestBadPortsNameTheKey(t *testing.T) {
	for _, port := range []string{"90x0", "0", "65536", "-1"} {
		quoted := `"` + port + `"`
		values := []string{quoted}
		if port != "90x0" {
			values = append(values, port) // as a number
		}
		for _, v := range values {
			for _, c := range []struct{ key, text string }{
				{"listen", "listen = " + v},
				{"transfer", "transfer = " + v},
				{"public", "[[expose]]\npublic = " + v},
				{"target", "[[expose]]\npublic = 9000\ntarget = " + v},
				{"allow", "[[key]]\nallow = [" + v + "]"},
			} {
				_, _, err := Check(write(t, "c.toml", c.text))
				want(t, c.text, err, c.key, quoted)
			}
		}
		for _, c := range []struct{ key, text string }{
			{"advertise", "advertise = \"a:" + port + "\""},
			{"proxy", "proxy = \"a:" + port + "\""},
			{"proxy_transfer", "proxy_transfer = \"a:" + port + "\""},
		} {
			_, _, err := Check(write(t, "c.toml", c.text))
			want(t, c.text, err, c.key, quoted)
		}
		for _, keys := range [][]string{{xmlWorkPort, xmlIcPort, xmlTransferPort}, {xmlProxyIcPort, xmlProxyTransferPort, xmlRealServerPort}} {
			for _, key := range keys {
				text := proxyXML
				if keys[0] != xmlWorkPort {
					text = bridgeXML
				}
				text = regexp.MustCompile(`(key="`+key+`" value=)"\d+"`).ReplaceAllString(text, `$1"`+port+`"`)
				_, _, err := Check(write(t, "c.config", text))
				want(t, text, err, key, quoted)
			}
		}
	}
}

// tokenIn reads a token file by the rules for a user who trusts no other one.
func tokenIn(path string, stdin io.Reader) (string, error) {
	text, _, err := readTokenFile(path, stdin, access.Rules{})
	return text, err
}

func TestLooseFiles(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a file's mode says nothing there")
	}
	tok := testToken(1).Encode()
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o644, 0o620, 0o602, 0o666} {
		dir := t.TempDir()
		loose := write(t, filepath.Join(dir, "loose.token"), tok)
		if err := os.Chmod(loose, mode); err != nil {
			t.Fatal(err)
		}
		_, err := tokenIn(loose, nil)
		can := map[fs.FileMode]string{0o620: "write it", 0o602: "write it", 0o666: "read and write it"}[mode]
		if can == "" {
			can = "read it"
		}
		want(t, "a loose token file", err, loose, "others on this machine can "+can+" (mode ", "chmod 600 "+loose)

		_, _, err = proxyOf(write(t, filepath.Join(dir, "p.toml"), "[[key]]\nname = \"a\"\nsecret_file = \"loose.token\"\nallow = [9000]"))
		want(t, "a loose secret file", err, "p.toml:3: secret_file", "chmod 600 "+loose)

		_, _, err = Check(write(t, filepath.Join(dir, "f.toml"), "token_file = \"loose.token\"\n"))
		want(t, "a loose token file", err, "f.toml:1: token_file", "chmod 600 "+loose)

		path := write(t, filepath.Join(dir, "b.toml"), "\ntoken = \""+tok+"\"")
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, _, err = bridgeOf(path)
		want(t, "a loose file with a token", err, path+":2: token", "chmod 600 "+path, "token_file")

		// Without a secret in it, a file may be read by everybody.
		path = write(t, filepath.Join(dir, "c.toml"), "proxy = \"a:1\"")
		if err := os.Chmod(path, mode&^0o022); err != nil {
			t.Fatal(err)
		}
		if _, _, err = bridgeOf(path); err != nil {
			t.Error(err)
		}
	}
	for _, mode := range []fs.FileMode{0o600, 0o400, 0o700} {
		path := write(t, "t", tok)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if got, err := tokenIn(path, nil); got != tok || err != nil {
			t.Errorf("ReadTokenFile with mode %04o = %v", mode, err)
		}
	}
}

func TestReadTokenFile(t *testing.T) {
	tok := testToken(1).Encode()
	if got, err := tokenIn("-", strings.NewReader(" "+tok+"\r\n")); got != tok || err != nil {
		t.Errorf("ReadTokenFile(-) = %v", err)
	}
	_, err := tokenIn("-", strings.NewReader("\n"))
	want(t, "nothing on stdin", err, "standard input", "none")
	_, err = tokenIn(write(t, "big", strings.Repeat("x", maxFile+1)), nil)
	want(t, "a big file", err, "larger")
	for name, text := range encodings(tok + "\r\n") {
		if got, err := tokenIn(write(t, "t", text), nil); got != tok || err != nil {
			t.Errorf("ReadTokenFile as %s = %v", name, err)
		}
	}
}

func TestUnreadable(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.toml")
	for _, load := range []func(string) error{
		func(p string) error { _, _, err := proxyOf(p); return err },
		func(p string) error { _, _, err := bridgeOf(p); return err },
		func(p string) error { _, _, err := Check(p); return err },
	} {
		err := load(missing)
		want(t, "a missing file", err, missing, "check the path")
		if !errors.Is(err, fs.ErrNotExist) || strings.Count(err.Error(), missing) != 1 {
			t.Errorf("%v; want fs.ErrNotExist, and the path once", err)
		}
		want(t, "a directory", load(t.TempDir()), "directory")
	}
}

// encodings is a text as Windows editors and shells write it.
func encodings(text string) map[string]string {
	m := map[string]string{
		"UTF-8":                     text,
		"UTF-8 with a mark":         "\xef\xbb\xbf" + text,
		"UTF-8 with CRLF":           strings.ReplaceAll(strings.ReplaceAll(text, "\r", ""), "\n", "\r\n"),
		"UTF-16 little-endian":      "\xff\xfe",
		"UTF-16 big-endian":         "\xfe\xff",
		"UTF-16 with half a letter": "\xff\xfe",
	}
	for _, u := range utf16.Encode([]rune(text)) {
		m["UTF-16 little-endian"] += string([]byte{byte(u), byte(u >> 8)})
		m["UTF-16 big-endian"] += string([]byte{byte(u >> 8), byte(u)})
	}
	m["UTF-16 with half a letter"] = m["UTF-16 little-endian"] + "\n"
	m["UTF-16 without a mark"] = strings.TrimPrefix(m["UTF-16 little-endian"], "\xff\xfe")
	m["UTF-16 big-endian without a mark"] = strings.TrimPrefix(m["UTF-16 big-endian"], "\xfe\xff")
	return m
}

func TestTOMLEncodings(t *testing.T) {
	for name, text := range encodings("# öffentlich\nproxy = \"a:1\"\n") {
		b, _, err := bridgeOf(write(t, "b.toml", text))
		if err != nil || fmt.Sprint(b.Proxies) != "[a:1]" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Text in another encoding is refused with where it is and what to do, in every file that people write.
func TestOtherEncodings(t *testing.T) {
	const gbk = "# \xb9\xa4\xd7\xf7\xb6\xcb\xbf\xda\n" // "work port"
	tok := testToken(1).Encode()
	utf32 := func(text string) string {
		s := "\xff\xfe\x00\x00"
		for _, c := range []byte(text) {
			s += string([]byte{c, 0, 0, 0})
		}
		return s
	}
	for _, c := range []struct{ name, text, where, word string }{
		{"GBK", "proxy = \"a:1\"\n" + gbk, ":2: ", "GBK"},
		{"Latin-1", "# \xf6ffentlich\nproxy = \"a:1\"\n", ":1: ", "not UTF-8"},
		{"UTF-8 cut short", "proxy = \"a:1\"\n# \xe5\xb7", ":2: ", "not UTF-8"},
		{"UTF-32", utf32("proxy = \"a:1\"\n"), ":1: ", "zero byte"},
		{"a program", "\x7fELF\x02\x01\x01\x00\x00", ":1: ", "zero byte"},
	} {
		for _, load := range []func(string) error{
			func(p string) error { _, _, err := proxyOf(p); return err },
			func(p string) error { _, _, err := bridgeOf(p); return err },
			func(p string) error { _, _, err := Check(p); return err },
		} {
			path := write(t, "c.toml", c.text)
			err := load(path)
			want(t, c.name, err, path+c.where, c.word, "save the file as UTF-8 (in Notepad: ")
			if err != nil && (strings.Contains(err.Error(), "quotes") || !errors.Is(err, errEncoding)) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		path := write(t, "c.token", strings.ReplaceAll(c.text, "proxy", tok))
		_, _, err := readTokenFile(path, nil, access.Rules{})
		want(t, c.name+" as a token", err, "token file "+path+c.where, c.word, "save the file as UTF-8 (in Notepad: ")
		_, _, err = readTokenFile("-", strings.NewReader(c.text), access.Rules{})
		want(t, c.name+" on stdin", err, "standard input"+c.where, c.word)
	}
	// The files that a configuration names.
	dir := t.TempDir()
	write(t, filepath.Join(dir, "x.token"), tok+"\n"+gbk)
	_, _, err := proxyOf(write(t, filepath.Join(dir, "p.toml"), "[[key]]\nname = \"a\"\nsecret_file = \"x.token\"\nallow = [9000]"))
	want(t, "a secret file in GBK", err, "p.toml:3: secret_file", "x.token:2: ", "save the file as UTF-8")
	_, _, err = Check(write(t, filepath.Join(dir, "b.toml"), "token_file = \"x.token\"\n"))
	want(t, "a token file in GBK", err, "b.toml:1: token_file", "x.token:2: ", "save the file as UTF-8")
}

// uncommented is an example with every option at rest put to work.
func uncommented(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(examples + file)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^#([a-z0-9_]+ = |\[\[)`).ReplaceAllString(string(b), "$1")
}

func TestExampleTOML(t *testing.T) {
	p, warnings, err := proxyOf(examples + "proxy.toml")
	if err != nil || len(warnings) != 0 || p.Listen != ":3010" {
		t.Errorf("proxy.toml = %+v, %v, %v", p, warnings, err)
	}
	b, warnings, err := bridgeOf(examples + "bridge.toml")
	if err != nil || len(warnings) != 0 || fmt.Sprint(b.Expose) != "[tcp/9000=127.0.0.1:9904]" {
		t.Errorf("bridge.toml = %+v, %v, %v", b, warnings, err)
	}
	for file, wantRole := range map[string]string{"proxy.toml": RoleProxy, "bridge.toml": RoleBridge} {
		if role, _, err := Check(examples + file); role != wantRole || err != nil {
			t.Errorf("Check(%s) = %q, %v", file, role, err)
		}
	}

	dir := t.TempDir()
	for i, name := range []string{"office.token", "workshop.token", "bridge.token"} {
		write(t, filepath.Join(dir, name), testToken(byte(i)).Encode())
	}
	write(t, filepath.Join(dir, "app.users"), bcryptLine)
	chain, key := acmetest.Certificate(t, "*.example.com")
	write(t, filepath.Join(dir, "authority.pem"), string(chain))
	write(t, filepath.Join(dir, "wildcard.pem"), string(chain))
	write(t, filepath.Join(dir, "admin.pem"), string(chain))
	write(t, filepath.Join(dir, "admin.key"), string(key))
	write(t, filepath.Join(dir, "wildcard.key"), string(key))
	c := certificateFor(t, soon(), "app.example.com")
	write(t, filepath.Join(dir, "fullchain.pem"), c.chain)
	write(t, filepath.Join(dir, "privkey.pem"), c.key)
	proxyText, bridgeText := uncommented(t, "proxy.toml"), uncommented(t, "bridge.toml")
	path := write(t, filepath.Join(dir, "proxy.toml"), proxyText)
	if role, warnings, err := Check(path); role != RoleProxy || len(warnings) != 0 || err != nil {
		t.Errorf("proxy.toml with everything = %q, %v, %v", role, warnings, err)
	}
	p, _, err = proxyOf(path)
	if err != nil || len(p.Tables) != 2 || p.Advertise == "" || p.Transfer == "" {
		t.Errorf("proxy.toml with everything = %+v, %v", p, err)
	}
	path = write(t, filepath.Join(dir, "bridge.toml"), bridgeText)
	if role, warnings, err := Check(path); role != RoleBridge || len(warnings) != 0 || err != nil {
		t.Errorf("bridge.toml with everything = %q, %v, %v", role, warnings, err)
	}
	b, _, err = bridgeOf(path)
	if err != nil || len(b.Expose) < 4 || len(b.Proxies) == 0 || b.ProxyTransfer == "" {
		t.Errorf("bridge.toml with everything = %+v, %v", b, err)
	}

	var options grammar.Options
	for _, e := range b.Expose {
		options.ProxyProtocol += e.Options.ProxyProtocol
		options.Transparent = options.Transparent || e.Options.Transparent
	}
	if options.ProxyProtocol != 2 || !options.Transparent {
		t.Errorf("the services of bridge.toml have the options %+v", options)
	}

	// Complete: every key that there is stands in the example of its role.
	for _, o := range exposeOptions {
		if !regexp.MustCompile(`(?m)^` + o.key + ` = `).MatchString(bridgeText) {
			t.Errorf("bridge.toml does not show %s", o.key)
		}
	}
	for _, key := range tomlKeys {
		mentioned := regexp.MustCompile(`(?m)^(\[\[` + key + `\]\]|(# )?` + key + ` = )`)
		role := roleOf(key)
		if role != RoleBridge && !mentioned.MatchString(proxyText) {
			t.Errorf("proxy.toml does not show %s", key)
		}
		if role != RoleProxy && !mentioned.MatchString(bridgeText) {
			t.Errorf("bridge.toml does not show %s", key)
		}
	}
}

const proxyXML = `<add key="WorkPort" value="9000"/>
<add key="IcPort" value="3010"/>
<add key="TransferPort" value="3020"/>
`

const bridgeXML = `<add key="ProxyServerIP" value="127.0.0.1"/>
<add key="ProxyIcPort" value="3010"/>
<add key="ProxyTransferPort" value="3020"/>
<add key="RealServerIP" value="127.0.0.1"/>
<add key="RealServerPort" value="9904"/>
`

func checkSourceProxy(t *testing.T, path string) {
	t.Helper()
	p, warnings, err := proxyOf(path)
	if err != nil || len(warnings) != 0 {
		t.Errorf("proxyOf(%s) = %v, %v", path, warnings, err)
		return
	}
	if p.Listen != ":3010" || p.Transfer != ":3020" || len(p.Tables) != 0 || !slices.Equal(p.Offer, []grammar.Public{{Kind: grammar.KindTCP, Port: 9000}}) {
		t.Errorf("proxyOf(%s) = %+v", path, p)
	}
	if role, _, err := Check(path); role != RoleProxy || err != nil {
		t.Errorf("Check(%s) = %q, %v", path, role, err)
	}
	if got := p.origin["listen"]; got.Key != "IcPort" || got.File != path || got.Line == 0 {
		t.Errorf("origin of listen = %+v", got)
	}
}

func checkSourceBridge(t *testing.T, path string) {
	t.Helper()
	b, warnings, err := bridgeOf(path)
	if err != nil || len(warnings) != 0 {
		t.Errorf("bridgeOf(%s) = %v, %v", path, warnings, err)
		return
	}
	wantExpose := grammar.Expose{Public: grammar.Public{Kind: grammar.KindOffered}, Target: grammar.Target{Network: "tcp", Address: "127.0.0.1:9904"}}
	if fmt.Sprint(b.Proxies) != "[127.0.0.1:3010]" || b.ProxyTransfer != "127.0.0.1:3020" || fmt.Sprint(b.Expose) != fmt.Sprint([]grammar.Expose{wantExpose}) || b.Token != "" || b.TokenFile != "" {
		t.Errorf("bridgeOf(%s) = %+v", path, b)
	}
	if role, warnings, err := Check(path); role != RoleBridge || len(warnings) != 0 || err != nil {
		t.Errorf("Check(%s) = %q, %v, %v", path, role, warnings, err)
	}
}

// The source system's files run as they are.
func TestSourceXML(t *testing.T) {
	checkSourceProxy(t, examples+"TcpReverser.ProxyServer.dll.config")
	checkSourceProxy(t, "testdata/proxy-bare.config")
	checkSourceBridge(t, examples+"TcpReverser.BridgeServer.dll.config")
	checkSourceBridge(t, "testdata/bridge-bare.config")

	b, _, err := bridgeOf("testdata/bridge-placeholder.config")
	if err != nil || len(b.Proxies) != 0 || b.ProxyTransfer != "" || b.TransferPort != 3020 || len(b.Expose) != 1 {
		t.Fatalf("loadBridge = %+v, %v; want everything but the proxy's address, which a flag may give", b, err)
	}
	want(t, "the placeholder", b.NoProxy, "bridge-placeholder.config:1: ProxyServerIP", `"47.109.*.*"`, "put the server's address there")
	_, _, err = Check("testdata/bridge-placeholder.config")
	want(t, "the placeholder", err, "bridge-placeholder.config:1: ProxyServerIP", `"47.109.*.*"`, "put the server's address there")

	full, err := os.ReadFile(examples + "TcpReverser.ProxyServer.dll.config")
	if err != nil {
		t.Fatal(err)
	}
	text, ok := strings.CutPrefix(string(full), "\xef\xbb\xbf")
	if !ok {
		t.Error("the full file has no byte-order mark")
	}
	for name, encoded := range encodings(text) {
		t.Run(name, func(t *testing.T) { checkSourceProxy(t, write(t, "p.config", encoded)) })
	}
	for name, encoded := range encodings(strings.Replace(text, "utf-8", "utf-16", 1)) {
		t.Run(name+" declared as UTF-16", func(t *testing.T) { checkSourceProxy(t, write(t, "p.config", encoded)) })
	}
}

func TestXMLForms(t *testing.T) {
	for name, text := range map[string]string{
		"bare":              proxyXML,
		"bare with header":  "<?xml version=\"1.0\"?>\n<!-- words -->\n" + proxyXML,
		"appSettings alone": "<appSettings>" + proxyXML + "</appSettings>",
		"old namespace":     `<configuration xmlns="http://schemas.microsoft.com/.NetConfiguration/v2.0"><appSettings>` + proxyXML + "</appSettings></configuration>",
		"another section":   `<configuration><configSections><section name="a" type="b"/></configSections><a><add key="WorkPort" value="1"/>words</a><connectionStrings><add name="x" connectionString="y"/></connectionStrings><appSettings>` + proxyXML + `</appSettings></configuration>`,
		"another case":      strings.Replace(proxyXML, "WorkPort", "workport", 1),
		"spaces":            strings.Replace(proxyXML, `"9000"`, `" 9000 "`, 1),
		"single quotes":     strings.ReplaceAll(proxyXML, `"`, `'`),
		"an end tag":        strings.ReplaceAll(proxyXML, "/>", "></add>"),
		"cleared before":    "<appSettings><add key='WorkPort' value='1'/><add key='Other' value='2'/><clear/>" + proxyXML + "</appSettings>",
		"removed before":    "<appSettings><add key='WorkPort' value='1'/><remove key='workport'/><remove key='Other'/>" + proxyXML + "</appSettings>",
		"locked":            "<appSettings lockAttributes='a' lockElements='b'>" + strings.Replace(proxyXML, "<add ", "<add lockItem='true' ", 1) + "</appSettings>",
		"another location":  "<configuration><location path='x'><system.web/></location><appSettings>" + proxyXML + "</appSettings></configuration>",
		"value first":       strings.Replace(proxyXML, `key="WorkPort" value="9000"`, `value="9000" key="WorkPort"`, 1),
		"GBK comments":      "<?xml version=\"1.0\" encoding=\"gb2312\"?>\n<!-- \xb9\xa4\xd7\xf7\xb6\xcb\xbf\xda -->\n" + proxyXML,
	} {
		t.Run(name, func(t *testing.T) { checkSourceProxy(t, write(t, "p.config", text)) })
		t.Run(name+" by its content", func(t *testing.T) { checkSourceProxy(t, write(t, "p", text)) })
	}
	for name, c := range map[string]struct{ ip, proxy string }{
		"a name":             {"Server.Example.COM", "server.example.com:3010"},
		"IPv6":               {"2001:db8::1", "[2001:db8::1]:3010"},
		"IPv6 with brackets": {"[2001:db8::1]", "[2001:db8::1]:3010"},
	} {
		b, _, err := bridgeOf(write(t, "b.config", strings.Replace(bridgeXML, "127.0.0.1", c.ip, 1)))
		if err != nil || strings.Join(b.Proxies, ",") != c.proxy {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
	// Without a transfer port everything uses the port of the control connection.
	p, _, err := proxyOf(write(t, "p.config", strings.Replace(proxyXML, `<add key="TransferPort" value="3020"/>`, "", 1)))
	if err != nil || p.Transfer != "" {
		t.Errorf("without TransferPort: %+v, %v", p, err)
	}
	b, _, err := bridgeOf(write(t, "b.config", strings.Replace(bridgeXML, `<add key="ProxyTransferPort" value="3020"/>`, "", 1)))
	if err != nil || b.ProxyTransfer != "" {
		t.Errorf("without ProxyTransferPort: %+v, %v", b, err)
	}
}

func TestXMLWarnings(t *testing.T) {
	path := write(t, "p.config", `<configuration>
<appSettings file="more.config">
<add key="LogLevel" value="secret words"/>
<add key="TransfrPort" value="3020"/>
<add key="Token" value="`+testToken(1).Encode()+`"/>
<add key="icport" value="1"/>
`+proxyXML+`</appSettings>
</configuration>`)
	_, warnings, err := proxyOf(path)
	if err != nil {
		t.Fatal(err)
	}
	wanted := []string{
		":8: the key IcPort stands on line 6 already: the last one holds",
		":2: the file " + filepath.Join(filepath.Dir(path), "more.config") + " that file= names is not there: .NET goes on",
		`:3: the key "LogLevel" is ignored`,
		`:4: the key "TransfrPort" is ignored`,
		"--token-file or REVERSER_TOKEN",
	}
	if len(warnings) != len(wanted) {
		t.Fatalf("%d warnings: %v; want %d", len(warnings), warnings, len(wanted))
	}
	for i, w := range warnings {
		if !strings.HasPrefix(w.String(), path+":") || !strings.Contains(w.String(), wanted[i]) || strings.Contains(w.String(), "secret words") || strings.Contains(w.String(), "AAAAAA") {
			t.Errorf("warning %d = %s; want %q", i, w, wanted[i])
		}
	}
}

// Keys of the application whose file it is are warned of, whatever they look like. Only a key of the file's own role that is missing may
// be meant.
func TestXMLForeignKeys(t *testing.T) {
	for _, c := range []struct {
		text, key, want string
	}{
		{bridgeXML, "Port", "none of the source system's"}, {bridgeXML, "MyPort", "none of the source system's"}, {bridgeXML, "DbPort", "none of the source system's"},
		{bridgeXML, "WsPort", "none of the source system's"}, {bridgeXML, "IPort", "none of the source system's"}, {bridgeXML, "WorkPorts", "none of the source system's"},
		{proxyXML, "ProxyPort", "none of the source system's"}, {proxyXML, "RealServer", "none of the source system's"}, {proxyXML, "WorkPorts", "none of the source system's"},
		{strings.Replace(proxyXML, "TransferPort", "Other", 1), "TransfrPort", "did you mean TransferPort?"},
		{strings.Replace(proxyXML, "TransferPort", "Other", 1), "ProxyTransfrPort", "none of the source system's"},
		{strings.Replace(bridgeXML, "ProxyTransferPort", "Other", 1), "ProxyTransferPorts", "did you mean ProxyTransferPort?"},
	} {
		path := write(t, "c.config", "<appSettings>\n<add key=\""+c.key+"\" value=\"1\"/>\n"+c.text+"</appSettings>")
		_, warnings, err := Check(path)
		if err != nil || !strings.Contains(fmt.Sprint(warnings), fmt.Sprintf("%s:2: the key %q is ignored: ", path, c.key)) || !strings.Contains(fmt.Sprint(warnings), c.want) {
			t.Errorf("%s: %v, %v; want a warning with %q", c.key, warnings, err, c.want)
		}
	}
}

func TestXMLErrors(t *testing.T) {
	for _, c := range []struct {
		name, text string
		words      []string
	}{
		{"nothing", "", []string{"no settings", "<appSettings>"}},
		{"nothing of ours", "<configuration><startup/></configuration>", []string{"no settings"}},
		{"both roles", proxyXML + bridgeXML, []string{":4: ProxyServerIP", "a bridge's", "WorkPort on line 1", "two files"}},
		{"no WorkPort", `<add key="IcPort" value="3010"/>`, []string{"WorkPort: this key is missing", `<add key="WorkPort" value="9000"/>`}},
		{"no IcPort", `<add key="WorkPort" value="9000"/>`, []string{"IcPort: this key is missing"}},
		{"no target", `<add key="ProxyServerIP" value="a"/><add key="ProxyIcPort" value="1"/>`, []string{"RealServerIP: this key is missing", "RealServerPort: this key is missing"}},
		{"no proxy", `<add key="RealServerIP" value="a"/><add key="RealServerPort" value="1"/>`, []string{"ProxyServerIP: this key is missing", "ProxyIcPort: this key is missing"}},
		{"no value", strings.Replace(proxyXML, ` value="9000"`, "", 1), []string{":1: WorkPort", `port ""`}},
		{"no address", strings.Replace(bridgeXML, "127.0.0.1", "", 1), []string{":1: ProxyServerIP", "empty"}},
		{"no key", `<add value="9000"/>`, []string{":1: an <add> has no key"}},
		{"the same port", strings.Replace(proxyXML, "3020", "3010", 1), []string{":3: TransferPort", "3010 is the port of IcPort too"}},
		{"the work port", strings.Replace(proxyXML, "3010", "9000", 1), []string{":2: IcPort", "WorkPort too"}},
		{"a port in the address", strings.Replace(bridgeXML, "127.0.0.1", "a:1", 1), []string{":1: ProxyServerIP", `"a:1"`}},
		{"a bad address", strings.Replace(bridgeXML, "127.0.0.1", "10.0.0.256", 1), []string{":1: ProxyServerIP", `"10.0.0.256"`}},
		{"a token", strings.Replace(bridgeXML, "127.0.0.1", testToken(1).Encode(), 1), []string{":1: ProxyServerIP", "the value is a token"}},
		{"curly quotes", `<add key=“WorkPort” value=“9000”/>`, []string{":1: not XML", "straight ones"}},
		{"not closed", "<configuration>\n<appSettings>\n" + proxyXML, []string{"not XML"}},
		{"half a tag", proxyXML + "<add key=", []string{":4: ", "not XML"}},
		{"words", "WorkPort config:\n" + proxyXML, []string{"text outside"}},
		{"cleared", "<appSettings>" + proxyXML + "<clear/></appSettings>", []string{"no settings"}},
		{"removed", "<appSettings>" + proxyXML + "<remove key='icport'/></appSettings>", []string{"IcPort: this key is missing"}},
		{"removed without a key", proxyXML + "<remove/>", []string{":4: an <remove> has no key"}},
		{"an unknown element", "<appSettings>\n<other/>" + proxyXML + "</appSettings>", []string{":2: <other> is not understood", "<add>, <remove> and <clear>"}},
		{"another case of an element", "<appSettings>\n<Add key='x' value='y'/>" + proxyXML + "</appSettings>", []string{":2: <Add> is not understood"}},
		{"an unknown attribute", proxyXML + "<add Key='TransferPort' value='1'/>", []string{":4: <add> has the attribute Key"}},
		{"outside of the section", "<configuration>\n<add key='x' value='y'/>\n<appSettings>" + proxyXML + "</appSettings></configuration>", []string{":2: a <add> stands outside of <appSettings>"}},
		{"two sections", "<configuration><appSettings>" + proxyXML + "</appSettings>\n<appSettings/></configuration>", []string{":5: there is a second <appSettings>", "line 1"}},
		{"two files in one", "<configuration><appSettings>" + proxyXML + "</appSettings></configuration>\n<configuration/>", []string{":5: there is a second <configuration>", "line 1"}},
		{"another case of a section", "<configuration>\n<AppSettings>" + proxyXML + "</AppSettings></configuration>", []string{":2: there is no element <AppSettings>", "write <appSettings>"}},
		{"another case of the root", "<Configuration><appSettings>" + proxyXML + "</appSettings></Configuration>", []string{":1: there is no element <Configuration>", "write <configuration>"}},
		{"a location", "<configuration>\n<location path='.'><a><appSettings>" + proxyXML + "</appSettings></a></location></configuration>", []string{":2: there is an <appSettings> in <location>", "move it out"}},
		{"a slip in a key", strings.Replace(proxyXML, "IcPort", "IcPorts", 1), []string{":2: IcPorts", "did you mean IcPort?"}},
		{"a slip in each key", `<add key="WorkPrt" value="9000"/>` + "\n" + `<add key="IcPrt" value="3010"/>`, []string{":1: WorkPrt", "did you mean WorkPort?", ":2: IcPrt", "did you mean IcPort?"}},
		{"encrypted", "<configuration>\n<appSettings configProtectionProvider='DataProtectionConfigurationProvider'><EncryptedData><CipherData/></EncryptedData></appSettings></configuration>", []string{":2: the section is encrypted", "aspnet_regiis -pdf"}},
		{"encrypted without a word", "<appSettings><EncryptedData/></appSettings>", []string{":1: the section is encrypted"}},
		{"values from a program", "<appSettings configBuilders='Environment'>" + proxyXML + "</appSettings>", []string{"configBuilders", "write the values themselves"}},
		{"a value in GBK", "<?xml version='1.0' encoding='gb2312'?>\n" + strings.Replace(bridgeXML, "127.0.0.1", "\xb7\xfe\xce\xf1\xc6\xf7", 1), []string{":2: ProxyServerIP", "encoding", "UTF-8"}},
		{"a file in GBK", "<?xml version='1.0' encoding='gb2312'?>\n<appSettings file='\xb7\xfe.config'>" + proxyXML + "</appSettings>", []string{":2: file", "encoding", "UTF-8"}},
		{"GBK without a word", proxyXML + "\n<!-- \xb9\xa4\xd7\xf7 -->", []string{":5: this is not UTF-8", "GBK", "Notepad"}},
		{"full-width characters", `<add key＝"WorkPort" value="9000"/>`, []string{":1: not XML", "full-width", "Latin keyboard"}},
		{"not UTF-8", strings.Replace(proxyXML, "9000", "\xb9\xa4", 1), []string{"UTF-8"}},
		{"an entity", strings.Replace(proxyXML, "9000", "&x;", 1), []string{"not XML"}},
	} {
		path := write(t, "c.config", c.text)
		_, _, err := Check(path)
		words := slices.Clone(c.words)
		for i, w := range words {
			words[i] = strings.Replace(w, ": not XML", ": this is not XML", 1)
		}
		want(t, c.name, err, append(words, path)...)
	}
}

// judge runs a text through everything but the file system.
func judge(t *testing.T, path, text string) {
	d := newDoc(path, func() ([]string, *access.Fault) {
		return nil, &access.Fault{Text: "others on this machine can read it"}
	})
	d.readToken = func(string, access.Rules) (grammar.Token, []string, error) { return testToken(1), nil, nil }
	d.readOther = func(string, access.Rules) (string, []string, error) { return text, nil, nil }
	d.readCertificate = func(string, string, access.Rules) (*tls.Certificate, []string, error) {
		return &tls.Certificate{Leaf: new(x509.Certificate)}, nil, nil
	}
	d.readText(text)
	role := d.role()
	if role == RoleProxy && !d.broken {
		p := d.proxy()
		if d.err() == nil {
			for _, a := range []string{p.Listen, p.Transfer} {
				if again, err := grammar.ParseListen(a); a != "" && (err != nil || again != a) {
					t.Errorf("%q is no canonical address", a)
				}
			}
		}
	} else if !d.broken {
		b := d.bridge()
		if d.err() == nil {
			if b.Token != "" {
				t.Error("a token in a loose file is taken")
			}
			if err := grammar.CheckExposes(b.Expose); err != nil {
				t.Error(err)
			}
			for _, a := range append(b.Proxies, b.ProxyTransfer) {
				if again, err := grammar.ParseHostPort(a); a != "" && (err != nil || again != a) {
					t.Errorf("%q is no canonical address", a)
				}
			}
		}
	}
	said := fmt.Sprint(d.err(), d.warnings)
	if secret := testToken(1).Encode(); strings.Contains(text, secret) && strings.Contains(said, secret[20:80]) {
		t.Errorf("the token is in %s", said)
	}
}

func FuzzTOML(f *testing.F) {
	tok := testToken(1).Encode()
	for _, file := range []string{"proxy.toml", "bridge.toml"} {
		b, err := os.ReadFile(examples + file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
		f.Add(regexp.MustCompile(`(?m)^#([a-z_]+ = |\[\[)`).ReplaceAllString(string(b), "$1"))
	}
	for _, s := range []string{
		"", "token = \"" + tok + "\"", "token = " + tok, "proxy = '" + tok + "'", tok + " = 1", "[" + tok + "]", "[[" + tok + "]]\na = 1",
		"key = [{name = 'a', allow = [1, 'tcp/2-3']}]", "expose = [{public = 1}, 2]", "expose.public = 1", "[expose.a]", "[[expose]]\npublic.a = 1",
		"listen = 0x50", "listen = 1e3", "listen = 1979-05-27", "\"\" = 1", "[[key]]\n[key.a]\n[[key]]", "state = '''\n" + tok + "'''", "token = \"\\u0000\"",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) { judge(t, "f.toml", text) })
}

func FuzzXML(f *testing.F) {
	for _, file := range []string{examples + "TcpReverser.ProxyServer.dll.config", examples + "TcpReverser.BridgeServer.dll.config", "testdata/bridge-placeholder.config"} {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		text, bad := decode(b)
		if bad != nil {
			f.Fatal(bad)
		}
		f.Add(text)
	}
	for _, s := range []string{
		proxyXML, bridgeXML, proxyXML + bridgeXML, "", "<", "<a>", "</a>", "<add/>", "<appSettings><clear/></appSettings>", "<?xml version='1.0' encoding='utf-16'?><add key='IcPort'/>",
		"<add key=“WorkPort”/>", "<add key='" + testToken(1).Encode() + "' value='1'/>", "<!DOCTYPE x [<!ENTITY a 'b'>]><add key='&a;'/>", "<configuration><add/><appSettings file='x'/></configuration>",
		"<appSettings file='x'>" + proxyXML + "</appSettings>", "<appSettings configSource='x'/>", "<configuration><location><appSettings/></location></configuration>",
		"<appSettings>" + proxyXML + "<remove key='icport'/><clear/><add key='IcPort' value='1'/></appSettings>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) { judge(t, "f.config", text) })
}

func FuzzDecode(f *testing.F) {
	for _, s := range encodings(proxyXML) {
		f.Add([]byte(s))
	}
	f.Add([]byte("<?xml version=\"1.0\" encoding=\"gbk\"?>\xb9"))
	f.Add([]byte("\xff\xfe\x00\xd8"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if text, bad := decode(b); bad == nil && !utf8.ValidString(text) {
			t.Errorf("decode(%q) = %q, which is not UTF-8", b, text)
		}
	})
}

// A number is taken where a port may stand alone, and nowhere else.
func TestNumbers(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "t"), testToken(1).Encode())
	for key, line := range map[string]string{
		"state": "state = 5", "advertise": "advertise = 5", "log_format": "log_format = 1",
	} {
		_, _, err := proxyOf(write(t, filepath.Join(dir, "p.toml"), "listen = 3010\n"+line+"\n"))
		want(t, line, err, "p.toml:2: "+key, "a number")
	}
	_, _, err := proxyOf(write(t, filepath.Join(dir, "p.toml"), "[[key]]\nname = 5\nsecret_file = \"t\"\nallow = [9000]\n"))
	want(t, "name = 5", err, "p.toml:2: name", "a number")
	_, _, err = bridgeOf(write(t, filepath.Join(dir, "b.toml"), "token_file = 7\nproxy = 3010\n"))
	want(t, "token_file = 7", err, "b.toml:1: token_file", "b.toml:2: proxy", "a number")
	b, _, err := bridgeOf(write(t, filepath.Join(dir, "b.toml"), "token_file = \"t\"\n[[expose]]\npublic = 9000\ntarget = 9904\n"))
	if err != nil || len(b.Expose) != 1 {
		t.Errorf("ports as numbers: %v, %v", b, err)
	}
}

// Who can write a configuration decides what is opened, though no secret is in it.
func TestWritableByOthers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a file has an access list there, and no mode")
	}
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "p.toml"), "listen = \":3010\"\n")
	chmod := func(path string, mode fs.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	load := func() error { _, _, err := proxyOf(path); return err }
	for _, mode := range []fs.FileMode{0o600, 0o644, 0o444} {
		chmod(path, mode)
		if err := load(); err != nil {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	for _, mode := range []fs.FileMode{0o646, 0o666, 0o602} {
		chmod(path, mode)
		want(t, "a file that others can write", load(), "p.toml: others", fmt.Sprintf("%04o", mode), "chmod go-w "+path)
	}
	chmod(path, 0o644)
	chmod(dir, 0o777)
	want(t, "a directory that others can write", load(), "p.toml: others", "directory "+dir, "chmod go-w "+dir)
	chmod(dir, 0o777|fs.ModeSticky)
	if err := load(); err != nil {
		t.Errorf("a file of one's own in a directory like /tmp: %v", err)
	}
	chmod(dir, 0o755)
	file := path
	path = filepath.Join(dir, "link.toml")
	if err := os.Symlink(file, path); err != nil {
		t.Fatal(err)
	}
	if err := load(); err != nil {
		t.Errorf("a link to a file of one's own: %v", err)
	}
	if os.Geteuid() != 0 {
		return // nobody else can make the rest
	}
	for _, f := range []string{file, dir} { // a group of others
		mode := fs.FileMode(0o664)
		if f == dir {
			mode = 0o775
		}
		chmod(f, mode)
		if err := load(); err != nil {
			t.Errorf("the group of one's own can write %s: %v", f, err)
		}
		if err := os.Chown(f, -1, 12_345); err != nil {
			t.Fatal(err)
		}
		want(t, "a group of others", load(), "others", "chmod go-w "+f)
		chmod(f, mode&^0o020)
	}
	// Whoever can write the directory of the link can lead it elsewhere.
	other := t.TempDir()
	path = filepath.Join(other, "link.toml")
	if err := os.Symlink(file, path); err != nil {
		t.Fatal(err)
	}
	chmod(other, 0o777)
	want(t, "a link in a directory that others can write", load(), "link.toml: others", "directory "+other, "chmod go-w "+other)
}

// A file's owner can change it whatever its mode says, and so can the owner of its directory or of a link that leads to it.
func TestOwnedByOthers(t *testing.T) {
	if runtime.GOOS == "windows" || os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	const other = 12_345
	tok := testToken(1).Encode()
	chown := func(t *testing.T, path string, uid int) {
		t.Helper()
		if err := os.Lchown(path, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	link := func(t *testing.T, to, path string) string {
		t.Helper()
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// load reads path as a configuration, as a token file and as what a configuration names.
	load := func(t *testing.T, path string) map[string]error {
		t.Helper()
		dir := t.TempDir()
		_, _, direct := bridgeOf(path)
		_, asToken := tokenIn(path, nil)
		_, _, secret := proxyOf(write(t, filepath.Join(dir, "p.toml"), fmt.Sprintf("[[key]]\nname = \"a\"\nsecret_file = %q\nallow = [9000]", path)))
		_, _, named := Check(write(t, filepath.Join(dir, "b.toml"), fmt.Sprintf("token_file = %q\n", path)))
		if err := os.Truncate(path, 0); err == nil { // what is read as a token is no configuration, nor the other way round
			_, _, direct = bridgeOf(path)
			os.WriteFile(path, []byte(tok), 0o600)
		}
		return map[string]error{"config": direct, "token file": asToken, "secret_file": secret, "token_file": named}
	}
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir, file string) (path, foreign string)
		want []string
	}{
		{"a file", func(t *testing.T, dir, file string) (string, string) { return file, file }, []string{"run chown root "}},
		{"its directory", func(t *testing.T, dir, file string) (string, string) { return file, dir }, []string{"directory ", "move the file "}},
		{"the file of a link", func(t *testing.T, dir, file string) (string, string) {
			return link(t, file, filepath.Join(t.TempDir(), "l")), file
		}, []string{"run chown root "}},
		{"the directory of a link's file", func(t *testing.T, dir, file string) (string, string) {
			return link(t, file, filepath.Join(t.TempDir(), "l")), dir
		}, []string{"directory ", "move the file "}},
		{"a link", func(t *testing.T, dir, file string) (string, string) {
			l := link(t, file, filepath.Join(dir, "l"))
			return l, l
		}, []string{"symbolic link ", "run chown -h root "}},
		{"the second link", func(t *testing.T, dir, file string) (string, string) {
			l := link(t, filepath.Base(file), filepath.Join(dir, "l"))
			return link(t, l, filepath.Join(t.TempDir(), "l")), l
		}, []string{"symbolic link ", "run chown -h root "}},
		{"the directory of a link", func(t *testing.T, dir, file string) (string, string) {
			at := t.TempDir()
			return link(t, file, filepath.Join(at, "l")), at
		}, []string{"directory ", "move the file "}},
		{"a way through /proc", func(t *testing.T, dir, file string) (string, string) {
			if runtime.GOOS != "linux" {
				return file, file
			}
			return link(t, "/proc/self/root"+file, filepath.Join(t.TempDir(), "l")), file
		}, []string{"run chown root "}},
		{"a link to the directory", func(t *testing.T, dir, file string) (string, string) {
			l := link(t, dir, filepath.Join(t.TempDir(), "l"))
			return filepath.Join(l, filepath.Base(file)), l
		}, []string{"symbolic link ", "run chown -h root "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := write(t, filepath.Join(dir, "f"), tok)
			path, foreign := c.make(t, dir, file)
			for name, err := range load(t, path) {
				if err != nil {
					t.Errorf("%s of one's own: %v", name, err)
				}
			}
			chown(t, foreign, other)
			for name, err := range load(t, path) {
				want(t, name+" of another user", err, append(c.want, path, foreign, "uid 12345", "another user")...)
			}
			// The user behind sudo is the one who runs the program.
			t.Setenv("SUDO_UID", fmt.Sprint(other))
			for name, err := range load(t, path) {
				if err != nil {
					t.Errorf("%s of the user behind sudo: %v", name, err)
				}
			}
			t.Setenv("SUDO_UID", "")
			chown(t, foreign, 0)
		})
	}

	// Above the directory, somebody else may own what they like.
	above := t.TempDir()
	dir := filepath.Join(above, "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	chown(t, above, other)
	for name, err := range load(t, write(t, filepath.Join(dir, "f"), tok)) {
		if err != nil {
			t.Errorf("%s below another's directory: %v", name, err)
		}
	}

	// What the shell opened is the user's, by whatever name it is reached.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.WriteString(tok)
	w.Close()
	if _, err := tokenIn(fmt.Sprintf("/dev/fd/%d", r.Fd()), nil); err != nil {
		t.Errorf("a pipe: %v", err)
	}
	f, err := os.Open(write(t, "here-document", tok))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	os.Remove(f.Name())
	if runtime.GOOS == "linux" {
		if _, err := tokenIn(fmt.Sprintf("/dev/fd/%d", f.Fd()), nil); err != nil {
			t.Errorf("a removed file: %v", err)
		}
	}
}
