package events

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"reverser/internal/escape"
)

// Handler keeps what it is given of the level Info and above, and passes on what the next handler wants. It leaves out the two lines about
// each user's connection: those are the pairs of the status, and the access log's.
type Handler struct {
	Next slog.Handler
	kept slog.Handler
}

// Handler returns a handler that feeds the log and stands in front of another one.
func (l *Log) Handler(next slog.Handler) Handler {
	return Handler{next, escape.Handler{Next: keeper{log: l}}}
}

// unkept are the messages that are no events.
var unkept = []string{"pair created", "pair released"}

// Enabled implements slog.Handler.
func (h Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.Next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo && !slices.Contains(unkept, r.Message) {
		h.kept.Handle(ctx, r)
	}
	if !h.Next.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Next.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return Handler{h.Next.WithAttrs(attrs), h.kept.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h Handler) WithGroup(name string) slog.Handler {
	return Handler{h.Next.WithGroup(name), h.kept.WithGroup(name)}
}

const (
	mostText   = 1 << 10 // bytes of a message or a field
	mostSize   = 4 << 10 // of all texts of an event
	mostFields = 32
	overhead   = 64 // bytes that an event, or a field, takes besides its texts, roughly
)

// keeper makes events of records that are escaped.
type keeper struct {
	log    *Log
	fields Fields
	group  string // "" or with a dot at its end
}

func (k keeper) Enabled(context.Context, slog.Level) bool { return true }

func (k keeper) Handle(_ context.Context, r slog.Record) error {
	fields := slices.Clone(k.fields)
	r.Attrs(func(a slog.Attr) bool {
		fields.add(k.group, a)
		return true
	})
	e := Event{At: r.Time.Round(0), Level: r.Level.String(), Event: cut(r.Message, mostText), Fields: fields}
	left := mostSize - len(e.Event)
	e.size = overhead + len(e.Event)
	for i, f := range e.Fields {
		if s, ok := f.Value.(string); ok {
			s = cut(s, min(mostText, max(left, 0)))
			left -= len(s)
			e.Fields[i].Value = s
			e.size += len(s)
		}
		e.size += overhead + len(f.Name)
	}
	k.log.add(e)
	return nil
}

func (k keeper) WithAttrs(attrs []slog.Attr) slog.Handler {
	k.fields = slices.Clone(k.fields)
	for _, a := range attrs {
		k.fields.add(k.group, a)
	}
	return k
}

func (k keeper) WithGroup(name string) slog.Handler {
	if name != "" {
		k.group += name + "."
	}
	return k
}

// add appends an attribute, or puts it in the place of one of the same name. Members of a group have its name and a dot in front.
func (f *Fields) add(group string, a slog.Attr) {
	if a.Equal(slog.Attr{}) {
		return
	}
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range a.Value.Group() {
			f.add(group, member)
		}
		return
	}
	field := Field{cut(group+a.Key, mostText), value(a.Value)}
	if i := slices.IndexFunc(*f, func(o Field) bool { return o.Name == field.Name }); i >= 0 {
		(*f)[i] = field
	} else if len(*f) < mostFields {
		*f = append(*f, field)
	}
}

// value is what JSON has for a value: a text, a number, a truth value, or null.
func value(v slog.Value) any {
	switch v.Kind() {
	case slog.KindBool, slog.KindInt64, slog.KindUint64:
		return v.Any()
	case slog.KindFloat64:
		if n := v.Float64(); !math.IsNaN(n) && !math.IsInf(n, 0) {
			return n
		}
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		if v.Any() == nil {
			return nil
		}
	}
	return v.String()
}

// cut is at most n bytes of s, in whole characters; what is left out shows as one.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
