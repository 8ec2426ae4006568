package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

// TestFolder: files in a folder are as private as those of the directory, stay in it, and are left out of an export.
func TestFolder(t *testing.T) {
	path := t.TempDir()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f := d.TLS()
	if names, err := f.List("certificates", true); err != nil || len(names) > 0 {
		t.Errorf("List of what is not there = %q, %v", names, err)
	}
	for _, name := range []string{"certificates/ca/a/a.crt", "certificates/ca/a/a.key", "certificates/ca/b/b.crt", "top"} {
		if err := f.Write(t.Context(), name, []byte("old")); err != nil {
			t.Fatal(err)
		}
		if err := f.Write(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
		if b, err := f.Read(name); string(b) != name || err != nil {
			t.Errorf("Read(%s) = %q, %v", name, b, err)
		}
	}
	if names, err := f.List("certificates/ca", false); !slices.Equal(names, []string{"certificates/ca/a", "certificates/ca/b"}) || err != nil {
		t.Errorf("List = %q, %v", names, err)
	}
	if names, err := f.List("certificates/ca/a", true); !slices.Equal(names, []string{"certificates/ca/a/a.crt", "certificates/ca/a/a.key"}) || err != nil {
		t.Errorf("List = %q, %v", names, err)
	}
	if runtime.GOOS != "windows" {
		for name, want := range map[string]fs.FileMode{"tls": 0o700, "tls/certificates/ca/a": 0o700, "tls/certificates/ca/a/a.key": 0o600} {
			if info, err := os.Stat(filepath.Join(path, name)); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, want)
			}
		}
		if err := os.Chmod(filepath.Join(path, "tls/certificates/ca/a/a.key"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Read("certificates/ca/a/a.key"); err == nil {
			t.Error("a key that everybody can read is taken")
		}
	}
	for _, name := range []string{"../identity.pem", "/etc/passwd", "a/../../x", "a//b"} {
		if _, err := f.Read(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Read(%q): %v", name, err)
		}
		if err := f.Write(t.Context(), name, nil); err == nil {
			t.Errorf("Write(%q) succeeds", name)
		}
	}
	if err := f.Remove("certificates/ca/a"); err != nil {
		t.Fatal(err)
	}
	if err := f.Remove("certificates/ca/a"); err != nil {
		t.Errorf("Remove of what is not there: %v", err)
	}
	if _, err := f.Stat("certificates/ca/a/a.crt"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of what was removed: %v", err)
	}
	if _, err := f.Read("certificates"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of a folder: %v", err)
	}
	p, unknown, err := d.Read()
	if err != nil || len(unknown) > 0 || p.data("tls") != nil {
		t.Errorf("an export has %v and does not know %q, %v", p, unknown, err)
	}
}
