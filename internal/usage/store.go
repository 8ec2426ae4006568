package usage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"reverser/internal/status"
)

const (
	saveEvery = time.Minute
	// stopLimit is how long a process that stops waits for the disk.
	stopLimit = 10 * time.Second
)

// Store keeps what a source counts. Make it with New; Run does the work.
type Store struct {
	log     *slog.Logger
	now     func() time.Time
	process [16]byte
	counted counted

	turn     chan struct{} // has an element while somebody uses the file, and what follows
	file     file
	inFlight batch  // what the next save stores; nil: there is none
	number   uint64 // of that save

	mu    sync.Mutex
	state status.Usage // guarded by mu
}

// New returns a store of what a source counts. A nil log discards.
func New(source Source, place Place, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{log: log, now: time.Now, turn: make(chan struct{}, 1), file: file{place: place}}
	s.counted = counted{source: source, seen: make(map[counter]Counts), names: make(map[[16]byte]string), pending: make(batch)}
	s.state.File = place.Name()
	rand.Read(s.process[:])
	return s
}

// Run reads the counters every 10 seconds, and stores every minute what has changed. It ends with ctx, and has stored the rest then,
// unless the disk takes too long.
func (s *Store) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { s.watch(ctx) })
	s.saveAll(ctx)
	wg.Wait()
}

// watch reads the counters, so that the last hour is known, and nothing that a removed key counted goes without a name.
func (s *Store) watch(ctx context.Context) {
	tick := time.NewTicker(HistoryStep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.step()
		}
	}
}

func (s *Store) step() {
	now := s.now()
	s.counted.mu.Lock()
	defer s.counted.mu.Unlock()
	s.counted.readLocked(now)
	s.counted.history.step(now)
}

func (s *Store) saveAll(ctx context.Context) {
	begun := s.now()
	looked := make(chan struct{})
	go func() { defer close(looked); s.look(ctx) }() // as in saveLast
	select {
	case <-looked:
	case <-ctx.Done():
	}
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.Save(ctx)
		case <-ctx.Done():
			s.saveLast(context.WithoutCancel(ctx), begun)
			return
		}
	}
}

// look looks at the file that is there, so that what is wrong with its beginning is said at the start. All else is for a save, which comes to
// the same faults.
func (s *Store) look(ctx context.Context) {
	if s.begin(ctx) != nil {
		return
	}
	defer s.end()
	s.file.view(func(*bolt.Tx) error { return nil })
}

// olderText is said of a file of which one of the two meta pages is damaged.
const olderText = "one of the two pages with which the file of usage begins is damaged: the other one is used; if that is the older one, what the last save stored is missing"

// saveLast stores what is left when the process, whose counting began then, ends. What cannot be stored is lost.
func (s *Store) saveLast(ctx context.Context, begun time.Time) {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	saved := make(chan error, 1)
	go func() { saved <- s.save(ctx, true) }() // nobody waits for it when the disk does not answer
	var err error
	select {
	case err = <-saved:
	case <-ctx.Done():
		err = fmt.Errorf("the disk did not take it within %s", stopLimit)
	}
	lost := s.counted.unsaved()
	if err == nil || lost == (Counts{}) {
		return
	}
	since := begun
	if saved := s.State().Saved; !saved.IsZero() {
		since = saved
	}
	s.log.Error("usage is lost: it could not be stored before this process ended", "file", s.file.place.Name(), "since", since.UTC().Truncate(time.Second),
		"connections", lost.Connections, "refused", lost.Refused, "sent", lost.Sent, "received", lost.Received, "err", err)
}

// Save stores what has changed since it was stored last. What cannot be stored stays in memory until it can be.
func (s *Store) Save(ctx context.Context) error {
	return s.save(ctx, false)
}

// save is Save. The last one has no other after it, and what cannot be stored is lost.
func (s *Store) save(ctx context.Context, last bool) error {
	s.counted.read(s.now())
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.end()
	if s.inFlight == nil {
		b := s.counted.take()
		if len(b) == 0 {
			return nil // nothing has changed: the disk may sleep
		}
		s.inFlight = b
		s.number++
	}
	err := s.store()
	if d, ok := errors.AsType[*damage](err); ok {
		if err = s.putAside(d); err == nil {
			err = s.store()
		}
	}
	s.note(err, last)
	return err
}

func (s *Store) store() error {
	err := s.file.update(func(tx *bolt.Tx) error {
		_, err := book(tx, s.process, s.number, s.inFlight)
		return err
	})
	if err == nil {
		s.inFlight = nil
		s.counted.saved()
	}
	return err
}

// begin waits for the turn to use the file.
func (s *Store) begin(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s is in use: the disk may be slow: %w", s.file.place.Name(), ctx.Err())
	}
}

// end gives the turn back.
func (s *Store) end() {
	if s.file.older {
		s.file.older = false
		s.log.Warn(olderText, "file", s.file.place.Name())
	}
	<-s.turn
}

// putAside makes room for a new file.
func (s *Store) putAside(why *damage) error {
	aside, err := s.file.putAside(s.now())
	if err != nil {
		return fmt.Errorf("it is damaged (%w), and cannot be put aside: %w", why, err)
	}
	if aside == "" {
		s.log.Warn("the file of usage was never finished: it begins anew", "file", s.file.place.Name(), "err", why)
		return nil
	}
	s.log.Error("the file of usage is damaged: it was put aside, and what is counted from now on goes to a new one",
		"file", s.file.place.Name(), "as", aside, "err", why)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.PutAside, s.state.Damage = aside, why.Error()
	return nil
}

// note keeps what became of a save, and says it once. That the last one failed is left to saveLast.
func (s *Store) note(err error, last bool) {
	s.mu.Lock()
	failing := s.state.Error != ""
	if err != nil {
		s.state.Failures++
		s.state.Error = err.Error()
	} else {
		s.state.Saved, s.state.Error = s.now().UTC().Truncate(time.Second), ""
	}
	s.mu.Unlock()
	switch {
	case err != nil && !failing && !last:
		s.log.Error("usage cannot be stored: it is kept in memory until it can be", "file", s.file.place.Name(), "err", err, "again_in", saveEvery)
	case err == nil && failing:
		s.log.Info("usage is stored again", "file", s.file.place.Name())
	}
}

// State says what became of the file.
func (s *Store) State() status.Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// History is what moved in the last hour.
func (s *Store) History() History {
	s.counted.mu.Lock()
	defer s.counted.mu.Unlock()
	return s.counted.history.all()
}
