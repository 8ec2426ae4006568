package config

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestVia: the way out is that of the command line, else of the file, else of the environment; NO_PROXY counts for the last only.
func TestVia(t *testing.T) {
	dir := folder(t)
	withVia := write(t, filepath.Join(dir, "with.toml"), "token_file = \"office.token\"\nvia = \"socks5://file.example\"\n[[expose]]\npublic = 9000\n")
	withFile := write(t, filepath.Join(dir, "file.toml"), "token_file = \"office.token\"\nvia_file = \"via.url\"\n[[expose]]\npublic = 9000\n")
	plain := write(t, filepath.Join(dir, "plain.toml"), "token_file = \"office.token\"\n[[expose]]\npublic = 9000\n")
	file := write(t, filepath.Join(dir, "via.url"), "http://alice:s3cret@file.example:3128\n")
	for _, tt := range []struct {
		name   string
		args   BridgeArgs
		env    string // NAME=VALUE, with blanks between
		direct string // addresses that are dialled directly all the same
		want   string // the way out and what chose it
	}{
		{"nothing", BridgeArgs{Config: plain}, "", "", "none"},
		{"the command line", BridgeArgs{Config: withVia, Via: "http://arg.example:1"}, "HTTPS_PROXY=http://env.example NO_PROXY=*", "", "http://arg.example:1 (--via)"},
		{"none on the command line", BridgeArgs{Config: withVia, Via: "none"}, "HTTPS_PROXY=http://env.example", "", "none"},
		{"a file on the command line", BridgeArgs{Config: withVia, ViaFile: file}, "", "", "http://alice@file.example:3128 (--via-file)"},
		{"the file", BridgeArgs{Config: withVia}, "HTTPS_PROXY=http://env.example", "", "socks5://file.example:1080 (via)"},
		{"a file in the file", BridgeArgs{Config: withFile}, "", "", "http://alice@file.example:3128 (via_file)"},
		{"HTTPS_PROXY", BridgeArgs{Config: plain}, "HTTPS_PROXY=http://bob:pw@env.example:3128 ALL_PROXY=socks5://all.example", "127.0.0.1:3010 localhost:3010", "http://bob@env.example:3128 (HTTPS_PROXY)"},
		{"https_proxy without a scheme", BridgeArgs{Config: plain}, "https_proxy=env.example:3128", "", "http://env.example:3128 (https_proxy)"},
		{"ALL_PROXY", BridgeArgs{Config: plain}, "ALL_PROXY=socks5h://all.example", "", "socks5://all.example:1080 (ALL_PROXY)"},
		{"HTTP_PROXY alone", BridgeArgs{Config: plain}, "HTTP_PROXY=http://env.example", "", "none"},
		{"NO_PROXY", BridgeArgs{Config: plain}, "HTTPS_PROXY=http://env.example no_proxy=.office.example,192.0.2.0/24", "a.office.example:3010 192.0.2.9:443", "http://env.example:80 (HTTPS_PROXY)"},
		{"NO_PROXY for all", BridgeArgs{Config: plain}, "HTTPS_PROXY=http://env.example NO_PROXY=*", "far.example:3010", ""},
	} {
		env := make(map[string]string)
		for _, word := range strings.Fields(tt.env) {
			name, value, _ := strings.Cut(word, "=")
			env[name] = value
		}
		tt.args.Environ = func(name string) string { return env[name] }
		set := loaded(t, NewBridgeSource(tt.args))
		if got := set.Bridge.Via.String(); got != tt.want && tt.want != "" {
			t.Errorf("%s: the way out is %s, want %s", tt.name, got, tt.want)
		}
		for _, addr := range strings.Fields(tt.direct) {
			if w := set.Bridge.Via.For(addr); w != nil {
				t.Errorf("%s: the way to %s is %s, want none", tt.name, addr, w)
			}
		}
		if w := set.Bridge.Via.For("far.example:3010"); (w != nil) != (tt.want != "" && tt.want != "none") {
			t.Errorf("%s: the way out is %v for a far address", tt.name, w)
		}
	}
	before, after := loaded(t, NewBridgeSource(BridgeArgs{Config: withFile})), filepath.Join(dir, "via.url")
	write(t, after, "http://alice:other@file.example:3128\n")
	if said, err := before.Changes(loaded(t, NewBridgeSource(BridgeArgs{Config: withFile}))); err != nil || strings.Join(said, ";") != "via has another password" {
		t.Errorf("another password is %q, %v", said, err)
	}
	if said, err := before.Changes(loaded(t, NewBridgeSource(BridgeArgs{Config: withVia}))); err != nil || strings.Join(said, ";") != "via is socks5://file.example:1080 (via) instead of http://alice@file.example:3128 (via_file)" {
		t.Errorf("another way out is %q, %v", said, err)
	}
}

func TestBadVia(t *testing.T) {
	dir := folder(t)
	write(t, filepath.Join(dir, "empty.url"), "\n")
	write(t, filepath.Join(dir, "bad.url"), "http://alice:s3cret@h:0")
	loose := write(t, filepath.Join(dir, "loose.url"), "http://alice:s3cret@h:1")
	if err := os.Chmod(loose, 0o644); err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		file  string
		mode  os.FileMode
		words []string
	}{
		"a bad one":          {"via = \"ftp://alice:s3cret@h\"", 0o600, []string{"b.toml:1: via: ", "socks5://"}},
		"both":               {"via = \"http://h:1\"\nvia_file = \"bad.url\"", 0o600, []string{"b.toml:2: via_file: ", "via on line 1"}},
		"a loose file":       {"via = \"http://alice:s3cret@h:1\"", 0o644, []string{"b.toml:1: via: ", "via_file"}},
		"a file with faults": {"via_file = \"bad.url\"", 0o600, []string{"b.toml:1: via_file: ", "bad.url", "port"}},
		"an empty file":      {"via_file = \"empty.url\"", 0o600, []string{"b.toml:1: via_file: ", "is empty", "http://USER:PASSWORD@HOST:PORT"}},
		"no file":            {"via_file = \"none.url\"", 0o600, []string{"b.toml:1: via_file: ", "none.url", "check the path"}},
		"a loose via_file":   {"via_file = \"loose.url\"", 0o600, []string{"b.toml:1: via_file: ", "loose.url"}},
		"a number":           {"via = 3128", 0o600, []string{"b.toml:1: via: ", "a number"}},
	} {
		if runtime.GOOS == "windows" && strings.Contains(what, "loose") {
			continue // modes are not what decides there
		}
		path := write(t, filepath.Join(dir, "b.toml"), tt.file+"\ntoken_file = \"office.token\"\n[[expose]]\npublic = 9000\n")
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		_, _, err := NewBridgeSource(BridgeArgs{Config: path}).Load()
		want(t, what, err, tt.words...)
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the password is in %v", what, err)
		}
		_, _, err = Check(path)
		want(t, what+", by check", err, tt.words...)
	}
	tok := testToken(1).Encode()
	for what, tt := range map[string]struct {
		args  BridgeArgs
		words []string
	}{
		"both":            {BridgeArgs{Via: "http://h:1", ViaFile: "x"}, []string{"--via and --via-file"}},
		"a bad one":       {BridgeArgs{Via: "h:1"}, []string{"--via: ", "no URL"}},
		"a missing file":  {BridgeArgs{ViaFile: filepath.Join(dir, "none")}, []string{"--via-file: ", "check the path"}},
		"the environment": {BridgeArgs{Environ: func(name string) string { return map[string]string{"ALL_PROXY": "https://a:s3cret@h"}[name] }}, []string{"ALL_PROXY: ", "over TLS"}},
	} {
		tt.args.Token, tt.args.Expose = tok, []string{"9000"}
		_, _, err := NewBridgeSource(tt.args).Load()
		want(t, what, err, tt.words...)
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the password is in %v", what, err)
		}
	}
}
