package admin_test

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"reverser/internal/admin"
	"reverser/internal/grammar"
	"reverser/internal/status"
)

// TestEnd: what the command says arrives as it was meant, and how many ended comes back.
func TestEnd(t *testing.T) {
	var got admin.Which
	n := 3
	c := client(t, &admin.Server{Status: snapshot, Keys: &fakeKeys{names: []string{"nas"}}, End: func(w admin.Which) int { got = w; return n }})
	allow, err := grammar.ParseAllow("http/*.example.com/a")
	if err != nil {
		t.Fatal(err)
	}
	want := admin.Which{Service: allow, Key: "nas", Client: netip.MustParsePrefix("2001:db8::/32")}
	if ended, err := c.EndPairs(context.Background(), want); ended != 3 || err != nil || got != want {
		t.Errorf("EndPairs = %d, %v, and %+v arrived", ended, err, got)
	}
	if ended, err := c.EndPair(context.Background(), "17/x"); ended != 3 || err != nil || got != (admin.Which{ID: "17/x"}) {
		t.Errorf("EndPair = %d, %v, and %+v arrived", ended, err, got)
	}
	n = 0
	if ended, err := c.EndPairs(context.Background(), admin.Which{Key: "nas"}); ended != 0 || err != nil {
		t.Errorf("of a key without connections: %d, %v", ended, err)
	}
	if _, err := c.EndPairs(context.Background(), admin.Which{Key: "nobody"}); !isUsage(err) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("of no key: %v", err)
	}
	if _, err := c.EndPair(context.Background(), "99"); !isUsage(err) || !strings.Contains(err.Error(), `"99"`) {
		t.Errorf("of no connection: %v", err)
	}
}

// TestEndRefused: an order that chooses nothing, or says something that is not understood, ends nobody.
func TestEndRefused(t *testing.T) {
	dial := serve(t, &admin.Server{Status: snapshot, Keys: &fakeKeys{names: []string{"nas"}}, End: func(w admin.Which) int {
		t.Errorf("%+v was ended", w)
		return 0
	}})
	for _, query := range []string{
		"", "?", "?service=", "?key=", "?client=", "?service=x", "?service=tcp/9000-", "?client=10", "?client=fe80::1%25eth0", "?kye=nas",
		"?key=nas&key=other", "?key=nas&kye=nas", "?key=nas&client=%zz", "?key=nas;client=10.0.0.1", "?id=3",
	} {
		resp, body := ask(t, dial, "DELETE /api/v1/pairs"+query+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s %s; want 400", query, resp.Status, body)
		}
	}
}

// TestEndAtABridge: its key is the one that its links have.
func TestEndAtABridge(t *testing.T) {
	c := client(t, &admin.Server{Status: func() status.Snapshot {
		return status.Snapshot{Role: "bridge", Links: []status.Link{{Key: "0a0b0c0d"}}}
	}, End: func(admin.Which) int { return 0 }})
	if n, err := c.EndPairs(context.Background(), admin.Which{Key: "0a0b0c0d"}); n != 0 || err != nil {
		t.Errorf("EndPairs = %d, %v", n, err)
	}
	if _, err := c.EndPairs(context.Background(), admin.Which{Key: "nas"}); !isUsage(err) {
		t.Errorf("EndPairs = %v, of another key than the bridge's", err)
	}
}

// TestParseClient: an IPv4 address or network that is written as one of IPv6 is that of IPv4, as clients are.
func TestParseClient(t *testing.T) {
	for s, want := range map[string]string{
		"203.0.113.7":          "203.0.113.7/32",
		"203.0.113.7/24":       "203.0.113.0/24",
		"::ffff:127.0.0.1":     "127.0.0.1/32",
		"::ffff:127.0.0.1/128": "127.0.0.1/32",
		"::ffff:127.0.0.0/104": "127.0.0.0/8",
		"::ffff:0:0/96":        "0.0.0.0/0",
		"::/0":                 "::/0",
		"2001:db8::1/64":       "2001:db8::/64",
	} {
		if got, err := admin.ParseClient(s); err != nil || got.String() != want {
			t.Errorf("ParseClient(%q) = %v, %v; want %s", s, got, err, want)
		}
	}
}
