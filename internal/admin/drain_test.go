package admin_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/status"
)

// TestDrain: what the command says arrives as it was meant, and what it is about comes back.
func TestDrain(t *testing.T) {
	var got admin.DrainOrder
	var fails error
	c := client(t, &admin.Server{Status: snapshot, Keys: &fakeKeys{}, Drain: func(_ context.Context, o admin.DrainOrder) (admin.Drained, error) {
		got = o
		return admin.Drained{Services: []string{"tcp/9000"}, Connections: 3}, fails
	}})
	for _, word := range []string{"tcp/9000-9010", "tcp/[::1]:9000", "http/*.example.com/a", "http/*"} {
		for _, undo := range []bool{false, true} {
			allow, err := grammar.ParseAllow(word)
			if err != nil {
				t.Fatal(err)
			}
			want := admin.DrainOrder{Service: allow, Undo: undo}
			if done, err := c.Drain(t.Context(), want); err != nil || got != want || done.Connections != 3 || len(done.Services) != 1 {
				t.Errorf("Drain(%+v) = %+v, %v, and %+v arrived", want, done, err, got)
			}
		}
	}
	want := admin.DrainOrder{Key: "nas@home", Undo: true}
	if _, err := c.Drain(t.Context(), want); err != nil || got != want {
		t.Errorf("Drain(%+v) = %v, and %+v arrived", want, err, got)
	}
	fails = &admin.UsageError{Err: errors.New("there is no such service"), Code: http.StatusNotFound}
	if _, err := c.Drain(t.Context(), want); !isUsage(err) {
		t.Errorf("Drain = %v", err)
	}
}

// TestDrainRefused: words that are no service change nothing, and a bridge says where to go.
func TestDrainRefused(t *testing.T) {
	dial := serve(t, &admin.Server{Status: snapshot, Drain: func(context.Context, admin.DrainOrder) (admin.Drained, error) {
		t.Error("an order came through")
		return admin.Drained{}, nil
	}})
	for _, word := range []string{"x", "tcp%2F0", "tcp%2F9000-", "http%2F", "%2e%2e"} {
		resp, body := ask(t, dial, "POST /api/v1/services/"+word+"/drain HTTP/1.1\r\nHost: x\r\n\r\n")
		if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s %s", word, resp.Status, body)
		}
	}
	c := client(t, &admin.Server{Status: func() status.Snapshot {
		return status.Snapshot{Role: "bridge", Links: []status.Link{{Remote: "203.0.113.5:3010"}}}
	}})
	if _, err := c.Drain(t.Context(), admin.DrainOrder{Key: "nas"}); !isUsage(err) || !strings.Contains(err.Error(), "at its proxy (203.0.113.5:3010)") {
		t.Errorf("at a bridge: %v", err)
	}
}
