package logtest

import (
	"log/slog"
	"slices"
	"testing"
)

func TestJournal(t *testing.T) {
	j := NewWithLevels(slog.LevelInfo)
	log := slog.New(j)
	held := 0
	j.Hold(func(string) { held++ })
	log.Debug("not kept")
	log.With("key", "nas").Warn("bridge lost", "err", "EOF")
	j.Hold(nil)
	log.Info("bridge lost", "key", "pi", "more", 4)
	if all := j.All(); !slices.Equal(all, []string{"WARN bridge lost key=nas err=EOF", "INFO bridge lost key=pi more=4"}) || held != 1 {
		t.Errorf("kept %q, and held %d", all, held)
	}
	if n, sum := j.Count("bridge lost", "pi"), j.Sum("bridge lost", "nas"); n != 1 || sum != 5 {
		t.Errorf("Count = %d, Sum = %d; want 1 and 5", n, sum)
	}
}
