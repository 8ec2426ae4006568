package usage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"reverser/internal/state"
	"reverser/internal/status"
)

// source is a process that counts.
type source struct {
	mu    sync.Mutex
	all   []status.Counted
	named map[[16]byte]string
}

func id(n int) (id [16]byte) {
	copy(id[:], fmt.Sprintf("key %d", n))
	return id
}

func (s *source) Counted(yield func(status.Counted) bool) {
	s.mu.Lock()
	all := slices.Clone(s.all)
	s.mu.Unlock()
	for _, c := range all {
		if !yield(c) {
			return
		}
	}
}

func (s *source) KeyName(id [16]byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.named[id]
}

// count has one more connection of a service of a key moved n bytes to the target and 2n back.
func (s *source) count(key int, service string, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.named == nil {
		s.named = make(map[[16]byte]string)
	}
	s.named[id(key)] = fmt.Sprintf("key%d", key)
	for i := range s.all {
		if c := &s.all[i]; c.Key == id(key) && c.Service == service {
			c.Sent, c.Received, c.Connections = c.Sent+n, c.Received+2*n, c.Connections+1
			return
		}
	}
	s.all = append(s.all, status.Counted{Key: id(key), Service: service, Sent: n, Received: 2 * n, Connections: 1})
}

// folder is a place of its own, which counts how often the file was opened.
type folder struct {
	dir    string
	opened int
	full   error // what it costs to write
}

func (f *folder) Name() string               { return filepath.Join(f.dir, "usage.db") }
func (f *folder) Stat() (fs.FileInfo, error) { return os.Stat(f.Name()) }
func (f *folder) Open(flag int) (*os.File, error) {
	if f.opened++; f.full != nil && flag&os.O_RDWR != 0 {
		return nil, f.full
	}
	return os.OpenFile(f.Name(), flag, 0o600)
}

func (f *folder) PutAside(_ fs.FileInfo, now time.Time) (string, error) {
	return "usage.db.aside", os.Rename(f.Name(), filepath.Join(f.dir, "usage.db.aside"))
}
func (f *folder) Unlock(h *os.File) error  { return new(state.Usage).Unlock(h) }
func (f *folder) Remove(fs.FileInfo) error { return os.Remove(f.Name()) }

// noon is when most tests begin.
var noon = time.Date(2026, time.March, 10, 12, 0, 0, 0, time.UTC)

type world struct {
	t     *testing.T
	place *folder
	src   *source
	now   time.Time
	log   bytes.Buffer
	*Store
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, place: &folder{dir: t.TempDir()}, now: noon}
	w.start()
	return w
}

// start begins a new process.
func (w *world) start() {
	w.src = &source{}
	w.Store = New(w.src, w.place, slog.New(slog.NewTextHandler(&w.log, nil)))
	w.Store.now = func() time.Time { return w.now }
	w.file.wait, w.file.noSync = 100*time.Millisecond, true
}

func (w *world) save() {
	w.t.Helper()
	w.file.checked = nil // so that each file that was ever made is checked, too
	if err := w.Save(context.Background()); err != nil {
		w.t.Fatalf("Save = %v", err)
	}
}

func (w *world) rows(q Query) []string {
	w.t.Helper()
	r, err := w.Usage(context.Background(), q)
	if err != nil {
		w.t.Fatalf("Usage = %v", err)
	}
	return texts(r)
}

func texts(r Report) []string {
	list := []string{}
	for _, row := range r.Rows {
		list = append(list, fmt.Sprintf("%s %s %s %d/%d/%d/%d", row.Start.Format("2006-01-02T15"), row.Key, row.Service, row.Sent, row.Received, row.Connections, row.Refused))
	}
	return list
}

func (w *world) want(q Query, want ...string) {
	w.t.Helper()
	if got := w.rows(q); !slices.Equal(got, want) {
		w.t.Errorf("Usage(%+v):\n%s\nwant\n%s", q, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (w *world) total() Counts {
	w.t.Helper()
	r, err := w.Usage(context.Background(), Query{By: Month, Group: GroupTotal})
	if err != nil {
		w.t.Fatal(err)
	}
	var sum Counts
	for _, row := range r.Rows {
		sum.add(row.Counts)
	}
	return sum
}

func TestUsage(t *testing.T) {
	w := newWorld(t)
	w.src.count(1, "tcp/9000", 10)
	w.src.count(1, "http/a.example", 5)
	w.src.count(2, "tcp/9001", 1)
	want := []string{"2026-03-10T12 key1 http/a.example 5/10/1/0", "2026-03-10T12 key1 tcp/9000 10/20/1/0", "2026-03-10T12 key2 tcp/9001 1/2/1/0"}
	w.want(Query{By: Hour}, want...) // before it is stored
	w.save()
	w.want(Query{By: Hour}, want...)

	w.now = noon.Add(time.Hour)
	w.src.count(1, "tcp/9000", 100)
	w.save()
	w.now = noon.AddDate(0, 0, 1)
	w.src.count(2, "tcp/9001", 7)
	w.want(Query{By: Hour, Key: "key2"}, "2026-03-10T12 key2 tcp/9001 1/2/1/0", "2026-03-11T12 key2 tcp/9001 7/14/1/0")
	w.save()
	w.want(Query{By: Hour, Service: "tcp/9000"}, "2026-03-10T12 key1 tcp/9000 10/20/1/0", "2026-03-10T13 key1 tcp/9000 100/200/1/0")
	w.want(Query{By: Day, Key: "key1"}, "2026-03-10T00 key1 http/a.example 5/10/1/0", "2026-03-10T00 key1 tcp/9000 110/220/2/0")
	w.want(Query{By: Day, Group: GroupKey}, "2026-03-10T00 key1  115/230/3/0", "2026-03-10T00 key2  1/2/1/0", "2026-03-11T00 key2  7/14/1/0")
	w.want(Query{By: Day, Group: GroupService, Last: 1}, "2026-03-11T00  tcp/9001 7/14/1/0")
	w.want(Query{By: Month, Group: GroupTotal}, "2026-03-01T00   123/246/5/0")

	// A new process counts from nothing, and what it counts comes on top.
	w.start()
	w.want(Query{By: Month, Group: GroupTotal}, "2026-03-01T00   123/246/5/0")
	w.src.count(1, "tcp/9000", 1)
	w.save()
	w.save()
	w.want(Query{By: Month, Group: GroupTotal}, "2026-03-01T00   124/248/6/0")

	r, err := Read(w.place, Query{By: Month, Key: "key2"})
	if want := []string{"2026-03-01T00 key2 tcp/9001 8/16/2/0"}; err != nil || !slices.Equal(texts(r), want) {
		t.Errorf("Read = %v, %v; want %v", texts(r), err, want)
	}
}

// TestIdle: a process that nobody uses leaves the disk alone.
func TestIdle(t *testing.T) {
	w := newWorld(t)
	w.save()
	if w.place.opened != 0 {
		t.Fatalf("the file was opened %d times, and nothing was counted", w.place.opened)
	}
	w.src.count(1, "tcp/9000", 10)
	w.save()
	opened := w.place.opened
	for range 5 {
		w.now = w.now.Add(time.Hour)
		w.step()
		w.save()
	}
	if w.place.opened != opened {
		t.Errorf("the file was opened %d times after the last change", w.place.opened-opened)
	}
}

// TestRemovedKey: what a key counted last goes to its name, though it is gone.
func TestRemovedKey(t *testing.T) {
	w := newWorld(t)
	w.src.count(1, "tcp/9000", 10)
	w.save()
	w.src.count(1, "tcp/9000", 10)
	delete(w.src.named, id(1))
	w.save()
	w.want(Query{By: Month}, "2026-03-01T00 key1 tcp/9000 20/40/2/0")
}

// TestClock: a clock that is wrong for some time loses and doubles nothing, in any period that is kept.
func TestClock(t *testing.T) {
	for _, jump := range []int{-10, -1, 1, 10} {
		w := newWorld(t)
		count := func(hours int) {
			for range hours {
				w.src.count(1, "tcp/9000", 1)
				w.save()
				w.now = w.now.Add(time.Hour)
			}
		}
		count(40)
		right := w.now
		w.now = right.AddDate(jump, 0, 0)
		count(3)
		w.now = right.Add(3 * time.Hour)
		count(2)
		for _, p := range periods {
			r, err := w.Usage(context.Background(), Query{By: p})
			var sum Counts
			for _, row := range r.Rows {
				sum.add(row.Counts)
			}
			if want := (Counts{45, 90, 45, 0}); err != nil || sum != want {
				t.Errorf("after %d years, by %s: %+v, %v; want %+v", jump, p, sum, err, want)
			}
		}
		// Of a wrong hour nothing is left when there were enough right ones.
		count(48)
		r, _ := w.Usage(context.Background(), Query{By: Hour})
		if len(r.Rows) != 48 || r.Rows[0].Start.Before(right) || r.Rows[47].Start.After(w.now) {
			t.Errorf("after %d years, and 48 hours: %d hours, from %s to %s", jump, len(r.Rows), r.Rows[0].Start, r.Rows[len(r.Rows)-1].Start)
		}
		if got, want := w.total(), (Counts{93, 186, 93, 0}); got != want {
			t.Errorf("after %d years, in all: %+v, want %+v", jump, got, want)
		}
	}
}

// TestLastBesideTheFuture: what was counted while the clock was ahead has no place among the last periods, and is not hidden.
func TestLastBesideTheFuture(t *testing.T) {
	w := newWorld(t)
	w.now = noon.AddDate(100, 0, 0)
	w.src.count(1, "tcp/9000", 1)
	w.save()
	w.now = noon.AddDate(100, 0, 1)
	w.src.count(1, "tcp/9000", 2)
	w.src.count(1, "tcp/9001", 2)
	w.save()
	for i, n := range []uint64{10, 20, 30} { // it was set back
		w.now = noon.AddDate(0, 0, i)
		w.src.count(1, "tcp/9000", n)
		w.save()
	}
	ahead := []string{"2126-03-10T00 key1 tcp/9000 1/2/1/0", "2126-03-11T00 key1 tcp/9000 2/4/1/0", "2126-03-11T00 key1 tcp/9001 2/4/1/0"}
	last := func(past ...string) []string { return append(past, ahead...) }
	w.want(Query{By: Day, Last: 1}, last("2026-03-12T00 key1 tcp/9000 30/60/1/0")...)
	w.want(Query{By: Day, Last: 2}, last("2026-03-11T00 key1 tcp/9000 20/40/1/0", "2026-03-12T00 key1 tcp/9000 30/60/1/0")...)
	w.want(Query{By: Day, Last: 1, Service: "tcp/9001"}, ahead[2])
	// The same while the present is not stored.
	w.now = noon.AddDate(0, 0, 3)
	w.src.count(1, "tcp/9000", 40)
	w.want(Query{By: Day, Last: 2}, last("2026-03-12T00 key1 tcp/9000 30/60/1/0", "2026-03-13T00 key1 tcp/9000 40/80/1/0")...)
	w.save()
	// And from the file alone, when no process runs.
	r, err := Read(w.place, Query{By: Day, Last: 1})
	if want := last("2026-03-13T00 key1 tcp/9000 40/80/1/0"); err != nil || !slices.Equal(texts(r), want) {
		t.Errorf("Read = %q, %v; want %q", texts(r), err, want)
	}
	if n := r.Ahead(w.now); n != 2 {
		t.Errorf("%d days are ahead, want 2", n)
	}
	if n := r.Ahead(noon.AddDate(100, 0, 0)); n != 1 {
		t.Errorf("%d days are ahead a hundred years later, want 1", n)
	}
	if n := (Report{By: Day}).Ahead(w.now); n != 0 {
		t.Errorf("%d days of none are ahead", n)
	}
}

func TestPeriodsAreBounded(t *testing.T) {
	w := newWorld(t)
	for range 400 {
		w.src.count(1, "tcp/9000", 1)
		w.save()
		w.now = w.now.AddDate(0, 0, 1)
	}
	for p, want := range map[Period]int{Hour: 48, Day: 366, Month: 14} {
		if got := len(w.rows(Query{By: p})); got != want {
			t.Errorf("%d periods of %s, want %d", got, p, want)
		}
	}
	if got := w.total().Connections; got != 400 {
		t.Errorf("%d connections in all, want 400", got)
	}
}

// TestNamesAreBounded: a key whose services change their names all the time fills neither memory nor disk, and nobody's numbers are lost.
func TestNamesAreBounded(t *testing.T) {
	w := newWorld(t)
	w.src.count(2, "tcp/1", 1)
	w.save()
	const many = MostServices + 500
	for i := range many {
		w.src.all = append(w.src.all, status.Counted{Key: id(1), Service: fmt.Sprintf("http/h%d.example", i), Sent: 1, Connections: 1})
	}
	w.src.named[id(1)] = "greedy"
	w.save()
	r, err := w.Usage(context.Background(), Query{By: Hour, Key: "greedy"})
	if err != nil || len(r.Rows) != MostServices+1 {
		t.Fatalf("%d rows, %v; want %d", len(r.Rows), err, MostServices+1)
	}
	if c := w.total(); c.Connections != many+1 {
		t.Errorf("%d connections, want %d", c.Connections, many+1)
	}
	w.want(Query{By: Hour, Service: OtherServices}, "2026-03-10T12 greedy other 500/0/500/0")
	w.src.count(2, "tcp/2", 1) // a neighbour's new name has its place
	w.save()
	w.want(Query{By: Hour, Key: "key2"}, "2026-03-10T12 key2 tcp/1 1/2/1/0", "2026-03-10T12 key2 tcp/2 1/2/1/0")

	// Many keys do the same.
	for k := 10; k < 30; k++ {
		for i := range 1000 {
			w.src.all = append(w.src.all, status.Counted{Key: id(k), Service: fmt.Sprintf("http/%d-%d.example", k, i), Sent: 1, Connections: 1})
		}
	}
	w.save()
	r, err = w.Usage(context.Background(), Query{By: Day})
	if err != nil || len(r.Rows) > 2*MostRows {
		t.Errorf("%d rows, %v; want %d at the most", len(r.Rows), err, 2*MostRows)
	}
	if c := w.total(); c.Connections != many+2+20_000 {
		t.Errorf("%d connections, want %d", c.Connections, many+2+20_000)
	}
	if r.More != (len(r.Rows) >= MostAnswered) {
		t.Errorf("More = %v with %d rows", r.More, len(r.Rows))
	}
}

// TestFullDisk: what cannot be stored is stored when it can be, once.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	w.src.count(1, "tcp/9000", 1)
	w.save()
	w.place.full = errors.New("no space left on device")
	for range 100 {
		w.now = w.now.Add(time.Hour)
		w.src.count(1, "tcp/9000", 1)
		if err := w.Save(context.Background()); err == nil {
			t.Fatal("a full disk took a save")
		}
	}
	if st := w.State(); st.Failures != 100 || !strings.Contains(st.Error, "no space") {
		t.Errorf("State = %+v", st)
	}
	if got := w.total().Connections; got != 101 {
		t.Errorf("%d connections while the disk is full, want 101", got)
	}
	w.place.full = nil
	w.save()
	w.save()
	if got := w.total().Connections; got != 101 {
		t.Errorf("%d connections, want 101", got)
	}
	if st := w.State(); st.Error != "" {
		t.Errorf("State = %+v", st)
	}
	if n := strings.Count(w.log.String(), "cannot be stored"); n != 1 || strings.Count(w.log.String(), "stored again") != 1 {
		t.Errorf("the log:\n%s", &w.log)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	b := make(batch)
	for h := range int64(40) {
		for i := range 2000 {
			b.add(h*3600, name{"k", fmt.Sprint(h, " ", i)}, Counts{Sent: 1})
		}
		b.bound(mostPending)
	}
	if n := b.size(); n > mostPending+2*MostRows {
		t.Errorf("%d rows wait, want %d at the most", n, mostPending)
	}
	var sum Counts
	for _, rows := range b {
		for _, c := range rows {
			sum.add(c)
		}
	}
	if sum.Sent != 80_000 {
		t.Errorf("%d bytes, want 80000", sum.Sent)
	}
}

// TestUnknownSave: when the disk does not say whether a save succeeded, and it did, it is not added again.
func TestUnknownSave(t *testing.T) {
	w := newWorld(t)
	w.src.count(1, "tcp/9000", 5)
	w.counted.read(w.now)
	w.inFlight, w.number = w.counted.take(), 1
	stored := w.inFlight
	if err := w.store(); err != nil {
		t.Fatal(err)
	}
	w.inFlight = stored // as after an error of the last fsync
	if c := w.total(); c.Sent != 5 {
		t.Errorf("%d bytes sent before the next save, want 5", c.Sent)
	}
	w.save()
	if c := w.total(); c.Sent != 5 || w.inFlight != nil {
		t.Errorf("%d bytes sent, want 5", c.Sent)
	}
	w.src.count(1, "tcp/9000", 5)
	w.save()
	if c := w.total(); c.Sent != 10 {
		t.Errorf("%d bytes sent, want 10", c.Sent)
	}
}

// TestSideBySide: a process that is stopping and its successor store in the same file.
func TestSideBySide(t *testing.T) {
	w := newWorld(t)
	const processes, saves = 4, 25
	var wg sync.WaitGroup
	for p := range processes {
		src := &source{}
		s := New(src, &folder{dir: w.place.dir}, nil)
		s.now = func() time.Time { return noon }
		s.file.wait = time.Minute // nobody has a turn: on a slow disk the others may be first for long
		wg.Go(func() {
			for range saves {
				src.count(p%2, "tcp/9000", 1)
				if err := s.Save(context.Background()); err != nil {
					t.Errorf("process %d: %v", p, err)
				}
			}
		})
	}
	wg.Wait()
	if c := w.total(); c.Connections != processes*saves {
		t.Errorf("%d connections, want %d", c.Connections, processes*saves)
	}
}

// TestLocked: whoever holds the file costs a word, and nothing else.
func TestLocked(t *testing.T) {
	w := newWorld(t)
	w.src.count(1, "tcp/9000", 1)
	w.save()
	db, err := bolt.Open(w.place.Name(), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.src.count(1, "tcp/9000", 1)
	if err := w.Save(context.Background()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Save = %v, want a word about the other process", err)
	}
	if _, err := w.Usage(context.Background(), Query{By: Day}); err == nil {
		t.Error("Usage answered without the file")
	}
	db.Close()
	w.save()
	if c := w.total(); c.Connections != 2 {
		t.Errorf("%d connections, want 2", c.Connections)
	}
}

// TestRun: the last minute is stored at the stop.
func TestRun(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx) })
	w.src.count(1, "tcp/9000", 3)
	stop()
	wg.Wait()
	r, err := Read(w.place, Query{By: Month})
	if want := []string{"2026-03-01T00 key1 tcp/9000 3/6/1/0"}; err != nil || !slices.Equal(texts(r), want) {
		t.Errorf("Read = %v, %v; want %v", texts(r), err, want)
	}
}

// TestLostAtTheStop: the log says of what could not be stored before the end that it is lost, how much it is and since when, and not that it is
// kept.
func TestLostAtTheStop(t *testing.T) {
	for name, c := range map[string]struct {
		stored, waits bool
		want          string
	}{
		"from the start":            {false, false, "since=2026-03-10T12:00:00.000Z connections=1 refused=0 sent=3 received=6"},
		"since it was stored last":  {true, false, "since=2026-03-10T12:01:00.000Z connections=1 refused=0 sent=3 received=6"},
		"with what waited for long": {false, true, "since=2026-03-10T12:00:00.000Z connections=2 refused=0 sent=8 received=16"},
	} {
		w := newWorld(t)
		begun := w.now
		if c.stored {
			w.src.count(1, "tcp/9000", 1)
			w.now = w.now.Add(time.Minute)
			w.save()
		}
		w.place.full = errors.New("no space left on device")
		if c.waits {
			w.src.count(1, "tcp/9000", 5)
			if err := w.Save(context.Background()); err == nil {
				t.Fatal("a full disk took a save")
			}
		}
		before := strings.Count(w.log.String(), "kept in memory")
		w.src.count(1, "tcp/9000", 3)
		w.saveLast(context.Background(), begun)
		if got := w.log.String(); !strings.Contains(got, "usage is lost") || !strings.Contains(got, c.want+` err="`) || !strings.Contains(got, "no space left") || strings.Count(got, "kept in memory") != before {
			t.Errorf("%s: the log:\n%s\nwant %s", name, got, c.want)
		}
		w.log.Reset()
		w.place.full = nil
		w.saveLast(context.Background(), begun)
		if got := w.log.String(); strings.Contains(got, "lost") {
			t.Errorf("%s: when all is stored, the log:\n%s", name, got)
		}
	}
}

func TestHistory(t *testing.T) {
	w := newWorld(t)
	if h := w.History(); len(h.Points) != 0 || h.StepSeconds != 10 {
		t.Fatalf("History = %+v", h)
	}
	for i := range HistoryLength + 5 {
		w.src.count(1, "tcp/9000", uint64(i))
		w.src.count(2, "tcp/9001", 1)
		w.src.all[0].Open, w.src.all[1].Open = int64(i), 1
		w.save() // reads in between, which must not be counted twice
		w.now = w.now.Add(HistoryStep)
		w.step()
	}
	h := w.History()
	if len(h.Points) != HistoryLength {
		t.Fatalf("%d points, want %d", len(h.Points), HistoryLength)
	}
	for i, p := range h.Points {
		n := i + 5
		want := Point{noon.Add(time.Duration(n+1) * HistoryStep), int64(n) + 1, Counts{uint64(n) + 1, 2*uint64(n) + 2, 2, 0}}
		if p != want {
			t.Fatalf("point %d: %+v, want %+v", i, p, want)
		}
	}
}

// TestHistoryOfAClockSetBack: times of the history only go on. What a wrong clock dated later is left out.
func TestHistoryOfAClockSetBack(t *testing.T) {
	w := newWorld(t)
	for i := range 9 {
		w.now = w.now.Add(HistoryStep)
		if i == 6 {
			w.now = w.now.Add(-3*HistoryStep - time.Second)
		}
		w.src.count(1, "tcp/9000", uint64(i))
		w.step()
	}
	var got []int
	for _, p := range w.History().Points {
		got = append(got, int(p.At.Sub(noon)/time.Second))
	}
	if want := []int{10, 20, 30, 39, 49, 59}; !slices.Equal(got, want) {
		t.Errorf("points at %v, want %v", got, want)
	}
}
