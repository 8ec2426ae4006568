package state

import (
	"os"
	"path/filepath"
	"testing"
)

// TestOpenWhileOthersLook: a directory can be opened while somebody looks who holds it.
func TestOpenWhileOthersLook(t *testing.T) {
	path := t.TempDir()
	looker, err := os.Create(filepath.Join(path, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer looker.Close()
	if err := os.Chmod(looker.Name(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lockShared(looker); err != nil {
		t.Fatal(err)
	}
	pauses, pause := 0, lockPause
	defer func() { lockPause = pause }()
	lockPause = func() {
		if pauses++; pauses == 3 {
			unlock(looker)
		}
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if pauses != 3 {
		t.Errorf("it was open after %d pauses, want 3", pauses)
	}
	if _, held := lockHolder(path); !held {
		t.Error("nobody holds it")
	}
}

// TestLookAtNothing: to find out whether a directory can be made leaves nothing behind.
func TestLookAtNothing(t *testing.T) {
	above := t.TempDir()
	path := filepath.Join(above, "a", "state")
	if l, err := Look(path); err != nil || !l.Missing {
		t.Errorf("Look = %+v, %v; want that it is missing", l, err)
	}
	if entries, err := os.ReadDir(above); err != nil || len(entries) > 0 {
		t.Errorf("it left %v, %v", entries, err)
	}
}
