package proxy

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/wire"
)

// ask claims a service again, with or without inspect.
func (b *bridge) askInspect(i int, on bool) {
	b.w.t.Helper()
	options, err := grammar.ProxyOptions{Inspect: on}.Encode()
	if err != nil {
		b.w.t.Fatal(err)
	}
	c := b.claims[i]
	c.Options = options
	b.mu.Lock()
	l := b.link
	b.mu.Unlock()
	l.Say(uint64(i+1), wire.AppendClaim(nil, uint32(i+1), c))
}

// TestInspected: a service is inspected for as long as its bridge says so, and what is kept goes with it.
func TestInspected(t *testing.T) {
	nas, pc := key(t, "nas", "http/*"), key(t, "pc", "http/*")
	var mu sync.Mutex
	var told []Request
	w := start(t, Config{HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{nas, pc}}, Requests: func() func(Request) {
		return func(r Request) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, r)
		}
	}})
	b := w.bridge(nas, how{instance: 1}, "http/a.example", "http/b.example")
	b.target(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.Header.Get("X-Forwarded-For"), body)
	})
	public := func(s string) grammar.Public {
		p, err := grammar.ParsePublic(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a := public("http/a.example")
	if w.p.Inspected(a) != nil || w.p.Inspected(public("http/c.example")) != nil || w.p.Inspected(public("tcp/9000")) != nil {
		t.Error("a service is inspected that nobody has asked for")
	}
	u := w.httpUser()
	u.ask(get("a.example", "/before"))
	b.askInspect(0, true)
	eventually(t, "the service is inspected", func() bool { return w.p.Inspected(a) != nil })
	u.ask("POST /x?y HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nAuthorization: Bearer s3cr3t\r\n\r\nhello")
	u.ask(get("b.example", "/"))
	rec := w.p.Inspected(a)
	list := rec.List()
	if len(list) != 1 || list[0].Path != "/x?y" || list[0].Status != 200 || list[0].Sent != 5 || list[0].Client != u.LocalAddr().String() {
		t.Fatalf("the exchanges are %+v", list)
	}
	again, err := rec.Replay(t.Context(), list[0].ID)
	if err != nil || again.Status != 200 || again.State != inspect.StateDone {
		t.Fatalf("Replay = %+v, %v", again, err)
	}
	x, err := rec.Exchange(again.ID)
	if err != nil || x.Response.Body != "POST a.example 127.0.0.1 hello" {
		t.Errorf("the target answered the replay with %q, %v", x.Response.Body, err)
	}
	for _, s := range w.p.Status().Services {
		if s.Inspect != (s.Public == "http/a.example") {
			t.Errorf("status of %s: inspected %t", s.Public, s.Inspect)
		}
	}
	eventually(t, "four requests were told", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == 4 })
	if r := told[1]; r.Service != "http/a.example" || r.Key != "nas" || r.Target != "10.0.0.1:80" || r.Method != "POST" || r.Path != "/x?y" || r.Status != 200 ||
		r.Sent != 5 || r.Received == 0 || r.ID == "" || r.Duration <= 0 {
		t.Errorf("told %+v", r)
	}

	// A bridge that changes its mind.
	b.askInspect(0, false)
	eventually(t, "the service is inspected no longer", func() bool { return w.p.Inspected(a) == nil })
	u.ask(get("a.example", "/"))
	b.askInspect(0, true)
	eventually(t, "the service is inspected again", func() bool { return w.p.Inspected(a) != nil })
	if n := len(w.p.Inspected(a).List()); n != 0 {
		t.Errorf("%d exchanges are there of the time before", n)
	}
	u.ask(get("a.example", "/"))
	eventually(t, "the log says each change", func() bool {
		return w.log.Count("service is inspected: its last exchanges are kept in memory service=http/a.example") == 2 &&
			w.log.Count("service is inspected no longer: its exchanges are forgotten service=http/a.example") == 1
	})

	// Another key's service of that name has nothing to see of it.
	b.unclaim(0)
	eventually(t, "nothing is kept", func() bool {
		w.p.inspected.mu.Lock()
		defer w.p.inspected.mu.Unlock()
		return len(w.p.inspected.of) == 0
	})
	two := w.bridge(pc, how{instance: 2}, "http/a.example")
	two.target(say("pc"))
	two.askInspect(0, true)
	eventually(t, "the other key's service is inspected", func() bool { return w.p.Inspected(a) != nil })
	if n := len(w.p.Inspected(a).List()); n != 0 {
		t.Errorf("%d exchanges of another key are there", n)
	}
	if resp, body := u.ask(get("a.example", "/")); !strings.HasPrefix(body, "pc ") {
		t.Errorf("%s %q", resp.Status, body)
	}
}
