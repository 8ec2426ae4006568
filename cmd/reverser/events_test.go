package main

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/events"
	"reverser/internal/state"
	"reverser/internal/status"
)

// answering is a process that answers on the admin socket of a state directory.
type answering struct {
	server admin.Server
	events *events.Log
	log    *slog.Logger
	end    func()
}

// startAnswering starts one, which ends with the test if nobody ends it before.
func startAnswering(t *testing.T, path string, snapshot func() status.Snapshot) *answering {
	t.Helper()
	// As a start does it: a command that looks who has the directory holds the lock for a moment.
	dir, err := openState(t.Context(), config.Common{State: path}, state.RoleProxy, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, err := dir.ListenAdmin()
	if err != nil {
		dir.Close()
		t.Fatal(err)
	}
	a := &answering{events: events.New()}
	a.log = slog.New(a.events.Handler(slog.DiscardHandler))
	a.server = admin.Server{Status: snapshot, Events: a.events}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	a.end = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		dir.Close()
	})
	t.Cleanup(a.end)
	return a
}

// lineReader reads lines that a command writes.
type lineReader struct {
	t     *testing.T
	lines chan string
}

func readLines(t *testing.T, r io.Reader) lineReader {
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for scan := bufio.NewScanner(r); scan.Scan(); {
			lines <- scan.Text()
		}
	}()
	return lineReader{t, lines}
}

// until returns the next line that has a text in it.
func (r lineReader) until(text string) string {
	r.t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case line, ok := <-r.lines:
			if !ok {
				r.t.Fatalf("the output ends without %q", text)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-limit:
			r.t.Fatalf("no line has %q", text)
		}
	}
}

// TestEventsFollow: a follower begins with the last events, goes on with the next process, and says so beside its output.
func TestEventsFollow(t *testing.T) {
	path := t.TempDir()
	snapshot := func() status.Snapshot { return status.Snapshot{Role: "proxy"} }
	process := startAnswering(t, path, snapshot)
	for range 5 {
		process.log.Info("long ago")
	}
	for range followedFirst {
		process.log.Info("earlier", "key", "\x1b[31mred \"one\"")
	}
	out, w := io.Pipe()
	said, ew := io.Pipe()
	c := newCLI(strings.NewReader(""), w, ew)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		defer w.Close()
		defer ew.Close()
		done <- eventsView{cli: c, path: path}.follow(ctx)
	}()
	lines, notes := readLines(t, out), readLines(t, said)
	if line := lines.until(""); !strings.HasSuffix(line, ` INFO  earlier key="\u001b[31mred \"one\""`) {
		t.Errorf("the first line is %q", line)
	}
	process.log.Warn("service denied", "public", "tcp/22")
	if line := lines.until("denied"); !strings.HasSuffix(line, " WARN  service denied public=tcp/22") {
		t.Errorf("the line is %q", line)
	}
	process.end()
	notes.until("the process has gone, waiting for the next one")
	process = startAnswering(t, path, snapshot)
	process.log.Info("from the next process")
	notes.until("the process is there again")
	lines.until("from the next process")
	stop()
	if err := <-done; err != nil {
		t.Errorf("the command ends with %v", err)
	}
	for line := range lines.lines {
		t.Errorf("and then %q", line)
	}

	// What nobody reads ends the command.
	out, w = io.Pipe()
	out.Close()
	if err := (eventsView{cli: newCLI(strings.NewReader(""), w, io.Discard), path: path, json: true}).follow(t.Context()); err == nil {
		t.Error("a follower whose output is closed goes on")
	}
}
