// Package logtest keeps what a program logs, for tests that look at it.
//
// It does not decide what a log ought to say. It has no goroutines.
package logtest

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Journal is a slog.Handler that keeps each line as "message key=value ...". Make it with New; several handlers made from it by With share
// the lines.
type Journal struct {
	*kept
	with string
}

// kept is what a Journal and those made from it share.
type kept struct {
	least  slog.Leveler
	levels bool
	hold   atomic.Pointer[func(line string)]

	mu    sync.Mutex
	lines []string // guarded by mu
}

// New returns a Journal of the lines of a level and above.
func New(least slog.Leveler) *Journal { return &Journal{kept: &kept{least: least}} }

// NewWithLevels is New for lines that begin with their level.
func NewWithLevels(least slog.Leveler) *Journal {
	j := New(least)
	j.levels = true
	return j
}

// Hold has f called before a line is kept: whoever reads a log may be slow. nil: nothing is called any more.
func (j *Journal) Hold(f func(line string)) {
	if f == nil {
		j.hold.Store(nil)
		return
	}
	j.hold.Store(&f)
}

// Enabled implements slog.Handler.
func (j *Journal) Enabled(_ context.Context, l slog.Level) bool { return l >= j.least.Level() }

// WithGroup implements slog.Handler. A group is not kept.
func (j *Journal) WithGroup(string) slog.Handler { return j }

// WithAttrs implements slog.Handler.
func (j *Journal) WithAttrs(as []slog.Attr) slog.Handler {
	k := *j
	for _, a := range as {
		k.with += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return &k
}

// Handle implements slog.Handler.
func (j *Journal) Handle(_ context.Context, r slog.Record) error {
	line := r.Message + j.with
	if j.levels {
		line = r.Level.String() + " " + line
	}
	r.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	if hold := j.hold.Load(); hold != nil {
		(*hold)(line)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
	return nil
}

// All returns the lines that hold all of the words, in order.
func (j *Journal) All(words ...string) (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, line := range j.lines {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			found = append(found, line)
		}
	}
	return found
}

// Count returns how many lines hold all of the words.
func (j *Journal) Count(words ...string) int { return len(j.All(words...)) }

// Sum is Count with the lines that were left out of a flood: the number behind more= at the end of a line.
func (j *Journal) Sum(words ...string) (n int) {
	for _, line := range j.All(words[:1]...) {
		if _, after, ok := strings.Cut(line, " more="); ok {
			more, _ := strconv.Atoi(after)
			n += more
		}
	}
	return n + j.Count(words...)
}
