// Package events keeps the last things that a process logged, for people and programs that ask it.
//
// A Log is fed by a handler that stands in front of the process's own one: what the log says is what is kept, whatever becomes of the log's
// output, and whatever its level is. It holds a bounded number of events and bytes. Where somebody causes very many of one kind, it is of
// that kind that the oldest go, so that a flood does not wash out the rest.
//
// Nothing waits here: whoever logs takes a lock that nobody holds for long, and a follower that is slow misses what is gone meanwhile, and
// is told how much. The package starts no goroutines. It does not know what the events are about.
package events

import (
	"sync"
	"time"
)

// Event is something that the process logged at the level Info or above.
type Event struct {
	// ID grows by one with each event. A process begins where those of the one before it have not come to, unless the clock was set
	// back meanwhile.
	ID     uint64    `json:"id"`
	At     time.Time `json:"at"`
	Level  string    `json:"level"` // as the log has it: INFO, WARN or ERROR
	Event  string    `json:"event"` // the message
	Fields Fields    `json:"fields"`

	size int
}

const (
	mostEvents = 1000
	mostBytes  = 1 << 20
)

// Log is the last events of a process.
type Log struct {
	mu        sync.Mutex
	kept      []Event        // the oldest first; guarded by mu, as all below
	kinds     map[string]int // bytes of kept with the same message
	bytes     int            // of kept
	first     uint64         // the id of the first event of all, which may be gone
	next      uint64         // the id of the next one
	followers map[*Follower]struct{}
}

// New returns a Log without events.
func New() *Log {
	first := uint64(max(time.Now().UnixMicro(), 1)) // no process logs more than an event in a microsecond
	return &Log{first: first, next: first, kinds: make(map[string]int), followers: make(map[*Follower]struct{})}
}

func (l *Log) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.ID = l.next
	l.next++
	l.kept = append(l.kept, e)
	l.kinds[e.Event] += e.size
	l.bytes += e.size
	for len(l.kept) > mostEvents || l.bytes > mostBytes {
		l.forgetLocked()
	}
	for f := range l.followers {
		select {
		case f.changed <- struct{}{}:
		default: // it has not come to look since the last one
		}
	}
}

// forgetLocked removes the oldest event of the kind that takes most of the place.
func (l *Log) forgetLocked() {
	most := 0
	for _, bytes := range l.kinds {
		most = max(most, bytes)
	}
	at := 0
	for l.kinds[l.kept[at].Event] < most {
		at++
	}
	gone := l.kept[at]
	l.bytes -= gone.size
	if l.kinds[gone.Event] -= gone.size; l.kinds[gone.Event] == 0 {
		delete(l.kinds, gone.Event)
	}
	copy(l.kept[at:], l.kept[at+1:])
	l.kept[len(l.kept)-1] = Event{}
	l.kept = l.kept[:len(l.kept)-1]
}

// Since returns the events after the one with an id, the oldest first, and how many there were that are not kept any more. An id that is
// not of this process, such as 0, is before all of them, and nothing was lost.
func (l *Log) Since(id uint64) (list []Event, lost int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sinceLocked(id)
}

func (l *Log) sinceLocked(id uint64) (list []Event, lost int) {
	known := id >= l.first && id < l.next
	if !known {
		id = 0
	}
	at := len(l.kept)
	for at > 0 && l.kept[at-1].ID > id {
		at--
	}
	list = append([]Event{}, l.kept[at:]...)
	if known {
		lost = int(l.next-1-id) - len(list)
	}
	return list, lost
}

// Follower sees new events.
type Follower struct {
	log     *Log
	seen    uint64        // the id of the last one; guarded by the log's mu
	changed chan struct{} // has room for one
}

// Follow returns a follower that begins after the event with an id, as Since does. Close it.
func (l *Log) Follow(id uint64) *Follower {
	f := &Follower{log: l, seen: id, changed: make(chan struct{}, 1)}
	f.changed <- struct{}{}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.followers[f] = struct{}{}
	return f
}

// Changed has a value when there may be something for Next.
func (f *Follower) Changed() <-chan struct{} { return f.changed }

// Next returns what has come since the last call, the oldest first, and how many events there were that are not kept any more.
func (f *Follower) Next() (list []Event, lost int) {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	list, lost = f.log.sinceLocked(f.seen)
	if f.log.next > f.log.first {
		f.seen = f.log.next - 1
	}
	return list, lost
}

// Close ends a follower.
func (f *Follower) Close() {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	delete(f.log.followers, f)
}
