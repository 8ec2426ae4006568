package admin

import (
	"context"
	"net/http"
	"net/http/pprof"
	"time"
)

// profileLimit is how long one may take, with the time that it looks on.
const profileLimit = 5 * time.Minute

// handleProfiles adds what the Go runtime tells about the process, for the admin socket alone: a profile names what is in the memory, and
// to make one costs. It is no part of the API.
func (a *api) handleProfiles() {
	for path, h := range map[string]http.HandlerFunc{
		"":        pprof.Index, // the heap, goroutines and the others, too
		"cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
	} {
		a.mux.HandleFunc("GET /debug/pprof/"+path, func(w http.ResponseWriter, r *http.Request) {
			out, err := a.follow(w, r)
			if err != nil {
				fail(w, err)
				return
			}
			defer out.close()
			out.rc.SetWriteDeadline(time.Now().Add(profileLimit))
			// The package refuses what takes longer than the server lets an answer take. This one may.
			ctx := context.WithValue(out.ctx, http.ServerContextKey, new(http.Server))
			h(w, r.WithContext(ctx))
		})
	}
}
