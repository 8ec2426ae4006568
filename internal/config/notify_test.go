package config

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Both roles have notices. What is not given has its default.
func TestNotify(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "c.toml"), `
[[notify]]
url = "https://chat.example.com/hooks/a"

[[notify]]
url = "http://127.0.0.1:8080/b?key=c"
format = "wecom"
on = ["bridge-down", "service-up", "bridge-down"]
after = "1d"
`)
	want := []Notify{
		{"https://chat.example.com/hooks/a", "json", notifyEvents, 30 * time.Second},
		{"http://127.0.0.1:8080/b?key=c", "wecom", []string{"bridge-down", "service-up"}, 24 * time.Hour},
	}
	p, _, err := NewProxySource(ProxyArgs{Config: path}).Load()
	if err != nil || !reflect.DeepEqual(p.Notify, want) {
		t.Errorf("a proxy has the notices %+v, %v", p.Notify, err)
	}
	b, _, err := NewBridgeSource(BridgeArgs{Config: path, Token: testToken(1).Encode(), Proxies: []string{"p"}, Expose: []string{"9000"}}).Load()
	if err != nil || !reflect.DeepEqual(b.Notify, want) {
		t.Errorf("a bridge has the notices %+v, %v", b.Notify, err)
	}
	next := p
	next.Notify = want[:1]
	if said, err := p.Changes(next); err != nil || !reflect.DeepEqual(said, []string{"notify has other tables"}) {
		t.Errorf("Changes = %q, %v", said, err)
	}
}

// A notice that is wrong is told once, without its URL.
func TestNotifyRefused(t *testing.T) {
	for line, want := range map[string]string{
		`after = "25h"`: `after: "25h" is not between 0s and 24h: write one in between, such as "30s" or "5m"`,
		`after = "2d"`:  `after: "2d" is not between 0s and 24h`,
		`after = "-1s"`: `after: "-1s" is negative`,
		`after = 30`:    `after: "30" has no unit: write a number with ms, s, m, h or d, such as "30s" or "5m"`,
		`after = ["a"]`: `after: the value is a list or a table`,
	} {
		path := write(t, filepath.Join(t.TempDir(), "c.toml"), "listen = 3010\n[[notify]]\nurl = \"https://chat.example.com/hooks/a\"\n"+line+"\n")
		_, _, err := Check(path)
		if err == nil || !strings.Contains(err.Error(), ":4: "+want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want line 4 and %q", line, err, want)
		}
	}
}

// A url that leads nowhere is refused, without it: it holds a secret.
func TestNotifyURLs(t *testing.T) {
	for url, want := range map[string]string{
		"https://chat.example.com:99999/secret": "its port is not between 1 and 65535",
		"https://chat.example.com:0/secret":     "its port is not between 1 and 65535",
		"ftp://chat.example.com/secret":         "this does not begin with https:// or http://",
		"https:///secret":                       "this is no address of a web server",
		"https://chat.example.com:65535/secret": "",
		"https://[2001:db8::1]:8443/secret":     "",
		"https://[2001:db8::1]/secret":          "",
	} {
		err := checkNotifyURL(url)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v; want %q", url, err, want)
		}
	}
}

// What only later versions tell of is taken, with a word. A notice of nothing else is not one of everything.
func TestNotifyLaterEvents(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "c.toml"), `listen = 3010
[[notify]]
url = "https://chat.example.com/hooks/a"
on = ["quota", "ban", "quota"]
`)
	set, warnings, err := NewProxySource(ProxyArgs{Config: path}).Load()
	if err != nil || len(set.Notify) != 1 || !reflect.DeepEqual(set.Notify[0].On, []string{"quota", "ban"}) {
		t.Fatalf("Load = %+v, %v", set.Notify, err)
	}
	want := []Warning{{path, 4, `on has "quota", of which this version has nothing to tell`}, {path, 4, `on has "ban", of which this version has nothing to tell`}}
	if !reflect.DeepEqual(warnings, want) {
		t.Errorf("warnings %v; want %v", warnings, want)
	}
}
