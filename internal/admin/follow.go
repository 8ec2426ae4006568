package admin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// wantsEvents reports whether a request asks for an answer that goes on.
func wantsEvents(r *http.Request) (bool, error) {
	return yesNo(r, "follow", strings.HasPrefix(r.Header.Get("Accept"), "text/event-stream"))
}

// eventWriter is an answer that goes on, of server-sent events.
type eventWriter struct {
	ctx   context.Context // ends when the reader goes, their session ends, or the process stops
	close func()          // ends ctx and gives the place back

	w     http.ResponseWriter
	rc    *http.ResponseController
	begun bool
}

// follow takes a place for an answer that goes on. An error is a refusal. Until begin or send, another answer can be given.
func (a *api) follow(w http.ResponseWriter, r *http.Request) (*eventWriter, error) {
	select {
	case a.places <- struct{}{}:
	default:
		return nil, &UsageError{
			Err:  fmt.Errorf("%d follow what happens already, which is as many as may: end one of them", cap(a.places)),
			Code: http.StatusTooManyRequests,
		}
	}
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(a.stopping, cancel)
	stopSession := func() bool { return true }
	if session, ok := r.Context().Value(sessionKey{}).(context.Context); ok {
		stopSession = context.AfterFunc(session, cancel)
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // or the reader would be taken for gone
	return &eventWriter{ctx: ctx, w: w, rc: rc, close: func() {
		stop()
		stopSession()
		cancel()
		<-a.places
	}}, nil
}

// begin sends the header, so that the reader knows that it follows.
func (e *eventWriter) begin() error {
	e.rc.SetWriteDeadline(time.Now().Add(requestTimeout))
	e.w.Header().Set("Content-Type", "text/event-stream")
	e.w.Header().Set("Cache-Control", "no-store")
	e.w.WriteHeader(http.StatusOK)
	e.begun = true
	return e.rc.Flush()
}

// send sends one event. A name of "" is a message, an id of "" is none.
func (e *eventWriter) send(name, id string, v any) error {
	text, err := oneLine(v)
	if err != nil {
		return err
	}
	return e.sendText(name, id, text)
}

// pieceSize is how much a reader has to take in requestTimeout: one at a slow line takes that, and not all of a large event.
const pieceSize = 16 << 10

// sendText sends an event whose data, of one line, is made already.
func (e *eventWriter) sendText(name, id string, data []byte) error {
	if !e.begun {
		if err := e.begin(); err != nil {
			return err
		}
	}
	var head bytes.Buffer
	if name != "" {
		fmt.Fprintf(&head, "event: %s\n", name)
	}
	if id != "" {
		fmt.Fprintf(&head, "id: %s\n", id)
	}
	head.WriteString("data: ")
	for _, b := range [][]byte{head.Bytes(), data, []byte("\n\n")} {
		for part := range slices.Chunk(b, pieceSize) {
			if err := e.write(part); err != nil {
				return err
			}
		}
	}
	return e.rc.Flush()
}

// signOfLife is how often a reader of events that seldom come is sent something, so that one that is gone is noticed.
const signOfLife = 15 * time.Second

// alive sends what means nothing.
func (e *eventWriter) alive() error {
	if err := e.write([]byte(":\n\n")); err != nil {
		return err
	}
	return e.rc.Flush()
}

// write gives the reader requestTimeout: one that takes nothing is gone.
func (e *eventWriter) write(b []byte) error {
	e.rc.SetWriteDeadline(time.Now().Add(requestTimeout))
	_, err := e.w.Write(b)
	return err
}

// errStreamOver is the end of a stream of events that the process ended.
var errStreamOver = errors.New("the process tells no more: it is stopping, or this took its words too slowly")

// events calls tell with what the process sends at path, until ctx ends, or tell returns an error.
func (c *Client) events(ctx context.Context, path string, tell func(name string, data []byte) error) error {
	long := &Client{Silent: c.Silent, http: &http.Client{Transport: c.http.Transport}} // without a timeout, but for the beginning
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(requestTimeout, func() { cancel(os.ErrDeadlineExceeded) })
	resp, err := long.send(asking, http.MethodGet, path, nil)
	if !late.Stop() && c.Silent != nil && ctx.Err() == nil {
		err = c.Silent()
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	name := ""
	for {
		line, err := lines.ReadBytes('\n')
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return errStreamOver
		}
		field, value, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(": "))
		switch string(field) {
		case "event":
			name = string(value)
		case "data": // of which our events have one line each
			if err := tell(name, value); err != nil {
				return err
			}
		case "":
			name = ""
		}
	}
}
