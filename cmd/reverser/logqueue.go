package main

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

// logQueue formats and writes log records in a goroutine of its own: a connection that begins or ends does not wait for the
// terminal or disk, its stack does not grow for the sake of a log line, and lines that come together are written together.
// When lines come close behind each other it takes a rest, in which more of them come together.
//
// When logQueueLen records wait, whoever logs waits too, so that a slow reader loses no line. One that lets a write wait for
// logPatience, such as a terminal that was stopped with Ctrl-S, does not stop the tunnel: lines are dropped until it goes on,
// which is said behind those that were kept. Nor does a write that fails end the log: see lineWriter.
type logQueue struct {
	records chan queuedRecord
	out     lineWriter
	own     slog.Handler // for what the queue has to say itself
	closing chan struct{}
	done    chan struct{} // the writer is

	start time.Time
	began atomic.Int64 // nanoseconds from start to the begin of the present write; 0: none is under way
	lost  atomic.Int64 // lines that were dropped and not spoken of yet
	cause error        // of the last write that failed since then; the writer's own
}

const (
	logQueueLen  = 1024
	logQueueRest = 2 * time.Millisecond
	logPatience  = 2 * time.Second
	logBatch     = 4096                  // bytes that are written at once at the least, while lines come without a pause
	logRetry     = 10 * time.Millisecond // how soon a write is tried again that found the output full
)

type queuedRecord struct {
	handler slog.Handler
	record  slog.Record
}

// newLogQueue returns a queue in front of w; handlers behind it write to out.
func newLogQueue(w io.Writer) *logQueue {
	q := &logQueue{
		records: make(chan queuedRecord, logQueueLen), closing: make(chan struct{}), done: make(chan struct{}), start: time.Now(),
	}
	q.out = lineWriter{w: w, pause: q.pause}
	go q.run()
	return q
}

func (q *logQueue) run() {
	defer close(q.done)
	var flushed time.Time
	for {
		select {
		case r := <-q.records:
			q.write(r)
		case <-q.closing:
			for len(q.records) > 0 {
				q.write(<-q.records)
			}
			q.flush()
			return
		}
		if len(q.records) > 0 && len(q.out.lines) < logBatch {
			continue
		}
		if len(q.records) > 0 {
			q.flush()
			continue
		}
		rest := time.Until(flushed.Add(logQueueRest))
		if rest > 0 {
			time.Sleep(rest)
		}
		if rest <= 0 || len(q.records) == 0 {
			q.flush()
			flushed = time.Now()
		}
	}
}

func (q *logQueue) write(r queuedRecord) { r.handler.Handle(context.Background(), r.record) }

// flush writes what was gathered and, once that has worked, how much is missing ahead of it.
func (q *logQueue) flush() {
	q.begin()
	defer q.end()
	if n, err := q.out.flush(); err != nil {
		q.lost.Add(int64(n))
		q.cause = err
		return
	}
	n := q.lost.Swap(0)
	if n == 0 {
		return
	}
	lost := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were dropped: nobody took them", 0)
	if q.cause != nil {
		lost.Message = "log lines were dropped: they could not be written"
	}
	lost.AddAttrs(slog.Int64("lines", n))
	if q.cause != nil {
		lost.AddAttrs(slog.String("err", q.cause.Error()))
	}
	q.write(queuedRecord{q.own, lost})
	if _, err := q.out.flush(); err != nil {
		q.lost.Add(n)
		q.cause = err
		return
	}
	q.cause = nil
}

// pause is lineWriter's: there is no point in trying longer when the process ends.
func (q *logQueue) pause() bool {
	select {
	case <-q.closing:
		if q.stuck() >= logPatience {
			return false
		}
	default:
	}
	time.Sleep(logRetry)
	return true
}

func (q *logQueue) begin() { q.began.Store(int64(time.Since(q.start)) + 1) }
func (q *logQueue) end()   { q.began.Store(0) }

// stuck is how long the present write has been under way.
func (q *logQueue) stuck() time.Duration {
	if began := q.began.Load(); began != 0 {
		return time.Since(q.start) - time.Duration(began)
	}
	return 0
}

func (q *logQueue) put(r queuedRecord) {
	for {
		select {
		case q.records <- r:
			return
		default:
		}
		left := logPatience - q.stuck()
		if left <= 0 {
			q.lost.Add(1)
			return
		}
		t := time.NewTimer(left)
		select {
		case q.records <- r:
			t.Stop()
			return
		case <-t.C:
		case <-q.done: // the process ends
			t.Stop()
			return
		}
	}
}

// close writes what waits, if somebody takes it. What is logged later may get lost.
func (q *logQueue) close() {
	close(q.closing)
	for left := logPatience; left > 0; left = logPatience - q.stuck() {
		t := time.NewTimer(left)
		select {
		case <-q.done:
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// queuedHandler puts records into a queue.
type queuedHandler struct {
	slog.Handler // writes to the queue's out
	queue        *logQueue
}

func (h queuedHandler) Handle(_ context.Context, r slog.Record) error {
	h.queue.put(queuedRecord{h.Handler, r.Clone()})
	return nil
}

func (h queuedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return queuedHandler{h.Handler.WithAttrs(attrs), h.queue}
}

func (h queuedHandler) WithGroup(name string) slog.Handler {
	return queuedHandler{h.Handler.WithGroup(name), h.queue}
}
