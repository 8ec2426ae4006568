package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func writeUsage(t *testing.T, u *Usage, text string) fs.FileInfo {
	t.Helper()
	f, err := u.Open(os.O_RDWR | os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestUsageFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "st")
	if _, err := OpenUsage(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenUsage of no directory = %v, want fs.ErrNotExist", err)
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	u := d.Usage()
	if _, err := u.Open(os.O_RDONLY); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, want fs.ErrNotExist", err)
	}
	writeUsage(t, u, "numbers")
	other, err := OpenUsage(path) // beside the process
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if f, err := other.Open(os.O_RDONLY); err != nil {
		t.Errorf("Open beside the process = %v", err)
	} else {
		f.Close()
	}
	// It stays where it is when the state moves.
	p, unknown, err := d.Read()
	if err != nil || len(unknown) > 0 || slices.ContainsFunc(p, func(f File) bool { return strings.HasPrefix(f.Name, usageFile) }) {
		t.Errorf("Read = %v, unknown %v, %v", p, unknown, err)
	}
	// A process that has given up the directory still stores what it counts.
	if err := d.Yield(); err != nil {
		t.Fatal(err)
	}
	next, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	writeUsage(t, u, "more numbers")
}

func TestUsagePutAside(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	u := d.Usage()
	now := time.Date(2026, time.March, 10, 12, 0, 0, 0, time.UTC)
	for i := range 6 {
		info := writeUsage(t, u, strings.Repeat("x", i))
		name, err := u.PutAside(info, now.Add(time.Duration(i)*time.Minute))
		if want := "usage.db.damaged-20260310-120" + string(rune('0'+i)) + "00"; name != want || err != nil {
			t.Errorf("PutAside = %q, %v; want %q", name, err, want)
		}
	}
	aside, err := filepath.Glob(filepath.Join(d.Path(), "*.damaged-*"))
	if err != nil || len(aside) != mostAside {
		t.Errorf("put aside are %v, %v; want the latest %d", aside, err, mostAside)
	}
	if b, err := os.ReadFile(filepath.Join(d.Path(), "usage.db.damaged-20260310-120500")); err != nil || string(b) != "xxxxx" {
		t.Errorf("the last one is %q, %v", b, err)
	}
	if _, unknown, err := d.Read(); err != nil || len(unknown) > 0 {
		t.Errorf("unknown are %v, %v", unknown, err)
	}
	// A file that another process has begun meanwhile is not the one that was damaged.
	old := writeUsage(t, u, "damaged")
	os.Rename(u.Name(), u.Name()+".old")
	writeUsage(t, u, "new")
	if _, err := u.PutAside(old, now); !errors.Is(err, errOther) {
		t.Errorf("PutAside = %v, want %v", err, errOther)
	}
	if err := u.Remove(old); !errors.Is(err, errOther) {
		t.Errorf("Remove = %v, want %v", err, errOther)
	}
	if b, err := os.ReadFile(u.Name()); err != nil || string(b) != "new" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// TestUsageRefused: a file that others can change, or that is none, is not opened.
func TestUsageRefused(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	u := d.Usage()
	writeUsage(t, u, "numbers")
	if err := os.Link(u.Name(), u.Name()+".link"); err == nil {
		if _, err := u.Open(os.O_RDWR | os.O_CREATE); err == nil || !strings.Contains(err.Error(), "hard link") {
			t.Errorf("Open of a hard link = %v", err)
		}
		os.Remove(u.Name() + ".link")
	}
	os.Remove(u.Name())
	if err := os.Mkdir(u.Name(), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Open(os.O_RDWR | os.O_CREATE); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("Open of a folder = %v", err)
	}
}
