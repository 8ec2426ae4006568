package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/state"
)

// TestFrozen: a process that holds its state directory and does not answer is told as such, in plain words, and doctor looks at the rest.
func TestFrozen(t *testing.T) {
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, _, err := dir.Identity(); err != nil {
		t.Fatal(err)
	}
	l, err := dir.ListenAdmin() // where nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const says = "does not answer: is it stopped, or very busy?"
	who := fmt.Sprintf("the process (pid %d)", os.Getpid())
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	var out bytes.Buffer
	c := newCLI(strings.NewReader(""), &out, &out)
	for name, order := range map[string]func() error{
		"status": func() error { return c.status(soon(), dir.Path(), false, 0) },
		"end":    func() error { return c.end(soon(), dir.Path(), nil, admin.Which{Key: "nas"}, false) },
	} {
		if err := order(); err == nil || !strings.Contains(err.Error(), who) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s = %v; want %q and %q", name, err, who, says)
		}
	}
	for name, look := range map[string]func() error{
		"doctor": func() error { return c.doctorOfRunning(soon(), dir.Path(), nil, false) },
		"doctor proxy": func() error {
			return c.doctorOf(soon(), config.RoleProxy, dir.Path(), nil, config.NewProxySource(config.ProxyArgs{CommonArgs: config.CommonArgs{State: dir.Path()}}), false)
		},
	} {
		out.Reset()
		err := look()
		text := out.String()
		if err == nil || !strings.HasPrefix(text, "the proxy that runs, state directory ") {
			t.Errorf("%s = %v, and says %q", name, err, text)
		}
		for _, line := range []string{"FAIL  process       " + who, "→ is it stopped, or very busy?", "ok    state ", "ok    disk ", "  clock "} {
			if !strings.Contains(text, line) {
				t.Errorf("%s says no %q in\n%s", name, line, text)
			}
		}
		for _, line := range []string{"deadline", "that would start", "started here", "cannot be opened"} {
			if strings.Contains(text, line) {
				t.Errorf("%s says %q in\n%s", name, line, text)
			}
		}
	}
}

// TestAskOneWaits: a command waits for a process that holds its directory to open the admin socket, and not for ever.
func TestAskOneWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, opens := time.Now(), unreachableWait/2
		ask := func(*admin.Client) error {
			if time.Since(begun) < opens {
				return &state.UnreachableError{}
			}
			return nil
		}
		if err := askOne(t.TempDir(), ask); err != nil {
			t.Errorf("askOne = %v of a process that opens its socket after %s", err, opens)
		}
		opens = time.Hour
		if err := askOne(t.TempDir(), ask); !errors.Is(err, state.ErrUnreachable) || time.Since(begun) > 2*unreachableWait {
			t.Errorf("askOne = %v after %s; want %v", err, time.Since(begun), state.ErrUnreachable)
		}
	})
}
