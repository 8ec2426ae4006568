package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestLogQueue: lines of one goroutine stay in order, none is lost, whatever the writer's speed, and With is kept.
func TestLogQueue(t *testing.T) { synctest.Test(t, testLogQueue) } // where no write takes long, however busy the machine is

func testLogQueue(t *testing.T) {
	var out bytes.Buffer
	log, flush, err := newLogger(&out, logJSON, slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 3 * logQueueLen
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			log := log.With("writer", w)
			for i := range each {
				log.Info("line", "n", i)
			}
		})
	}
	wg.Wait()
	flush()
	next := make([]int, writers)
	for line := range strings.Lines(out.String()) {
		for w := range writers {
			if strings.Contains(line, fmt.Sprintf(`"writer":%d,"n":%d}`, w, next[w])) {
				next[w]++
			}
		}
	}
	for w, n := range next {
		if n != each {
			t.Errorf("writer %d: %d lines in order, want %d", w, n, each)
		}
	}
}

// TestLogQueueWritesAtOnce: a line that comes alone does not wait for the next one.
func TestLogQueueWritesAtOnce(t *testing.T) {
	r, w := io.Pipe()
	log, flush, err := newLogger(w, logText, slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("alone")
	p := make([]byte, 1000)
	if n, err := r.Read(p); err != nil || !strings.Contains(string(p[:n]), "alone") {
		t.Errorf("Read = %q, %v", p[:n], err)
	}
	flush()
}

// stopped is a terminal that takes nothing until it is closed.
type stopped struct {
	goesOn chan struct{}
	got    syncBuffer
}

func (s *stopped) Write(p []byte) (int, error) {
	<-s.goesOn
	return s.got.Write(p)
}

// TestLogQueueStopped: a terminal that takes nothing holds nobody up for long, and says how much it missed when it goes on.
func TestLogQueueStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &stopped{goesOn: make(chan struct{})}
		log, flush, err := newLogger(w, logJSON, slog.LevelInfo)
		if err != nil {
			t.Fatal(err)
		}
		const lines = 5 * logQueueLen
		begin := time.Now()
		for i := range lines {
			log.Info("line", "n", i)
		}
		if waited := time.Since(begin); waited > 2*logPatience {
			t.Errorf("waited %s, want %s and then no more", waited, logPatience)
		}
		close(w.goesOn)
		synctest.Wait()
		log.Info("after")
		flush()
		kept, lost := 0, 0
		for line := range strings.Lines(w.got.String()) {
			var r struct {
				Msg      string
				N, Lines int
			}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			switch {
			case r.Msg == "line" && r.N == kept:
				kept++
			case r.Lines > 0:
				lost += r.Lines
			case r.Msg != "after":
				t.Errorf("line %s, want number %d", line, kept)
			}
		}
		if kept < logQueueLen || kept+lost != lines || !strings.Contains(w.got.String(), "after") {
			t.Errorf("%d lines came, %d were said to be lost, of %d; want all, at least %d of them kept, and the line behind them", kept, lost, lines, logQueueLen)
		}
	})
}

// passing is an output with a fault that passes: while it has room for none, it takes that many bytes of each write and fails.
type passing struct {
	mu   sync.Mutex
	err  error // guarded by mu, as all below
	room int
	got  bytes.Buffer
}

func (p *passing) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		n := min(p.room, len(b))
		p.room -= n
		p.got.Write(b[:n])
		return n, p.err
	}
	return p.got.Write(b)
}

func (p *passing) set(err error, room int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err, p.room = err, room
}

// TestLogQueueGoesOn: a disk that was full for a while, or a pipe that was, does not end the log. What is missing is said, and
// every other line is whole.
func TestLogQueueGoesOn(t *testing.T) {
	const kept, missed = 3, 40
	for _, c := range []struct {
		name  string
		err   error
		room  int // bytes of a line that the fault lets through
		loses bool
	}{
		{"a full disk", &fs.PathError{Op: "write", Path: "/dev/stderr", Err: syscall.ENOSPC}, 0, true},
		{"a disk that is full within a line", syscall.ENOSPC, 10, true},
		{"a reader that is gone for a while", io.ErrClosedPipe, 0, true},
		{"a full pipe that does not wait", &fs.PathError{Op: "write", Path: "/dev/stderr", Err: syscall.EAGAIN}, 10, false},
		{"an interrupt", syscall.EINTR, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &passing{}
				log, flush, err := newLogger(w, logJSON, slog.LevelInfo)
				if err != nil {
					t.Fatal(err)
				}
				line := 0
				say := func(n int) {
					for range n {
						log.Info("line", "n", line)
						line++
						synctest.Wait()
					}
				}
				say(kept)
				time.Sleep(time.Second)
				w.set(c.err, c.room)
				if c.loses {
					say(missed)
					time.Sleep(time.Minute)
				} else {
					say(1)
					time.Sleep(logPatience / 2)
				}
				w.set(nil, 0)
				say(kept)
				flush()
				next, lost := 0, 0
				for text := range strings.Lines(w.got.String()) {
					var r struct {
						Msg, Err string
						N, Lines int
					}
					if err := json.Unmarshal([]byte(text), &r); err != nil {
						if !c.loses || c.room == 0 {
							t.Errorf("%v: %s", err, text)
						}
						continue
					}
					if r.Lines > 0 {
						lost += r.Lines
						if !strings.Contains(r.Err, "no space") && !strings.Contains(r.Err, "closed pipe") {
							t.Errorf("%s; want the cause", text)
						}
						continue
					}
					if r.N != next && r.N != next+missed {
						t.Errorf("line %d, want %d", r.N, next)
					}
					next = r.N + 1
				}
				want := 0
				if c.loses {
					want = missed
				}
				if next != line || lost != want {
					t.Errorf("the last line is %d, %d were said to be lost; want %d and %d:\n%s", next-1, lost, line-1, want, w.got.String())
				}
			})
		})
	}
}

// TestLogQueueEnds: a process whose log nobody takes can end.
func TestLogQueueEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &stopped{goesOn: make(chan struct{})}
		log, flush, err := newLogger(w, logText, slog.LevelInfo)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("nobody takes this")
		begin := time.Now()
		flush()
		if waited := time.Since(begin); waited > 2*logPatience {
			t.Errorf("waited %s", waited)
		}
		log.Info("and this is too late")
		close(w.goesOn)
		time.Sleep(time.Second) // until the writer has ended
	})
}

// BenchmarkLog is what whoever logs pays for a line.
func BenchmarkLog(b *testing.B) {
	log, flush, err := newLogger(io.Discard, logText, slog.LevelInfo)
	if err != nil {
		b.Fatal(err)
	}
	defer flush()
	b.ReportAllocs()
	for b.Loop() {
		log.Info("pair released", "service", "tcp/9000", "client", "127.0.0.1:38168", "target", "127.0.0.1:9904",
			"sent", uint64(79), "received", uint64(204), "duration", 0.045, "reason", "eof", "resumes", uint64(0))
	}
}
