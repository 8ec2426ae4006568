package config

import (
	"path/filepath"
	"reflect"
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
after = "5m"
`)
	want := []Notify{
		{"https://chat.example.com/hooks/a", "json", notifyEvents, 30 * time.Second},
		{"http://127.0.0.1:8080/b?key=c", "wecom", []string{"bridge-down", "service-up"}, 5 * time.Minute},
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
