// Package inspect keeps the last exchanges of HTTP services in memory, for whoever wants to see what a client and a service said to each
// other: headers, the beginning of the bodies, times, and the frames of WebSockets.
//
// A [Recorder] stands between a server and the handler of one service. The package changes nothing of what passes, and knows neither who
// serves nor where a service is. What secrets a header carries is kept for [Recorder.Replay] only, and never shown (mask.go). A service that
// is not inspected has no Recorder and costs nothing.
//
// The way of an exchange through it:
//  1. handler.go stands in the handler's way and takes what passes; websocket.go and inflate.go read frames in it.
//  2. exchange.go keeps it.
//  3. store.go bounds the memory of all.
//  4. view.go is what is shown of it, follow.go tells of it as it happens, replay.go sends it again.
//
// Goroutines: one for each request that is sent again. Store.Close waits for them.
package inspect

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
)

// What is kept at the most.
const (
	Exchanges = 200      // of a service
	BodyKept  = 64 << 10 // bytes of each body, the first ones

	headerKept  = 32 << 10 // bytes of each header or trailer
	lineKept    = 8 << 10  // bytes of what is asked for, and of a host
	framesKept  = 200      // of a WebSocket, the last ones
	payloadKept = 64 << 10 // bytes of their payloads together
	frameKept   = 16 << 10 // bytes of one payload, the first ones
)

// DefaultMemory is what all that is kept may take. One service may take half of it: 200 exchanges, both bodies of each longer than what
// is kept of them.
const DefaultMemory = 64 << 20

// Store is what is kept of all services of a process. Make it with New.
type Store struct {
	limit   int64
	used    atomic.Int64 // of limit; it may be more for a moment, by what is being asked for
	ids     atomic.Uint64
	replays replays

	mu        sync.Mutex
	recorders map[string]*Recorder // by service; guarded by mu
}

// New returns a Store that keeps nothing yet. memory is what it may take; 0: DefaultMemory.
func New(memory int64) *Store {
	if memory <= 0 {
		memory = DefaultMemory
	}
	s := &Store{limit: memory, recorders: make(map[string]*Recorder)}
	s.replays.ctx, s.replays.stop = context.WithCancel(context.Background())
	s.replays.places = make(chan struct{}, replaysAtOnce)
	return s
}

// Record returns a new recorder for a service, in the place of one that it has. again is the service's own way for requests that are sent
// again: it is to call Recorder.Serve as it does for a client's.
func (s *Store) Record(service string, again http.Handler) *Recorder {
	r := &Recorder{store: s, service: service, again: again, followers: make(map[*follower]struct{})}
	s.mu.Lock()
	old := s.recorders[service]
	r.over = s.recorders == nil
	if !r.over {
		s.recorders[service] = r
	}
	s.mu.Unlock()
	if old != nil {
		old.shut()
	}
	return r
}

// Forget ends a recorder and drops what it has. Exchanges under way go on, unseen.
func (s *Store) Forget(r *Recorder) {
	s.mu.Lock()
	if s.recorders[r.service] == r {
		delete(s.recorders, r.service)
	}
	s.mu.Unlock()
	r.shut()
}

// Close drops everything and returns when nothing is sent again any more.
func (s *Store) Close() {
	s.replays.close()
	s.mu.Lock()
	all := s.recorders
	s.recorders = nil
	s.mu.Unlock()
	for _, r := range all {
		r.shut()
	}
}

// ErrNotInspected is the error of a recorder that was forgotten.
var ErrNotInspected = errors.New("its exchanges are not kept")

// reserve takes n bytes for an exchange of r. Where too much is taken, exchanges are dropped: those of r when it has its half, else those
// of whoever has most. false: there is nothing that could be dropped.
func (s *Store) reserve(r *Recorder, n int64) bool {
	for {
		all, own := s.used.Add(n), r.used.Add(n)
		if all <= s.limit && own <= s.limit/2 {
			return true
		}
		s.release(r, n)
		from := r
		if own <= s.limit/2 {
			from = s.largest()
		}
		if from == nil || !from.evict() {
			return false
		}
	}
}

func (s *Store) release(r *Recorder, n int64) {
	r.used.Add(-n)
	s.used.Add(-n)
}

// largest is the recorder that has taken most.
func (s *Store) largest() (most *Recorder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.recorders {
		if most == nil || r.used.Load() > most.used.Load() {
			most = r
		}
	}
	return most
}
