package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"reverser/internal/status"
)

// Names of the events of a stream.
const (
	statusName = "status"
	pairsName  = "pairs"
)

// handleStream adds the stream of those who look at the process as it runs, such as the page.
func (a *api) handleStream() {
	a.handle("GET", "/api/v1/stream", func(w http.ResponseWriter, r *http.Request) {
		ofPairs, err := yesNo(r, "pairs", false)
		if err != nil {
			refuse(w, http.StatusBadRequest, err)
			return
		}
		out, err := a.follow(w, r)
		if err != nil {
			fail(w, err)
			return
		}
		defer out.close()
		watch := a.server.watched()
		watch.enter(ofPairs)
		defer watch.leave(ofPairs)
		stream(out, watch, ofPairs)
	})
}

// stream tells once a second how the process is, until its reader goes or the process stops. A reader that is slow is told less often: what
// it gets is the newest always.
func stream(out *eventWriter, w *watch, ofPairs bool) {
	next := time.NewTimer(0)
	defer next.Stop()
	for seen := uint64(0); ; {
		select {
		case <-next.C:
		case <-out.ctx.Done():
			return
		}
		now, err := w.newest(out.ctx)
		if err != nil {
			return
		}
		if out.sendText(statusName, "", now.text()) != nil {
			return
		}
		if ofPairs {
			var texts [][]byte
			if texts, seen, err = w.changes(out.ctx, seen); err != nil {
				return
			}
			for _, text := range texts {
				if out.sendText(pairsName, "", text) != nil {
					return
				}
			}
		}
		next.Reset(time.Until(now.at.Add(lookEvery)))
	}
}

// Update is what Stream tells. One of the two is set.
type Update struct {
	Status *status.Snapshot // without the connections
	Pairs  *PairChanges
}

// Stream calls tell once a second with how the process is and, with ofPairs, what is different about its connections, until ctx ends, or
// tell returns an error.
func (c *Client) Stream(ctx context.Context, ofPairs bool, tell func(Update) error) error {
	path := "/api/v1/stream"
	if ofPairs {
		path += "?pairs=true"
	}
	var pairs *PairChanges // those of which more is to come
	return c.events(ctx, path, func(name string, data []byte) error {
		var u Update
		var v any
		switch name {
		case statusName:
			u.Status = new(status.Snapshot)
			v = u.Status
		case pairsName:
			u.Pairs = new(PairChanges)
			v = u.Pairs
		default:
			return nil // of a version to come
		}
		if err := json.Unmarshal(data, v); err != nil {
			return fmt.Errorf("read the process's answer: %w", err)
		}
		if u.Pairs != nil {
			if pairs != nil {
				u.Pairs.Reset = pairs.Reset
				u.Pairs.Changed = append(pairs.Changed, u.Pairs.Changed...)
				u.Pairs.Gone = append(pairs.Gone, u.Pairs.Gone...)
			}
			if pairs = u.Pairs; pairs.More {
				return nil
			}
			pairs = nil
		}
		return tell(u)
	})
}
