//go:build unix

package state_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"reverser/internal/state"
)

// TestClosedBesideAStart: a directory is free when it was closed, though a program that is being started has its files open for a moment.
func TestClosedBesideAStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	d := open(t, path)
	var lock, other unix.Stat_t
	if err := unix.Stat(filepath.Join(path, "lock"), &lock); err != nil {
		t.Fatal(err)
	}
	held := 0
	for fd := range 1024 { // as a fork does
		if unix.Fstat(fd, &other) != nil || other.Ino != lock.Ino || other.Dev != lock.Dev {
			continue
		}
		copied, err := unix.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(copied)
		held++
	}
	if held == 0 {
		t.Fatal("the lock is at no descriptor")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
}

func TestAdminSocketIsPrivate(t *testing.T) {
	for _, deep := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "s")
		if deep {
			path = filepath.Join(path, strings.Repeat("d", 100))
		}
		d := open(t, path)
		if _, err := d.ListenAdmin(); err != nil {
			t.Fatal(err)
		}
		sock, err := state.AdminSocket(path)
		if err != nil {
			t.Fatal(err)
		}
		if inside := filepath.Dir(sock) == path; inside == deep {
			t.Errorf("deep %t: socket at %s", deep, sock)
		}
		info, err := os.Stat(sock)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("mode of %s = %04o, want 0600", sock, mode)
		}
		c, err := state.DialAdmin(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		d.Close()
		if _, err := os.Stat(sock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind", sock)
		}
	}
}

// TestLockIsAPipe: an order does not wait for whoever writes to a pipe that has the name of the lock.
func TestLockIsAPipe(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "lock"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := state.DialAdmin(context.Background(), dir); !errors.Is(err, state.ErrNotRunning) {
		t.Errorf("DialAdmin = %v, want ErrNotRunning", err)
	}
}
