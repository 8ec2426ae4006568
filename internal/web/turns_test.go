package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/grammar"
)

// TestLoginsInRotation: passwords for the services of one key, however many wait and from however many addresses, hold those of each other key up
// by one check at most. Who finds the line of a key full is told so at once.
func TestLoginsInRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g guesses
		g.init()
		g.turns = newKeyTurns(1)
		looks, goOn := make(chan string), make(chan struct{})
		results := make(map[string]chan error)
		n := 0
		ask := func(ctx context.Context, key, who string) {
			n++
			a := asker{"http/" + key, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 32), key}
			sum := [32]byte{byte(n >> 8), byte(n)}
			result := make(chan error, 1)
			results[who] = result
			go func() {
				_, err := g.try(ctx, a, sum, func() bool {
					looks <- who
					<-goOn
					return true
				})
				result <- err
			}()
			synctest.Wait()
		}
		ctx := t.Context()
		ask(ctx, "evil", "evil0")
		var got []string
		if got = append(got, <-looks); got[0] != "evil0" { // it is being checked
			t.Fatal(got)
		}
		for i := range mostWaiting {
			ask(ctx, "evil", fmt.Sprint("evil", i+1))
		}
		ask(ctx, "evil", "one more")
		select {
		case err := <-results["one more"]:
			if err != errCrowd {
				t.Errorf("in a full line: %v, want %v", err, errCrowd)
			}
		default:
			t.Fatal("whoever finds the line full waits")
		}
		left, leave := context.WithCancel(ctx)
		ask(ctx, "ann", "ann1")
		ask(left, "ann", "ann, who leaves")
		ask(ctx, "ann", "ann2")
		ask(ctx, "bob", "bob1")
		ask(left, "cid", "cid, who leaves")
		leave()
		synctest.Wait()
		if err := <-results["ann, who leaves"]; !errors.Is(err, context.Canceled) {
			t.Errorf("who has left: %v", err)
		}
		ask(ctx, "evil", "still one more") // nobody of this line has left
		if err := <-results["still one more"]; err != errCrowd {
			t.Errorf("in a line that is still full: %v", err)
		}
		for range 8 {
			goOn <- struct{}{}
			got = append(got, <-looks)
			if len(got) == 5 {
				ask(ctx, "bob", "bob2") // comes anew, and waits for one of each
			}
		}
		if want := strings.Fields("evil0 ann1 bob1 evil1 ann2 evil2 bob2 evil3 evil4"); !slices.Equal(got, want) {
			t.Errorf("checked in the order\n%q, want\n%q", got, want)
		}
		for range mostWaiting - 4 {
			goOn <- struct{}{}
			<-looks
		}
		goOn <- struct{}{}
		synctest.Wait()
		if g.turns.free != 1 || len(g.turns.lines)+g.turns.order.Len()+len(g.checks)+len(g.queued) > 0 {
			t.Errorf("at the end: %d turns are free, %d lines, %d checks and %d addresses are left behind", g.turns.free, len(g.turns.lines), len(g.checks), len(g.queued))
		}
	})
}

// TestTurnOfOneWhoLeaves: a turn that comes at the moment when its client leaves goes to the next one.
func TestTurnOfOneWhoLeaves(t *testing.T) {
	k := newKeyTurns(1)
	k.take(t.Context(), "a")
	l, turn, err := k.join("a")
	if err != nil || turn == nil {
		t.Fatal(turn, err)
	}
	k.end("a")
	if k.leave(l, turn) {
		t.Error("a turn that was given can be left")
	}
	if k.end("a"); k.free != 1 {
		t.Errorf("%d turns are free, want 1", k.free)
	}
}

// TestFullLineOfLogins: a request for a service whose key has a full line gets 503 with Retry-After; one of another key's service waits for its
// turn, also from the same address.
func TestFullLineOfLogins(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"evil", "good"} {
		w.site(name, w.target(echo), grammar.ProxyOptions{BasicAuth: []string{"ann:$2a$04$0000000000000000000000000000000000000000000000000000"}}).Key = name
	}
	g := &w.s.guesses
	g.init()
	turns := g.turns.free
	for range turns {
		g.turns.take(t.Context(), "another key")
	}
	for range mostWaiting {
		if _, turn, err := g.turns.join("evil"); turn == nil || err != nil {
			t.Fatal(turn, err)
		}
	}
	g.queued[queuer{"evil", netip.MustParsePrefix("127.0.0.1/32")}] = mostQueued - 1
	u := w.user()
	resp, page := u.ask("GET / HTTP/1.1\r\nHost: evil\r\nAuthorization: Basic YW5uOnNlY3JldA==\r\n\r\n")
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(page, "Too many logins") {
		t.Errorf("in a full line: %s, Retry-After %q\n%s", resp.Status, resp.Header.Get("Retry-After"), page)
	}
	if err := w.lastFailure(); err != errCrowd {
		t.Errorf("the log has %v, want %v", err, errCrowd)
	}
	g.queued[queuer{"evil", netip.MustParsePrefix("127.0.0.1/32")}] = mostQueued
	if resp, _ := u.ask("GET / HTTP/1.1\r\nHost: evil\r\nAuthorization: Basic YW5uOnNlY3JldA==\r\n\r\n"); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("from an address with %d that wait: %s", mostQueued, resp.Status)
	}
	fmt.Fprint(u, "GET / HTTP/1.1\r\nHost: good\r\nAuthorization: Basic YW5uOnNlY3JldA==\r\n\r\n")
	for { // until it waits
		g.turns.mu.Lock()
		waits := g.turns.lines["good"] != nil // behind the line that is full
		g.turns.mu.Unlock()
		if waits {
			break
		}
		time.Sleep(time.Millisecond)
	}
	g.turns.end("another key") // to one of the evil key's, whose line has come first
	g.turns.end("evil")
	if resp, _ := u.answer("good"); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("another key's service: %s, want 401", resp.Status)
	}
}
