package admin

import (
	"errors"
	"net/http"
)

type healthReply struct {
	Status string `json:"status"` // ok
}

// handleHealth adds what those ask who watch whether the process is well.
func (a *api) handleHealth() {
	s := a.server
	// The process is alive when it can say how it is, which takes all its locks.
	a.handle("GET", "/healthz", func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.watched().newest(r.Context()); err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, healthReply{"ok"})
	})
	// It is ready when users are served, as far as that is up to it.
	a.handle("GET", "/readyz", func(w http.ResponseWriter, r *http.Request) {
		now, err := s.watched().newest(r.Context())
		if err != nil {
			fail(w, err)
			return
		}
		if err := now.snap.Ready(); err != nil {
			if isStranger(r) { // addresses and names of services are not for everybody
				err = errors.New("it is not ready: `reverser status --check` says why, and so does this to whoever has the token")
			}
			refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		reply(w, http.StatusOK, healthReply{"ok"})
	})
}
