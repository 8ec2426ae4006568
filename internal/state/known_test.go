package state

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestKnown(t *testing.T) {
	path := t.TempDir()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := d.Known(); list != nil || err != nil {
		t.Fatalf("Known of a new directory = %v, %v", list, err)
	}
	want := []Known{
		{netip.MustParsePrefix("192.0.2.7/32"), time.Unix(1_700_000_000, 0)},
		{netip.MustParsePrefix("2001:db8:1:2::/64"), time.Unix(1_700_000_001, 0)},
	}
	if err := d.SetKnown(want); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if list, err := d.Known(); err != nil || !slices.Equal(list, want) {
		t.Fatalf("Known = %v, %v; want %v", list, err, want)
	}
	good, err := os.ReadFile(filepath.Join(path, knownFile))
	if err != nil {
		t.Fatal(err)
	}
	head := knownHead + "\n"
	for what, content := range map[string]string{
		"empty":                 "",
		"another file":          "{}\n",
		"cut short":             string(good[:len(good)-3]),
		"no address":            head + "nonsense 1700000000\n",
		"no time":               head + "192.0.2.7/32\n",
		"a wider block":         head + "192.0.2.0/24 1700000000\n",
		"a host of IPv6":        head + "2001:db8::1/128 1700000000\n",
		"bits outside":          head + "2001:db8::1/64 1700000000\n",
		"IPv4 in IPv6":          head + "::ffff:192.0.2.7/32 1700000000\n",
		"a line without an end": head + strings.Repeat("1", 1<<20),
		"too many":              head + strings.Repeat("192.0.2.7/32 1700000000\n", mostKnown+1),
	} {
		if err := os.WriteFile(filepath.Join(path, knownFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := d.Known()
		if list != nil || err == nil || !strings.Contains(err.Error(), "put aside as "+damagedFile) {
			t.Errorf("%s: Known = %d addresses, %v; want an error that says that the file was put aside", what, len(list), err)
		}
		if kept, err := os.ReadFile(filepath.Join(path, damagedFile)); err != nil || string(kept) != content {
			t.Errorf("%s: put aside were %d bytes, %v; want what was there", what, len(kept), err)
		}
		if list, err := d.Known(); list != nil || err != nil {
			t.Errorf("%s: Known afterwards = %v, %v; want nothing", what, list, err)
		}
	}
	d.Yield()
	next, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := d.SetKnown(want); !errors.Is(err, ErrSucceeded) {
		t.Errorf("SetKnown of a process that was succeeded = %v, want %v", err, ErrSucceeded)
	}
}
