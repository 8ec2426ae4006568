package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"reverser/internal/grammar"
)

// Which says which connections are meant. What is zero leaves none out.
type Which struct {
	ID      string        // as status shows it
	Service grammar.Allow // may be a range or a wildcard
	Key     string        // its name, or its id as status shows it
	Client  netip.Prefix  // where the user comes from
}

// MeansService reports whether Service, which is not zero, means the service of that name.
func (w Which) MeansService(name string) bool {
	public, err := grammar.ParsePublic(name)
	return err == nil && w.Service.Means(public)
}

type endedReply struct {
	Ended int `json:"ended"`
}

// parseWhich reads the words of a query that choose connections.
func parseWhich(query string) (w Which, err error) {
	q, err := url.ParseQuery(query)
	if err != nil { // what is left out would leave nobody out
		return w, err
	}
	for word, values := range q {
		value := values[len(values)-1]
		switch {
		case len(values) > 1:
			return w, fmt.Errorf("%s is there twice", word)
		case value == "":
			return w, fmt.Errorf("%s is empty: leave it out, or say which %s", word, word)
		case word == "service":
			if w.Service, err = grammar.ParseServices(value); err != nil {
				return w, err
			}
		case word == "key":
			w.Key = value
		case word == "client":
			w.Client, err = ParseClient(value)
		default:
			return w, fmt.Errorf("%s chooses no connections: service, key and client do", word)
		}
		if err != nil {
			return w, fmt.Errorf("%s: %w", word, err)
		}
	}
	return w, nil
}

// ParseClient reads an address, or a network as CIDR.
func ParseClient(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		const mapped = 96 // bits before those of an IPv4 address in IPv6
		if a := p.Addr(); a.Is4In6() && p.Bits() >= mapped {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-mapped)
		}
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is no address and no network: write 203.0.113.7 or 203.0.113.0/24", s)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// query is what parseWhich reads.
func (w Which) query() url.Values {
	q := make(url.Values)
	if w.Service != (grammar.Allow{}) {
		q.Set("service", w.Service.String())
	}
	if w.Key != "" {
		q.Set("key", w.Key)
	}
	if w.Client.IsValid() {
		q.Set("client", w.Client.String())
	}
	return q
}

// handleEnd adds the orders that end connections.
func (a *api) handleEnd() {
	a.handle("DELETE", "/api/v1/pairs", a.server.endPairs)
	a.handle("DELETE", "/api/v1/pairs/{id}", a.server.endPair)
}

func (s *Server) endPairs(w http.ResponseWriter, r *http.Request) {
	which, err := parseWhich(r.URL.RawQuery)
	if err == nil && which == (Which{}) {
		err = errors.New("say which connections: by service, key or client")
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	n := s.End(which)
	if n == 0 && which.Key != "" {
		if known, err := s.knowsKey(which.Key); err != nil {
			fail(w, err)
			return
		} else if !known {
			refuse(w, http.StatusNotFound, fmt.Errorf("there is no key %q here", which.Key))
			return
		}
	}
	reply(w, http.StatusOK, endedReply{n})
}

func (s *Server) endPair(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	n := s.End(Which{ID: id})
	if n == 0 {
		refuse(w, http.StatusNotFound, fmt.Errorf("there is no connection %q (any more): `reverser status` shows those that there are", id))
		return
	}
	reply(w, http.StatusOK, endedReply{n})
}

// knowsKey reports whether a key is one of this process's.
func (s *Server) knowsKey(name string) (bool, error) {
	if s.Keys == nil {
		for _, l := range s.Status().Links {
			if l.Key == name {
				return true, nil
			}
		}
		return false, nil
	}
	keys, err := s.Keys.List()
	for _, k := range keys {
		if k.Name == name || len(name) >= 8 && strings.HasPrefix(k.ID, name) {
			return true, nil
		}
	}
	return false, err
}

// EndPair resets one connection.
func (c *Client) EndPair(ctx context.Context, id string) (int, error) {
	var r endedReply
	err := c.do(ctx, http.MethodDelete, "/api/v1/pairs/"+url.PathEscape(id), nil, &r)
	return r.Ended, err
}

// EndPairs resets the connections that are meant, and returns how many they were.
func (c *Client) EndPairs(ctx context.Context, w Which) (int, error) {
	var r endedReply
	err := c.do(ctx, http.MethodDelete, "/api/v1/pairs?"+w.query().Encode(), nil, &r)
	return r.Ended, err
}
