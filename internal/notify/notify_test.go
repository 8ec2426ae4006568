package notify

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/logtest"
	"reverser/internal/status"
)

// web is everything that there is behind URLs.
type web struct {
	mu   sync.Mutex
	got  []string // URL and body; guarded by mu, as fail
	fail func(url string) error
}

func (w *web) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	w.mu.Lock()
	fail := w.fail
	w.mu.Unlock()
	if fail != nil {
		if err := fail(r.URL.String()); err != nil {
			<-r.Context().Done() // it is slow, too
			return nil, err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, r.URL.String()+" "+string(body))
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("ok"))}, nil
}

func (w *web) count(words string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.got {
		if strings.Contains(g, words) {
			n++
		}
	}
	return n
}

// running is a notifier that runs over such a web.
func running(t *testing.T, targets ...Target) (w *web, now *status.Snapshot, list *[]Target, mu *sync.Mutex, log *logtest.Journal, stop func()) {
	w, now, list, mu = &web{}, &status.Snapshot{}, &targets, &sync.Mutex{}
	*now = at("a")
	client.Transport = w
	log = logtest.New(slog.LevelDebug)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	n := &Notifier{Role: "proxy", Host: "vm", Log: slog.New(log), Keys: func() map[string]bool { return map[string]bool{"a": true, "b": true} }}
	wg.Go(func() {
		n.Run(ctx, func() status.Snapshot { mu.Lock(); defer mu.Unlock(); return *now }, func() []Target { mu.Lock(); defer mu.Unlock(); return *list })
	})
	return w, now, list, mu, log, func() {
		cancel()
		wg.Wait()
		client.Transport = nil
	}
}

// A target that hangs, and one that is put in its place, cost the others nothing. What could not be sent is sent later, for an hour.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := Target{URL: "https://good/secret", Format: "json", On: Events, After: 30 * time.Second}
		bad := Target{URL: "https://bad/secret", Format: "slack", On: []string{"bridge-down"}, After: 30 * time.Second}
		w, now, list, mu, log, stop := running(t, good, bad)
		defer stop()
		set := func(s status.Snapshot) { mu.Lock(); *now = s; mu.Unlock() }
		fail := func(f func(string) error) { w.mu.Lock(); w.fail = f; w.mu.Unlock() }
		fail(func(url string) error {
			if strings.Contains(url, "bad") {
				return errors.New("no route to host")
			}
			return nil
		})
		time.Sleep(time.Minute)
		set(at())
		time.Sleep(45 * time.Second)
		if w.count("https://good/secret") != 1 || w.count("bridge-down") != 1 || w.count("service-down") != 1 || w.count("bad") != 0 {
			t.Errorf("after an outage: %q", w.got)
		}
		set(at("a"))
		time.Sleep(45 * time.Second)
		if w.count("bridge-up") != 1 {
			t.Errorf("after its end: %q", w.got)
		}
		fail(nil)
		time.Sleep(10 * time.Minute)
		if w.count("https://bad/secret") != 1 {
			t.Errorf("when it can be reached again: %q", w.got)
		}
		// One that is never reached is given up, and one that is removed is not tried any more.
		fail(func(url string) error { return errors.New("no route to host") })
		set(at())
		time.Sleep(2 * time.Hour)
		if log.Count("a notice is given up") != 2 || log.Count("secret") > 0 {
			t.Errorf("the log: %q", log.All())
		}
		set(at("a"))
		time.Sleep(time.Minute)
		mu.Lock()
		*list = nil
		mu.Unlock()
		time.Sleep(time.Minute)
		lines := len(log.All())
		fail(nil)
		before := w.count("")
		set(at())
		time.Sleep(time.Hour)
		if w.count("") != before || len(log.All()) != lines {
			t.Errorf("without targets: %q, the log: %q", w.got, log.All())
		}
	})
}

// A target that takes nothing while everything flaps for a day holds a bounded number of messages.
func TestWaitingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, now, _, mu, log, stop := running(t, Target{URL: "https://bad/secret", Format: "wecom", On: Events})
		defer stop()
		w.fail = func(string) error { return errors.New("no route to host") }
		for i := range 200 {
			mu.Lock()
			if *now = at(); i%2 == 0 {
				*now = at("a")
			}
			mu.Unlock()
			time.Sleep(2 * time.Second)
		}
		if n := log.Count("a notice is dropped"); n < 150 {
			t.Errorf("%d messages are dropped of 200", n)
		}
	})
}
