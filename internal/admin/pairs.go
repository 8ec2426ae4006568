package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"reverser/internal/grammar"
	"reverser/internal/status"
)

// Bounds of how many connections are listed at once.
const (
	usualPairs = 1_000
	mostPairs  = 100_000
)

// PairList are connections that somebody asked for.
type PairList struct {
	Pairs   []status.Pair `json:"pairs"`   // the oldest first
	Matched int           `json:"matched"` // how many there are, of which Pairs may have the first ones only
}

// handlePairs adds the list of connections. The orders about them are in end.go.
func (a *api) handlePairs() {
	a.handle("GET", "/api/v1/pairs", func(w http.ResponseWriter, r *http.Request) {
		which, limit, err := parseListed(r.URL.RawQuery)
		if err != nil {
			refuse(w, http.StatusBadRequest, err)
			return
		}
		match, err := a.server.matcher(which)
		if err != nil {
			fail(w, err)
			return
		}
		list := PairList{Pairs: []status.Pair{}}
		for _, p := range a.server.Status().Pairs {
			if !match(p) {
				continue
			}
			if list.Matched++; len(list.Pairs) < limit {
				list.Pairs = append(list.Pairs, p)
			}
		}
		reply(w, http.StatusOK, list)
	})
}

// parseListed reads the words of a query that choose connections, and how many are wanted.
func parseListed(query string) (w Which, limit int, err error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return w, 0, err
	}
	limit = usualPairs
	if q.Has("limit") {
		if limit, err = strconv.Atoi(q.Get("limit")); err != nil || limit < 0 || limit > mostPairs {
			return w, 0, fmt.Errorf("limit: %q is no number from 0 to %d", q.Get("limit"), mostPairs)
		}
		q.Del("limit")
	}
	w, err = parseWhich(q.Encode())
	return w, limit, err
}

// matcher returns what reports whether a connection is meant.
func (s *Server) matcher(which Which) (func(status.Pair) bool, error) {
	key := which.Key
	if key != "" && s.Keys != nil { // which may be its id
		keys, err := s.Keys.List()
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if len(key) >= 8 && strings.HasPrefix(k.ID, key) {
				key = k.Name
				break
			}
		}
	}
	services := make(map[string]bool)
	return func(p status.Pair) bool {
		if which.Service != (grammar.Allow{}) {
			yes, ok := services[p.Service]
			if !ok {
				yes = which.MeansService(p.Service)
				services[p.Service] = yes
			}
			if !yes {
				return false
			}
		}
		if key != "" && p.Key != key {
			return false
		}
		if !which.Client.IsValid() {
			return true
		}
		from, err := netip.ParseAddrPort(p.Client)
		return err == nil && which.Client.Contains(from.Addr().Unmap().WithZone(""))
	}, nil
}

// Pairs returns connections that are meant, limit at most; 0 is the usual limit.
func (c *Client) Pairs(ctx context.Context, which Which, limit int) (PairList, error) {
	if which.ID != "" {
		return PairList{}, errors.New("the list of connections chooses by service, key and client")
	}
	q := which.query()
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var list PairList
	err := c.do(ctx, http.MethodGet, "/api/v1/pairs?"+q.Encode(), nil, &list)
	return list, err
}
