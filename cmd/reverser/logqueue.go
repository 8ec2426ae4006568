package main

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// logQueue formats and writes log records in a goroutine of its own: a connection that begins or ends does not wait for the
// terminal or disk, its stack does not grow for the sake of a log line, and lines that come together are written together.
// When lines come close behind each other it takes a rest, in which more of them come together. When logQueueLen records wait,
// whoever logs waits too: no line is lost.
type logQueue struct {
	records chan queuedRecord
	out     *bufio.Writer
	wg      sync.WaitGroup
}

const (
	logQueueLen  = 1024
	logQueueRest = 2 * time.Millisecond
)

type queuedRecord struct {
	handler slog.Handler
	record  slog.Record
}

// newLogQueue returns a queue in front of w; handlers behind it write to out.
func newLogQueue(w io.Writer) *logQueue {
	q := &logQueue{records: make(chan queuedRecord, logQueueLen), out: bufio.NewWriter(w)}
	q.wg.Go(q.write)
	return q
}

func (q *logQueue) write() {
	var flushed time.Time
	for r := range q.records {
		r.handler.Handle(context.Background(), r.record)
		if len(q.records) > 0 {
			continue
		}
		rest := time.Until(flushed.Add(logQueueRest))
		if rest > 0 {
			time.Sleep(rest)
		}
		if rest <= 0 || len(q.records) == 0 {
			q.out.Flush()
			flushed = time.Now()
		}
	}
}

// close writes what waits. Nothing may be logged any more.
func (q *logQueue) close() {
	close(q.records)
	q.wg.Wait()
	q.out.Flush()
}

// queuedHandler puts records into a queue.
type queuedHandler struct {
	slog.Handler // writes to the queue's out
	queue        *logQueue
}

func (h queuedHandler) Handle(_ context.Context, r slog.Record) error {
	h.queue.records <- queuedRecord{h.Handler, r.Clone()}
	return nil
}

func (h queuedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return queuedHandler{h.Handler.WithAttrs(attrs), h.queue}
}

func (h queuedHandler) WithGroup(name string) slog.Handler {
	return queuedHandler{h.Handler.WithGroup(name), h.queue}
}
