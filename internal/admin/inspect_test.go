package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/status"
)

// TestInspect: exchanges are listed, shown, sent again and followed; what cannot be is refused with what to do.
func TestInspect(t *testing.T) {
	store := inspect.New(0)
	defer store.Close()
	target := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s\x1b[31m%s", r.Method, b)
	})
	var rec *inspect.Recorder
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { rec.Serve(w, r, target) })
	rec = store.Record("http/app.example.com", handler)
	visit := func(body string) {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/x?y", strings.NewReader(body)))
	}
	find := func(p grammar.Public) *inspect.Recorder {
		if p.String() == "http/app.example.com" {
			return rec
		}
		return nil
	}
	snap := status.Snapshot{Role: "proxy", Services: []status.Service{{Public: "http/app.example.com"}, {Public: "https/quiet.example.com"}, {Public: "tcp/9000"}}}
	s := &admin.Server{Status: func() status.Snapshot { return snap }, Inspected: find}
	c := client(t, s)
	ctx := t.Context()

	visit("hello")
	list, err := c.Exchanges(ctx, "http/app.example.com")
	if err != nil || len(list) != 1 || list[0].Method != "POST" || list[0].Status != 200 {
		t.Fatalf("Exchanges = %+v, %v", list, err)
	}
	x, err := c.Exchange(ctx, "http/app.example.com", list[0].ID)
	if err != nil || x.Request.Body != "hello" || x.Response.Body != "POST\x1b[31mhello" {
		t.Errorf("Exchange = %+v, %v", x, err)
	}
	again, err := c.Replay(ctx, "http/app.example.com", list[0].ID)
	if err != nil || again.ReplayOf != list[0].ID || again.State != inspect.StateDone {
		t.Errorf("Replay = %+v, %v", again, err)
	}
	visit(strings.Repeat("x", inspect.BodyKept+1))
	list, err = c.Exchanges(ctx, "http/app.example.com")
	if err != nil || len(list) != 3 {
		t.Fatalf("Exchanges = %+v, %v", list, err)
	}
	for name, ask := range map[string]struct {
		ask  func() error
		want string
	}{
		"no such exchange":        {func() error { _, err := c.Exchange(ctx, "http/app.example.com", "999"); return err }, "not any more"},
		"a path as an id":         {func() error { _, err := c.Exchange(ctx, "http/app.example.com", "../x"); return err }, "not any more"},
		"a long body":             {func() error { _, err := c.Replay(ctx, "http/app.example.com", list[2].ID); return err }, "longer than"},
		"a service that is not":   {func() error { _, err := c.Exchanges(ctx, "https/quiet.example.com"); return err }, "inspect = true"},
		"a service of bytes":      {func() error { _, err := c.Exchanges(ctx, "tcp/9000"); return err }, "passed on unread"},
		"nobody's service":        {func() error { _, err := c.Exchanges(ctx, "http/other.example.com"); return err }, "no bridge offers http/other.example.com"},
		"no service":              {func() error { _, err := c.Exchanges(ctx, "x/y/z"); return err }, "x/y/z"},
		"to follow what is not":   {func() error { return c.Follow(ctx, "https/quiet.example.com", nil) }, "inspect = true"},
		"nobody's to be followed": {func() error { return c.Follow(ctx, "http/other.example.com", nil) }, "no bridge offers"},
	} {
		err := ask.ask()
		if _, ok := errors.AsType[*admin.UsageError](err); !ok || !strings.Contains(err.Error(), ask.want) {
			t.Errorf("%s: %v, want a refusal with %q", name, err, ask.want)
		}
	}
	snap.Role = "bridge"
	if _, err := c.Exchanges(ctx, "https/quiet.example.com"); err == nil || !strings.Contains(err.Error(), "the proxy speaks HTTP for https/quiet.example.com") {
		t.Errorf("at a bridge: %v", err)
	}
	s.Inspected = nil
	if _, err := c.Exchanges(ctx, "http/app.example.com"); err == nil || !strings.Contains(err.Error(), "`reverser inspect http/app.example.com` there") {
		t.Errorf("at a bridge without a store: %v", err)
	}
}

// TestFollow: events come as they happen, for longer than a request may take; some may follow, and the others are refused, so that orders
// still get through; the end of the server ends them.
func TestFollow(t *testing.T) {
	store := inspect.New(0)
	defer store.Close()
	services := []string{"http/a", "http/b", "http/c", "http/d"}
	all := make(map[string]*inspect.Recorder)
	for _, service := range services {
		all[service] = store.Record(service, nil)
	}
	visit := func(service, path string) {
		req := httptest.NewRequest("GET", "/", nil)
		req.RequestURI = path
		all[service].Serve(httptest.NewRecorder(), req, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}
	find := func(p grammar.Public) *inspect.Recorder { return all[p.String()] }
	s := &admin.Server{Status: func() status.Snapshot { return status.Snapshot{Role: "proxy"} }, Inspected: find}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute) // which only bounds a test that hangs
	defer stop()
	c := client(t, s)
	begun := make(map[string]chan struct{}) // closed with the first event of a service
	for _, service := range services {
		begun[service] = make(chan struct{})
	}
	second := make(chan string, 1) // the path of the visit behind the first ones
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, service := range services {
		wg.Go(func() {
			first, found := sync.OnceFunc(func() { close(begun[service]) }), false
			if err := c.Follow(ctx, service, func(e inspect.Event) error {
				first()
				if !found && strings.HasPrefix(e.Exchange.Path, "/second") {
					found = true
					second <- e.Exchange.Path
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	for _, service := range services { // each follower has its place
		for there := false; !there; {
			visit(service, "/first")
			select {
			case <-begun[service]:
				there = true
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("no event of %s comes", service)
			}
		}
	}
	visit("http/a", "/second\x1b[2J")
	select {
	case path := <-second:
		if path != "/second\x1b[2J" {
			t.Errorf("the path is %q", path)
		}
	case <-ctx.Done():
		t.Fatal("the event of the second visit does not come")
	}
	if err := c.Follow(ctx, "http/a", func(inspect.Event) error { return nil }); err == nil || !strings.Contains(err.Error(), "as many as may") {
		t.Fatalf("a fifth one follows: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("status, while four follow: %v", err)
	}
}
