package admin

import (
	"context"
	"sync"
	"time"

	"reverser/internal/status"
)

// lookEvery is how old what is told about the process may be, for those who ask all the time.
const lookEvery = time.Second

// watch has the newest snapshot for all who look at the process as it runs. One is taken when somebody asks, once a second at most,
// however many ask: it is a walk through all connections.
type watch struct {
	turn chan struct{} // has room for one: who takes a snapshot

	mu   sync.Mutex
	last look // guarded by mu
}

// look is a snapshot and when it was taken.
type look struct {
	at   time.Time
	snap status.Snapshot
}

// newest returns a snapshot that is not older than lookEvery.
func (s *Server) newest(ctx context.Context) (look, error) {
	w := s.watched()
	if l, ok := w.fresh(); ok {
		return l, nil
	}
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return look{}, context.Cause(ctx)
	}
	if l, ok := w.fresh(); ok { // another one has looked meanwhile
		return l, nil
	}
	l := look{at: time.Now()}
	l.snap = s.Status()
	w.mu.Lock()
	w.last = l
	w.mu.Unlock()
	return l, nil
}

func (w *watch) fresh() (look, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, !w.last.at.IsZero() && time.Since(w.last.at) < lookEvery
}

func (s *Server) watched() *watch {
	s.watchOnce.Do(func() { s.watch = &watch{turn: make(chan struct{}, 1)} })
	return s.watch
}
