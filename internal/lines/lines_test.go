package lines

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// paper is what a log is written to.
type paper struct {
	mu    sync.Mutex
	b     bytes.Buffer // guarded by mu
	stuck chan struct{}
}

func (p *paper) Write(b []byte) (int, error) {
	if p.stuck != nil {
		<-p.stuck
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

// count counts the lines that have all of the words.
func (p *paper) count(words ...string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
next:
	for ln := range strings.Lines(p.b.String()) {
		for _, w := range words {
			if !strings.Contains(ln, w) {
				continue next
			}
		}
		n++
	}
	return n
}

func start() (*Log, *paper) {
	p := new(paper)
	l := New(slog.New(slog.NewTextHandler(p, nil)))
	go l.Run()
	return l, p
}

// TestFlood: whoever has a lot said gets ten lines a second, and a count when it is over; nobody else's lines are left out.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, p := start()
		defer l.Stop()
		const all = 20_000
		for i := range all / 100 { // for 4 seconds
			for j := range 100 {
				l.Say(slog.LevelInfo, "a", "service up", "service", fmt.Sprint("s", 100*i+j))
			}
			time.Sleep(20 * time.Millisecond)
		}
		l.Say(slog.LevelWarn, "b", "service up", "service", "other")
		l.Say(slog.LevelWarn, "a", "service denied", "service", "same")
		synctest.Wait()
		said := p.count("service up", "service=s")
		if said < 40 || said > 50 {
			t.Errorf("%d lines in 4 seconds, want 10 a second", said)
		}
		if p.count("more=") != 0 {
			t.Error("the count is written while the flood lasts")
		}
		if n := p.count("service=other") + p.count("service denied"); n != 2 {
			t.Errorf("%d lines of another kind, want 2", n)
		}
		time.Sleep(3 * time.Second)
		if n := p.count("service up", fmt.Sprint("service=s", all-1), fmt.Sprint("more=", all-said-1)); n != 1 || p.count("more=") != 1 {
			t.Errorf("the log does not say once that %d are missing:\n%.3000s", all-said-1, p.b.String())
		}
		l.Say(slog.LevelInfo, "a", "service up", "service", "later")
		synctest.Wait()
		if p.count("service=later") != 1 {
			t.Error("a later line is missing")
		}
	})
}

// TestLongFlood: a flood that does not end is summed up every minute, and no line is missing in the sums.
func TestLongFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, p := start()
		const all = 20 * 600
		for range all {
			l.Say(slog.LevelInfo, 1, "hello")
			time.Sleep(50 * time.Millisecond)
		}
		l.Stop()
		sum := 0
		for ln := range strings.Lines(p.b.String()) {
			more := 0
			if _, after, ok := strings.Cut(ln, "more="); ok {
				fmt.Sscan(after, &more)
			}
			sum += 1 + more
		}
		if n := p.count("more="); n < 9 || n > 11 || sum != all {
			t.Errorf("%d sums in 10 minutes, and %d lines in all; want 10 and %d", n, sum, all)
		}
	})
}

// TestManyParties: whoever is one of very many shares a quota, and is forgotten.
func TestManyParties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, p := start()
		defer l.Stop()
		for i := range 3 * mostKinds {
			l.Say(slog.LevelInfo, i, "hello")
			if i%100 == 0 {
				synctest.Wait() // it keeps up
			}
		}
		synctest.Wait()
		if n := p.count("hello"); n != mostKinds+perSecond {
			t.Errorf("%d lines, want %d", n, mostKinds+perSecond)
		}
		time.Sleep(3 * time.Second)
		if p.count(fmt.Sprint("more=", 2*mostKinds-perSecond-1)) != 1 {
			t.Error("the others are not counted")
		}
		l.Say(slog.LevelInfo, -1, "hello", "who", "again")
		synctest.Wait()
		if p.count("who=again") != 1 {
			t.Error("there is no room any more")
		}
	})
}

// TestFloodAtASlowLog: however much one party has said while the log takes nothing, the lines of another one are written, and of the first
// one's it is said how many are missing.
func TestFloodAtASlowLog(t *testing.T) {
	for name, kinds := range map[string]int{"of one kind": 1, "of many kinds": mostWait} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &paper{stuck: make(chan struct{})}
				l := New(slog.New(slog.NewTextHandler(p, nil)))
				go l.Run()
				const all = 10 * mostWait
				for i := range all {
					l.Say(slog.LevelInfo, "a", fmt.Sprint("flood ", i%kinds))
				}
				l.Say(slog.LevelInfo, "b", "bridge connected")
				l.Say(slog.LevelInfo, "b", "service up")
				synctest.Wait()
				close(p.stuck)
				synctest.Wait()
				if p.count("bridge connected") != 1 || p.count("service up") != 1 {
					t.Errorf("the lines of another party are missing:\n%.1000s", p.b.String())
				}
				l.Stop()
				sum := 0
				for ln := range strings.Lines(p.b.String()) {
					more := 0
					if _, after, ok := strings.Cut(ln, "more="); ok {
						fmt.Sscan(after, &more)
					}
					sum += 1 + more
				}
				if sum != all+2 {
					t.Errorf("%d lines are written or counted, want %d", sum, all+2)
				}
			})
		})
	}
}

// TestSlowLog: who says something never waits; what finds no room among the lines that wait is said later.
func TestSlowLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &paper{stuck: make(chan struct{})}
		l := New(slog.New(slog.NewTextHandler(p, nil)))
		go l.Run()
		for i := range 3 * mostWait {
			l.Say(slog.LevelInfo, i, "bridge connected")
		}
		synctest.Wait()
		close(p.stuck)
		l.Stop()
		if said := p.count("bridge connected"); said != 3*mostWait {
			t.Errorf("%d lines, want %d", said, 3*mostWait)
		}
	})
}

// TestDebug: what the log does not take costs nothing.
func TestDebug(t *testing.T) {
	l := New(slog.New(slog.DiscardHandler))
	for range 2 * mostWait {
		l.Say(slog.LevelDebug, 1, "hello")
	}
	if len(l.waiting)+len(l.quotas) != 0 {
		t.Errorf("%d lines wait that nobody wants, %d kinds are counted", len(l.waiting), len(l.quotas))
	}
}
