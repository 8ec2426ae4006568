package admin_test

import (
	"bufio"
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
	"sync"
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

func (f *fakeKeys) Edit(name string, e admin.KeyEdit) (admin.KeyInfo, error) {
	if !slices.Contains(f.names, name) {
		return admin.KeyInfo{}, &admin.UsageError{Err: state.ErrNoKey}
	}
	return admin.KeyInfo{Name: name, ID: "00", Allow: *e.Allow, Source: admin.SourceState}, nil
}

func (f *fakeKeys) Rotate(name string) (string, error) {
	if !slices.Contains(f.names, name) {
		return "", &admin.UsageError{Err: state.ErrNoKey}
	}
	return "new-token-of-" + name, nil
}

func (f *fakeKeys) Remove(name string) error {
	i := slices.Index(f.names, name)
	if i < 0 {
		return &admin.UsageError{Err: state.ErrNoKey}
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

// TestStrangeRequests: each is refused, says what is wrong, and changes nothing.
func TestStrangeRequests(t *testing.T) {
	keys := &fakeKeys{names: []string{"nas"}}
	orders := &fakeOrders{}
	dial := serve(t, &admin.Server{Status: snapshot, Keys: keys, Orders: orders})
	tests := []struct {
		method, path, body string
		want               int
		allow              string // the methods that the answer names
	}{
		{"GET", "/", "", 404, ""},
		{"GET", "/api/v1/nothing", "", 404, ""},
		{"POST", "/api/v1/keys", "", 400, ""},
		{"POST", "/api/v1/keys", `{"name":"x","nonsense":1}`, 400, ""},
		{"POST", "/api/v1/keys", `{"name":"x"}{"name":"y"}`, 400, ""},
		{"POST", "/api/v1/keys", `{"name":`, 400, ""},
		{"POST", "/api/v1/keys", `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, 413, ""},

		{"GET", "/api/v1/reload", "", 405, "POST"}, // what changes something does not do it when it is looked at
		{"HEAD", "/api/v1/reload", "", 405, "POST"},
		{"GET", "/api/v1/keys/nas", "", 405, "PATCH, DELETE"},
		{"PUT", "/api/v1/keys", `{"name":"x"}`, 405, "GET, POST"},
		{"DELETE", "/api/v1/keys", "", 405, "GET, POST"},
		{"POST", "/api/v1/status", "", 405, "GET"},
		{"TRACE", "/api/v1/status", "", 405, "GET"},
		{"OPTIONS", "/api/v1/keys", "", 405, "GET, POST"}, // the preflight of a page in a browser
		{"OPTIONS", "*", "", 200, ""},                     // net/http answers, about the server as a whole
		{"CONNECT", "example.com:80", "", 404, ""},

		{"GET", "//", "", 307, ""}, // to /, which there is not
		{"GET", "//api//v1/reload", "", 307, ""},
		{"GET", "/api/v1/../v1/reload", "", 307, ""},
		{"DELETE", "/api/v1/keys/%2e%2e", "", 404, ""}, // a name like another, of no key
		{"DELETE", "/api/v1/keys/%2e%2e%2f%2e%2e", "", 404, ""},
		{"DELETE", "/api/v1/keys/", "", 404, ""},
		{"GET", "/api/v1/keys/%zz", "", 400, ""},
		{"GET", "api/v1/keys", "", 400, ""},
		{"GET", "/" + strings.Repeat("a", 1<<20), "", 431, ""},
	}
	for _, tt := range tests {
		what := fmt.Sprintf("%s %.60q", tt.method, tt.path)
		resp, body := ask(t, dial, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\nContent-Length: %d\r\n\r\n%s",
			tt.method, tt.path, len(tt.body), tt.body))
		if resp.StatusCode != tt.want || resp.Header.Get("Allow") != tt.allow {
			t.Errorf("%s = %d %.200s with Allow %q, want %d and %q", what, resp.StatusCode, body, resp.Header.Get("Allow"), tt.want, tt.allow)
		}
		if strings.HasPrefix(tt.path, "/") && tt.method != "HEAD" && (tt.want == 404 || tt.want == 405 || tt.want == 413) && (!isProblem(body, tt.want) || resp.Header.Get("Content-Type") != "application/problem+json") {
			t.Errorf("%s = %q as %s, want a problem", what, body, resp.Header.Get("Content-Type"))
		}
		for name := range resp.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s: the answer has %s, which lets pages in browsers ask", what, name)
			}
		}
	}
	if !slices.Equal(keys.names, []string{"nas"}) {
		t.Errorf("the keys are %v, want nas alone as before", keys.names)
	}
	if n := orders.reloads.Load(); n != 0 {
		t.Errorf("the settings were read %d times", n)
	}
}

// TestStrangeBytes: what is hardly HTTP, and headers and bodies that are far too large, are refused before they are there.
func TestStrangeBytes(t *testing.T) {
	dial := serve(t, &admin.Server{Status: snapshot, Keys: &fakeKeys{}})
	for what, tt := range map[string]struct {
		sent string
		want int
	}{
		"no HTTP":              {"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", 400},
		"HTTP/2":               {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
		"no host":              {"GET /api/v1/status HTTP/1.1\r\n\r\n", 400},
		"a header of 1 MiB":    {"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", 431},
		"many headers":         {"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: x\r\n", 1<<17) + "\r\n", 431},
		"two lengths":          {"POST /api/v1/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
		"a length below 0":     {"POST /api/v1/keys HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
		"another coding":       {"POST /api/v1/keys HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
		"a body of 1 GiB":      {"POST /api/v1/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n" + strings.Repeat(" ", 1<<20) + "  ", 413},
		"1 GiB that none asks": {"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n", 200},
	} {
		if resp, body := ask(t, dial, tt.sent); resp.StatusCode != tt.want {
			t.Errorf("%s = %d %.200s, want %d", what, resp.StatusCode, body, tt.want)
		}
	}
}

// ask sends bytes on a connection of their own and returns the answer. It does not wait for the server to take all of them.
func ask(t *testing.T, dial func(context.Context) (net.Conn, error), sent string) (*http.Response, string) {
	t.Helper()
	for tries := 0; ; tries++ {
		resp, body, err := askOnce(t, dial, sent)
		if err == nil {
			return resp, body
		}
		// A server that refuses what it has not read yet closes the connection after half a second, and the system may drop the answer of
		// whoever has not looked by then.
		if len(sent) < 1<<16 || tries == 20 {
			t.Fatalf("%.60q: %v", sent, err)
		}
	}
}

func askOnce(t *testing.T, dial func(context.Context) (net.Conn, error), sent string) (*http.Response, string, error) {
	t.Helper()
	c, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	defer c.Close()
	sending.Go(func() { io.WriteString(c, sent) })
	method, _, _ := strings.Cut(sent, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return resp, string(body), nil
}

// TestSlowHeader: a client that sends its header a byte at a time has as long as one that is silent.
func TestSlowHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Net
		l, err := n.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- (&admin.Server{Status: snapshot}).Serve(ctx, l) }()
		c, err := n.Dial(ctx, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		begin := time.Now()
		var sending sync.WaitGroup
		sending.Go(func() {
			for _, b := range []byte("GET /api/v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 100)) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		got, _ := io.ReadAll(c)
		if d := time.Since(begin); d > 11*time.Second || strings.Contains(string(got), "200 OK") {
			t.Errorf("%q after %s, want the end after 10 s", got, d)
		}
		sending.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
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

// isProblem reports whether an answer is an error as RFC 9457 has it.
func isProblem(body string, code int) bool {
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	err := json.Unmarshal([]byte(body), &p)
	return err == nil && p.Type == "about:blank" && p.Title == http.StatusText(code) && p.Status == code && p.Detail != ""
}

func isUsage(err error) bool {
	_, ok := errors.AsType[*admin.UsageError](err)
	return ok
}

type fakeOrders struct {
	done    admin.Reloaded
	err     error
	reloads atomic.Int32
}

func (f *fakeOrders) Reload(context.Context) (admin.Reloaded, error) {
	f.reloads.Add(1)
	return f.done, f.err
}

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
