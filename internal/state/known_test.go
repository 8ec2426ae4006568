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
	for name, f := range map[string]struct {
		head, damaged string
		get           func(*Dir) ([]Known, error)
		set           func(*Dir, []Known) error
	}{
		"known":       {knownHead, "known.damaged", (*Dir).Known, (*Dir).SetKnown},
		"known.users": {usersHead, "known.users.damaged", (*Dir).KnownUsers, (*Dir).SetKnownUsers},
	} {
		t.Run(name, func(t *testing.T) { testKnown(t, name, f.head, f.damaged, f.get, f.set) })
	}
}

func testKnown(t *testing.T, name, head, damaged string, get func(*Dir) ([]Known, error), set func(*Dir, []Known) error) {
	path := t.TempDir()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := get(d); list != nil || err != nil {
		t.Fatalf("Known of a new directory = %v, %v", list, err)
	}
	want := []Known{
		{netip.MustParsePrefix("192.0.2.7/32"), time.Unix(1_700_000_000, 0)},
		{netip.MustParsePrefix("2001:db8:1:2::/64"), time.Unix(1_700_000_001, 0)},
	}
	if err := set(d, want); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if list, err := get(d); err != nil || !slices.Equal(list, want) {
		t.Fatalf("Known = %v, %v; want %v", list, err, want)
	}
	good, err := os.ReadFile(filepath.Join(path, name))
	if err != nil {
		t.Fatal(err)
	}
	head += "\n"
	for what, content := range map[string]string{
		"empty":                 "",
		"the other one's head":  strings.ReplaceAll(knownHead+usersHead, strings.TrimSpace(head), "") + "\n",
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
		if err := os.WriteFile(filepath.Join(path, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := get(d)
		if list != nil || err == nil || !strings.Contains(err.Error(), "put aside as "+damaged) {
			t.Errorf("%s: Known = %d addresses, %v; want an error that says that the file was put aside", what, len(list), err)
		}
		if kept, err := os.ReadFile(filepath.Join(path, damaged)); err != nil || string(kept) != content {
			t.Errorf("%s: put aside were %d bytes, %v; want what was there", what, len(kept), err)
		}
		if list, err := get(d); list != nil || err != nil {
			t.Errorf("%s: Known afterwards = %v, %v; want nothing", what, list, err)
		}
	}
	d.Yield()
	next, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := set(d, want); !errors.Is(err, ErrSucceeded) {
		t.Errorf("SetKnown of a process that was succeeded = %v, want %v", err, ErrSucceeded)
	}
}

// TestKnownOfBridgesAndUsers: what is stored of one is none of the other's, and an earlier version, which knows one file, can use that.
func TestKnownOfBridgesAndUsers(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	bridges := []Known{{netip.MustParsePrefix("192.0.2.7/32"), time.Unix(1_700_000_000, 0)}}
	users := []Known{{netip.MustParsePrefix("192.0.2.8/32"), time.Unix(1_700_000_001, 0)}}
	if err := errors.Join(d.SetKnown(bridges), d.SetKnownUsers(users)); err != nil {
		t.Fatal(err)
	}
	if list, err := d.Known(); err != nil || !slices.Equal(list, bridges) {
		t.Errorf("Known = %v, %v; want %v", list, err, bridges)
	}
	if list, err := d.KnownUsers(); err != nil || !slices.Equal(list, users) {
		t.Errorf("KnownUsers = %v, %v; want %v", list, err, users)
	}
	if b, err := os.ReadFile(filepath.Join(d.Path(), "known")); err != nil || string(b) != knownHead+"\n192.0.2.7/32 1700000000\n" {
		t.Errorf("the file of bridges has %q, %v", b, err)
	}
	if _, _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	if p, unknown, err := d.Read(); err != nil || len(unknown) > 0 || p.data("known.users") != nil {
		t.Errorf("a picture has %v and does not know %q, %v; an earlier version refuses one with known.users", p, unknown, err)
	}
}
