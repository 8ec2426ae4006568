package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A follower watches a file through events that the test makes.
type follower struct {
	t      *testing.T
	path   string
	source *ProxySource
	events chan fsnotify.Event
	errs   chan error
	gone   atomic.Bool  // the directories cannot be watched
	calls  atomic.Int64 // of changed
}

// follow runs f in a bubble, with a file that was read once.
func follow(t *testing.T, f func(w *follower)) {
	path := write(t, "c.toml", "listen = 4000\n")
	synctest.Test(t, func(t *testing.T) {
		w := &follower{t: t, path: path, source: NewProxySource(ProxyArgs{Config: path}), events: make(chan fsnotify.Event), errs: make(chan error)}
		loaded(t, w.source)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.source.file.follow(ctx, w.events, w.errs, func() { w.calls.Add(1); w.source.Load() }, func() error {
				if w.gone.Load() {
					return errors.New("no such directory")
				}
				return nil
			})
		}()
		f(w)
		cancel()
		<-done
	})
}

func (w *follower) write(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.events <- fsnotify.Event{}
}

// after lets time pass and wants that many calls so far.
func (w *follower) after(d time.Duration, calls int) {
	w.t.Helper()
	time.Sleep(d)
	synctest.Wait()
	if got := int(w.calls.Load()); got != calls {
		w.t.Fatalf("changed was called %d times; want %d", got, calls)
	}
}

func TestFollow(t *testing.T) {
	follow(t, func(w *follower) {
		w.after(time.Hour, 0)
		w.write("listen = 4001\n")
		w.after(settle, 0) // it may be half written
		w.after(2*settle, 1)
		w.after(time.Hour, 1)
		// An event of a neighbour, and one of the same content.
		w.events <- fsnotify.Event{}
		w.after(time.Hour, 1)
		w.write("listen = 4001\n")
		w.after(time.Hour, 1)
	})
}

// A file that is written in pieces is read when it is whole, also when a neighbour is written all the time.
func TestFollowSlowWriter(t *testing.T) {
	follow(t, func(w *follower) {
		text := ""
		for range 20 {
			text += "# a line\n"
			w.write(text)
			w.after(settle/2, 0)
		}
		w.after(3*settle, 1)
		w.write("listen = 4001\n")
		for range 8 {
			w.events <- fsnotify.Event{}
			time.Sleep(settle / 2)
		}
		w.after(0, 2)
	})
}

// An empty file is one that an editor is about to write. A missing one is a fault, of which there is word.
func TestFollowEmptyAndMissing(t *testing.T) {
	follow(t, func(w *follower) {
		w.write("")
		w.after(time.Hour, 0)
		w.write("listen = 4001\n")
		w.after(time.Hour, 1)
		if err := os.Remove(w.path); err != nil {
			w.t.Fatal(err)
		}
		w.events <- fsnotify.Event{}
		w.after(time.Hour, 2)
		w.write("listen = 4001\n")
		w.after(time.Hour, 3)
	})
}

// A mended mode is a change, though the content is none.
func TestFollowMode(t *testing.T) {
	follow(t, func(w *follower) {
		for i, mode := range []os.FileMode{0o640, 0o600} {
			if err := os.Chmod(w.path, mode); err != nil {
				w.t.Fatal(err)
			}
			if info, err := os.Stat(w.path); err != nil || info.Mode().Perm() != mode {
				w.t.Skip("a file has no such modes here")
			}
			w.events <- fsnotify.Event{}
			w.after(time.Hour, i+1)
		}
	})
}

// What is written before the watch begins, or while events are lost, is found.
func TestFollowLostEvents(t *testing.T) {
	follow(t, func(w *follower) {
		w.after(time.Hour, 0)
		if err := os.WriteFile(w.path, []byte("listen = 4001\n"), 0o600); err != nil {
			w.t.Fatal(err)
		}
		w.errs <- fsnotify.ErrEventOverflow
		w.after(time.Hour, 1)

		// The directory is replaced, and is not there for a while.
		w.gone.Store(true)
		w.events <- fsnotify.Event{}
		w.after(time.Minute, 1)
		if err := os.WriteFile(w.path, []byte("listen = 4002\n"), 0o600); err != nil {
			w.t.Fatal(err)
		}
		w.after(3*missed, 2)
		w.gone.Store(false)
		w.after(3*missed, 2)
	})
	path := write(t, "c.toml", "listen = 4000\n")
	synctest.Test(t, func(t *testing.T) {
		s := NewProxySource(ProxyArgs{Config: path})
		loaded(t, s)
		write(t, path, "listen = 4001\n")
		ctx, cancel := context.WithCancel(t.Context())
		s.file.follow(ctx, nil, nil, cancel, func() error { return nil })
	})
}

// TestWatch: the ways in which people and programs change a file, with the real watcher.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "c.toml"), "listen = 4000\n")
	s := NewProxySource(ProxyArgs{Config: path})
	watchReal(t, s, func(next func(string)) {
		write(t, path, "listen = 4001\n") // in place
		next(":4001")
		write(t, path+".new", "listen = 4002\n") // as an editor that replaces
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		next(":4002")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		next("")
		write(t, path, "listen = 4003\n")
		next(":4003")
	})
}

// TestWatchLinks: Kubernetes changes a link to a directory in the way, others a link to a file elsewhere.
func TestWatchLinks(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	link := func(to, from string) {
		t.Helper()
		if err := os.Symlink(to, from+".new"); err != nil {
			t.Skip(err)
		}
		if err := os.Rename(from+".new", from); err != nil {
			if runtime.GOOS == "windows" {
				t.Skip("links are not renamed there: ", err)
			}
			t.Fatal(err)
		}
	}
	for _, v := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "v1", "c.toml"), "listen = 4000\n")
	write(t, filepath.Join(dir, "v2", "c.toml"), "listen = 4001\n")
	link("v1", filepath.Join(dir, "..data"))
	path := filepath.Join(dir, "c.toml")
	link(filepath.Join("..data", "c.toml"), path)
	watchReal(t, NewProxySource(ProxyArgs{Config: path}), func(next func(string)) {
		link("v2", filepath.Join(dir, "..data"))
		next(":4001")
		far := write(t, filepath.Join(elsewhere, "far.toml"), "listen = 4002\n")
		link(far, path)
		next(":4002")
		write(t, far, "listen = 4003\n")
		next(":4003")
	})
}

// watchReal watches with the real watcher; next waits until what the source loads has that address to listen at, "" is none.
func watchReal(t *testing.T, s *ProxySource, f func(next func(listen string))) {
	t.Helper()
	loaded(t, s)
	changed := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, func() { s.Load(); changed <- struct{}{} }) }()
	f(func(listen string) {
		t.Helper()
		for {
			select {
			case <-changed:
			case err := <-done:
				t.Fatalf("Watch = %v", err)
			case <-time.After(time.Minute):
				t.Fatalf("no word of the change to %q", listen)
			}
			if set, _, _ := s.Load(); set.Proxy.Listen == listen {
				return
			}
		}
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch = %v", err)
	}
}

// Where there is nothing to watch, Watch returns at once.
func TestWatchNothing(t *testing.T) {
	s := NewProxySource(ProxyArgs{})
	loaded(t, s)
	if err := s.Watch(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/dev/fd"); err != nil || runtime.GOOS == "windows" { // under Wine the directory is there
		t.Skip("no pipe has a path here")
	}
	// The shell's <(…) cannot be read a second time; nothing may be taken for an empty file.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.WriteString("listen = 4000\n")
	w.Close()
	s = NewProxySource(ProxyArgs{Config: fmt.Sprintf("/dev/fd/%d", r.Fd())})
	if set := loaded(t, s); set.Proxy.Listen != ":4000" {
		t.Errorf("Load = %+v", set)
	}
	_, _, err = s.Load()
	want(t, "a pipe, the second time", err, "cannot be read a second time", "restart")
	if err := s.Watch(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestWatchAll(t *testing.T) {
	var dirs []string
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.Symlink("a", path); err != nil {
		t.Skip(err)
	}
	// A link that leads to itself is followed to an end.
	if err := watchAll(func(dir string) error { dirs = append(dirs, dir); return nil }, path); err != nil || !slices.Equal(dirs, []string{dir}) {
		t.Errorf("watchAll = %v, %v; want %s alone", dirs, err, dir)
	}
	failed := errors.New("no")
	if err := watchAll(func(string) error { return failed }, path); err != failed {
		t.Errorf("watchAll = %v; want %v", err, failed)
	}
}
