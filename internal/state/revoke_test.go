package state_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"reverser/internal/grammar"
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

// TestEditThatIsNotStored: a key has no more than an edit left it though the file cannot be written, and the file says so when it can. What
// the edit does not name stays as the file has it.
func TestEditThatIsNotStored(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	wide := grammar.Policy{{Kind: grammar.KindTCP, Low: 9000, High: 9009}}
	before, err := d.AddKey("nas", wide, state.Limits{MaxConnections: 9})
	if err != nil {
		t.Fatal(err)
	}
	want := func(what string, d *state.Dir, allow string, limits state.Limits, expires time.Time) {
		t.Helper()
		keys, err := d.Keys()
		if err != nil || len(keys) != 1 || keys[0].Allow.String() != allow || keys[0].Limits != limits || !keys[0].Expires.Equal(expires) || keys[0].Secret != before.Secret {
			t.Errorf("%s: %+v, %v", what, keys, err)
		}
	}
	clear := crowd(t, path)
	after := before
	after.Allow, after.MaxServices = grammar.Policy{{Kind: grammar.KindTCP, Low: 9000, High: 9000}}, 3
	d.MarkEdited(before, after)
	if err := d.Store(); err == nil {
		t.Fatal("Store with a file that cannot be written succeeds")
	}
	if changed, err := d.UnstoredEdits(); fmt.Sprint(changed) != "[nas]" || err == nil || d.AllStored() {
		t.Errorf("UnstoredEdits = %v, %v; want nas", changed, err)
	}
	then, at := after, time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	then.MaxServices, then.Expires = 2, at
	d.MarkEdited(after, then)
	clear()
	want("as a reload reads it", d, "tcp/9000", state.Limits{MaxServices: 2, MaxConnections: 9}, at)
	if err := d.Store(); err != nil {
		t.Fatal(err)
	}
	if changed, err := d.UnstoredEdits(); len(changed) != 0 || err != nil || !d.AllStored() {
		t.Errorf("UnstoredEdits = %v, %v after all was stored", changed, err)
	}
	if err := d.Yield(); err != nil {
		t.Fatal(err)
	}
	want("the successor", open(t, path), "tcp/9000", state.Limits{MaxServices: 2, MaxConnections: 9}, at)
}

// TestRevokeAfterAnEdit: of a key that is edited and then removed, nothing but the removal is left to store. So it is too when an edit that
// began before comes after.
func TestRevokeAfterAnEdit(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	before, err := d.AddKey("nas", nil, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	clear := crowd(t, path)
	after := before
	after.MaxServices = 1
	d.MarkEdited(before, after)
	d.MarkRevoked(before.ID, "nas")
	for _, when := range []string{"edited before", "edited after"} {
		if err := d.Store(); err == nil {
			t.Fatal("Store with a file that cannot be written succeeds")
		}
		gone, _ := d.Unstored()
		changed, err := d.UnstoredEdits()
		if fmt.Sprint(gone) != "[nas]" || len(changed) != 0 || err == nil {
			t.Errorf("%s: Unstored = %v and UnstoredEdits = %v, %v; want the removal alone", when, gone, changed, err)
		}
		d.MarkEdited(before, after)
	}
	clear()
	if err := d.Store(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, d); len(got) != 0 || !d.AllStored() {
		t.Errorf("the file has %v, all stored is %t", got, d.AllStored())
	}
}

// TestWithin: an edit takes away only if there is nothing that the key may now and might not before.
func TestWithin(t *testing.T) {
	now := time.Now()
	limited := state.Key{Limits: state.Limits{MaxServices: 3, MaxConnections: 3}, Expires: now}
	for _, c := range []struct {
		name          string
		before, after state.Key
		want          bool
	}{
		{"the same", limited, limited, true},
		{"limits where there were none", state.Key{}, limited, true},
		{"no limits any more", limited, state.Key{Expires: now}, false},
		{"a lower limit", limited, state.Key{Limits: state.Limits{MaxServices: 2, MaxConnections: 3}, Expires: now}, true},
		{"one limit lower, one higher", limited, state.Key{Limits: state.Limits{MaxServices: 2, MaxConnections: 4}, Expires: now}, false},
		{"it ends sooner", limited, state.Key{Limits: limited.Limits, Expires: now.Add(-time.Hour)}, true},
		{"it ends later", limited, state.Key{Limits: limited.Limits, Expires: now.Add(time.Hour)}, false},
		{"it never ends", limited, state.Key{Limits: limited.Limits}, false},
		{"it allows more", state.Key{}, state.Key{Allow: grammar.DefaultPolicy()}, false},
	} {
		if got := c.after.Within(c.before); got != c.want {
			t.Errorf("%s: Within = %t, want %t", c.name, got, c.want)
		}
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
