package state_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

// admin opens the admin socket of d and answers every connection with name, until the listener is closed.
func admin(t *testing.T, d *state.Dir, name string) (stop func()) {
	t.Helper()
	l, err := d.ListenAdmin()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, name)
			c.Close()
		}
	}()
	stop = func() { l.Close(); <-done }
	t.Cleanup(stop)
	return stop
}

// answer is who answers at the admin socket of the directory, "" if nobody does.
func answer(t *testing.T, path string) string {
	t.Helper()
	c, err := state.DialAdmin(context.Background(), path)
	if errors.Is(err, state.ErrNotRunning) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if _, gone := err.(*net.OpError); err != nil && !gone {
		t.Fatal(err)
	}
	return string(b)
}

// dirs are a directory that holds its admin socket, and one whose path is too long for that.
func dirs(t *testing.T) map[string]string {
	return map[string]string{
		"short": filepath.Join(t.TempDir(), "s"),
		"deep":  filepath.Join(t.TempDir(), strings.Repeat("d", 100)),
	}
}

// TestYield: a process that stops makes room for one successor, which is then the one that answers.
func TestYield(t *testing.T) {
	for name, path := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			old := open(t, path)
			stopOld := admin(t, old, "old")
			if err := old.Yield(); err != nil {
				t.Fatal(err)
			}
			if got := answer(t, path); got != "old" {
				t.Errorf("%q answers before there is a successor, want the old process", got)
			}
			if old.TakenOver() {
				t.Error("TakenOver before there is a successor")
			}
			// The successor's signature has another time, whatever the clock of the file system shows.
			then := time.Now().Add(-time.Hour)
			if err := os.Chtimes(filepath.Join(path, "lock"), then, then); err != nil {
				t.Fatal(err)
			}
			old.Yield()
			successor := open(t, path)
			if !old.TakenOver() || successor.TakenOver() {
				t.Errorf("TakenOver = %t, and %t at the successor; want true, and false", old.TakenOver(), successor.TakenOver())
			}
			if _, err := state.Open(path); !errors.Is(err, state.ErrInUse) {
				t.Errorf("a third process: Open = %v, want ErrInUse", err)
			}
			if got := answer(t, path); got != "old" {
				t.Errorf("%q answers before the successor does", got)
			}
			admin(t, successor, "successor")
			if got := answer(t, path); got != "successor" {
				t.Errorf("%q answers, want the successor", got)
			}
			stopOld()
			if err := old.Close(); err != nil {
				t.Error(err)
			}
			if got := answer(t, path); got != "successor" {
				t.Errorf("%q answers when the old process has ended, want the successor", got)
			}
			if _, err := state.Open(path); !errors.Is(err, state.ErrInUse) {
				t.Errorf("a third process when the old one has ended: Open = %v, want ErrInUse", err)
			}
			successor.Close()
			wantEmpty(t, path)
		})
	}
}

// wantEmpty checks that no socket, nor the path of one, is left behind.
func wantEmpty(t *testing.T, path string) {
	t.Helper()
	if got := answer(t, path); got != "" {
		t.Errorf("%q answers when all have ended", got)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "admin.") {
			t.Errorf("%s is left behind", e.Name())
		}
	}
}

// TestYieldToNobody: without a successor the process that stops cleans up as ever.
func TestYieldToNobody(t *testing.T) {
	for name, path := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			d := open(t, path)
			stop := admin(t, d, "old")
			d.Yield()
			d.Yield()
			stop()
			d.Close()
			wantEmpty(t, path)
			open(t, path)
		})
	}
}

// TestYieldAndCrash: whoever ends without a word, at whatever moment, leaves a directory that the next process can use.
func TestYieldAndCrash(t *testing.T) {
	for name, path := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			old := open(t, path)
			admin(t, old, "old")
			old.Yield()
			// A crash gives the lock up and leaves the files, as Yield does.
			before := open(t, path)
			before.Yield()
			if got := answer(t, path); got != "old" {
				t.Errorf("%q answers when a successor crashed before it listened, want the old process", got)
			}
			behind := open(t, path)
			admin(t, behind, "crashed")
			behind.Yield()
			next := open(t, path)
			admin(t, next, "next")
			old.Close()
			if got := answer(t, path); got != "next" {
				t.Errorf("%q answers, want the process that is alive", got)
			}
			next.Close()
			wantEmpty(t, path)
		})
	}
}

// TestKeysOfAYieldedDirectory: orders to a process that is stopping count until there is somebody else to give them to.
func TestKeysOfAYieldedDirectory(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	d.Yield()
	policy := grammar.DefaultPolicy()
	k, err := d.AddKey("nas", policy, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	successor := open(t, path)
	if keys, err := successor.Keys(); err != nil || len(keys) != 1 || keys[0].ID != k.ID {
		t.Errorf("the successor has %v, %v; want the key that was added last", keys, err)
	}
	if _, err := d.AddKey("office", policy, state.Limits{}); !errors.Is(err, state.ErrSucceeded) {
		t.Errorf("AddKey beside a successor = %v, want ErrSucceeded", err)
	}
	if err := d.RemoveKey("nas"); !errors.Is(err, state.ErrSucceeded) {
		t.Errorf("RemoveKey beside a successor = %v, want ErrSucceeded", err)
	}
	if _, err := d.ListenAdmin(); !errors.Is(err, state.ErrSucceeded) {
		t.Errorf("ListenAdmin beside a successor = %v, want ErrSucceeded", err)
	}
	if keys, err := successor.Keys(); err != nil || len(keys) != 1 {
		t.Errorf("the successor has %v, %v; want one key", keys, err)
	}
}

// TestSucceeded: a process that has yielded sees which keys its successor has left, also where that is of a newer version. What cannot be
// read, or is away, is an error and no word about keys.
func TestSucceeded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old := open(t, path)
	var policy grammar.Policy
	for _, name := range []string{"nas", "desk"} {
		if _, err := old.AddKey(name, policy, state.Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	if old.HasYielded() {
		t.Error("HasYielded before Yield")
	}
	if err := old.Yield(); err != nil || !old.HasYielded() {
		t.Fatalf("Yield = %v, HasYielded = %t", err, old.HasYielded())
	}
	successor := open(t, path)
	names := func() (all []string) {
		t.Helper()
		keys, err := old.Succeeded()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			all = append(all, k.Name)
		}
		return all
	}
	if got := names(); !slices.Equal(got, []string{"nas", "desk"}) {
		t.Errorf("the keys %q before any is removed", got)
	}
	if err := successor.RemoveKey("nas"); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"desk"}) {
		t.Errorf("the keys %q, want desk", got)
	}
	file := filepath.Join(path, "keys.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(b), `"name"`, `"colour": "red", "name"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Keys(); err == nil {
		t.Error("Keys of a newer version has no error")
	}
	if got := names(); !slices.Equal(got, []string{"desk"}) {
		t.Errorf("the keys %q of a newer version, want desk", got)
	}
	for name, spoil := range map[string]func() error{
		"cut off": func() error { return os.WriteFile(file, b[:len(b)/2], 0o600) },
		"empty":   func() error { return os.WriteFile(file, nil, 0o600) },
		"away":    func() error { return os.Remove(file) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if keys, err := old.Succeeded(); err == nil || keys != nil {
			t.Errorf("%s: the keys %v, %v; want an error", name, keys, err)
		}
	}
}
