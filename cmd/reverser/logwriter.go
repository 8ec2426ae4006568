package main

import (
	"bytes"
	"errors"
	"io"
	"syscall"
)

// lineWriter gathers lines and writes them together. A failed write costs the lines that were in it; the next write is tried
// as if nothing had happened, because a full disk gets room again.
type lineWriter struct {
	w     io.Writer
	lines []byte // that are not written yet
	torn  bool   // the last line that was written is not whole
	// pause waits until it is time to try a write again that found the output full, as a pipe is that another process has made
	// non-blocking. It reports whether there is still a point in that.
	pause func() bool
}

// Write adds whole lines.
func (l *lineWriter) Write(p []byte) (int, error) {
	l.lines = append(l.lines, p...)
	return len(p), nil
}

// flush writes what was gathered. With an error comes the number of lines that are lost.
func (l *lineWriter) flush() (lost int, err error) {
	rest := l.lines
	if len(rest) == 0 {
		return 0, nil
	}
	if l.torn {
		rest = append([]byte("\n"), rest...)
	}
	for len(rest) > 0 {
		n := 0
		if n, err = l.w.Write(rest); n > 0 {
			l.torn = rest[n-1] != '\n'
			rest = rest[n:]
		}
		if err != nil && !(passes(err) && l.pause()) {
			break
		}
	}
	if len(rest) > 0 {
		newline := []byte("\n")
		lost = min(bytes.Count(rest, newline), bytes.Count(l.lines, newline)) // the one in front ends no line of these
	} else {
		err = nil
	}
	l.lines = l.lines[:0]
	if cap(l.lines) > 16*logBatch {
		l.lines = nil
	}
	return lost, err
}

// passes reports whether a write failed only because the output could not take more at that moment.
func passes(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR)
}
