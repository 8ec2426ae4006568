package state

import (
	"testing"
)

// TestReadWhileStored: who reads the file just before a removal is stored does not have the key from it when the removal is stored and
// nothing else knows of it.
func TestReadWhileStored(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	k, err := d.AddKey("stolen", nil, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	d.MarkRevoked(k.ID, k.Name)
	reads := 0
	keys, err := d.unstored.over(func() ([]Key, error) {
		keys, err := d.readKeys()
		if reads++; reads == 1 {
			if err := d.Store(); err != nil {
				t.Fatal(err)
			}
		}
		return keys, err
	})
	if err != nil || len(keys) != 0 || reads != 2 {
		t.Errorf("%d reads have %v, %v; want 2 and no key", reads, keys, err)
	}
}
