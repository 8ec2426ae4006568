package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"reverser/internal/grammar"
)

// DrainOrder says for which services nobody new is to be let in any more.
type DrainOrder struct {
	Service grammar.Allow // may be a range or a wildcard
	Key     string        // all services of this key; Service is empty then
	Undo    bool          // let them in again
}

// Drained are the services that an order was about.
type Drained struct {
	Services    []string `json:"services"`
	Connections int      `json:"connections"` // that go on
}

// handleDrain adds the orders that let nobody new in.
func (a *api) handleDrain() {
	for method, undo := range map[string]bool{"POST": false, "DELETE": true} {
		a.handleService(method, "drain", func(w http.ResponseWriter, r *http.Request) {
			allow, err := grammar.ParseServices(r.PathValue("service"))
			if err != nil {
				refuse(w, http.StatusBadRequest, err)
				return
			}
			a.server.drain(w, r, DrainOrder{Service: allow, Undo: undo})
		})
		a.handle(method, "/api/v1/keys/{name}/drain", func(w http.ResponseWriter, r *http.Request) {
			a.server.drain(w, r, DrainOrder{Key: r.PathValue("name"), Undo: undo})
		})
	}
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request, o DrainOrder) {
	if s.Drain == nil {
		refuse(w, http.StatusConflict, s.drainElsewhere())
		return
	}
	done, err := s.Drain(r.Context(), o)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusOK, done)
}

// drainElsewhere says where users are turned away.
func (s *Server) drainElsewhere() error {
	var proxies []string
	for _, l := range s.Status().Links {
		proxies = append(proxies, l.Remote)
	}
	if len(proxies) == 0 {
		return errors.New("this is a bridge: users are turned away at its proxy, with `reverser drain` there")
	}
	return fmt.Errorf("this is a bridge: users are turned away at its proxy (%s), with `reverser drain` there", strings.Join(proxies, ", "))
}

// Drain lets nobody new in to some services, or undoes that.
func (c *Client) Drain(ctx context.Context, o DrainOrder) (Drained, error) {
	path, method := servicesPath+"/"+url.PathEscape(o.Service.String())+"/drain", http.MethodPost
	if o.Key != "" {
		path = "/api/v1/keys/" + url.PathEscape(o.Key) + "/drain"
	}
	if o.Undo {
		method = http.MethodDelete
	}
	var d Drained
	err := c.do(ctx, method, path, nil, &d)
	return d, err
}
