package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
)

// TestLogQueue: lines of one goroutine stay in order, none is lost, whatever the writer's speed, and With is kept.
func TestLogQueue(t *testing.T) {
	var out bytes.Buffer
	log, flush, err := newLogger(&out, logJSON)
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
	log, flush, err := newLogger(w, logText)
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

// BenchmarkLog is what whoever logs pays for a line.
func BenchmarkLog(b *testing.B) {
	log, flush, err := newLogger(io.Discard, logText)
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
