package usage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"reverser/internal/status"
)

// filled is a file with pages of all kinds, also free ones, and what was in it at the last save and at the one before.
func filled(t *testing.T) (file []byte, last, before Counts) {
	w := newWorld(t)
	const hours, keys = 30, 24
	for i := range hours {
		for k := range keys {
			w.src.count(k, fmt.Sprintf("http/service-%d.example.com/with/a/path/%d", k, i%7), uint64(i))
		}
		before = w.total()
		w.save()
		w.now = w.now.Add(time.Hour)
	}
	last = w.total()
	w.want(Query{By: Month, Group: GroupTotal, Last: 1}, w.rows(Query{By: Month, Group: GroupTotal})...)
	// The last save alone, without what the read before it found.
	before.Sent, before.Received, before.Connections = last.Sent-(hours-1)*keys, last.Received-2*(hours-1)*keys, last.Connections-keys
	b, err := os.ReadFile(w.place.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b, last, before
}

// survive gives a damaged file to a new process. It must store what it counts, and either all of what was there is there still, but for
// the last save, or the file was put aside. It reports which.
func survive(t *testing.T, what string, file []byte, possible ...Counts) (aside bool) {
	t.Helper()
	w := newWorld(t)
	if err := os.WriteFile(w.place.Name(), file, 0o600); err != nil {
		t.Fatal(err)
	}
	w.src.all = []status.Counted{{Key: id(1), Service: "tcp/1", Sent: 1, Received: 1, Connections: 1}}
	if err := w.Save(context.Background()); err != nil {
		t.Errorf("%s: Save = %v", what, err)
		return false
	}
	got := w.total()
	aside = w.State().PutAside != ""
	if aside {
		possible = nil
	}
	for _, p := range append(possible, Counts{}) {
		p.add(Counts{1, 1, 1, 0})
		if got == p && (p.Connections > 1 || aside || len(file) < 4*4096) {
			return aside
		}
	}
	t.Errorf("%s: %+v, put aside: %v; want one of %+v, and one more", what, got, aside, possible)
	return aside
}

// TestCut: a file that was cut off anywhere.
func TestCut(t *testing.T) {
	file, last, before := filled(t)
	t.Logf("a file of %d bytes", len(file))
	step := 4093
	if testing.Short() {
		step *= 5
	}
	for n := 1; n < len(file); n += step {
		at := n
		if n/step%4 == 0 {
			at = n / 4096 * 4096 // where a page ends
		}
		survive(t, fmt.Sprintf("cut at %d", at), file[:at], last, before)
	}
	for at := 1; at < 8192; at += 131 {
		survive(t, fmt.Sprintf("cut at %d", at), file[:at])
	}
}

// TestFlip: a file of which some byte is another one than it was.
func TestFlip(t *testing.T) {
	file, last, before := filled(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	flips := 200
	if testing.Short() {
		flips /= 5
	}
	aside := 0
	for i := range flips {
		at := rnd.IntN(len(file))
		switch {
		case i%3 == 0:
			at = at/4096*4096 + rnd.IntN(48) // where a page begins
		case i < 100:
			at %= 8192
		}
		bad := append([]byte(nil), file...)
		bad[at] ^= 1 << rnd.IntN(8)
		if survive(t, fmt.Sprintf("byte %d: %#x became %#x", at, file[at], bad[at]), bad, last, before) {
			aside++
		}
	}
	t.Logf("%d of %d were put aside", aside, flips)
	if aside == 0 || aside == flips {
		t.Errorf("%d of %d were put aside", aside, flips)
	}
}

// TestOneStart: of the two pages that say where the others are, one is damaged. The other one is used, and the log says once what that may have
// cost. The next save writes both anew.
func TestOneStart(t *testing.T) {
	file, last, before := filled(t)
	for page := range 2 {
		for what, damage := range map[string]func([]byte){
			"a byte changed": func(b []byte) { b[pageHeader+40] ^= 1 },
			"all zeros":      func(b []byte) { clear(b) },
		} {
			bad := bytes.Clone(file)
			damage(bad[page*os.Getpagesize():][:pageHeader+64])
			w := newWorld(t)
			if err := os.WriteFile(w.place.Name(), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := w.total(); got != last && got != before {
				t.Errorf("page %d, %s: %+v; want %+v or %+v", page, what, got, last, before)
			}
			for n := range 2 {
				w.src.count(1, "tcp/1", uint64(n))
				if err := w.Save(t.Context()); err != nil {
					t.Fatal(err)
				}
				w.file.checked = nil
				w.total()
			}
			const words = "is damaged: the other one is used"
			if n := strings.Count(w.log.String(), words); n != 1 || w.State().PutAside != "" {
				t.Errorf("page %d, %s: the log says %d times that one %q, and the file was put aside as %q:\n%s", page, what, n, words, w.State().PutAside, &w.log)
			}
		}
	}
	w := newWorld(t)
	if err := os.WriteFile(w.place.Name(), file, 0o600); err != nil {
		t.Fatal(err)
	}
	if w.total(); w.log.Len() > 0 {
		t.Errorf("of a whole file the log says\n%s", &w.log)
	}
}

// TestOneStartIsSaid: a process that counts nothing says it too, and so does who reads the file when none runs.
func TestOneStartIsSaid(t *testing.T) {
	file, _, _ := filled(t)
	bad := bytes.Clone(file)
	clear(bad[:pageHeader+64])
	for what, b := range map[string][]byte{"whole": file, "damaged": bad} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			if err := os.WriteFile(w.place.Name(), b, 0o600); err != nil {
				t.Fatal(err)
			}
			want := 0
			if what == "damaged" {
				want = 1
			}
			r, err := Read(w.place, Query{By: Month})
			if err != nil || len(r.Rows) == 0 || strings.Contains(r.Warning, "is damaged: the other one is used") != (want == 1) || (r.Warning == "") != (want == 0) {
				t.Errorf("%s: Read has %d rows, %v, and warns %q", what, len(r.Rows), err, r.Warning)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { w.Run(ctx) })
			synctest.Wait()
			if n := strings.Count(w.log.String(), "is damaged: the other one is used"); n != want {
				t.Errorf("%s: after the start, the log says it %d times; want %d:\n%s", what, n, want, &w.log)
			}
			cancel()
			wg.Wait()
			if n := strings.Count(w.log.String(), "is damaged: the other one is used"); n != want {
				t.Errorf("%s: after the end, the log says it %d times; want %d:\n%s", what, n, want, &w.log)
			}
		})
	}
}

// TestGarbage: what was never such a file.
func TestGarbage(t *testing.T) {
	whole, _, _ := filled(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, len(whole))
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for what, b := range map[string][]byte{"noise": noise, "zeros": make([]byte, len(whole)), "text": []byte(strings.Repeat("hello\n", 10_000))} {
		if !survive(t, what, b) {
			t.Errorf("%s was not put aside", what)
		}
	}
	fresh := &file{place: &folder{dir: t.TempDir()}}
	if err := fresh.with(false, func(*bolt.DB, *os.File) error { return nil }); err != nil {
		t.Fatal(err)
	}
	begun, err := os.ReadFile(fresh.place.Name())
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n < 4*4096; n += 797 {
		if survive(t, fmt.Sprintf("%d bytes of a new file", n), begun[:n]) {
			t.Errorf("%d bytes of a file in which nothing was yet were put aside", n)
		}
		if !survive(t, fmt.Sprintf("%d bytes of noise", n), noise[:n]) {
			t.Errorf("%d bytes of noise were not put aside", n)
		}
	}
	// Only its first two pages are right.
	survive(t, "noise behind the start", append(append([]byte(nil), whole[:8192]...), noise[8192:]...))
	survive(t, "nothing behind the start", append(append([]byte(nil), whole[:8192]...), make([]byte, len(whole)-8192)...))
	// Pages that changed places: any state that is whole may be found, or none.
	for range 50 {
		b := append([]byte(nil), whole...)
		i, j := rnd.IntN(len(b)/4096), rnd.IntN(len(b)/4096)
		copy(b[i*4096:(i+1)*4096], whole[j*4096:])
		copy(b[j*4096:(j+1)*4096], whole[i*4096:])
		w := newWorld(t)
		if err := os.WriteFile(w.place.Name(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			w.src.count(1, "tcp/1", 1)
			if err := w.Save(context.Background()); err != nil {
				t.Errorf("pages %d and %d: Save = %v", i, j, err)
			}
		}
		w.total()
	}
}

// TestCutUnderRead: somebody cuts the file off while it is read. That costs what was read, never the process.
func TestCutUnderRead(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows lets nobody cut off a file that is mapped")
	}
	whole, _, _ := filled(t)
	f := &folder{dir: t.TempDir()}
	for _, write := range []bool{false, true} {
		if err := os.WriteFile(f.Name(), whole, 0o600); err != nil {
			t.Fatal(err)
		}
		db := &file{place: f}
		do := db.view
		if write {
			do = db.update
		}
		err := do(func(tx *bolt.Tx) error {
			if err := os.Truncate(f.Name(), 8192); err != nil {
				t.Skipf("a file that is mapped cannot be cut off here: %v", err)
			}
			return newSums().read(tx, Query{By: Day}, noon)
		})
		if _, ok := errors.AsType[*damage](err); !ok {
			t.Errorf("write %v: %v, want damage", write, err)
		}
	}
	// The lock of the file did not stay.
	w := newWorld(t)
	w.place.dir = f.dir
	w.src.count(1, "tcp/1", 1)
	w.save()
	if st := w.State(); st.PutAside == "" || !strings.Contains(w.log.String(), "damaged") {
		t.Errorf("State = %+v; the log:\n%s", st, &w.log)
	}
}
