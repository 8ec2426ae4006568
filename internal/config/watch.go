package config

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"reverser/internal/access"
)

const (
	// settle is how far apart two looks at a file must be that find the same, before it counts as written to its end.
	settle = 100 * time.Millisecond
	// missed is how soon a directory that could not be watched, such as one that is just being replaced, is tried again.
	missed = time.Second
)

// watched is the configuration file of a source, and what it was when it was read last.
type watched struct {
	path string                 // "": there is none
	at   atomic.Pointer[string] // the file that is being read; nil, or "": none, or that is not known

	mu     sync.Mutex
	seen   look     // guarded by mu, as all below
	begun  bool     // it was read, or is being read
	once   bool     // it was no regular file when it was read first: there is nothing to watch
	others []string // files that it names and that settings are read from
}

// look is what a file was at one moment, with the others that it names. It is comparable.
type look struct {
	sum   [sha256.Size]byte // of the content, and of the looks of the others
	mode  fs.FileMode       // a mode that was too loose may be mended, and the content stay as it is
	err   string            // why there is nothing else
	empty bool
}

// begin begins a reading of all settings. It reports whether there was one before: a file that is read again must be a regular one, while
// the first time the shell's <(…) will do.
func (w *watched) begin() (again bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	again, w.begun = w.begun, true
	return again
}

// read has the file read by load and notes what it was. load returns the other files that settings are read from, also with an error.
func (w *watched) read(again bool, load func(path string) (others []string, err error)) error {
	if w.path == "" {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads(w.path)
	defer w.reads("")
	if info, err := os.Stat(w.path); !again && err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		w.once = true
		_, err := load(w.path)
		return err
	}
	// A look comes before the reading, so that a change in between is noticed. Which others to look at is known behind the reading.
	for range 3 {
		w.seen = lookAtAll(w.path, w.others, w.reads)
		others, err := load(w.path)
		if slices.Equal(others, w.others) {
			return err
		}
		w.others = others
	}
	_, err := load(w.path)
	return err
}

// reads notes which file is about to be read.
func (w *watched) reads(path string) { w.at.Store(&path) }

// reading returns which file is being read; "": none, or that is not known.
func (w *watched) reading() string {
	if at := w.at.Load(); at != nil {
		return *at
	}
	return ""
}

func (w *watched) last() (seen look, once bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.once
}

// now is what the file and its others are.
func (w *watched) now() look {
	w.mu.Lock()
	others := w.others
	w.mu.Unlock()
	return lookAtAll(w.path, others, func(string) {})
}

// watchAll adds the directories of the file and of its others.
func (w *watched) watchAll(add func(dir string) error) error {
	w.mu.Lock()
	others := w.others
	w.mu.Unlock()
	for _, other := range others {
		watchAll(add, other) // where there is no such directory, there is no such file, and that may stay so
	}
	return watchAll(add, w.path)
}

// lookAtAll calls at before it looks at a file.
func lookAtAll(path string, others []string, at func(path string)) look {
	at(path)
	all := lookAt(path)
	if len(others) == 0 {
		return all
	}
	h := sha256.New()
	fmt.Fprintf(h, "%v", all)
	for _, other := range others {
		at(other)
		l := lookAt(other)
		fmt.Fprintf(h, "%q %v", other, l)
		all.empty = all.empty || l.empty
	}
	all.sum = [sha256.Size]byte(h.Sum(nil))
	return all
}

// lookAt looks at a file. It opens no pipe: whoever writes into that would take it for the reading.
func lookAt(path string) look {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return look{err: "no regular file", mode: info.Mode()}
	}
	f, err := access.Rules{Regular: true}.Open(path)
	if err != nil {
		return look{err: trimPath(err).Error()}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return look{err: err.Error()}
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxFile+1))
	if err != nil {
		return look{err: trimPath(err).Error()}
	}
	return look{sum: [sha256.Size]byte(h.Sum(nil)), mode: info.Mode(), empty: n == 0}
}

// watch calls changed whenever the file is another one than the one that was read last, until ctx ends.
//
// It watches directories, not the file: an editor puts a new file in the place of the old one, and Kubernetes a new link.
func (w *watched) watch(ctx context.Context, changed func()) error {
	if _, once := w.last(); once || w.path == "" {
		return nil
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", w.path, err)
	}
	defer watcher.Close()
	add := func(dir string) error {
		if entries, err := os.ReadDir(dir); err == nil && opensFiles && len(entries) > mostFiles {
			return fmt.Errorf("the directory %s has %d entries, and each would take a descriptor here: put the file into one of its own", dir, len(entries))
		}
		return watcher.Add(dir)
	}
	if err := w.watchAll(add); err != nil {
		return fmt.Errorf("watch %s: %w", w.path, err)
	}
	w.follow(ctx, watcher.Events, watcher.Errors, changed, func() error { return w.watchAll(add) })
	return nil
}

// opensFiles reports whether watching a directory opens every file in it, as it does where kqueue is what watches.
const opensFiles = runtime.GOOS != "linux" && runtime.GOOS != "windows"

// mostFiles is as many as are opened then.
const mostFiles = 100

// follow is watch, behind events that say that something happened in one of the directories. Errors are lost events.
func (w *watched) follow(ctx context.Context, events <-chan fsnotify.Event, errs <-chan error, changed func(), again func() error) {
	timer := time.NewTimer(0) // something may have happened between the reading and the watching
	defer timer.Stop()
	armed := true
	arm := func(d time.Duration) {
		if !armed {
			armed = true
			timer.Reset(d)
		}
	}
	previous, _ := w.last()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				return
			}
			arm(settle)
		case _, ok := <-errs:
			if !ok {
				return
			}
			arm(settle)
		case <-timer.C:
			armed = false
			if again() != nil {
				arm(missed)
			}
			now := w.now()
			seen, _ := w.last()
			switch {
			case now == seen:
			case now != previous:
				arm(settle)
			case now.empty:
				// An editor that empties a file before it writes it may be slow. Whoever means it gives the order to reload.
			default:
				changed()
			}
			previous = now
		}
	}
}

// watchAll adds the directory of a file, and of each file that a link in its place leads to.
func watchAll(add func(dir string) error, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	var dirs []string
	for range 40 { // as many links as a system follows
		if dir := filepath.Dir(path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
		to, err := os.Readlink(path)
		if err != nil {
			break // it is no link, or not there now
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	for _, dir := range dirs {
		if err := add(dir); err != nil {
			return err
		}
	}
	return nil
}
