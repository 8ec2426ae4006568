package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/admin"
	"reverser/internal/memnet"
	"reverser/internal/state"
	"reverser/internal/status"
)

type fakeKeys struct{ names []string }

func (f *fakeKeys) List() ([]admin.KeyInfo, error) {
	var infos []admin.KeyInfo
	for _, n := range f.names {
		infos = append(infos, admin.KeyInfo{Name: n, ID: "00", Allow: []string{"tcp/9000"}, Source: admin.SourceState})
	}
	return infos, nil
}

func (f *fakeKeys) Add(k admin.NewKey) (string, error) {
	if slices.Contains(f.names, k.Name) {
		return "", &admin.UsageError{Err: errors.New(k.Name + " exists already")}
	}
	if k.Name == "broken" {
		return "", errors.New("disk full")
	}
	f.names = append(f.names, k.Name)
	return fmt.Sprintf("token-of-%s-%s-%d", k.Name, strings.Join(k.Allow, ","), k.MaxServices), nil
}

func (f *fakeKeys) Remove(name string) error {
	i := slices.Index(f.names, name)
	if i < 0 {
		return &admin.UsageError{Err: errors.New("no such key")}
	}
	f.names = slices.Delete(f.names, i, i+1)
	return nil
}

// serve starts a server and returns how to dial it; it must end with the test.
func serve(t *testing.T, s *admin.Server) func(context.Context) (net.Conn, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil after cancel", err)
		}
	})
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}

func client(t *testing.T, s *admin.Server) *admin.Client {
	c := admin.NewClient(serve(t, s))
	t.Cleanup(c.Close)
	return c
}

func snapshot() status.Snapshot {
	return status.Snapshot{
		Role: "proxy", Version: "v1", UptimeSeconds: 2,
		Links: []status.Link{{Key: "nas", State: status.LinkUp, Since: time.Unix(100, 0).UTC()}},
	}
}

func TestStatus(t *testing.T) {
	c := client(t, &admin.Server{Status: snapshot})
	got, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(snapshot())
	if string(a) != string(b) {
		t.Errorf("Status = %s, want %s", a, b)
	}
}

func TestSummary(t *testing.T) {
	c := client(t, &admin.Server{Status: func() status.Snapshot {
		s := snapshot()
		s.Pairs = []status.Pair{{ID: "7"}}
		return s
	}})
	got, err := c.Summary(t.Context())
	if err != nil || len(got.Links) != 1 || len(got.Pairs) != 0 {
		t.Errorf("Summary = %+v, %v; want one link and no pair", got, err)
	}
	if got, err := c.Status(t.Context()); err != nil || len(got.Pairs) != 1 {
		t.Errorf("Status = %+v, %v; want one pair", got, err)
	}
}

func TestKeys(t *testing.T) {
	c := client(t, &admin.Server{Status: snapshot, Keys: &fakeKeys{}})
	ctx := t.Context()
	if keys, err := c.ListKeys(ctx); err != nil || keys == nil || len(keys) != 0 {
		t.Errorf("ListKeys = %v, %v; want an empty list", keys, err)
	}
	token, err := c.AddKey(ctx, admin.NewKey{Name: "nas", Allow: []string{"tcp/9000", "tcp/9001"}, Limits: state.Limits{MaxServices: 3}})
	if err != nil || token != "token-of-nas-tcp/9000,tcp/9001-3" {
		t.Errorf("AddKey = %q, %v", token, err)
	}
	if _, err := c.AddKey(ctx, admin.NewKey{Name: "nas"}); !isUsage(err) || err.Error() != "nas exists already" {
		t.Errorf("AddKey twice = %v, want the server's refusal", err)
	}
	if _, err := c.AddKey(ctx, admin.NewKey{Name: "broken"}); err == nil || isUsage(err) || err.Error() != "disk full" {
		t.Errorf("AddKey = %v, want the server's failure", err)
	}
	keys, err := c.ListKeys(ctx)
	if err != nil || len(keys) != 1 || keys[0].Name != "nas" || keys[0].Source != admin.SourceState {
		t.Errorf("ListKeys = %v, %v; want nas", keys, err)
	}
	if err := c.RemoveKey(ctx, "nas"); err != nil {
		t.Errorf("RemoveKey = %v", err)
	}
	for _, name := range []string{"nas", "a/b", ".."} {
		if err := c.RemoveKey(ctx, name); err == nil {
			t.Errorf("RemoveKey(%q) = nil, want a refusal", name)
		}
	}
}

func TestBridgeHasNoKeys(t *testing.T) {
	c := client(t, &admin.Server{Status: snapshot})
	_, err := c.AddKey(t.Context(), admin.NewKey{Name: "nas", Allow: []string{"tcp/9000"}})
	if !isUsage(err) || !strings.Contains(err.Error(), "bridge") {
		t.Errorf("AddKey at a bridge = %v, want a refusal that says so", err)
	}
	if err := c.RemoveKey(t.Context(), "nas"); !isUsage(err) {
		t.Errorf("RemoveKey at a bridge = %v, want a refusal", err)
	}
}

func TestStrangeRequests(t *testing.T) {
	keys := &fakeKeys{}
	dial := serve(t, &admin.Server{Status: snapshot, Keys: keys})
	hc := &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableKeepAlives: true,
	}}
	tests := []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/", "", 404},
		{"GET", "/api/v1/nothing", "", 404},
		{"POST", "/api/v1/keys", "", 400},
		{"POST", "/api/v1/keys", `{"name":"x","nonsense":1}`, 400},
		{"POST", "/api/v1/keys", `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, 400},
	}
	for _, tt := range tests {
		req, err := http.NewRequest(tt.method, "http://x"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", tt.method, tt.path, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.want || !strings.Contains(string(body), `"error"`) {
			t.Errorf("%s %s = %d %s, want %d and an error", tt.method, tt.path, resp.StatusCode, body, tt.want)
		}
	}
	if len(keys.names) != 0 {
		t.Errorf("keys were made: %v", keys.names)
	}
}

// TestCrowd: who asks and says nothing holds up the others until its time is over, and takes no more connections than a few.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		l, err := n.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		counted := &countedListener{Listener: l}
		done := make(chan error, 1)
		go func() { done <- (&admin.Server{Status: snapshot}).Serve(ctx, counted) }()
		dial := func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, l.Addr().String()) }
		for range 50 {
			c, err := dial(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		synctest.Wait()
		if n := counted.accepted.Load(); n > 10 {
			t.Errorf("%d connections at once", n)
		}
		time.Sleep(2 * time.Minute)
		c := admin.NewClient(dial)
		defer c.Close()
		if _, err := c.Status(ctx); err != nil {
			t.Errorf("Status = %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

// countedListener counts what was accepted.
type countedListener struct {
	net.Listener
	accepted atomic.Int64
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return c, err
}

func TestServeFailsWithItsListener(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Skip(err)
	}
	l.Close()
	if err := (&admin.Server{Status: snapshot}).Serve(t.Context(), l); err == nil {
		t.Error("Serve on a closed listener = nil")
	}
}

// slowKeys removes a key when it is told to.
type slowKeys struct {
	fakeKeys
	began, goesOn chan struct{}
	removed       atomic.Bool
}

func (k *slowKeys) Remove(string) error {
	close(k.began)
	<-k.goesOn
	k.removed.Store(true)
	return nil
}

// TestServeWaitsForRequests: a slow disk may hold up a change of the keys for
// longer than a stop waits for clients. The keys are the next process's only
// when it is done.
func TestServeWaitsForRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		l, err := n.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		keys := &slowKeys{began: make(chan struct{}), goesOn: make(chan struct{})}
		s := &admin.Server{Status: snapshot, Keys: keys}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			err := s.Serve(ctx, l)
			if !keys.removed.Load() {
				t.Error("Serve returned while a request was changing the keys")
			}
			done <- err
		}()
		c := admin.NewClient(func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, l.Addr().String()) })
		defer c.Close()
		go c.RemoveKey(ctx, "nas")
		<-keys.began
		cancel()
		time.Sleep(time.Minute)
		close(keys.goesOn)
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
}

func isUsage(err error) bool {
	_, ok := errors.AsType[*admin.UsageError](err)
	return ok
}

type fakeOrders struct {
	done admin.Reloaded
	err  error
}

func (f *fakeOrders) Reload(context.Context) (admin.Reloaded, error) { return f.done, f.err }

func TestReload(t *testing.T) {
	orders := &fakeOrders{done: admin.Reloaded{Changed: []string{"a", "b"}, Unconfirmed: []string{"c"}}}
	s := &admin.Server{Status: func() status.Snapshot { return status.Snapshot{} }, Orders: orders}
	c := client(t, s)
	done, err := c.Reload(t.Context())
	if err != nil || !slices.Equal(done.Changed, orders.done.Changed) || !slices.Equal(done.Unconfirmed, orders.done.Unconfirmed) || done.Warnings == nil {
		t.Errorf("Reload = %+v, %v", done, err)
	}
	orders.err = &admin.UsageError{Err: errors.New("p.toml:1: no such key")}
	_, err = c.Reload(t.Context())
	if refused, ok := errors.AsType[*admin.UsageError](err); !ok || refused.Error() != "p.toml:1: no such key" {
		t.Errorf("Reload of a bad file = %v; want its fault", err)
	}
	orders.err = errors.New("the disk is gone")
	_, err = c.Reload(t.Context())
	if _, ok := errors.AsType[*admin.UsageError](err); ok || err == nil || err.Error() != "the disk is gone" {
		t.Errorf("Reload that failed = %v", err)
	}

	s = &admin.Server{Status: s.Status}
	if _, err = client(t, s).Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "no configuration") {
		t.Errorf("Reload without orders = %v", err)
	}
}
