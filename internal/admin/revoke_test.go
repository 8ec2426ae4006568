package admin_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/state"
)

// TestRemoveThatCannotBeStored: a key is honoured no longer though the disk takes nothing; whoever removed it hears that this is not
// stored, and it is stored when there is room.
func TestRemoveThatCannotBeStored(t *testing.T) {
	path := t.TempDir()
	dir, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	stolen, err := dir.AddKey("stolen", nil, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	honoured := []config.Key{{Name: "stolen", ID: stolen.ID, Secret: stolen.Secret}}
	e := &admin.KeyEditor{
		Dir: dir,
		InForce: func() ([]config.Key, error) {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(honoured), nil
		},
		Edited: func() error { return errors.New("the file is not to be read") },
		Revoked: func(id [16]byte) error {
			mu.Lock()
			defer mu.Unlock()
			honoured = slices.DeleteFunc(honoured, func(k config.Key) bool { return k.ID == id })
			return nil
		},
	}
	file := filepath.Join(path, "keys.json")
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(file, "x"), 0o700); err != nil { // no file takes its place
		t.Fatal(err)
	}
	c := client(t, &admin.Server{Status: snapshot, Keys: e})
	for range 2 { // asked again, the answer is the same
		err := c.RemoveKey(t.Context(), "stolen")
		if err == nil || isUsage(err) || !strings.Contains(err.Error(), `key "stolen" is removed and no longer honoured, but this is not stored`) ||
			!strings.Contains(err.Error(), "make room") {
			t.Errorf("RemoveKey = %v", err)
		}
	}
	if len(honoured) != 0 {
		t.Error("the key is honoured still")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { e.Keep(ctx) })
	if err := os.RemoveAll(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if names, _ := dir.Unstored(); len(names) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not stored though there is room")
		}
	}
	cancel()
	wg.Wait()
	if b, err := os.ReadFile(file); err != nil || strings.Contains(string(b), "stolen") {
		t.Errorf("the file has %s, %v", b, err)
	}
	if err := c.RemoveKey(t.Context(), "stolen"); !isUsage(err) {
		t.Errorf("RemoveKey of a key that is gone = %v", err)
	}
}

// TestStoredNow: that an order is stored is said to whoever read that it is not, and to nobody else: not of a removal that Keep happens to
// store while the proxy still puts it in force.
func TestStoredNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir()
		dir, err := state.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		honoured := make(map[string]config.Key)
		for _, name := range []string{"slow", "full"} {
			k, err := dir.AddKey(name, nil, state.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			honoured[name] = config.Key{Name: name, ID: k.ID, Secret: k.Secret}
		}
		var log bytes.Buffer
		e := &admin.KeyEditor{
			Dir:     dir,
			InForce: func() ([]config.Key, error) { return slices.Collect(maps.Values(honoured)), nil },
			Revoked: func([16]byte) error { time.Sleep(time.Minute); return nil },
			Log:     slog.New(slog.NewTextHandler(&log, nil)),
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { e.Keep(ctx) })
		if err := e.Remove("slow"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if said := log.String(); !strings.Contains(said, "key removed") || strings.Contains(said, "stored now") {
			t.Errorf("of a removal that is stored before it is in force the log says %s", said)
		}
		log.Reset()
		file := filepath.Join(path, "keys.json")
		if err := os.Rename(file, file+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(file, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := e.Remove("full"); err == nil {
			t.Fatal("a removal that cannot be stored is told to be")
		}
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".away", file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		cancel()
		wg.Wait()
		if n := strings.Count(log.String(), `msg="the removal of keys is stored now" keys=full`); n != 1 {
			t.Errorf("that it is stored now is told %d times; want 1: %s", n, log.String())
		}
	})
}

// TestEditThatChangesNothing: it is answered as what it is, and needs no room on the disk. One that was not stored is stored when somebody
// gives it again.
func TestEditThatChangesNothing(t *testing.T) {
	path := t.TempDir()
	dir, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	key, err := dir.AddKey("nas", grammar.Policy{{Kind: grammar.KindTCP, Low: 9000, High: 9000}}, state.Limits{MaxServices: 5})
	if err != nil {
		t.Fatal(err)
	}
	e := &admin.KeyEditor{
		Dir: dir,
		InForce: func() ([]config.Key, error) {
			stored, err := dir.Keys()
			if err != nil {
				return nil, err
			}
			return config.InForce(nil, stored, [32]byte{})
		},
		Revoked: func([16]byte) error { return nil },
	}
	c := client(t, &admin.Server{Status: snapshot, Keys: e})
	allow, five, four := []string{"tcp/9000"}, 5, 4
	same := admin.KeyEdit{Allow: &allow, MaxServices: &five}
	less := admin.KeyEdit{MaxServices: &four}
	file := filepath.Join(path, "keys.json")
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := c.EditKey(t.Context(), "nas", same); err != nil || !k.Unchanged || k.MaxServices != 5 {
		t.Errorf("EditKey = %+v, %v; want the key, unchanged", k, err)
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was written anew, %v", err)
	}
	edited := key
	edited.MaxServices = four
	dir.MarkEdited(key, edited) // as where there was no room
	if k, err := c.EditKey(t.Context(), "nas", less); err != nil || !k.Unchanged || !dir.AllStored() {
		t.Errorf("EditKey again, with room = %+v, %v, all stored is %t", k, err, dir.AllStored())
	}
	if k, err := c.EditKey(t.Context(), "nas", same); err != nil || k.Unchanged {
		t.Errorf("EditKey that changes something = %+v, %v", k, err)
	}
}

// TestRemoveBesideAnotherOrder: an order for another key, or a reload, that reads the stored keys while a key is taken out does not bring it
// back.
func TestRemoveBesideAnotherOrder(t *testing.T) {
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := dir.AddKey("stolen", nil, state.Limits{}); err != nil {
		t.Fatal(err)
	}
	var honoured []config.Key
	reload := func() error {
		keys, err := dir.Keys()
		if err != nil {
			return err
		}
		honoured = nil
		for _, k := range keys {
			honoured = append(honoured, config.Key{Name: k.Name, ID: k.ID, Secret: k.Secret})
		}
		return nil
	}
	if err := reload(); err != nil {
		t.Fatal(err)
	}
	var e *admin.KeyEditor
	e = &admin.KeyEditor{
		Dir:     dir,
		InForce: func() ([]config.Key, error) { return slices.Clone(honoured), nil },
		Reach:   func() grammar.Reach { return grammar.Reach{} },
		Edited:  reload,
		Revoked: func(id [16]byte) error {
			honoured = slices.DeleteFunc(honoured, func(k config.Key) bool { return k.ID == id })
			_, err := e.Make("other", nil, state.Limits{}) // before the removal is stored
			return err
		},
	}
	if err := e.Remove("stolen"); err != nil {
		t.Fatal(err)
	}
	if len(honoured) != 1 || honoured[0].Name != "other" {
		t.Errorf("the keys %v are honoured; want the other one alone", honoured)
	}
	if keys, err := dir.Keys(); err != nil || len(keys) != 1 || keys[0].Name != "other" {
		t.Errorf("the file has %v, %v; want the other key alone", keys, err)
	}
}
