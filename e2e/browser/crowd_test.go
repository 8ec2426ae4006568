package browser

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"reverser/internal/page"
	"reverser/internal/status"
)

// crowd stands for a process with very many connections, all of which move every second: so many real ones would take more
// descriptors than a test may have. What it says is what the API says.
type crowd struct {
	mu    sync.Mutex
	pairs []status.Pair
	ended []string
	ticks int
}

const crowdSize = 10_000

func newCrowd() *crowd {
	c := new(crowd)
	for i := range crowdSize {
		c.pairs = append(c.pairs, status.Pair{
			ID: fmt.Sprint(i), Service: fmt.Sprintf("tcp/%d", 9000+i%100), Client: fmt.Sprintf("198.51.%d.%d:40000", i/256, i%256),
			Target: "192.168.1.5:80", Since: time.Now().Add(-time.Duration(i) * time.Second), State: status.PairOpen,
		})
	}
	return c
}

// step moves every connection: the higher its number, the faster. Those are gone that ended since the first so many.
func (c *crowd) step(ended int) (status.Snapshot, []status.Pair, []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ticks++
	snap := status.Snapshot{Role: "proxy", Version: "v0", UptimeSeconds: float64(c.ticks)}
	var key status.Key
	for i := range c.pairs {
		c.pairs[i].Sent += uint64(i)
		c.pairs[i].Received += uint64(i) * 10
		key.Sent += c.pairs[i].Sent
		key.Received += c.pairs[i].Received
	}
	key.Key, key.Connections = "nas", len(c.pairs)
	snap.Keys = []status.Key{key}
	return snap, append([]status.Pair(nil), c.pairs...), slices.Clone(c.ended[ended:])
}

func (c *crowd) end(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range c.pairs {
		if p.ID == id {
			c.pairs = append(c.pairs[:i], c.pairs[i+1:]...)
			c.ended = append(c.ended, id)
			return true
		}
	}
	return false
}

func (c *crowd) serve(t *testing.T) string {
	mux := http.NewServeMux()
	mux.Handle("/", page.New())
	mux.HandleFunc("POST /api/v1/login", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"session":"any"}`)
	})
	mux.HandleFunc("GET /api/v1/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "paths:\n  /api/v1/stream:\n    get:\n  /api/v1/pairs/{id}:\n    delete:\n")
	})
	mux.HandleFunc("DELETE /api/v1/pairs/{id}", func(w http.ResponseWriter, r *http.Request) {
		n := 0
		if c.end(r.PathValue("id")) {
			n = 1
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"ended":%d}`, n)
	})
	over := make(chan struct{})
	mux.HandleFunc("GET /api/v1/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		every := time.NewTicker(time.Second)
		defer every.Stop()
		ended := 0 // that this page knows: another stream of the page may be open for a moment
		for first := true; ; first = false {
			snap, pairs, gone := c.step(ended)
			ended += len(gone)
			send := func(name string, v any) {
				b, err := json.Marshal(v)
				if err != nil {
					t.Error(err)
				}
				fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, b)
			}
			send("status", snap)
			if r.URL.Query().Get("pairs") == "true" {
				for reset := first; ; reset = false {
					n := min(len(pairs), 500)
					part := pairs[:n]
					pairs = pairs[n:]
					send("pairs", map[string]any{"reset": reset, "changed": part, "gone": gone, "more": len(pairs) > 0})
					if gone = nil; len(pairs) == 0 {
						break
					}
				}
			}
			if http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-every.C:
			case <-r.Context().Done():
				return
			case <-over:
				return
			}
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(over) })
	return srv.URL
}

// TestCrowd: ten thousand connections that move every second. Only those in sight have elements, whichever these are; searching, sorting,
// scrolling and ending go on meanwhile.
func TestCrowd(t *testing.T) {
	t.Parallel()
	c := newCrowd()
	p := Start(t, Config{}).Open(t, c.serve(t))
	p.Script(`window.long = [];
		new PerformanceObserver((list) => { for (const e of list.getEntries()) window.long.push(Math.round(e.duration)); }).observe({entryTypes: ['longtask']});`)
	logIn(p, "any")
	show(p, "connections")
	p.Await(`document.querySelector('.sums')?.textContent.includes('10,000 connections')`)
	const rows = `document.querySelectorAll('#pairs tbody tr:not(.gap)')`
	fastest := func(n int) string {
		return fmt.Sprintf(`document.querySelector('#pairs tbody tr:not(.gap) th')?.textContent.includes('198.51.%d.%d:40000')`, n/256, n%256)
	}
	p.Await(fastest(crowdSize - 1)) // they come in the order of their speed, as soon as there is one
	if n := Eval[int](p, "return "+rows+".length"); n < 10 || n > 100 {
		t.Errorf("the list has elements for %d rows, want those in sight only", n)
	}
	moving := `document.querySelector('#pairs tbody tr:not(.gap) .c-received, #pairs tbody tr:not(.gap) td:nth-of-type(6)').textContent`
	before := Eval[string](p, "return "+moving)
	p.Await(fmt.Sprintf("%s != %q", moving, before))

	// The whole way down, in steps, as somebody scrolls who looks for something.
	p.Script(`const box = document.querySelector('#pairs');
		while (box.scrollTop + box.clientHeight < box.scrollHeight - 1) {
			box.scrollTop += 20000;
			await new Promise(requestAnimationFrame);
		}`)
	p.Await(`[...` + rows + `].some((r) => r.ariaRowIndex == 10001 && r.textContent.includes('198.51.0.0:40000'))`)

	p.Script(`document.querySelector('#pairs').scrollTop = 0`)
	typeInto(p, "#search", "198.51.7.0/24")
	p.Await(`document.querySelector('.sums').textContent.includes('256 of 10,000 connections')`)
	p.Await(fastest(7*256 + 255))
	p.Do(click(`#pairs button[aria-label*="198.51.7.255:40000"]`))
	p.Do(click(`dialog button.danger`))
	hears(p, "198.51.7.255:40000 was ended")
	// The dialog gives the focus back to the row: while somebody is at the list its rows keep their places, and the sums say what lives.
	// Which rows are there may change a moment before.
	p.Await(`((b) => { b?.focus(); return b && document.activeElement == b; })(document.querySelector('#pairs tbody tr:not(.gap):not(.ended) button'))`)
	p.Await(`document.querySelector('.sums').textContent.includes('255 of 9,999 connections')`)
	p.Do(click("#search"))
	p.Await(`document.querySelector('.sums').textContent.includes('255 of 9,999 connections') && !document.querySelector('#pairs tr.ended')`)
	typeInto(p, "#search", "tcp/9042")
	p.Await(`document.querySelector('.sums').textContent.includes('100 of 9,999 connections')`)

	long := Eval[[]int](p, "return window.long")
	t.Logf("tasks of the page that took longer than 50 ms: %v ms", long)
	p.Picture("crowd")
	p.Quiet()
}
