package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"reverser/internal/escape"
	"reverser/internal/events"
	"reverser/internal/service"
)

const (
	logText = "text"
	logJSON = "json"
)

// newLogger logs to w: one readable line per event, coloured on a terminal,
// or one JSON object per event. The returned function writes what waits.
// What is below the level is left out; the level may change while the process runs.
func newLogger(w io.Writer, format string, level slog.Leveler) (log *slog.Logger, flush func(), err error) {
	q := newLogQueue(w)
	h, err := newHandler(w, &q.out, format, level)
	if err != nil {
		q.close()
		return nil, nil, err
	}
	q.own = h
	return slog.New(queuedHandler{h, q}), q.close, nil
}

// newHandler writes to out what is meant for w, which may be a terminal. Nothing that a peer or stranger said is written as it
// is.
func newHandler(w, out io.Writer, format string, level slog.Leveler) (slog.Handler, error) {
	journal := onJournal(w)
	if _, takes := w.(interface{ TakesPriorities() }); journal || takes {
		h, err := newHandler(struct{ io.Writer }{w}, out, format, level)
		if err != nil {
			return nil, err
		}
		return priorityHandler{h, out, journal}, nil
	}
	switch format {
	case "", logText:
		onTerminal := isTerminal(w)
		layout := time.DateTime
		if onTerminal {
			layout = time.TimeOnly // whoever watches knows the day
		}
		return newTextHandler(out, level, layout, onTerminal && os.Getenv("NO_COLOR") == "" && canColor(w)), nil
	case logJSON:
		return escape.Handler{Next: slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level})}, nil
	default:
		return nil, usage(fmt.Errorf("log format %q: it is %s or %s (--log-format, or log_format in the configuration)", format, logText, logJSON))
	}
}

func newTextHandler(out io.Writer, level slog.Leveler, layout string, color bool) slog.Handler {
	text := tint.NewTextHandler(out, &tint.Options{Level: level, TimeFormat: layout, NoColor: !color})
	// When tint quotes a text, it writes an escape sequence in it as one; so it does with `\x1b` in four characters. It quotes bytes
	// as they should be.
	return escape.Handler{Next: text, Quote: func(s string) slog.Value { return slog.AnyValue([]byte(s)) }}
}

// logsJSON reports whether a logger of newLogger writes JSON.
func logsJSON(log *slog.Logger) bool {
	h := log.Handler()
	if kept, ok := h.(events.Handler); ok {
		h = kept.Next
	}
	q, _ := h.(queuedHandler)
	next := q.Handler
	if j, ok := next.(priorityHandler); ok {
		next = j.Handler
	}
	last, _ := next.(escape.Handler)
	_, ok := last.Next.(*slog.JSONHandler)
	return ok
}

func onJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && service.IsJournal(f)
}

// priorityHandler writes for who takes the level from a number before the line, as systemd's journal does.
type priorityHandler struct {
	slog.Handler // writes to out
	out          io.Writer
	noTime       bool // the journal knows it by itself
}

func (h priorityHandler) Handle(ctx context.Context, r slog.Record) error {
	priority := "<7>"
	switch {
	case r.Level >= slog.LevelError:
		priority = "<3>"
	case r.Level >= slog.LevelWarn:
		priority = "<4>"
	case r.Level >= slog.LevelInfo:
		priority = "<6>"
	}
	if _, err := io.WriteString(h.out, priority); err != nil {
		return err
	}
	if h.noTime {
		r.Time = time.Time{}
	}
	return h.Handler.Handle(ctx, r)
}

func (h priorityHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return priorityHandler{h.Handler.WithAttrs(attrs), h.out, h.noTime}
}

func (h priorityHandler) WithGroup(name string) slog.Handler {
	return priorityHandler{h.Handler.WithGroup(name), h.out, h.noTime}
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
