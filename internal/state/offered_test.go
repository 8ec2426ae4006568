package state_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

func port(n uint16) grammar.Policy { return grammar.Policy{{Kind: grammar.KindTCP, Low: n, High: n}} }

// offeredKey stores a key that follows the offer.
func offeredKey(t *testing.T, d *state.Dir) {
	t.Helper()
	k, err := state.NewKey("default", port(29000), state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	k.Offered = true
	if err := d.Add(k); err != nil {
		t.Fatal(err)
	}
}

// wantKey wants one key that is allowed that, and follows the offer or does not.
func wantKey(t *testing.T, d *state.Dir, when, allow string, offered bool) {
	t.Helper()
	keys, err := d.Keys()
	if err != nil || len(keys) != 1 || keys[0].Allow.String() != allow || keys[0].Offered != offered {
		t.Errorf("%s: %v, %v; want one key with %s, offered %t", when, keys, err, allow, offered)
		for _, k := range keys {
			t.Errorf("key %s has %s, offered %t", k, k.Allow, k.Offered)
		}
	}
}

func follow(t *testing.T, d *state.Dir, n uint16) {
	t.Helper()
	if err := d.FollowOffer("default", port(n)); err != nil {
		t.Fatal(err)
	}
}

// TestOfferedKeyFollows: the key that was made for the port that the file offers is allowed the next one, after a restart and a crash, too.
// An earlier version can read its file.
func TestOfferedKeyFollows(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	offeredKey(t, d)
	wantKey(t, d, "made", "tcp/29000", true)
	before, err := os.ReadFile(filepath.Join(path, "keys.json"))
	if err != nil || bytes.Contains(before, []byte("ffer")) {
		t.Errorf("%s, %v; want nothing that earlier versions do not know", before, err)
	}
	if err := d.FollowOffer("default", nil); err != nil {
		t.Error(err)
	}
	wantKey(t, d, "no offer any more", "tcp/29000", true)
	d.Close()
	d = open(t, path)
	follow(t, d, 29001)
	wantKey(t, d, "another offer", "tcp/29001", true)
	if err := d.EditKey("default", func(k *state.Key) error { k.MaxServices = 1; return nil }); err != nil {
		t.Fatal(err)
	}
	follow(t, d, 29002)
	wantKey(t, d, "with a limit", "tcp/29002", true)

	// The end of the process between both files.
	follow(t, d, 29000)
	d.Close()
	after, err := os.ReadFile(filepath.Join(path, "offered"))
	if err != nil {
		t.Fatal(err)
	}
	d = open(t, path)
	follow(t, d, 29003)
	d.Close()
	for name, b := range map[string][]byte{"keys.json": before, "offered": after} {
		if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d = open(t, path)
	wantKey(t, d, "after a crash", "tcp/29000", true)
	follow(t, d, 29003)
	wantKey(t, d, "and an offer", "tcp/29003", true)

	// An offer that came back, and keys that could not be written behind the next ones.
	follow(t, d, 29000)
	follow(t, d, 29003)
	d.Close()
	if before, err = os.ReadFile(filepath.Join(path, "keys.json")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint16{29004, 29005} {
		d = open(t, path)
		follow(t, d, n)
		d.Close()
		if err := os.WriteFile(filepath.Join(path, "keys.json"), before, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d = open(t, path)
	wantKey(t, d, "after two failures", "tcp/29003", true)
	follow(t, d, 29005)
	wantKey(t, d, "and a success", "tcp/29005", true)
}

// TestEditedKeyDoesNotFollow: what somebody allowed the key is not changed, whichever version it was edited with, and whatever it is.
func TestEditedKeyDoesNotFollow(t *testing.T) {
	d := open(t, t.TempDir())
	offeredKey(t, d)
	follow(t, d, 29001)
	if err := d.EditKey("default", func(k *state.Key) error { k.Allow, k.Offered = port(29000), false; return nil }); err != nil {
		t.Fatal(err)
	}
	wantKey(t, d, "edited to the offer of before", "tcp/29000", false)
	follow(t, d, 29000)
	follow(t, d, 29002)
	wantKey(t, d, "other offers", "tcp/29000", false)

	path := t.TempDir()
	d = open(t, path)
	offeredKey(t, d)
	file := filepath.Join(path, "keys.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(b, []byte("tcp/29000"), []byte("tcp/2222")), 0o600); err != nil {
		t.Fatal(err)
	}
	wantKey(t, d, "edited by an earlier version", "tcp/2222", false)
	follow(t, d, 29001)
	wantKey(t, d, "another offer", "tcp/2222", false)
}

// TestOfferedKeyOfBefore: in a directory of an earlier version, the key of that name that is allowed exactly the offer begins to follow it,
// and no other one. So it is after an import.
func TestOfferedKeyOfBefore(t *testing.T) {
	for _, c := range []struct {
		what, name string
		allow      grammar.Policy
		want       string
		offered    bool
	}{
		{"made for the offer", "default", port(29000), "tcp/29001", true},
		{"edited", "default", port(2222), "tcp/2222", false},
		{"with more", "default", append(port(29000), port(2222)...), "tcp/29000, tcp/2222", false},
		{"another key", "nas", port(29000), "tcp/29000", false},
	} {
		d := open(t, t.TempDir())
		if _, _, err := d.Identity(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.AddKey(c.name, c.allow, state.Limits{}); err != nil {
			t.Fatal(err)
		}
		follow(t, d, 29000)
		follow(t, d, 29001)
		wantKey(t, d, c.what, c.want, c.offered)

		p, _, err := d.Read()
		if err != nil {
			t.Fatal(err)
		}
		other := open(t, t.TempDir())
		offeredKey(t, other)
		if _, err := other.Replace(p, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		wantKey(t, other, c.what+", imported", c.want, false)
		if c.offered {
			follow(t, other, 29001)
			follow(t, other, 29002)
			wantKey(t, other, c.what+", imported, and an offer", "tcp/29002", true)
		}
	}
}
