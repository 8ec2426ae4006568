package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"

	"reverser/internal/escape"
	"reverser/internal/status"
)

// lookEvery is how old what is told about the process may be, for those who ask all the time.
const lookEvery = time.Second

// watch has the newest snapshot for all who look at the process as it runs. One is taken when somebody asks, once a second at most,
// however many ask: it is a walk through all connections. While nobody asks, none is.
type watch struct {
	take func() status.Snapshot
	turn chan struct{} // has room for one: who takes a snapshot, or uses rows
	rows rows          // guarded by turn

	mu      sync.Mutex
	last    *look // nil: none yet; guarded by mu, as below
	readers int   // who are told again and again
	ofRows  int   // of them, who are told of connections
}

// look is a snapshot and when it was taken.
type look struct {
	at   time.Time
	snap status.Snapshot

	once    sync.Once
	summary []byte // snap without connections, as JSON in one line
}

func (s *Server) watched() *watch {
	s.watchOnce.Do(func() { s.watch = &watch{take: s.Status, turn: make(chan struct{}, 1)} })
	return s.watch
}

// newest returns a snapshot that is not older than lookEvery.
func (w *watch) newest(ctx context.Context) (*look, error) {
	if l := w.fresh(); l != nil {
		return l, nil
	}
	if err := w.begin(ctx); err != nil {
		return nil, err
	}
	defer w.end()
	return w.look(), nil
}

// fresh returns the last look, or nil if it is too old.
func (w *watch) fresh() *look {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == nil || time.Since(w.last.at) >= lookEvery {
		return nil
	}
	return w.last
}

// look is newest for whoever has the turn.
func (w *watch) look() *look {
	if l := w.fresh(); l != nil { // another one has looked meanwhile
		return l
	}
	l := &look{at: time.Now()}
	l.snap = w.take()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.readers == 0 {
		l.snap.Pairs = nil // who asks about health needs none of them, and memory is kept for nobody
	}
	w.last = l
	return l
}

func (w *watch) begin(ctx context.Context) error {
	select {
	case w.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *watch) end() { <-w.turn }

// enter counts a reader that is told again and again; leave takes it away.
func (w *watch) enter(ofRows bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.readers++; w.readers == 1 {
		w.last = nil // it may have no connections
	}
	if ofRows {
		w.ofRows++
	}
}

func (w *watch) leave(ofRows bool) {
	w.mu.Lock()
	if ofRows {
		w.ofRows--
	}
	if w.readers--; w.readers == 0 {
		w.last = nil
	}
	empty := w.ofRows == 0
	w.mu.Unlock()
	if !empty {
		return
	}
	w.turn <- struct{}{}
	defer w.end()
	w.mu.Lock()
	empty = w.ofRows == 0
	w.mu.Unlock()
	if empty {
		w.rows = rows{}
	}
}

// text is the snapshot without connections. It is made once for all readers.
func (l *look) text() []byte {
	l.once.Do(func() {
		s := l.snap
		s.Pairs = nil
		l.summary = line(s)
	})
	return l.summary
}

// changes returns what of the connections is different from those that a reader was told last, which seen stands for; 0: it was told of
// none. The texts, one for each event, are shared with other readers.
func (w *watch) changes(ctx context.Context, seen uint64) (texts [][]byte, now uint64, err error) {
	if err := w.begin(ctx); err != nil {
		return nil, 0, err
	}
	defer w.end()
	l := w.look()
	if w.rows.of != l {
		w.rows.take(l)
	}
	return w.rows.since(seen), w.rows.n, nil
}

// rows are the connections of the newest look, and when each has changed.
type rows struct {
	of   *look
	n    uint64 // counts looks, from 1
	all  map[string]*row
	gone []goneRow // those that are gone, the oldest first; the last mostGone of them
	lost uint64    // up to this look, what is gone is not known any more

	texts map[uint64][][]byte // of n, by what the reader has seen: most have seen the same
}

type row struct {
	pair status.Pair
	n    uint64 // the look in which it was different from the one before
	seen uint64 // the last look that had it
}

type goneRow struct {
	id string
	n  uint64
}

// mostGone bounds what is remembered for readers that are slow. One that is slower is told of all connections again.
const mostGone = 20_000

func (r *rows) take(l *look) {
	if r.all == nil {
		r.all = make(map[string]*row, len(l.snap.Pairs))
	}
	r.of, r.texts = l, make(map[uint64][][]byte)
	r.n++
	for _, p := range l.snap.Pairs {
		known, ok := r.all[p.ID]
		if !ok {
			known = &row{pair: p, n: r.n}
			r.all[p.ID] = known
		} else if known.pair != p {
			known.pair, known.n = p, r.n
		}
		known.seen = r.n
	}
	if len(r.all) == len(l.snap.Pairs) {
		return
	}
	for id, known := range r.all {
		if known.seen != r.n {
			delete(r.all, id)
			r.gone = append(r.gone, goneRow{id, r.n})
		}
	}
	if over := len(r.gone) - mostGone; over > 0 {
		r.lost = r.gone[over-1].n
		r.gone = append(r.gone[:0], r.gone[over:]...)
	}
}

// PairChanges is what of the connections is different from those that were told before.
type PairChanges struct {
	Reset   bool          `json:"reset"`   // Changed has all of them, and what was told before counts no more
	Changed []status.Pair `json:"changed"` // the oldest first
	Gone    []string      `json:"gone"`    // ids, of which some may never have been told
	More    bool          `json:"more"`    // the next event has more of the same look, and no Reset
}

// mostTold is how many connections an event tells of. Whoever reads at a slow line sees the first ones soon.
const mostTold = 500

// since returns what is different from the look that had the number, in the texts of one event or several.
func (r *rows) since(seen uint64) [][]byte {
	if texts, ok := r.texts[seen]; ok {
		return texts
	}
	all := PairChanges{Reset: seen == 0 || seen < r.lost, Changed: []status.Pair{}, Gone: []string{}} // lists, where they are empty too
	for _, p := range r.of.snap.Pairs {
		if all.Reset || r.all[p.ID].n > seen {
			all.Changed = append(all.Changed, p)
		}
	}
	for i := len(r.gone) - 1; i >= 0 && !all.Reset && r.gone[i].n > seen; i-- {
		all.Gone = append(all.Gone, r.gone[i].id)
	}
	var texts [][]byte
	for more := true; more; {
		changed := min(len(all.Changed), mostTold)
		gone := min(len(all.Gone), mostTold-changed)
		part := PairChanges{Reset: all.Reset && texts == nil, Changed: all.Changed[:changed], Gone: all.Gone[:gone]}
		all.Changed, all.Gone = all.Changed[changed:], all.Gone[gone:]
		more = len(all.Changed)+len(all.Gone) > 0
		part.More = more
		texts = append(texts, line(part))
	}
	r.texts[seen] = texts
	return texts
}

// line is JSON of plain data in one line that a terminal only prints.
func line(v any) []byte {
	text, err := oneLine(v)
	if err != nil {
		panic(err)
	}
	return text
}

func oneLine(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	text.Grow(len(b))
	escape.NewWriter(&text).Write(b)
	return text.Bytes(), nil
}
