package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/config"
	"reverser/internal/service"
	"reverser/internal/status"
)

// fakeSupervisor writes down what it is told, without the words.
type fakeSupervisor struct {
	mu    sync.Mutex
	heard []string // guarded by mu, as all below
	words string   // the last
	err   error
}

func (f *fakeSupervisor) hear(what, words string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = append(f.heard, what)
	if words != "" {
		f.words = words
	}
	return f.err
}

func (f *fakeSupervisor) Ready(status string) error  { return f.hear("ready", status) }
func (f *fakeSupervisor) Status(status string) error { return f.hear("status", status) }
func (f *fakeSupervisor) Reloading() error           { return f.hear("reloading", "") }
func (f *fakeSupervisor) Alive() error               { return f.hear("alive", "") }
func (f *fakeSupervisor) Stopping(status string, within time.Duration) error {
	return f.hear("stopping "+within.String(), status)
}

func (f *fakeSupervisor) count(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.heard {
		if h == what {
			n++
		}
	}
	return n
}

// take returns what was told since the last take.
func (f *fakeSupervisor) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.heard
	f.heard = nil
	return all
}

// A bridge is ready when its services have an answer, or after a while: a proxy that is away must not hold up the machine's start.
func TestReady(t *testing.T) {
	link := []status.Link{{State: status.LinkUp}}
	for _, c := range []struct {
		name string
		s    status.Snapshot
		at   time.Duration
		want string
	}{
		{"a proxy", status.Snapshot{Role: "proxy"}, 0, "0 bridges connected, 0 of 0 services up, 0 connections"},
		{"a bridge that is up", status.Snapshot{Role: "bridge", Links: link, Services: []status.Service{{Public: "tcp/9000", State: status.ServiceUp}}}, 0, "link up, 1 of 1 service up, 0 connections"},
		{"a bridge that is denied", status.Snapshot{Role: "bridge", Links: link, Services: []status.Service{{Public: "tcp/22", State: status.ServiceDenied, Reason: "not allowed"}}}, 0,
			"link up, 0 of 1 service up, 0 connections; tcp/22 denied: not allowed"},
		{"a bridge without an answer", status.Snapshot{Role: "bridge", Links: link, Services: []status.Service{{Public: "tcp/9000", State: status.ServiceAway}}}, settleWithin, "link up, 0 of 1 service up, 0 connections; tcp/9000 away"},
		{"a bridge without a link", status.Snapshot{Role: "bridge", Links: []status.Link{{State: status.LinkDown}}}, settleWithin, "no link to the proxy, 0 of 0 services up, 0 connections"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				to := &fakeSupervisor{}
				v := &supervision{to: to, watchdog: time.Minute, log: slog.New(slog.DiscardHandler)}
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { v.run(ctx, func() status.Snapshot { return c.s }) })
				if c.at > 0 {
					time.Sleep(c.at - time.Millisecond)
					synctest.Wait()
					if slices.Contains(to.take(), "ready") {
						t.Errorf("ready before %v", c.at)
					}
					time.Sleep(settlePoll)
				}
				synctest.Wait()
				if got := to.take(); !slices.Contains(got, "ready") || to.words != c.want {
					t.Errorf("told %q, the last words are %q; want ready and %q", got, to.words, c.want)
				}
				cancel()
				wg.Wait()
			})
		})
	}
}

// A process that hangs tells its supervisor nothing any more, and one that does not tells it often enough, from its start to its end.
func TestWatchdogStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const watchdog = 30 * time.Second
		to := &fakeSupervisor{}
		v := &supervision{to: to, watchdog: watchdog, log: slog.New(slog.DiscardHandler)}
		hang, goesOn := make(chan struct{}), make(chan struct{})
		look := func() status.Snapshot {
			select {
			case <-hang:
				<-goesOn
			default:
			}
			return status.Snapshot{Role: "proxy"}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { v.run(ctx, look) })
		time.Sleep(time.Hour)
		synctest.Wait()
		if n, least := to.count("alive"), int(time.Hour/(watchdog/2)); n < least {
			t.Errorf("%d signs of life in an hour, want %d or more", n, least)
		}
		v.stop(time.Minute)
		to.take()
		time.Sleep(time.Minute)
		synctest.Wait()
		if to.count("alive") < 2 {
			t.Error("no signs of life while it stops")
		}
		close(hang)
		time.Sleep(watchdog)
		to.take()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := to.take(); len(got) > 0 {
			t.Errorf("a process that hangs told %q", got)
		}
		cancel()
		close(goesOn)
		wg.Wait()
	})
}

// The order of words is that of the protocol, whatever comes together.
func TestReloadAndStop(t *testing.T) {
	to := &fakeSupervisor{}
	v := &supervision{to: to, log: slog.New(slog.DiscardHandler)}
	v.reloading()() // before the process is ready: not a word that says so
	if got := to.take(); len(got) > 0 {
		t.Errorf("told %q before it was ready", got)
	}
	v.serves("all is well")
	done := v.reloading()
	if got := to.take(); !slices.Equal(got, []string{"ready", "reloading"}) {
		t.Errorf("told %q", got)
	}
	done()
	if got := to.take(); !slices.Equal(got, []string{"ready"}) || to.words != "all is well" {
		t.Errorf("told %q, %q; want ready and the words from before", got, to.words)
	}
	done = v.reloading()
	v.stop(30 * time.Second)
	done()
	v.serves("late")
	if got := to.take(); !slices.Equal(got, []string{"reloading", "stopping 45s"}) {
		t.Errorf("told %q; want no ready behind stopping", got)
	}
	v.status("5 connections")
	if to.words != "stopping: 5 connections" {
		t.Errorf("the last words are %q", to.words)
	}
	(*supervision)(nil).reloading()()
}

// A supervisor that cannot be told is one line in the log, until it can.
func TestDeafSupervisor(t *testing.T) {
	var out syncBuffer
	to := &fakeSupervisor{err: errors.New("no such socket")}
	v := &supervision{to: to, log: slog.New(slog.NewTextHandler(&out, nil))}
	for range 5 {
		v.told(to.Alive())
	}
	if n := strings.Count(out.String(), "no such socket"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, out.String())
	}
}

// What a service manager asks for stands for signals.
func TestAskedInPlaceOfSignals(t *testing.T) {
	asked := make(chan os.Signal)
	did := make(chan string)
	say := func(what string) func() { return func() { did <- what } }
	stop := withSignals(slog.New(slog.DiscardHandler), asked, say("reload"), say("drain"), say("now"), func() {})
	defer stop()
	for _, want := range []string{"drain", "now"} {
		asked <- os.Interrupt
		if got := <-did; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestStopThatHangs: a drain that waits for ever, as for a file system that does not answer, keeps nobody from stopping the process now.
func TestStopThatHangs(t *testing.T) {
	asked, answers := make(chan os.Signal), make(chan struct{})
	did := make(chan string)
	say := func(what string) func() { return func() { did <- what } }
	drain := func() {
		did <- "drain"
		<-answers
	}
	stop := withSignals(slog.New(slog.DiscardHandler), asked, say("reload"), drain, say("now"), say("leave"))
	defer stop()
	defer close(answers)
	for _, want := range [][]string{{"drain"}, {"leave", "now"}} {
		asked <- os.Interrupt
		for _, want := range want {
			if got := <-did; got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
	}
}

// TestLeaveInTime: a process that does not end by itself is ended, with a word, also when nobody reads the log.
func TestLeaveInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, ended := time.Now(), make(chan time.Duration, 1)
		reading := make(chan struct{})
		leaveInTime(slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			if !strings.Contains(string(b), "does not answer") {
				t.Errorf("the log says %q", b)
			}
			<-reading
			return len(b), nil
		}), nil)), func() { ended <- time.Since(begun) })
		if took := <-ended; took != leaveWait+leaveWord {
			t.Errorf("the process is ended after %v", took)
		}
		close(reading)
	})
}

func TestDrainOf(t *testing.T) {
	for _, c := range []struct{ set, want time.Duration }{{0, 30 * time.Second}, {-1, 0}, {time.Hour, time.Hour}} {
		set := config.Settings{}
		set.Drain = c.set
		if got := drainOf(set); got != c.want {
			t.Errorf("drainOf(%v) = %v, want %v", c.set, got, c.want)
		}
	}
}

// fakeManager is a service manager with one service, whose process does not answer.
type fakeManager struct {
	service.Manager
	dir string
}

func (m fakeManager) State(string) string { return m.dir }
func (m fakeManager) Status(context.Context, string) (service.Status, error) {
	return service.Status{State: service.Running, Log: []string{"WRN first", "WRN the key is refused"}}, nil
}

// A bridge that takes the place of one with a link, and gets none, is refused with what it said, but not before it had its time.
func TestStillLinked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		err := stillLinked(t.Context(), fakeManager{dir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), "the key is refused") {
			t.Errorf("stillLinked = %v, want an error with what the bridge said", err)
		}
		if took := time.Since(begun); took < settleWithin {
			t.Errorf("refused after %v, want %v", took, settleWithin)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
