package escape

import (
	"context"
	"encoding"
	"fmt"
	"log/slog"
	"strings"
)

// Handler passes records on with every text made harmless: messages, and whatever is not a number, a time or a truth value.
type Handler struct {
	Next slog.Handler
	// Quote makes the value of an attribute of a text that is not made of Plain characters only; nil: Text does. It is for a
	// handler that would undo what Text did.
	Quote func(s string) slog.Value
}

// Enabled implements slog.Handler.
func (h Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h Handler) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, Text(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(h.attr(a))
		return true
	})
	return h.Next.Handle(ctx, clean)
}

// WithAttrs implements slog.Handler.
func (h Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = h.attr(a)
	}
	return Handler{h.Next.WithAttrs(clean), h.Quote}
}

// WithGroup implements slog.Handler.
func (h Handler) WithGroup(group string) slog.Handler {
	return Handler{h.Next.WithGroup(name(group)), h.Quote}
}

func (h Handler) attr(a slog.Attr) slog.Attr {
	if a.Equal(slog.Attr{}) {
		return a
	}
	a.Key = name(a.Key)
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		a.Value = h.text(v.String())
	case slog.KindAny:
		if a.Value = v; v.Any() != nil {
			a.Value = h.text(text(v.Any()))
		}
	case slog.KindGroup:
		group := make([]slog.Attr, len(v.Group()))
		for i, member := range v.Group() {
			group[i] = h.attr(member)
		}
		a.Value = slog.GroupValue(group...)
	default:
		a.Value = v
	}
	return a
}

// name makes a key of an attribute or group plain. They are this program's own, so nothing is kept of what is not.
func name(key string) string {
	if Plain(key) {
		return key
	}
	return strings.Map(func(r rune) rune {
		if !harmless(r) || r == ' ' || r == '=' || r == '"' {
			return '_'
		}
		return r
	}, cut(key))
}

func (h Handler) text(s string) slog.Value {
	if h.Quote == nil || Plain(s) {
		return slog.StringValue(Text(s))
	}
	return h.Quote(cut(s))
}

// text is what a handler for text would make of a value.
func text(v any) string {
	if m, ok := v.(encoding.TextMarshaler); ok {
		if s, ok := marshal(m); ok {
			return s
		}
	}
	return fmt.Sprintf("%+v", v)
}

// marshal reports false for what cannot be marshalled, such as a nil pointer.
func marshal(m encoding.TextMarshaler) (s string, ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	b, err := m.MarshalText()
	return string(b), err == nil
}

// Plain reports whether a text can stand in a line of key=value pairs as it is.
func Plain(s string) bool {
	for _, r := range s {
		if !harmless(r) || r == ' ' || r == '=' || r == '"' {
			return false
		}
	}
	return s != "" && len(s) <= Most
}
