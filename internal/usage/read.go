package usage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Group says over what numbers are added up.
type Group string

// The groups.
const (
	GroupRows    Group = "" // a row for each service of each key
	GroupService Group = "service"
	GroupKey     Group = "key"
	GroupTotal   Group = "total"
)

// Query says what is asked.
type Query struct {
	By      Period
	Service string // canonical PUBLIC; "": all
	Key     string // name; "": all
	Last    int    // so many periods, the latest ones up to now, and those that lie ahead; 0: all that are kept
	Group   Group
}

// MostAnswered is how many rows an answer has at the most.
const MostAnswered = 20_000

// Report is what was counted.
type Report struct {
	By   Period `json:"by"`
	Rows []Row  `json:"rows"` // by start, key and service
	More bool   `json:"more"` // earlier ones are left out: there are too many

	Warning string `json:"warning,omitempty"` // of Read: what may be missing
}

// Row is what was counted in one period. Key, or Service, is "" where numbers are added up over all of them.
type Row struct {
	Start   time.Time `json:"start"`
	Key     string    `json:"key"`
	Service string    `json:"service"`
	Counts
}

// rowID is what a row stands for.
type rowID struct {
	start int64
	name
}

// Usage answers what was counted up to now.
func (s *Store) Usage(ctx context.Context, q Query) (Report, error) {
	now := s.now()
	s.counted.read(now)
	if err := s.begin(ctx); err != nil {
		return Report{}, err
	}
	defer s.end()
	found, err := s.stored(q, now)
	if d, ok := errors.AsType[*damage](err); ok {
		if err = s.putAside(d); err == nil {
			found, err = s.stored(q, now)
		}
	}
	if err != nil {
		return Report{}, err
	}
	return found.report(q, now), nil
}

// stored is what is in the file and what is not yet.
func (s *Store) stored(q Query, now time.Time) (*sums, error) {
	found := newSums()
	later := make(batch)
	unsaved := s.inFlight
	err := s.file.view(func(tx *bolt.Tx) error {
		if saves := bucket(tx, savesBucket); saves != nil && savedLast(saves, s.process) == s.number {
			unsaved = nil // it was stored, though the disk said something else
		}
		return found.read(tx, q, now)
	})
	if err != nil && err != errNothing {
		return nil, err
	}
	later.join(unsaved)
	s.counted.copyTo(later)
	for hour, rows := range later {
		start := q.By.start(time.Unix(hour, 0)).Unix()
		for n, c := range rows {
			found.add(q, start, n, c)
		}
	}
	return found, nil
}

// Read answers from the file alone, for when no process runs.
func Read(place Place, q Query) (Report, error) {
	f := file{place: place}
	found, now := newSums(), time.Now()
	err := f.view(func(tx *bolt.Tx) error { return found.read(tx, q, now) })
	if d, ok := errors.AsType[*damage](err); ok {
		return Report{}, fmt.Errorf("%s is damaged: %w. The next process that runs there puts it aside and begins a new one", place.Name(), d)
	}
	if err != nil && err != errNothing {
		return Report{}, err
	}
	r := found.report(q, now)
	if f.older {
		r.Warning = fmt.Sprintf("%s: %s", place.Name(), olderText)
	}
	return r, nil
}

func bucket(tx *bolt.Tx, name []byte) *bolt.Bucket {
	root := tx.Bucket(versionBucket)
	if root == nil {
		return nil
	}
	return root.Bucket(name)
}

// sums are the rows of an answer.
type sums struct {
	rows map[rowID]Counts
	more bool // there are earlier ones
}

func newSums() *sums { return &sums{rows: make(map[rowID]Counts)} }

func (s *sums) add(q Query, start int64, n name, c Counts) {
	if q.Key != "" && n.key != q.Key || q.Service != "" && n.service != q.Service {
		return
	}
	switch q.Group {
	case GroupService:
		n.key = ""
	case GroupKey:
		n.service = ""
	case GroupTotal:
		n = name{}
	}
	id := rowID{start, n}
	sum := s.rows[id]
	sum.add(c)
	s.rows[id] = sum
}

// read adds what is stored, the latest periods first, until there are more rows than an answer has. Periods that lie ahead have no place
// among the last ones: the clock was set back behind them, and they would keep out what was counted since.
func (s *sums) read(tx *bolt.Tx, q Query, now time.Time) error {
	all := bucket(tx, []byte(q.By))
	if all == nil {
		return nil
	}
	c, n, present := all.Cursor(), 0, q.By.start(now)
	for start, _ := c.Last(); start != nil; start, _ = c.Prev() {
		if q.Last > 0 && n == q.Last {
			return nil
		}
		b := all.Bucket(start)
		if b == nil {
			continue
		}
		if !keyTime(start).After(present) {
			n++
		}
		if len(s.rows) >= MostAnswered {
			s.more = true
			return nil
		}
		path, at := rowPath(q.By, start), keyTime(start).Unix()
		rows := b.Cursor()
		for key, value := rows.First(); key != nil; key, value = rows.Next() {
			body, err := unseal(path, key, value)
			if err != nil {
				return err
			}
			counts, _ := parseCounts(body)
			s.add(q, at, rowName(key), counts)
		}
	}
	return nil
}

func (s *sums) report(q Query, now time.Time) Report {
	r := Report{By: q.By, Rows: make([]Row, 0, len(s.rows)), More: s.more}
	for id, c := range s.rows {
		r.Rows = append(r.Rows, Row{time.Unix(id.start, 0).UTC(), id.key, id.service, c})
	}
	slices.SortFunc(r.Rows, func(a, b Row) int {
		return cmp.Or(a.Start.Compare(b.Start), name{a.Key, a.Service}.compare(name{b.Key, b.Service}))
	})
	r.keepLast(q.Last, now)
	if n := len(r.Rows) - MostAnswered; n > 0 {
		r.Rows, r.More = r.Rows[n:], true
	}
	return r
}

// keepLast keeps the rows of the latest periods up to now, and those that lie ahead. What is not stored yet may have begun one more.
func (r *Report) keepLast(last int, now time.Time) {
	if last <= 0 {
		return
	}
	n, present := 0, r.By.start(now)
	for i := len(r.Rows) - 1; i >= 0; i-- {
		if start := r.Rows[i].Start; !start.After(present) && (i == len(r.Rows)-1 || !start.Equal(r.Rows[i+1].Start)) {
			if n++; n > last {
				r.Rows = r.Rows[i+1:]
				return
			}
		}
	}
}

// Ahead returns how many of the periods lie ahead of a time: they were counted while the clock was wrong.
func (r Report) Ahead(now time.Time) (n int) {
	present := r.By.start(now)
	for i := len(r.Rows) - 1; i >= 0 && r.Rows[i].Start.After(present); i-- {
		if i == len(r.Rows)-1 || !r.Rows[i].Start.Equal(r.Rows[i+1].Start) {
			n++
		}
	}
	return n
}
