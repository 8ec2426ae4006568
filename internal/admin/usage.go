package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/usage"
)

// Usage is what was counted of connections: a [usage.Store].
type Usage interface {
	Usage(context.Context, usage.Query) (usage.Report, error)
	History() usage.History
}

// usageLimit is how long a question waits for the file. The page gives a process up that says nothing for 6 s.
const usageLimit = 5 * time.Second

// mostPeriods is what `last` may be: more than are ever kept.
const mostPeriods = 100_000

func (a *api) handleUsage() {
	s := a.server
	a.handle("GET", "/api/v1/usage", func(w http.ResponseWriter, r *http.Request) {
		q, err := parseUsage(r.URL.Query())
		switch {
		case err != nil:
			refuse(w, http.StatusBadRequest, err)
			return
		case s.Usage == nil:
			refuse(w, http.StatusConflict, errors.New("this process keeps no usage"))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), usageLimit)
		defer cancel()
		report, err := s.Usage.Usage(ctx, q)
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, report)
	})
	a.handle("GET", "/api/v1/history", func(w http.ResponseWriter, r *http.Request) {
		if s.Usage == nil {
			refuse(w, http.StatusConflict, errors.New("this process keeps no usage"))
			return
		}
		reply(w, http.StatusOK, s.Usage.History())
	})
}

// parseUsage reads what GET /api/v1/usage is asked.
func parseUsage(v url.Values) (q usage.Query, err error) {
	q.By = usage.Day // as the command has it
	if v.Has("by") {
		if q.By, err = usage.ParsePeriod(v.Get("by")); err != nil {
			return q, fmt.Errorf("by: %w", err)
		}
	}
	q.Key = v.Get("key")
	// A service that has a name of its own is a PUBLIC; another one is what too many are added up as.
	if q.Service = v.Get("service"); q.Service != "" && q.Service != usage.OtherServices {
		p, err := grammar.ParsePublic(q.Service)
		if err != nil {
			return q, fmt.Errorf("service: %w", err)
		}
		q.Service = p.String()
	}
	if last := v.Get("last"); last != "" {
		if q.Last, err = strconv.Atoi(last); err != nil || q.Last < 1 || q.Last > mostPeriods {
			return q, fmt.Errorf("last: %q is no number from 1 to %d", last, mostPeriods)
		}
	}
	switch q.Group = usage.Group(v.Get("group")); q.Group {
	case usage.GroupRows, usage.GroupService, usage.GroupKey, usage.GroupTotal:
		return q, nil
	}
	return q, fmt.Errorf("group: %q is neither service, key nor total", string(q.Group))
}

// Usage is what was counted, up to now.
func (c *Client) Usage(ctx context.Context, q usage.Query) (usage.Report, error) {
	v := url.Values{"by": {string(q.By)}}
	for name, value := range map[string]string{"service": q.Service, "key": q.Key, "group": string(q.Group), "last": strconv.Itoa(q.Last)} {
		if value != "" && value != "0" {
			v.Set(name, value)
		}
	}
	var r usage.Report
	err := c.do(ctx, http.MethodGet, "/api/v1/usage?"+v.Encode(), nil, &r)
	return r, err
}

// History is what moved in the last hour.
func (c *Client) History(ctx context.Context) (usage.History, error) {
	var h usage.History
	err := c.do(ctx, http.MethodGet, "/api/v1/history", nil, &h)
	return h, err
}
