package main

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"reverser/internal/state"
)

// tendEvery is how often a process looks whether its state directory and its admin socket are still there.
const tendEvery = time.Second

// tender looks after the state directory of a process that runs, and says once what became of it behind the process's back.
type tender struct {
	dir *state.Dir
	log *slog.Logger

	mu     sync.Mutex
	faults []string // at the last look; guarded by mu
}

// run looks until ctx ends.
func (t *tender) run(ctx context.Context) {
	for pause(ctx, tendEvery) {
		t.look()
	}
}

func (t *tender) look() {
	faults := t.dir.Tend()
	t.mu.Lock()
	before := t.faults
	t.faults = faults
	t.mu.Unlock()
	for _, fault := range faults {
		if !slices.Contains(before, fault) {
			t.log.Error(fault)
		}
	}
	if len(before) > 0 && len(faults) == 0 {
		t.log.Info("the state directory is in order again")
	}
}

// found returns what was wrong at the last look.
func (t *tender) found() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.faults
}
