package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"reverser/internal/escape"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/status"
)

// followers is how many may follow services at once: the others of the few connections stay for orders.
const followers = maxConnections / 2

type exchangesReply struct {
	Exchanges []inspect.Summary `json:"exchanges"`
}

// handleInspect adds what is answered about exchanges. stopping ends with Serve.
func (s *Server) handleInspect(stopping context.Context, handle func(method, path string, h http.HandlerFunc)) {
	follow := make(chan struct{}, followers)
	handle("GET", "/api/v1/services/{service}/exchanges", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("follow") == "true" {
			select {
			case follow <- struct{}{}:
				defer func() { <-follow }()
				s.followExchanges(stopping, w, r)
			default:
				refuse(w, http.StatusTooManyRequests, fmt.Errorf("%d follow exchanges already, which is as many as may: end one of them", followers))
			}
			return
		}
		s.answer(w, r, func(rec *inspect.Recorder) (any, error) { return exchangesReply{rec.List()}, nil })
	})
	handle("GET", "/api/v1/services/{service}/exchanges/{id}", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(rec *inspect.Recorder) (any, error) { return rec.Exchange(r.PathValue("id")) })
	})
	handle("POST", "/api/v1/services/{service}/exchanges/{id}/replay", func(w http.ResponseWriter, r *http.Request) {
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
		return nil, &UsageError{err}
	}
	if s.Inspected != nil {
		if rec := s.Inspected(public); rec != nil {
			return rec, nil
		}
	}
	return nil, &UsageError{s.notInspected(public)}
}

func failInspect(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, inspect.ErrNoExchange):
		refuse(w, http.StatusNotFound, err)
	case errors.Is(err, inspect.ErrNoReplay), errors.Is(err, inspect.ErrNotInspected):
		refuse(w, http.StatusConflict, err)
	case errors.Is(err, inspect.ErrFollowers):
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
		return snap.Check(service) // says that there is no such service
	case public.Kind != grammar.KindHTTP && public.Kind != grammar.KindHTTPS:
		return fmt.Errorf("%s is passed on unread: only of http/ and https/ services are exchanges kept", service)
	case snap.Role == "bridge":
		return fmt.Errorf("the proxy speaks HTTP for %s, and keeps its exchanges: run `reverser inspect %s` there", service, service)
	}
	return fmt.Errorf("the exchanges of %s are not kept: write inspect = true into its [[expose]] at the bridge, and `reverser reload` there", service)
}

// followExchanges writes events, as server-sent ones, until the process stops or the reader goes.
func (s *Server) followExchanges(stopping context.Context, w http.ResponseWriter, r *http.Request) {
	rec, err := s.inspected(r)
	if err != nil {
		failInspect(w, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(stopping, cancel)()
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // or the reader would be taken for gone
	out := escape.NewWriter(w)
	begun := func() error {
		rc.SetWriteDeadline(time.Now().Add(requestTimeout))
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
		return rc.Flush()
	}
	err = rec.Follow(ctx, begun, func(e inspect.Event) error {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		rc.SetWriteDeadline(time.Now().Add(requestTimeout))
		if _, err := fmt.Fprintf(out, "data: %s\n\n", b); err != nil {
			return err
		}
		return rc.Flush()
	})
	if errors.Is(err, inspect.ErrNotInspected) || errors.Is(err, inspect.ErrFollowers) { // before the first word
		failInspect(w, err)
	}
}

func exchangesPath(service string) string {
	return "/api/v1/services/" + url.PathEscape(service) + "/exchanges"
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
	long := &Client{http: &http.Client{Transport: c.http.Transport}} // without a timeout
	resp, err := long.send(ctx, http.MethodGet, exchangesPath(service)+"?follow=true", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return errFollowOver
		}
		data, ok := bytes.CutPrefix(line, []byte("data: "))
		if !ok {
			continue
		}
		var e inspect.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("read the process's answer: %w", err)
		}
		if err := tell(e); err != nil {
			return err
		}
	}
}
