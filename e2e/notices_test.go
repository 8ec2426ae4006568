package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestNotices: a program is told when a bridge goes and when it is back, by the tables of the proxy's file, which a reload changes. A
// test says what does not work, and the secret of a URL stands nowhere.
func TestNotices(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var told []string // events with their names; guarded by mu
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m struct {
			Role   string
			Test   bool
			Events []struct{ Event, Name string }
		}
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil || m.Role != "proxy" || r.URL.Path != "/the-secret" {
			t.Errorf("%s %+v, %v", r.URL, m, err)
		}
		mu.Lock()
		defer mu.Unlock()
		if m.Test {
			told = append(told, "test")
		}
		for _, e := range m.Events {
			told = append(told, e.Event+" "+e.Name)
		}
	}))
	t.Cleanup(hook.Close)
	wantTold := func(events ...string) {
		t.Helper()
		slices.Sort(events)
		eventually(t, fmt.Sprintf("word of %q comes", events), func() bool {
			mu.Lock()
			defer mu.Unlock()
			got := slices.Sorted(slices.Values(told))
			return slices.Equal(got, events)
		})
		mu.Lock()
		told = nil
		mu.Unlock()
	}

	state, link, public := t.TempDir(), freePort(t), freePort(t)
	service := fmt.Sprintf("tcp/%d", public)
	config := filepath.Join(t.TempDir(), "proxy.toml")
	tables := fmt.Sprintf("[[notify]]\nurl = %q\nafter = \"0s\"\n", hook.URL+"/the-secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	p := startReverser(t, "proxy", nil, "proxy", "--listen", loopback(link), "--state", state, "--config", config, "--log-format", "json")
	p.awaitOutput("reverser bridge rv1_")
	token := tokenPattern.FindString(p.Stdout.String())
	testNotices := func(code int, words string) {
		t.Helper()
		c := startReverser(t, "notify", nil, "notify", "--test", "--state", state)
		c.quiet = true
		if got := c.awaitEnd(); got != code || !strings.Contains(c.Stdout.String()+c.Stderr.String(), words) || strings.Contains(c.Stdout.String()+c.Stderr.String(), "secret") {
			t.Errorf("notify --test: exit code %d, want %d and %q: %s%s", got, code, words, c.Stdout.String(), c.Stderr.String())
		}
	}
	testNotices(1, "no [[notify]]")
	write(tables + fmt.Sprintf("[[notify]]\nurl = \"http://%s/another-secret\"\nformat = \"slack\"\non = [\"service-up\"]\n", loopback(freePort(t))))
	runReverser(t, "reload", "--state", state)
	testNotices(1, "NOT SENT: slack at 127.0.0.1:")
	wantTold("test")
	runReverser(t, "key", "add", "guest", "--allow", "tcp/9", "--expires", "2d", "--state", state)
	wantTold("key-expiring guest")
	runReverser(t, "key", "edit", "guest", "--expires", "12h", "--state", state)
	wantTold("key-expiring guest")
	runReverser(t, "key", "remove", "guest", "--state", state)
	write(tables)
	runReverser(t, "reload", "--state", state)
	testNotices(0, "sent: json at 127.0.0.1:")
	wantTold("test")

	bridge := func() *bridgeProcess {
		t.Helper()
		b := startBridge(t, token, fmt.Sprintf("%d=9", public))
		b.awaitUp(service)
		return b
	}
	b := bridge()
	eventually(t, "the proxy has looked at the bridge", func() bool {
		b.Kill()
		mu.Lock()
		n := len(told)
		mu.Unlock()
		if n == 0 {
			b = bridge()
		}
		return n > 0
	})
	eventually(t, "the proxy tells of bridge and service", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(told, "bridge-down default") && slices.Contains(told, "service-down "+service)
	})
	bridge()
	eventually(t, "the proxy tells that they are up again", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(told, "bridge-up default") && slices.Contains(told, "service-up "+service)
	})
	if strings.Contains(p.Stderr.String(), "secret") {
		t.Error("the secret of a url stands in the log")
	}
}
