package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

const (
	logText = "text"
	logJSON = "json"
)

// newLogger logs to w: one readable line per event, coloured on a terminal,
// or one JSON object per event.
func newLogger(w io.Writer, format string) (*slog.Logger, error) {
	return newLoggerFor(w, w, format)
}

// newLoggerFor is newLogger where text reaches the screen through a writer of
// its own.
func newLoggerFor(w, text io.Writer, format string) (*slog.Logger, error) {
	switch format {
	case "", logText:
		onTerminal := isTerminal(w)
		layout := time.DateTime
		if onTerminal {
			layout = time.TimeOnly // whoever watches knows the day
		}
		return slog.New(tint.NewTextHandler(text, &tint.Options{
			TimeFormat: layout,
			NoColor:    !onTerminal || os.Getenv("NO_COLOR") != "" || !canColor(w),
		})), nil
	case logJSON:
		return slog.New(slog.NewJSONHandler(w, nil)), nil
	default:
		return nil, usage(fmt.Errorf("log format %q: it is %s or %s (--log-format, or log_format in the configuration)", format, logText, logJSON))
	}
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
