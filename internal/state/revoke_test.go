package state_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"reverser/internal/state"
)

// names are those of the stored keys.
func names(t *testing.T, d *state.Dir) (list []string) {
	t.Helper()
	keys, err := d.Keys()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		list = append(list, k.Name)
	}
	return list
}

// crowd has every write to the directory fail until the returned function is called: no file can be put in the place of another.
func crowd(t *testing.T, path string) (clear func()) {
	t.Helper()
	file := filepath.Join(path, "keys.json")
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(file, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".away", file); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRevoke: a key that was revoked is gone for this process though the file cannot be written, and gone from the file when it can.
func TestRevoke(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	var keys []state.Key
	for _, name := range []string{"a", "b", "c", "d"} {
		k, err := d.AddKey(name, nil, state.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	d.MarkRevoked(keys[0].ID, "a")
	if err := d.Store(); err != nil {
		t.Fatal(err)
	}
	if gone, err := d.Unstored(); len(gone) != 0 || err != nil {
		t.Errorf("Unstored = %v, %v", gone, err)
	}
	clear := crowd(t, path)
	d.MarkRevoked(keys[1].ID, "b")
	if err := d.Store(); err == nil {
		t.Fatal("Store with a file that cannot be written succeeds")
	}
	if gone, err := d.Unstored(); fmt.Sprint(gone) != "[b]" || err == nil {
		t.Errorf("Unstored = %v, %v; want b", gone, err)
	}
	clear()
	if got := fmt.Sprint(names(t, d)); got != "[c d]" { // as a reload reads it
		t.Errorf("keys = %s, and b is not among them", got)
	}
	if err := d.Store(); err != nil {
		t.Fatal(err)
	}
	if gone, err := d.Unstored(); len(gone) != 0 || err != nil {
		t.Errorf("Unstored = %v, %v after all was stored", gone, err)
	}

	// What is written for another reason stores it, too; and so does the stop, before a successor reads.
	clear = crowd(t, path)
	d.MarkRevoked(keys[2].ID, "c")
	clear()
	if _, err := d.AddKey("c", nil, state.Limits{}); err != nil { // the name is free
		t.Fatal(err)
	}
	if gone, err := d.Unstored(); len(gone) != 0 || err != nil {
		t.Errorf("Unstored = %v, %v after another key was added", gone, err)
	}
	clear = crowd(t, path)
	d.MarkRevoked(keys[3].ID, "d")
	clear()
	if err := d.Yield(); err != nil {
		t.Fatal(err)
	}
	next := open(t, path)
	if got := fmt.Sprint(names(t, next)); got != "[c]" {
		t.Errorf("the successor has %s", got)
	}
}

// TestRotateWhileUsed: whoever rotates a key again did not know yet that its new secret was used. That one takes the place of the one before
// all the same, and the newest one counts beside it.
func TestRotateWhileUsed(t *testing.T) {
	d := open(t, t.TempDir())
	k, err := d.AddKey("nas", nil, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := d.RotateKey("nas")
	if err != nil {
		t.Fatal(err)
	}
	second, err := d.RotateKey("nas")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.UseSecret(k.ID, *first.Next); err != nil {
		t.Fatal(err)
	}
	keys, err := d.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if keys[0].Secret != *first.Next || keys[0].Next == nil || *keys[0].Next != *second.Next {
		t.Error("the key does not have the first new secret, which is in use, and the second one beside it")
	}
}
