package admin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/status"
)

// TestServicePaths: PUBLIC in a path may be written with its slashes as they are or escaped, also where it ends in a word that means an order.
func TestServicePaths(t *testing.T) {
	store := inspect.New(0)
	defer store.Close()
	var about string
	dial := serve(t, &admin.Server{
		Status: func() status.Snapshot { return status.Snapshot{Role: "proxy"} },
		Drain: func(_ context.Context, o admin.DrainOrder) (admin.Drained, error) {
			about = fmt.Sprintf("drain %s %t", o.Service, o.Undo)
			return admin.Drained{Services: []string{}}, nil
		},
		Inspected: func(p grammar.Public) *inspect.Recorder {
			about = "exchanges " + p.String()
			return store.Record(p.String(), nil)
		},
	})
	for _, tt := range []struct {
		method, path string
		want         int
		about        string // which service was ordered or asked about
	}{
		{"POST", "tcp/19000/drain", 200, "drain tcp/19000 false"},
		{"POST", "tcp%2F19000/drain", 200, "drain tcp/19000 false"},
		{"POST", "9000/drain", 200, "drain tcp/9000 false"},
		{"DELETE", "tcp/9000-9010/drain", 200, "drain tcp/9000-9010 true"},
		{"POST", "tcp/[::1]:9000/drain", 200, "drain tcp/[::1]:9000 false"},
		{"POST", "http/*.example.com/drain", 200, "drain http/*.example.com false"},
		{"POST", "http/app.example.com/api/drain", 200, "drain http/app.example.com/api false"},
		{"POST", "http%2Fapp.example.com%2Fapi/drain", 200, "drain http/app.example.com/api false"},
		{"POST", "http/app.example.com%2Fapi/drain", 200, "drain http/app.example.com/api false"},
		{"POST", "http/app.example.com/api/%64rain", 200, "drain http/app.example.com/api false"},
		{"POST", "http/app.example.com/drain/drain", 200, "drain http/app.example.com/drain false"},
		{"DELETE", "http%2Fapp.example.com%2Fdrain/drain", 200, "drain http/app.example.com/drain true"},
		{"POST", "http/app.example.com/caf%C3%A9/drain", 200, "drain http/app.example.com/caf%C3%A9 false"},
		{"POST", "http%2Fapp.example.com%2Fcaf%25c3%25a9/drain", 200, "drain http/app.example.com/caf%C3%A9 false"},
		{"POST", "http/app.example.com/exchanges/5/replay/drain", 200, "drain http/app.example.com/exchanges/5/replay false"},
		{"POST", "http/exchanges/drain", 200, "drain http/exchanges false"},
		{"POST", "http%2Fapp.example.com%2Fdrain", 404, ""}, // a service, and no order
		{"POST", "http/app.example.com/api", 404, ""},
		{"POST", "drain", 404, ""},
		{"POST", "tcp/19000/drain/", 404, ""},
		{"POST", "x/y/drain", 400, ""},
		{"GET", "tcp/19000/drain", 405, ""},
		{"HEAD", "tcp/19000/drain", 405, ""},

		{"GET", "http/app.example.com/api/exchanges", 200, "exchanges http/app.example.com/api"},
		{"HEAD", "http/app.example.com/api/exchanges", 200, "exchanges http/app.example.com/api"},
		{"GET", "http%2Fapp.example.com%2Fapi/exchanges", 200, "exchanges http/app.example.com/api"},
		{"GET", "http/app.example.com/exchanges/exchanges", 200, "exchanges http/app.example.com/exchanges"},
		{"GET", "http/exchanges/exchanges", 200, "exchanges http/exchanges"},
		{"GET", "http/app.example.com/api/exchanges/5", 404, "exchanges http/app.example.com/api"}, // of which there is no 5
		{"GET", "http/app.example.com/exchanges/exchanges/5", 404, "exchanges http/app.example.com/exchanges"},
		{"GET", "http/app.example.com/exchanges/5/exchanges", 200, "exchanges http/app.example.com/exchanges/5"},
		{"POST", "http/app.example.com/exchanges/5/replay", 404, "exchanges http/app.example.com"},
		{"POST", "http/app.example.com/exchanges/%35/replay", 404, "exchanges http/app.example.com"},
		{"GET", "http/app.example.com/exchanges/5/replay", 405, ""},
		{"DELETE", "http/app.example.com/exchanges/5", 405, ""},
		{"GET", "http/app.example.com/exchanges/", 404, ""},
		{"GET", "no/such/thing/exchanges", 400, ""},
		{"GET", "x%1b%5b2J/y/exchanges", 400, ""},
	} {
		about = ""
		resp, body := ask(t, dial, fmt.Sprintf("%s /api/v1/services/%s HTTP/1.1\r\nHost: x\r\n\r\n", tt.method, tt.path))
		if resp.StatusCode != tt.want || about != tt.about {
			t.Errorf("%s %s: %d %.200s about %q; want %d about %q", tt.method, tt.path, resp.StatusCode, body, about, tt.want, tt.about)
		}
		if allow := resp.Header.Get("Allow"); (tt.want == http.StatusMethodNotAllowed) != (allow != "") {
			t.Errorf("%s %s: Allow is %q", tt.method, tt.path, allow)
		}
		if tt.want >= 400 && tt.method != "HEAD" && !strings.Contains(resp.Header.Get("Content-Type"), "problem+json") {
			t.Errorf("%s %s: %q is no problem", tt.method, tt.path, body)
		}
	}
}

// TestServices: the list of services is that of the status.
func TestServices(t *testing.T) {
	var snap status.Snapshot
	dial := serve(t, &admin.Server{Status: func() status.Snapshot { return snap }})
	list := func() string {
		resp, body := ask(t, dial, "GET /api/v1/services HTTP/1.1\r\nHost: x\r\n\r\n")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s, %v", resp.Status, resp.Header)
		}
		return strings.TrimSpace(body)
	}
	if got := list(); got != `{"services":[]}` {
		t.Errorf("of none: %s", got)
	}
	snap.Services = []status.Service{{Public: "tcp/9000", Target: "127.0.0.1:80", State: status.ServiceUp, Connections: 2}, {Public: "http/a", State: status.ServiceDenied, Reason: "policy"}}
	whole, err := json.Marshal(snap)
	if err != nil {
		t.Fatal(err)
	}
	got := list()
	if services := strings.TrimSuffix(strings.TrimPrefix(got, `{"services":`), "}"); !strings.Contains(string(whole), `"services":`+services+`,`) || !strings.Contains(got, "tcp/9000") {
		t.Errorf("%s; want the services of %s", got, whole)
	}
	if resp, _ := ask(t, dial, "POST /api/v1/services HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
}
