package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func newLog(t *testing.T, said io.Writer) *Log {
	t.Helper()
	if said == nil {
		said = io.Discard
	}
	l := New(slog.New(slog.NewTextHandler(said, nil)))
	l.patience = time.Minute // the disk of a busy machine may take more than a second for one write
	return l
}

// entries reads a file, each line of which must be one.
func entries(t *testing.T, text string) (all []Entry) {
	t.Helper()
	if text != "" && !strings.HasSuffix(text, "\n") {
		t.Errorf("the last line is not whole: %q", text)
	}
	for line := range strings.Lines(text) {
		var e Entry
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestLines holds the names of the fields, which scripts read.
func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l := newLog(t, nil)
	l.Write(&Entry{Service: "before it is on"})
	if err := l.Open(path); err != nil {
		t.Fatal(err)
	}
	end := time.Date(2026, 11, 29, 8, 0, 0, 123_456_789, time.FixedZone("", 3600))
	l.Write(&Entry{
		Time: end, Kind: KindConnection, Service: "tcp/9000", Key: "nas", Client: "192.0.2.7:5", Target: "127.0.0.1:9904", Sent: 1, Received: 2,
		Duration: 1.5, Reason: "eof", Resumes: 3,
	})
	l.Write(&Entry{Time: end, Kind: KindConnection, Service: "tcp/9000", Key: "nas", Client: "192.0.2.7:5", Refused: "away"})
	l.Write(&Entry{
		Time: end, Kind: KindRequest, Service: "http/a", Key: "nas", Client: "192.0.2.7:5", Target: "127.0.0.1:80", Duration: 0.25,
		Request: &Request{ID: "r1", Method: "GET", Host: "a", Path: "/\x1b[31m\u009b<b>\u202e\xff\n?" + strings.Repeat("x", 3000), Proto: "HTTP/2.0", Status: 200, UserAgent: "curl", Referer: "http://b/"},
	})
	l.Close()
	got := read(t, path)
	want := `{"time":"2026-11-29T07:00:00.123Z","kind":"connection","service":"tcp/9000","key":"nas","client":"192.0.2.7:5","target":"127.0.0.1:9904","sent":1,"received":2,"duration":1.5,"reason":"eof","resumes":3}
{"time":"2026-11-29T07:00:00.123Z","kind":"connection","service":"tcp/9000","key":"nas","client":"192.0.2.7:5","target":"","sent":0,"received":0,"duration":0,"refused":"away"}
{"time":"2026-11-29T07:00:00.123Z","kind":"request","service":"http/a","key":"nas","client":"192.0.2.7:5","target":"127.0.0.1:80","sent":0,"received":0,"duration":0.25,"request":{"id":"r1","method":"GET","host":"a","path":"/\u001b[31m\u009b<b>\u202e\ufffd\n?xxx`
	if !strings.HasPrefix(got, want) {
		t.Errorf("the lines are\n%s\nwant\n%s", got, want)
	}
	if all := entries(t, got); len(all) != 3 || len(all[2].Request.Path) > pathMost+20 {
		t.Errorf("%d lines", len(all))
	}
	if s := l.State(); s.Written != 3 || s.Lost != 0 || s.Err != nil || s.Path != path {
		t.Errorf("the state is %+v", s)
	}
}

// TestRotation: lines go to the file that has the name, as soon as Open has returned.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l := newLog(t, nil)
	if err := l.Open(path); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const each, writers = 300, 4
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				l.Write(&Entry{Service: fmt.Sprint(w, "/", i)})
			}
		})
	}
	var names []string
	for i := range 20 {
		old := fmt.Sprint(path, ".", i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		if err := l.Open(path); err != nil {
			t.Fatal(err)
		}
		names = append(names, old)
		size := len(read(t, old))
		defer func() {
			if now := len(read(t, old)); now != size {
				t.Errorf("%s grew from %d to %d bytes after it was moved aside", old, size, now)
			}
		}()
	}
	wg.Wait()
	l.Close()
	n := 0
	for _, name := range append(names, path) {
		n += len(entries(t, read(t, name)))
	}
	if s := l.State(); n != each*writers || s.Written != uint64(n) || s.Lost != 0 {
		t.Errorf("%d lines, and %+v; want %d", n, s, each*writers)
	}
}

// disk is a file on a disk that may be full.
type disk struct {
	mu   sync.Mutex
	b    bytes.Buffer // guarded by mu
	room int          // guarded by mu
}

var errFull = errors.New("no space left on device")

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(p), d.room)
	d.room -= n
	d.b.Write(p[:n])
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func (d *disk) Close() error { return nil }

func (d *disk) free(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = n
}

// TestFullDisk: on a full disk lines are lost and counted, whichever byte is the last that finds room. What is there is whole lines.
func TestFullDisk(t *testing.T) {
	var one bytes.Buffer
	json.NewEncoder(&one).Encode(&Entry{Service: "1"})
	for room := range 3 * one.Len() {
		var said bytes.Buffer
		l := newLog(t, &said)
		d := &disk{room: room}
		l.turn <- struct{}{}
		l.file = d
		l.on.Store(true)
		<-l.turn
		for i := range 5 {
			l.Write(&Entry{Service: fmt.Sprint(i)})
		}
		waitFor(t, func() bool { s := l.State(); return s.Written+s.Lost+uint64(l.begun()) == 5 })
		d.free(1 << 20)
		l.Write(&Entry{Service: "behind"})
		l.Close()
		all := entries(t, d.b.String())
		s := l.State()
		if int(s.Written) != len(all) || s.Written+s.Lost != 6 || s.Err != nil {
			t.Errorf("room for %d bytes: %d lines are there; %+v", room, len(all), s)
		}
		if all[len(all)-1].Service != "behind" {
			t.Errorf("room for %d bytes: the last line is %+v", room, all[len(all)-1])
		}
		if n := strings.Count(said.String(), "its lines are lost"); n != 1 || !strings.Contains(said.String(), "is written again") {
			t.Errorf("room for %d bytes: the log says\n%s", room, said.String())
		}
	}
}

// begun is 1 when a line is there in part.
func (l *Log) begun() int {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.rest != nil {
		return 1
	}
	return 0
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come about")
		}
	}
}

// stuck is a file whose writes end when it is let go.
type stuck struct{ begun, release chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	s.begun <- struct{}{}
	<-s.release
	return len(p), nil
}
func (stuck) Close() error { return nil }

// TestStuck: whoever has a line written does not wait for a file that takes none, and what finds no room is counted.
func TestStuck(t *testing.T) {
	l := newLog(t, nil)
	l.patience = 10 * time.Millisecond
	s := stuck{make(chan struct{}, 1000), make(chan struct{})}
	l.turn <- struct{}{}
	l.file = s
	l.on.Store(true)
	<-l.turn
	l.Write(&Entry{})
	<-s.begun
	for range waiting + 100 {
		l.Write(&Entry{})
	}
	if lost := l.State().Lost; lost != 100 {
		t.Errorf("%d lines are lost, want 100", lost)
	}
	if err := l.Open(filepath.Join(t.TempDir(), "other")); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("Open = %v", err)
	}
	close(s.release)
	l.patience = time.Minute
	l.Close()
	if s := l.State(); s.Written != waiting+1 || s.Lost != 100 {
		t.Errorf("the state is %+v", s)
	}
}

// slow is a file each of whose writes takes a while.
type slow struct{ takes time.Duration }

func (s slow) Write(p []byte) (int, error) {
	time.Sleep(s.takes)
	return len(p), nil
}
func (slow) Close() error { return nil }

// TestSlow: whoever closes the log waits for a disk that is slow and takes lines all the same.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(slog.New(slog.DiscardHandler))
		l.open = func(string) (io.WriteCloser, error) { return slow{turnWait * 3 / 4}, nil }
		if err := l.Open("access.log"); err != nil {
			t.Fatal(err)
		}
		for range waiting {
			l.Write(&Entry{})
		}
		l.Close()
		if s := l.State(); s.Written != waiting || s.Lost != 0 {
			t.Errorf("the state is %+v, want %d lines", s, waiting)
		}
	})
}

// TestSlowForEver: nobody who closes the log waits for a disk for ever, whether it takes lines one after the other or none.
func TestSlowForEver(t *testing.T) {
	for takes, want := range map[time.Duration]time.Duration{turnWait * 3 / 4: closeWait, time.Hour: turnWait} {
		synctest.Test(t, func(t *testing.T) {
			l := New(slog.New(slog.DiscardHandler))
			l.open = func(string) (io.WriteCloser, error) { return slow{takes}, nil }
			if err := l.Open("access.log"); err != nil {
				t.Fatal(err)
			}
			for range waiting {
				l.Write(&Entry{Request: &Request{Path: strings.Repeat("x", pathMost)}})
			}
			begun := time.Now()
			l.Close()
			if took := time.Since(begun); took > want+time.Millisecond {
				t.Errorf("with writes of %v, Close took %v; want %v", takes, took, want)
			}
			<-l.done // in no time
		})
	}
}

// TestOpen: what cannot be opened changes nothing.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	l := newLog(t, nil)
	defer l.Close()
	if err := l.Open(path); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{dir: "a directory", filepath.Join(dir, "no", "file"): "make the directory first"} {
		if err := l.Open(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s) = %v, want a word about %q", name, err, want)
		}
	}
	if got := l.Path(); got != path || !l.On() {
		t.Errorf("lines go to %q", got)
	}
	l.Write(&Entry{Service: "still"})
	waitFor(t, func() bool { return l.State().Written == 1 })
	if err := l.Open(""); err != nil || l.On() || l.Path() != "" {
		t.Errorf("it is not off: %v", err)
	}
	l.Write(&Entry{Service: "off"})
	if got := entries(t, read(t, path)); len(got) != 1 || got[0].Service != "still" {
		t.Errorf("the file has %+v", got)
	}
}

// TestOpenThatDoesNotEnd: a disk that does not answer holds nobody up for ever, and not one more call of the system for each attempt.
func TestOpenThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, nil)
		defer l.Close()
		release, opens := make(chan struct{}), new(atomic.Int32)
		late := stuck{begun: make(chan struct{}, 1), release: release}
		l.open = func(string) (io.WriteCloser, error) {
			opens.Add(1)
			<-release
			return late, nil
		}
		for range 3 {
			if err := l.Open("/net/access.log"); err == nil || !strings.Contains(err.Error(), "/net/access.log") {
				t.Errorf("Open = %v", err)
			}
		}
		if n := opens.Load(); n != 1 || l.On() {
			t.Errorf("%d files are being opened, want 1", n)
		}
		close(release)
		synctest.Wait()
		if l.On() {
			t.Error("a file that came too late is used")
		}
		if err := l.Open("/net/access.log"); err != nil || !l.On() {
			t.Errorf("Open = %v when the disk answers again", err)
		}
	})
}
