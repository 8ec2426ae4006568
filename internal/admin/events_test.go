package admin_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"reverser/internal/admin"
	"reverser/internal/events"
	"reverser/internal/status"
)

// TestEvents: what was logged is listed and followed, from any event on; the end of the server is told, and no event is missing then.
func TestEvents(t *testing.T) { synctest.Test(t, testEvents) } // where no second is over before all is told that is to be told

func testEvents(t *testing.T) {
	kept := events.New()
	log := slog.New(kept.Handler(slog.DiscardHandler))
	s := &admin.Server{Status: func() status.Snapshot { return status.Snapshot{Role: "proxy"} }, Events: kept}
	dial, end := socketInBubble(t, s)
	c := admin.NewClient(dial)
	defer c.Close()
	ctx := t.Context()
	if got, err := c.Events(ctx, 0); err != nil || got.Events == nil || len(got.Events) != 0 {
		t.Fatalf("Events of nothing = %+v, %v; want an empty list", got, err)
	}
	log.Info("first")
	log.Warn("second", "key", "\x1b[31m")
	got, err := c.Events(ctx, 0)
	if err != nil || len(got.Events) != 2 || got.Events[1].Level != "WARN" || got.Events[1].Fields[0].Value != `\u001b[31m` {
		t.Fatalf("Events = %+v, %v", got, err)
	}
	first := got.Events[0].ID
	if got, err = c.Events(ctx, first); err != nil || len(got.Events) != 1 || got.Events[0].Event != "second" {
		t.Errorf("Events since the first one = %+v, %v", got, err)
	}
	seen := make(chan string, 2000)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := c.FollowEvents(ctx, first, func(e events.Event, lost int) error {
			seen <- e.Event + strings.Repeat("+", lost)
			return nil
		})
		if !errors.Is(err, admin.ErrGone) {
			t.Errorf("the end of the server is told as %v, want %v", err, admin.ErrGone)
		}
		close(seen)
	})
	expect := func(want string) {
		t.Helper()
		if got := <-seen; got != want {
			t.Errorf("the follower sees %q, want %q", got, want)
		}
	}
	expect("second")
	log.Info("third")
	expect("third")
	log.Info("last")
	end()
	expect("last")
	wg.Wait()
	if more, ok := <-seen; ok {
		t.Errorf("the follower sees %q behind the last", more)
	}
}

// TestEventsLost: who begins at an event that is gone is told how many are missing.
func TestEventsLost(t *testing.T) {
	kept := events.New()
	log := slog.New(kept.Handler(slog.DiscardHandler))
	c := client(t, &admin.Server{Status: func() status.Snapshot { return status.Snapshot{} }, Events: kept})
	log.Info("line")
	got, err := c.Events(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 1500 {
		log.Info("line")
	}
	first := got.Events[0].ID
	if got, err = c.Events(t.Context(), first); err != nil || got.Lost != 500 || len(got.Events) != 1000 {
		t.Errorf("%d events and %d lost, %v; want 1000 and 500", len(got.Events), got.Lost, err)
	}
	over := errors.New("over")
	err = c.FollowEvents(t.Context(), first, func(_ events.Event, lost int) error {
		if lost != 500 {
			t.Errorf("%d are missing before the first one, want 500", lost)
		}
		return over
	})
	if err != over {
		t.Errorf("FollowEvents = %v, want the error of the function", err)
	}
}

// TestEventStream: a browser's way to ask, and to go on where it was; what is no id is refused.
func TestEventStream(t *testing.T) {
	kept := events.New()
	log := slog.New(kept.Handler(slog.DiscardHandler))
	log.Info("first")
	log.Info("second")
	all, _ := kept.Since(0)
	s := &admin.Server{Status: func() status.Snapshot { return status.Snapshot{} }, Events: kept}
	dial := serve(t, s)
	h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}
	ask := func(query string, header ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://reverser/api/v1/events"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := h.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	get := func(header ...string) *http.Response { t.Helper(); return ask("", header...) }
	for _, tt := range []struct{ query, accept, want string }{
		{"", "", "application/json"},
		{"", "*/*", "application/json"},
		{"", "application/json", "application/json"},
		{"", "text/event-stream", "text/event-stream"},
		{"?follow=true", "", "text/event-stream"},
		{"?follow=true", "*/*", "text/event-stream"},
		{"?follow=false", "text/event-stream", "application/json"},
	} {
		var header []string
		if tt.accept != "" {
			header = []string{"Accept", tt.accept}
		}
		resp := ask(tt.query, header...)
		if got := resp.Header.Get("Content-Type"); got != tt.want || resp.StatusCode != http.StatusOK {
			t.Errorf("%q with Accept %q is %s, %s; want %s", tt.query, tt.accept, resp.Status, got, tt.want)
		}
		resp.Body.Close()
	}
	id := strconv.FormatUint(all[0].ID, 10)
	resp := get("Accept", "text/event-stream", "Last-Event-ID", id)
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("the type is %q", got)
	}
	lines := bufio.NewReader(resp.Body)
	for _, want := range []string{"id: " + strconv.FormatUint(all[1].ID, 10), `"event":"second"`, ""} {
		line, err := lines.ReadString('\n')
		if err != nil || !strings.Contains(line, want) {
			t.Errorf("the line is %q, %v; want %q", line, err, want)
		}
	}
	resp.Body.Close()
	for _, bad := range []string{"x", "-1", "99999999999999999999999"} {
		resp := get("Last-Event-ID", bad)
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "is the id of an event") {
			t.Errorf("Last-Event-ID %s: %s %s", bad, resp.Status, text)
		}
	}
}
