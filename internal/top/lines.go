package top

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"reverser/internal/status"
)

// mostPairs is how many connections, those with the highest rates, a line of JSON has.
const mostPairs = 20

// Line is the process at one moment, without what does not move.
type Line struct {
	At            time.Time     `json:"at"`
	Role          string        `json:"role"`
	UptimeSeconds float64       `json:"uptime_seconds"`
	Connections   int           `json:"connections"`
	Sent          float64       `json:"sent_per_second"`     // bytes client → target
	Received      float64       `json:"received_per_second"` // bytes target → client
	Wrong         []string      `json:"wrong"`               // what is not as it should be, in words
	Links         []LineLink    `json:"links"`
	Services      []LineService `json:"services"`
	Pairs         []LinePair    `json:"pairs"` // those that move most, 20 at most
}

// LineLink is a link in a Line.
type LineLink struct {
	Key       string  `json:"key"`
	Remote    string  `json:"remote"`
	State     string  `json:"state"`
	RTTMillis float64 `json:"rtt_ms"`
}

// LineService is a service in a Line.
type LineService struct {
	Public      string  `json:"public"`
	Key         string  `json:"key"`
	State       string  `json:"state"`
	Connections int     `json:"connections"`
	Sent        float64 `json:"sent_per_second"`
	Received    float64 `json:"received_per_second"`
}

// LinePair is a connection in a Line.
type LinePair struct {
	ID       string  `json:"id"`
	Service  string  `json:"service"`
	Client   string  `json:"client"`
	State    string  `json:"state"`
	Sent     float64 `json:"sent_per_second"`
	Received float64 `json:"received_per_second"`
	Total    uint64  `json:"total"` // bytes of both ways
}

func (s sample) line() Line {
	l := Line{
		At: s.at, Role: s.snap.Role, UptimeSeconds: s.snap.UptimeSeconds, Connections: s.connections, Sent: whole(s.sent), Received: whole(s.received),
		Wrong: append([]string{}, s.troubles()...), Links: []LineLink{}, Services: []LineService{}, Pairs: []LinePair{},
	}
	for _, k := range s.snap.Links {
		l.Links = append(l.Links, LineLink{k.Key, k.Remote, k.State, k.RTTMillis})
	}
	for _, it := range s.lists[services] {
		v := s.snap.Services[it.at]
		l.Services = append(l.Services, LineService{v.Public, v.Key, v.State, v.Connections, whole(it.sent), whole(it.received)})
	}
	for i, it := range arrange(s.lists[pairs], byRate, false, "") {
		if i == mostPairs {
			break
		}
		p := s.snap.Pairs[it.at]
		l.Pairs = append(l.Pairs, LinePair{p.ID, p.Service, p.Client, p.State, whole(it.sent), whole(it.received), it.total})
	}
	return l
}

func whole(perSecond float64) float64 { return float64(uint64(perSecond)) }

// Lines writes a line of JSON about the process once a second, from the second look on, until ctx ends, a write fails, or an error is fatal.
// gone is called when the process does not answer any more, with the error or ErrSilent, and with nil when it does again. It is not written about
// meanwhile.
func Lines(ctx context.Context, src Source, first status.Snapshot, out io.Writer, gone func(error)) error {
	now := take(time.Now(), first, sample{})
	enc := json.NewEncoder(out)
	tick := time.NewTicker(every)
	defer tick.Stop()
	away := false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		answer := make(chan sampled, 1)
		go func() { answer <- src.look(ctx) }()
		var s sampled
		select {
		case s = <-answer:
		case <-time.After(silence):
			if !away && ctx.Err() == nil {
				away = true
				gone(ErrSilent)
			}
			s = <-answer
		}
		snap, err := s.snap, s.err
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && src.Fatal != nil && src.Fatal(err):
			return err
		case err != nil:
			if !away {
				gone(err)
			}
			away = true
			continue
		case away:
			away = false
			gone(nil)
		}
		now = take(s.at, snap, now)
		if err := enc.Encode(now.line()); err != nil {
			return err
		}
	}
}
