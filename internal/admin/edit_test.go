package admin_test

import (
	"slices"
	"strings"
	"testing"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/state"
)

// TestEditKey: a key's edit arrives with what it names and nothing else.
func TestEditKey(t *testing.T) {
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	before, err := dir.AddKey("nas", grammar.Policy{{Kind: grammar.KindTCP, Low: 9000, High: 9000}}, state.Limits{MaxServices: 3, MaxConnections: 9})
	if err != nil {
		t.Fatal(err)
	}
	edits := 0
	e := &admin.KeyEditor{Dir: dir, InForce: func() ([]config.Key, error) {
		stored, err := dir.Keys()
		if err != nil {
			return nil, err
		}
		keys, err := config.InForce(nil, stored, [32]byte{})
		return append(keys, config.Key{Name: "filed", Table: config.Place{File: "p.toml", Line: 7}}), err
	}, Edited: func() error { edits++; return nil }}
	c := client(t, &admin.Server{Status: snapshot, Keys: e})
	none := 0
	got, err := c.EditKey(t.Context(), "nas", admin.KeyEdit{MaxConnections: &none})
	if err != nil || got.MaxServices != 3 || got.MaxConnections != 0 || !slices.Equal(got.Allow, []string{"tcp/9000"}) || edits != 1 {
		t.Errorf("EditKey = %+v, %v, and the proxy was told %d times", got, err, edits)
	}
	allow := []string{"tcp/1-5", "http/*"}
	got, err = c.EditKey(t.Context(), "nas", admin.KeyEdit{Allow: &allow})
	if err != nil || got.MaxServices != 3 || !slices.Equal(got.Allow, allow) {
		t.Errorf("EditKey = %+v, %v", got, err)
	}
	keys, err := dir.Keys()
	if err != nil || len(keys) != 1 || keys[0].ID != before.ID || keys[0].Secret != before.Secret || !keys[0].Created.Equal(before.Created) || keys[0].Allow.String() != "tcp/1-5, http/*" {
		t.Errorf("stored are %+v, %v", keys, err)
	}
	less, bad := -1, []string{"tcp/0"}
	for name, edit := range map[string]admin.KeyEdit{"nas": {}, "filed": {MaxServices: &none}, "nobody": {MaxServices: &none}, "nas ": {MaxServices: &less}, "nas  ": {Allow: &bad}} {
		if got, err := c.EditKey(t.Context(), strings.TrimSpace(name), edit); !isUsage(err) {
			t.Errorf("%q: EditKey = %+v, %v; want a refusal", name, got, err)
		} else if name == "filed" && !strings.Contains(err.Error(), "p.toml:7") {
			t.Errorf("%v; want file and line", err)
		}
	}
	if edits != 2 {
		t.Errorf("the proxy was told %d times, want 2", edits)
	}
}
