package admin

import (
	"errors"
	"net/http"
)

// handleMetrics adds what Prometheus scrapes.
func (a *api) handleMetrics() {
	s := a.server
	a.handle("GET", "/metrics", func(w http.ResponseWriter, r *http.Request) {
		if s.Metrics == nil {
			refuse(w, http.StatusConflict, errors.New("this process has no metrics"))
			return
		}
		s.Metrics.ServeHTTP(w, r)
	})
}
