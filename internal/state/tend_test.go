package state_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

// used returns a directory as a proxy holds it that has run for a while.
func used(t *testing.T) *state.Dir {
	t.Helper()
	d := open(t, filepath.Join(t.TempDir(), "s"))
	if _, _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddKey("nas", grammar.DefaultPolicy(), state.Limits{}); err != nil {
		t.Fatal(err)
	}
	if faults := d.Tend(); len(faults) > 0 {
		t.Fatalf("Tend of a directory in order = %q", faults)
	}
	return d
}

func wantFault(t *testing.T, d *state.Dir, words ...string) {
	t.Helper()
	faults := d.Tend()
	if len(faults) != 1 {
		t.Errorf("Tend = %q, want one fault with %q", faults, words)
		return
	}
	for _, word := range words {
		if !strings.Contains(faults[0], word) {
			t.Errorf("Tend = %q, want %q in it", faults[0], word)
		}
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestIdentityRemoved: the process goes on with its identity, says what the next start would do, and gives out no token that would be
// worth nothing then.
func TestIdentityRemoved(t *testing.T) {
	d := used(t)
	file := filepath.Join(d.Path(), "identity.pem")
	aside := filepath.Join(t.TempDir(), "aside")
	move(t, file, aside)
	wantFault(t, d, file, "removed", "new token", "copy")
	if _, err := d.AddKey("office", nil, state.Limits{}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("AddKey without the identity's file = %v, want a refusal", err)
	}
	if err := d.RemoveKey("nas"); err != nil {
		t.Errorf("RemoveKey without the identity's file: %v", err)
	}

	other := used(t)
	b, err := os.ReadFile(filepath.Join(other.Path(), "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	wantFault(t, d, file, "replaced", "restart")
	if _, err := d.AddKey("office", nil, state.Limits{}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("AddKey with another identity's file = %v, want a refusal", err)
	}

	move(t, aside, file)
	if faults := d.Tend(); len(faults) > 0 {
		t.Errorf("Tend when the file is back = %q", faults)
	}
	if _, err := d.AddKey("office", nil, state.Limits{}); err != nil {
		t.Error(err)
	}
}

// TestIdentityReplacedAtOnce: a file that takes the place of the identity's is noticed though it is of the same moment, as the clock of the
// file system has it, and of the same size.
func TestIdentityReplacedAtOnce(t *testing.T) {
	d := used(t)
	file := filepath.Join(d.Path(), "identity.pem")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, make([]byte, info.Size()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(other, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	move(t, other, file)
	wantFault(t, d, file, "replaced", "restart")
}

// TestKeysRemoved: no reload takes a file that is gone for one without keys, which would reset everybody.
func TestKeysRemoved(t *testing.T) {
	d := used(t)
	file := filepath.Join(d.Path(), "keys.json")
	aside := filepath.Join(t.TempDir(), "aside")
	move(t, file, aside)
	wantFault(t, d, file, "removed", "copy")
	if keys, err := d.Keys(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Keys without their file = %v, %v; want an error", keys, err)
	}
	if _, err := d.AddKey("office", nil, state.Limits{}); err == nil {
		t.Error("AddKey made a new file, and the keys before it are lost")
	}
	move(t, aside, file)
	if faults := d.Tend(); len(faults) > 0 {
		t.Errorf("Tend when the file is back = %q", faults)
	}
	if keys, err := d.Keys(); err != nil || len(keys) != 1 {
		t.Errorf("Keys when the file is back = %v, %v", keys, err)
	}

	// A directory in which there never were any has none.
	if keys, err := open(t, t.TempDir()).Keys(); len(keys) != 0 || err != nil {
		t.Errorf("Keys of a new directory = %v, %v", keys, err)
	}
}

// TestLockRemoved: a lock on a file that nobody finds keeps nobody out, so another one is made.
func TestLockRemoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be removed there")
	}
	d := used(t)
	file := filepath.Join(d.Path(), "lock")
	for _, remake := range []func() []string{
		d.Tend,
		func() []string { _, err := d.AddKey("office", nil, state.Limits{}); return asFaults(err) },
	} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if faults := remake(); len(faults) > 0 {
			t.Fatalf("with the lock file removed: %q", faults)
		}
		if _, err := state.Open(d.Path()); !errors.Is(err, state.ErrInUse) {
			t.Errorf("a second process: Open = %v, want ErrInUse", err)
		}
	}

	// Somebody was quicker.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	second := open(t, d.Path())
	wantFault(t, d, file, "removed or replaced", "in use by another")
	if _, err := d.AddKey("shop", nil, state.Limits{}); !errors.Is(err, state.ErrInUse) {
		t.Errorf("AddKey beside another process = %v, want ErrInUse", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if faults := d.Tend(); len(faults) > 0 {
		t.Errorf("Tend when the other one has ended = %q", faults)
	}
	if _, err := state.Open(d.Path()); !errors.Is(err, state.ErrInUse) {
		t.Errorf("a third process: Open = %v, want ErrInUse", err)
	}
}

func asFaults(err error) []string {
	if err == nil {
		return nil
	}
	return []string{err.Error()}
}

// TestDirectoryMoved: nothing is made in a directory that has taken the place of the process's own.
func TestDirectoryMoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a directory with open files cannot be moved there")
	}
	d := used(t)
	path := d.Path()
	admin(t, d, "first")
	move(t, path, path+"2")
	wantFault(t, d, path, "moved")
	if d.AdminLost() {
		t.Error("AdminLost, though the socket is where the directory is")
	}
	successor := open(t, path)
	admin(t, successor, "second")
	wantFault(t, d, path, "replaced")
	if d.AdminLost() {
		t.Error("AdminLost, though the other one's socket is none of this process's")
	}
	if _, err := d.ListenAdmin(); err == nil {
		t.Error("ListenAdmin opened a socket in another process's directory")
	}
	if got := answer(t, path); got != "second" {
		t.Errorf("%q answers, want the second process", got)
	}
	if got := answer(t, path+"2"); got != "first" {
		t.Errorf("%q answers in the directory that was moved, want the first process", got)
	}
}

// TestAdminLost: whatever becomes of the admin socket, the process notices and can open it again.
func TestAdminLost(t *testing.T) {
	for name, path := range dirs(t) {
		t.Run(name, func(t *testing.T) {
			d := open(t, path)
			stop := admin(t, d, "first")
			if d.AdminLost() {
				t.Fatal("AdminLost of a socket that is there")
			}
			for _, file := range []string{"admin.sock", "admin.path", "behind admin.path"} {
				if file == "behind admin.path" && runtime.GOOS == "windows" {
					continue // a pipe cannot be removed
				}
				for _, with := range []string{"", "a file"} {
					full := filepath.Join(path, file)
					if file == "behind admin.path" {
						full, _ = state.AdminSocket(path)
					}
					if _, err := os.Lstat(full); err != nil {
						continue // the other kind
					}
					if err := os.Remove(full); err != nil {
						t.Fatal(err)
					}
					if with != "" {
						if err := os.WriteFile(full, []byte(with), 0o600); err != nil {
							t.Fatal(err)
						}
					}
					if !d.AdminLost() {
						t.Fatalf("%s replaced by %q is not noticed", file, with)
					}
					if with == "" {
						if _, err := state.DialAdmin(context.Background(), path); !errors.Is(err, state.ErrUnreachable) || errors.Is(err, state.ErrNotRunning) {
							t.Errorf("DialAdmin without %s = %v, want ErrUnreachable", file, err)
						} else if used, ok := errors.AsType[*state.UnreachableError](err); !ok || used.PID != os.Getpid() {
							t.Errorf("DialAdmin without %s = %v, want the process's id", file, err)
						}
					}
					stop()
					stop = admin(t, d, "again")
					if got := answer(t, path); got != "again" || d.AdminLost() {
						t.Errorf("%q answers when %s was opened again, lost: %v", got, file, d.AdminLost())
					}
				}
			}
			if err := d.Yield(); err != nil {
				t.Fatal(err)
			}
			successor := open(t, path)
			admin(t, successor, "successor")
			if d.AdminLost() {
				t.Error("AdminLost, though a successor has taken its place")
			}
			stop()
			d.Close()
			if err := successor.Close(); err != nil {
				t.Error(err)
			}
			wantEmpty(t, path)
		})
	}
}

// TestUnheldDirectory: a lock file that nobody holds says nothing.
func TestUnheldDirectory(t *testing.T) {
	path := t.TempDir()
	d, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := state.DialAdmin(context.Background(), path); !errors.Is(err, state.ErrNotRunning) {
		t.Errorf("DialAdmin of a directory that nobody holds = %v, want ErrNotRunning", err)
	}
	open(t, path) // the look at the lock has left none
}
