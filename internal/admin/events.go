package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"reverser/internal/events"
)

// EventList is what was logged last.
type EventList struct {
	Events []events.Event `json:"events"` // the oldest first
	Lost   int            `json:"lost"`   // after the one that was asked for, how many are not kept any more
}

// lostEvents is what a stream says, under its own name, in the place of events that are not kept any more.
type lostEvents struct {
	Lost int `json:"lost"`
}

const lostName = "lost"

// handleEvents adds what is answered about events.
func (a *api) handleEvents() {
	a.handle("GET", "/api/v1/events", func(w http.ResponseWriter, r *http.Request) {
		since := uint64(0)
		if text := cmp.Or(r.URL.Query().Get("since"), r.Header.Get("Last-Event-ID")); text != "" {
			var err error
			if since, err = strconv.ParseUint(text, 10, 64); err != nil {
				refuse(w, http.StatusBadRequest, errors.New("since, or Last-Event-ID, is the id of an event, a number"))
				return
			}
		}
		log := a.server.Events
		if log == nil {
			log = events.New() // which stays empty
		}
		follow, err := wantsEvents(r)
		switch {
		case err != nil:
			refuse(w, http.StatusBadRequest, err)
			return
		case follow:
			a.followEvents(w, r, log, since)
			return
		}
		list, lost := log.Since(since)
		reply(w, http.StatusOK, EventList{list, lost})
	})
}

// followEvents writes events until the process stops or the reader goes.
func (a *api) followEvents(w http.ResponseWriter, r *http.Request, log *events.Log, since uint64) {
	out, err := a.follow(w, r)
	if err != nil {
		fail(w, err)
		return
	}
	defer out.close()
	follower := log.Follow(since)
	defer follower.Close()
	alive := time.NewTicker(signOfLife)
	defer alive.Stop()
	for err = out.begin(); err == nil; {
		select {
		case <-follower.Changed():
			err = out.sendEvents(follower.Next())
		case <-alive.C:
			err = out.alive()
		case <-out.ctx.Done():
			if a.stopping.Err() != nil && r.Context().Err() == nil { // the last words of a process that stops
				out.sendEvents(follower.Next())
			}
			return
		}
	}
}

func (e *eventWriter) sendEvents(list []events.Event, lost int) error {
	if lost > 0 {
		if err := e.send(lostName, "", lostEvents{lost}); err != nil {
			return err
		}
	}
	for _, event := range list {
		if err := e.send("", strconv.FormatUint(event.ID, 10), event); err != nil {
			return err
		}
	}
	return nil
}

func eventsPath(since uint64) string {
	return "/api/v1/events?since=" + strconv.FormatUint(since, 10)
}

// Events is what the process logged after the event with an id; 0: all that is kept.
func (c *Client) Events(ctx context.Context, since uint64) (EventList, error) {
	var r EventList
	err := c.do(ctx, http.MethodGet, eventsPath(since), nil, &r)
	return r, err
}

// ErrGone is the error of a stream when the process ends it, or is no more.
var ErrGone = errors.New("the process has gone")

// FollowEvents calls tell with what the process logged after the event with an id and with what it logs from now on, and before one with
// how many are missing there. It ends with ctx, with an error of tell, or with ErrGone.
func (c *Client) FollowEvents(ctx context.Context, since uint64, tell func(e events.Event, lost int) error) error {
	lost := 0
	err := c.events(ctx, eventsPath(since)+"&follow=true", func(name string, data []byte) error {
		if name == lostName {
			var l lostEvents
			if err := json.Unmarshal(data, &l); err != nil {
				return fmt.Errorf("read the process's answer: %w", err)
			}
			lost += l.Lost
			return nil
		}
		var e events.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("read the process's answer: %w", err)
		}
		n := lost
		lost = 0
		return tell(e, n)
	})
	if errors.Is(err, errStreamOver) {
		return ErrGone
	}
	return err
}
