package inspect

import (
	"context"
	"errors"
	"fmt"
)

// Event is what a follower is told. An exchange is told when it is over, and one that became something else, such as a WebSocket, also
// when it begins.
type Event struct {
	Exchange *Summary `json:"exchange"`
	Frame    *Frame   `json:"frame,omitempty"` // of Exchange, just now
	Lost     int      `json:"lost,omitempty"`  // events that were left out before this one, since their reader was slow
}

// followers is how many may follow a service at once, and waiting how many events wait for each.
const (
	followersMost = 4
	waiting       = 64
)

// follower is told what happens. Its fields are guarded by the recorder's mu.
type follower struct {
	events chan Event
	lost   int
	over   bool
}

// ErrFollowers is the error when too many follow a service already.
var ErrFollowers = errors.New("too many follow this service already")

// Follow calls tell with every event of the service, until ctx ends, tell returns an error, or the service is not inspected any more. begun is
// called before the first one: what happens from then on is told.
func (r *Recorder) Follow(ctx context.Context, begun func() error, tell func(Event) error) error {
	f, err := r.follow()
	if err != nil {
		return err
	}
	defer r.unfollow(f)
	if err := begun(); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-f.events:
			if !ok {
				return nil
			}
			if err := tell(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *Recorder) follow() (*follower, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return nil, fmt.Errorf("%s: %w", r.service, ErrNotInspected)
	}
	if len(r.followers) >= followersMost {
		return nil, fmt.Errorf("%s: %w", r.service, ErrFollowers)
	}
	f := &follower{events: make(chan Event, waiting)}
	r.followers[f] = struct{}{}
	return f, nil
}

func (r *Recorder) unfollow(f *follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.followers, f)
}

// tellLocked tells the followers. It never waits.
func (r *Recorder) tellLocked(e Event) {
	for f := range r.followers {
		if f.over {
			continue
		}
		e.Lost = f.lost
		select {
		case f.events <- e:
			f.lost = 0
		default:
			f.lost++
		}
	}
}

func (f *follower) endLocked() {
	if !f.over {
		f.over = true
		close(f.events)
	}
}
