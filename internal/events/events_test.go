package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestHandler: what is an event, and what it looks like.
func TestHandler(t *testing.T) {
	kept := New()
	var passed strings.Builder
	log := slog.New(kept.Handler(slog.NewTextHandler(&passed, &slog.HandlerOptions{Level: slog.LevelError})))
	log.Debug("fine print")
	log.Info("pair created", "client", "192.0.2.1:1")
	log.Info("pair released", "client", "192.0.2.1:1")
	log.With("key", "nas", "n", 1).WithGroup("g").Warn("link\x1b[31m down", "err", errors.New("a\nb"), "n", 2, "for", time.Minute,
		"at", time.Unix(0, 0).UTC(), "yes", true, "none", nil, "ratio", 0.5, slog.Group("inner", "x", uint64(7)))
	log.Error("gone", "n", 1, "n", 2)
	list, lost := kept.Since(0)
	if lost != 0 || len(list) != 2 {
		t.Fatalf("Since(0) = %v, %d; want the two that are events", list, lost)
	}
	if list[0].ID+1 != list[1].ID || list[0].At.IsZero() {
		t.Errorf("ids %d, %d and time %v", list[0].ID, list[1].ID, list[0].At)
	}
	b, err := json.Marshal(list[0])
	if err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(string(b), `"level"`)
	want := `:"WARN","event":"link\\u001b[31m down","fields":{"key":"nas","n":1,"g.err":"a\\nb","g.n":2,"g.for":"1m0s",` +
		`"g.at":"1970-01-01T00:00:00Z","g.yes":true,"g.none":null,"g.ratio":0.5,"g.inner.x":7}}`
	if got != want {
		t.Errorf("the event is %s, want %s", got, want)
	}
	var back Event
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(back); err != nil || string(again) != string(b) {
		t.Errorf("read and written again it is %s, %v; want %s", again, err, b)
	}
	if want := (Fields{{"n", int64(2)}}); !reflect.DeepEqual(list[1].Fields, want) {
		t.Errorf("of two fields of one name there is %v, want the last, %v", list[1].Fields, want)
	}
	if s := passed.String(); !strings.Contains(s, "gone") || strings.Count(s, "\n") != 1 {
		t.Errorf("the next handler, of the level error, was given %q; want the error alone", s)
	}
	for _, bad := range []string{`{"fields":[]}`, `{"fields":{"a"}}`, `{"fields":5}`, `{"fields":{"a":1`} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

// TestBounds: whatever is logged, an event and the log are of bounded size.
func TestBounds(t *testing.T) {
	kept := New()
	log := slog.New(kept.Handler(slog.DiscardHandler))
	var many []any
	for i := range 100 {
		many = append(many, fmt.Sprintf("field%d", i), strings.Repeat("é", 2000))
	}
	for range 2 * mostEvents {
		log.Info(strings.Repeat("m", 9000), many...)
	}
	list, _ := kept.Since(0)
	total := 0
	for _, e := range list {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 2*mostSize {
			t.Fatalf("an event has %d bytes: %s", len(b), b)
		}
		if len(e.Fields) != mostFields {
			t.Fatalf("an event has %d fields, want %d", len(e.Fields), mostFields)
		}
		total += len(b)
	}
	if total > mostBytes || total < mostBytes/4 {
		t.Errorf("%d events have %d bytes, want at most %d, and not much less", len(list), total, mostBytes)
	}
	for i := range 2 * mostEvents {
		log.Info("short", "n", i)
	}
	list, _ = kept.Since(0)
	short := 0
	for _, e := range list {
		if e.Event == "short" {
			short++
		}
	}
	if len(list) != mostEvents || short < mostEvents*9/10 {
		t.Errorf("%d events are kept then, %d of them short; want %d, nearly all of them", len(list), short, mostEvents)
	}
}

// TestFlood: what many of one kind push out is of their kind.
func TestFlood(t *testing.T) {
	kept := New()
	log := slog.New(kept.Handler(slog.DiscardHandler))
	log.Warn("bridge away", "key", "nas")
	first, _ := kept.Since(0)
	for i := range 3 * mostEvents {
		log.Info("client refused", "n", i)
		if i == mostEvents {
			log.Warn("service denied")
		}
	}
	list, _ := kept.Since(0)
	if len(list) != mostEvents || list[0].Event != "bridge away" || list[1].Event != "service denied" {
		t.Errorf("%d events are kept, the first %q and %q; want %d, with the two that were alone of their kind", len(list), list[0].Event, list[1].Event, mostEvents)
	}
	if last := list[len(list)-1].Fields[0].Value; last != int64(3*mostEvents-1) {
		t.Errorf("the last one is %v", last)
	}
	_, lost := kept.Since(first[0].ID)
	if want := 3*mostEvents + 1 - (mostEvents - 1); lost != want {
		t.Errorf("%d were lost since the first one, want %d", lost, want)
	}
	for i := range list[1:] {
		if list[i+1].ID <= list[i].ID {
			t.Fatalf("event %d stands behind %d", list[i+1].ID, list[i].ID)
		}
	}
}

// TestSince: an id of this process is where the list begins, one of another process is before all.
func TestSince(t *testing.T) {
	kept := New()
	log := slog.New(kept.Handler(slog.DiscardHandler))
	for i := range 3 {
		log.Info("line", "n", i)
	}
	all, _ := kept.Since(0)
	for _, c := range []struct {
		id   uint64
		want int
	}{{0, 3}, {5, 3}, {all[0].ID - 1, 3}, {all[0].ID, 2}, {all[1].ID, 1}, {all[2].ID, 0}, {all[2].ID + 1, 3}, {1<<64 - 1, 3}} {
		if list, lost := kept.Since(c.id); len(list) != c.want || lost != 0 || list == nil {
			t.Errorf("Since(%d) has %d events and %d lost, want %d and 0", c.id, len(list), lost, c.want)
		}
	}
}

// TestFollow: a follower sees each event once, one that does not look holds nobody up, and all of it under the race detector.
func TestFollow(t *testing.T) {
	kept := New()
	log := slog.New(kept.Handler(slog.DiscardHandler))
	log.Info("before")
	before, _ := kept.Since(0)
	stuck := kept.Follow(before[0].ID)
	defer stuck.Close()
	const writers, each = 4, 500
	follower := kept.Follow(before[0].ID)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				log.Info("line")
			}
		})
	}
	seen, last := 0, uint64(0)
	for seen < writers*each {
		select {
		case <-follower.Changed():
		case <-ctx.Done():
			t.Fatalf("the follower saw %d events, want %d", seen, writers*each)
		}
		list, lost := follower.Next()
		seen += len(list) + lost
		for _, e := range list {
			if e.ID <= last {
				t.Fatalf("event %d came behind %d", e.ID, last)
			}
			last = e.ID
		}
	}
	wg.Wait()
	if list, lost := follower.Next(); len(list) != 0 || lost != 0 {
		t.Errorf("afterwards there are %d more, and %d lost", len(list), lost)
	}
	if list, lost := stuck.Next(); len(list)+lost != writers*each || len(list) != mostEvents-1 {
		t.Errorf("the one that did not look gets %d, and %d lost; want %d in all, %d kept", len(list), lost, writers*each, mostEvents-1)
	}
	follower.Close()
	log.Info("after")
	if len(kept.followers) != 1 {
		t.Errorf("%d followers are left, want 1", len(kept.followers))
	}
}

func BenchmarkFlood(b *testing.B) {
	kept := New()
	log := slog.New(kept.Handler(slog.DiscardHandler)).With("side", "proxy")
	for b.Loop() {
		log.Info("client refused", "service", "tcp/9000", "client", "192.0.2.1", "err", "the bridge is away")
	}
}
