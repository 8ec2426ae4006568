package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"reverser/internal/admin"
	"reverser/internal/status"
)

// streamed looks at a process by its stream, which has of connections what has changed alone. A process that refuses to be followed, since
// others do already, is asked for all of it each time.
type streamed struct {
	client *admin.Client
	ctx    context.Context // of the stream; ends with close
	end    context.CancelFunc
	wg     sync.WaitGroup

	newest chan status.Snapshot // has room for one
	over   chan error           // why the stream has ended; nil: there is none
	polls  bool
}

func newStreamed(ctx context.Context, client *admin.Client) *streamed {
	ctx, cancel := context.WithCancel(ctx)
	return &streamed{client: client, ctx: ctx, end: cancel}
}

func (s *streamed) close() {
	s.end()
	s.wg.Wait()
}

// look returns a state of the process that it has not returned before. Nobody calls it twice at once.
func (s *streamed) look(ctx context.Context) (status.Snapshot, error) {
	if s.polls {
		return s.client.Status(ctx)
	}
	if s.over == nil {
		newest, over := make(chan status.Snapshot, 1), make(chan error, 1)
		s.newest, s.over = newest, over
		s.wg.Go(func() { over <- s.run(newest) })
	}
	select {
	case snap := <-s.newest:
		return snap, nil
	case err := <-s.over:
		s.over = nil
		if _, refused := errors.AsType[*admin.UsageError](err); refused {
			s.polls = true
			return s.client.Status(ctx)
		}
		return status.Snapshot{}, err
	case <-ctx.Done():
		return status.Snapshot{}, ctx.Err()
	}
}

// run puts together what the stream tells, until it ends.
func (s *streamed) run(newest chan status.Snapshot) error {
	var snap status.Snapshot
	rows := make(map[string]status.Pair)
	err := s.client.Stream(s.ctx, true, func(u admin.Update) error {
		if u.Status != nil {
			snap = *u.Status
			return nil
		}
		if u.Pairs.Reset {
			clear(rows)
		}
		for _, p := range u.Pairs.Changed {
			rows[p.ID] = p
		}
		for _, id := range u.Pairs.Gone {
			delete(rows, id)
		}
		now := snap
		now.Pairs = slices.Collect(maps.Values(rows))
		select {
		case <-newest: // nobody wants the one before any more
		default:
		}
		newest <- now
		return nil
	})
	if err == nil {
		err = context.Cause(s.ctx)
	}
	return err
}
