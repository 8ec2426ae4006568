package main

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"reverser/internal/status"
)

// TestStreamed: each look has the connections as they are then, across the end of the process.
func TestStreamed(t *testing.T) {
	path := t.TempDir()
	started := time.Now()
	var n atomic.Int64
	n.Store(2)
	snapshot := func() status.Snapshot {
		s := status.Snapshot{Role: "proxy", UptimeSeconds: time.Since(started).Seconds()}
		for i := range n.Load() {
			s.Pairs = append(s.Pairs, status.Pair{ID: string(rune('a' + i)), Sent: uint64(i), State: status.PairOpen})
		}
		return s
	}
	process := startAnswering(t, path, snapshot)
	client := adminOf(path)
	defer client.Close()
	src := newStreamed(t.Context(), client)
	defer src.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	until := func(want int) {
		t.Helper()
		for {
			snap, err := src.look(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(snap.Pairs) == want && snap.Role == "proxy" {
				return
			}
		}
	}
	until(2)
	n.Store(5)
	until(5)
	n.Store(1)
	until(1)
	process.end()
	for {
		if _, err := src.look(ctx); err != nil {
			break
		}
	}
	if _, err := src.look(ctx); err == nil {
		t.Error("a process that is gone is looked at")
	}
	n.Store(3)
	startAnswering(t, path, snapshot)
	until(3)
}
