package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/status"
)

type exchangesReply struct {
	Exchanges []inspect.Summary `json:"exchanges"`
}

// handleInspect adds what is answered about exchanges.
func (a *api) handleInspect() {
	s := a.server
	a.handleService("GET", "exchanges", func(w http.ResponseWriter, r *http.Request) {
		follow, err := wantsEvents(r)
		switch {
		case err != nil:
			refuse(w, http.StatusBadRequest, err)
			return
		case follow:
			a.followExchanges(w, r)
			return
		}
		s.answer(w, r, func(rec *inspect.Recorder) (any, error) { return exchangesReply{rec.List()}, nil })
	})
	a.handleService("GET", "exchanges/{id}", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(rec *inspect.Recorder) (any, error) { return rec.Exchange(r.PathValue("id")) })
	})
	a.handleService("POST", "exchanges/{id}/replay", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(rec *inspect.Recorder) (any, error) { return rec.Replay(r.Context(), r.PathValue("id")) })
	})
}

// answer replies with what ask finds of the service that the request names.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, ask func(*inspect.Recorder) (any, error)) {
	rec, err := s.inspected(r)
	if err == nil {
		var found any
		if found, err = ask(rec); err == nil {
			reply(w, http.StatusOK, found)
			return
		}
	}
	failInspect(w, err)
}

// inspected is the recorder of the service that a request names.
func (s *Server) inspected(r *http.Request) (*inspect.Recorder, error) {
	public, err := grammar.ParsePublic(r.PathValue("service"))
	if err != nil {
		return nil, &UsageError{Err: err, Code: http.StatusBadRequest}
	}
	if s.Inspected != nil {
		if rec := s.Inspected(public); rec != nil {
			return rec, nil
		}
	}
	return nil, s.notInspected(public)
}

func failInspect(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, inspect.ErrNoExchange):
		refuse(w, http.StatusNotFound, err)
	case errors.Is(err, inspect.ErrNoReplay), errors.Is(err, inspect.ErrNotInspected):
		refuse(w, http.StatusConflict, err)
	case errors.Is(err, inspect.ErrFollowers), errors.Is(err, inspect.ErrReplays):
		refuse(w, http.StatusTooManyRequests, err)
	default:
		fail(w, err)
	}
}

// notInspected says why nothing is kept of a service here, and what to do.
func (s *Server) notInspected(public grammar.Public) error {
	snap, service := s.Status(), public.String()
	var of *status.Service
	for i := range snap.Services {
		if snap.Services[i].Public == service {
			of = &snap.Services[i]
		}
	}
	switch {
	case of == nil:
		err := snap.Check(service) // says that there is no such service
		if err == nil {            // it has come just now
			err = fmt.Errorf("there is no %s", service)
		}
		return &UsageError{Err: err, Code: http.StatusNotFound}
	case public.Kind != grammar.KindHTTP && public.Kind != grammar.KindHTTPS:
		return &UsageError{Err: fmt.Errorf("%s is passed on unread: only of http/ and https/ services are exchanges kept", service)}
	case snap.Role == "bridge":
		return &UsageError{Err: fmt.Errorf("the proxy speaks HTTP for %s, and keeps its exchanges: run `reverser inspect %s` there", service, service)}
	}
	return &UsageError{Err: fmt.Errorf("the exchanges of %s are not kept: write inspect = true into its [[expose]] at the bridge, and `reverser reload` there", service)}
}

// followExchanges writes events, as server-sent ones, until the process stops or the reader goes.
func (a *api) followExchanges(w http.ResponseWriter, r *http.Request) {
	rec, err := a.server.inspected(r)
	if err != nil {
		failInspect(w, err)
		return
	}
	out, err := a.follow(w, r)
	if err != nil {
		fail(w, err)
		return
	}
	defer out.close()
	err = rec.Follow(out.ctx, out.begin, func(e inspect.Event) error { return out.send("", "", e) })
	if errors.Is(err, inspect.ErrNotInspected) || errors.Is(err, inspect.ErrFollowers) { // before the first word
		failInspect(w, err)
	}
}

func exchangesPath(service string) string {
	return servicesPath + "/" + url.PathEscape(service) + "/exchanges"
}

// Exchanges is what is kept of a service's exchanges, the oldest first.
func (c *Client) Exchanges(ctx context.Context, service string) ([]inspect.Summary, error) {
	var r exchangesReply
	err := c.do(ctx, http.MethodGet, exchangesPath(service), nil, &r)
	return r.Exchanges, err
}

// Exchange is one exchange of a service.
func (c *Client) Exchange(ctx context.Context, service, id string) (inspect.Exchange, error) {
	var x inspect.Exchange
	err := c.do(ctx, http.MethodGet, exchangesPath(service)+"/"+url.PathEscape(id), nil, &x)
	return x, err
}

// Replay sends the request of an exchange again, and returns the new one.
func (c *Client) Replay(ctx context.Context, service, id string) (inspect.Summary, error) {
	var x inspect.Summary
	err := c.do(ctx, http.MethodPost, exchangesPath(service)+"/"+url.PathEscape(id)+"/replay", nil, &x)
	return x, err
}

// errFollowOver is the end of a stream of events.
var errFollowOver = errors.New("the process keeps no more exchanges of this service: it is stopping, or the service has changed")

// Follow calls tell with what happens at a service, until ctx ends or tell returns an error.
func (c *Client) Follow(ctx context.Context, service string, tell func(inspect.Event) error) error {
	err := c.events(ctx, exchangesPath(service)+"?follow=true", func(_ string, data []byte) error {
		var e inspect.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("read the process's answer: %w", err)
		}
		return tell(e)
	})
	if errors.Is(err, errStreamOver) {
		return errFollowOver
	}
	return err
}
