package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/auth"
	"reverser/internal/link"
	"reverser/internal/logtest"
)

// TestOneBreakOneWarning: three connections break at once and come back each on its own.
func TestOneBreakOneWarning(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{{Public: public(t, "9000"), Target: srv.target()}}}})
	p.ready()
	s := p.open(1)
	c := srv.accept()
	talk(t, s, c, "?")
	missing := func() (n int) {
		r := b.uplinks[0].report
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, up := range r.up {
			if !up {
				n++
			}
		}
		return n
	}
	for n := 1; n <= 2; n++ {
		// On a busy machine one may be back before the bridge has noticed that another one broke, which would be another break.
		hold := make(chan struct{})
		goOn := sync.OnceFunc(func() { close(hold) })
		defer goOn()
		p.mu.Lock()
		p.hold = hold
		p.mu.Unlock()
		p.cut()
		eventually(t, "the bridge knows that all are broken", func() bool { return missing() == 3 })
		p.mu.Lock()
		p.hold = nil
		p.mu.Unlock()
		goOn()
		eventually(t, "the bridge says that it is back", func() bool { return b.log.Count("INFO connected to the proxy again", "away=") == n })
		if got := b.log.Count("WARN"); got != n {
			t.Errorf("%d warnings after %d breaks", got, n)
		}
		talk(t, s, c, "still")
	}
}

// said runs a reporter's day and returns what it said, without the keys that are always there.
func said(t *testing.T, day func(r *reporter)) string {
	log := logtest.NewWithLevels(slog.LevelInfo)
	synctest.Test(t, func(*testing.T) { day(newReporter(slog.New(log), "p:1")) })
	out := strings.Join(log.All(), "\n")
	for _, s := range []string{" proxy=p:1", " remote=r"} {
		out = strings.ReplaceAll(out, s, "")
	}
	return out
}

func connect(r *reporter) {
	for slot := range 3 {
		r.attached(nil, slot, "r")
	}
}

func TestReports(t *testing.T) {
	refused := errors.New("refused")
	for name, c := range map[string]struct {
		day  func(r *reporter)
		want []string
	}{
		"one carrier breaks": {func(r *reporter) {
			connect(r)
			r.detached(nil, 2, io.EOF)
			r.failed(2, io.EOF, time.Second)
			time.Sleep(time.Second)
			r.attached(nil, 2, "r")
		}, []string{
			"INFO connected to the proxy",
			"WARN a connection to the proxy broke, dialling again; users' connections stand still meanwhile err=EOF",
			"INFO connected to the proxy again away=1",
		}},
		"all break, and the proxy is away for some minutes": {func(r *reporter) {
			connect(r)
			for slot := range 3 {
				r.detached(nil, 2-slot, io.EOF)
			}
			for range 130 {
				for slot := range 3 {
					r.failed(slot, fmt.Errorf("from port %d: %w", time.Now().Second(), refused), time.Second)
				}
				time.Sleep(time.Second)
			}
			connect(r)
		}, []string{
			"INFO connected to the proxy",
			"WARN a connection to the proxy broke, dialling again; users' connections stand still meanwhile err=EOF",
			"WARN no connection to the proxy, trying again err=from port 10: refused retry_in=1 away=10",
			"WARN no connection to the proxy, trying again err=from port 10: refused retry_in=1 away=70",
			"INFO connected to the proxy again away=130",
		}},
		"the token is replaced": {func(r *reporter) {
			connect(r)
			r.detached(nil, 0, link.ErrRenewed)
			r.attached(nil, 0, "r")
		}, []string{
			"INFO connected to the proxy",
			"INFO the control connection is replaced, with the new token",
		}},
		"the token is replaced, and the proxy is away": {func(r *reporter) {
			connect(r)
			r.detached(nil, 0, link.ErrRenewed)
			r.failed(0, refused, time.Second)
			time.Sleep(time.Second)
			r.attached(nil, 0, "r")
		}, []string{
			"INFO connected to the proxy",
			"INFO the control connection is replaced, with the new token",
			"WARN no connection to the proxy, trying again err=refused retry_in=1",
			"INFO connected to the proxy again away=1",
		}},
		"the proxy is not there yet": {func(r *reporter) {
			for range 61 {
				r.failed(0, refused, time.Second)
				time.Sleep(time.Second)
			}
			connect(r)
		}, []string{
			"WARN no connection to the proxy, trying again err=refused retry_in=1",
			"WARN no connection to the proxy, trying again err=refused retry_in=1 away=60",
			"INFO connected to the proxy",
		}},
		"the port for carriers is blocked from the start": {func(r *reporter) {
			r.attached(nil, 0, "r")
			for range 61 {
				r.failed(1, refused, time.Second)
				r.failed(2, refused, time.Second)
				time.Sleep(time.Second)
			}
			r.attached(nil, 1, "r")
			r.attached(nil, 2, "r")
		}, []string{
			"INFO connected to the proxy",
			"WARN no connection for carriers, trying again; without one no user is served err=refused retry_in=1",
			"WARN no connection for carriers, trying again; without one no user is served err=refused retry_in=1 away=60",
			"INFO connected to the proxy again away=61",
		}},
		"the port for carriers is blocked, and that is told before the control connection": {func(r *reporter) {
			r.failed(1, refused, time.Second)
			r.attached(new(link.Link), 0, "r")
			r.failed(1, refused, time.Second)
		}, []string{
			"INFO connected to the proxy",
			"WARN no connection for carriers, trying again; without one no user is served err=refused retry_in=1",
		}},
		"the port for carriers is blocked after a break": {func(r *reporter) {
			connect(r)
			for slot := range 3 {
				r.detached(nil, slot, io.EOF)
			}
			time.Sleep(time.Second)
			r.attached(nil, 0, "r")
			for range 15 {
				r.failed(1, refused, time.Second)
				time.Sleep(time.Second)
			}
			r.attached(nil, 1, "r")
			time.Sleep(time.Minute)
			r.failed(2, refused, time.Second)
		}, []string{
			"INFO connected to the proxy",
			"WARN a connection to the proxy broke, dialling again; users' connections stand still meanwhile err=EOF",
			"WARN no connection for carriers, trying again; without one no user is served err=refused retry_in=1 away=10",
			"WARN no connection for some of the carriers, trying again; users go over the others err=refused retry_in=1 away=76",
		}},
		"the control connection alone is away": {func(r *reporter) {
			connect(r)
			r.detached(nil, 0, io.EOF)
			time.Sleep(settle)
			r.failed(0, refused, time.Second)
			r.failed(0, auth.ErrPin, time.Second) // news: somebody has to do something
			r.failed(0, auth.ErrPin, time.Second)
		}, []string{
			"INFO connected to the proxy",
			"WARN a connection to the proxy broke, dialling again; users' connections stand still meanwhile err=EOF",
			"WARN no connection to the proxy, trying again err=refused retry_in=1 away=10",
			"WARN no connection to the proxy, trying again err=" + auth.ErrPin.Error() + " retry_in=1 away=10",
		}},
		"the proxy is restarted": {func(r *reporter) {
			connect(r)
			r.leaving(nil, 30*time.Second, 2*time.Second)
			for range 3 {
				r.failed(0, refused, time.Second)
				time.Sleep(time.Second)
			}
			connect(r)
			r.detached(nil, 1, io.EOF)
		}, []string{
			"INFO connected to the proxy",
			"WARN the proxy is stopping, looking for the one that takes its place drain=30 retry_in=2",
			"INFO connected to the proxy again away=3",
			"WARN a connection to the proxy broke, dialling again; users' connections stand still meanwhile err=EOF",
		}},
		"another bridge took the key": {func(r *reporter) {
			connect(r)
			r.ended(nil, errors.New("gone"))
			r.failed(0, errors.New("gone"), time.Second)
			for range 5 { // news, and not for later
				r.failed(0, link.ErrDuplicate, time.Second)
			}
		}, []string{
			"INFO connected to the proxy",
			"WARN session with the proxy ended, its connections were reset err=gone",
			"WARN no connection to the proxy, trying again err=" + link.ErrDuplicate.Error() + " retry_in=1",
		}},
		"the key is removed": {func(r *reporter) {
			connect(r)
			r.ended(nil, auth.ErrRefused)
			for range 5 {
				r.failed(0, auth.ErrRefused, time.Second)
			}
		}, []string{
			"INFO connected to the proxy",
			"WARN session with the proxy ended, its connections were reset err=" + auth.ErrRefused.Error(),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, want := said(t, c.day), strings.Join(c.want, "\n"); got != want {
				t.Errorf("said\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// slow is a log whose reader has stopped for a while.
type slow struct {
	*logtest.Journal
	at   chan struct{} // a line waits
	read chan struct{} // closed when it is read again
}

func (s slow) Handle(ctx context.Context, r slog.Record) error {
	select {
	case s.at <- struct{}{}:
	default:
	}
	<-s.read
	return s.Journal.Handle(ctx, r)
}

// TestBusyProxyIsSaidOnce: a proxy that has no place closes a connection without a word. The bridge says once what that may be, and when it
// tries again, however often it does.
func TestBusyProxyIsSaidOnce(t *testing.T) {
	for _, linger := range []int{0, -1} { // RST, FIN
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var came atomic.Int32
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				came.Add(1)
				c.(*net.TCPConn).SetLinger(linger)
				c.Close()
			}
		})
		b := start(t, Config{Token: tokenFor(ln.Addr().String())})
		eventually(t, "the bridge tries again and again", func() bool { return came.Load() >= 4 })
		if n := b.log.Count("no connection to the proxy, trying again", "the proxy may be busy", "retry_in="); n != 1 || b.log.Count("WARN") != 1 {
			t.Errorf("%d lines of %d warnings say why it waits and until when, want one: %q", n, b.log.Count("WARN"), b.log.All())
		}
		ln.Close()
		wg.Wait()
	}
}

// TestReportsAreBounded: a proxy that accepts and ends sessions as fast as it can does not fill the bridge's log.
func TestReportsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewWithLevels(slog.LevelInfo)
		r := newReporter(slog.New(log), "p:1")
		const each, rounds = 1000, 3
		for range rounds {
			for range each {
				r.leaving(nil, time.Second, 0)
			}
			time.Sleep(time.Second)
		}
		said, counted := 0, 0
		for _, line := range log.All() {
			if said++; strings.Contains(line, fmt.Sprint("more=", each-linesPerSecond)) {
				counted++
			}
		}
		if said != rounds*linesPerSecond || counted != rounds-1 {
			t.Errorf("%d lines about %d stops in %d seconds, of which %d say how many are missing; want %d and %d",
				said, rounds*each, rounds, counted, rounds*linesPerSecond, rounds-1)
		}
	})
}

// TestReportsToASlowLog: one caller waits for the log, and nobody else.
func TestReportsToASlowLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slow{logtest.NewWithLevels(slog.LevelInfo), make(chan struct{}, 1), make(chan struct{})}
		r := newReporter(slog.New(log), "p:1")
		var stuck sync.WaitGroup
		stuck.Go(func() { connect(r) })
		<-log.at
		for range 10_000 {
			r.detached(nil, 1, io.EOF)
			r.attached(nil, 1, "r")
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		close(log.read)
		stuck.Wait()
		r.leaving(nil, time.Second, 0)
		if n := len(log.All()); n != 1+mostLines+1 || !strings.Contains(log.All()[1], "broke") || !strings.Contains(log.All()[n-1], "stopping") {
			t.Errorf("%d lines came, want %d in order:\n%s", n, mostLines+2, strings.Join(log.All(), "\n"))
		}
	})
}

// TestReportOfAnOverlap: a session may begin before the end of the one before it is told. What is told late changes nothing.
func TestReportOfAnOverlap(t *testing.T) {
	before, next := new(link.Link), new(link.Link)
	for name, late := range map[string]func(*reporter){
		"ended":    func(r *reporter) { r.ended(before, errors.New("the proxy was restarted")) },
		"leaving":  func(r *reporter) { r.leaving(before, time.Second, 0) },
		"detached": func(r *reporter) { r.detached(before, 1, errors.New("reset")) },
	} {
		var log bytes.Buffer
		r := newReporter(slog.New(slog.NewTextHandler(&log, nil)), "p:3010")
		for slot := range 3 {
			r.attached(before, slot, "p:3010")
		}
		r.attached(next, 0, "p:3010")
		late(r)
		r.attached(next, 1, "p:3010")
		r.attached(next, 2, "p:3010")
		if !strings.Contains(log.String(), "connected to the proxy again") {
			t.Errorf("%s late: the log has no word of the next session:\n%s", name, log.String())
		}
		log.Reset()
		r.detached(next, 0, errors.New("reset"))
		r.attached(next, 0, "p:3010")
		if !strings.Contains(log.String(), "connected to the proxy again") {
			t.Errorf("%s late: the log has no word of a later break:\n%s", name, log.String())
		}
	}
}
