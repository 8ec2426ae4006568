package state

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
)

// filled returns a directory with an identity, keys of these names, and an address, and its picture.
func filled(t *testing.T, names ...string) (path string, p Picture) {
	t.Helper()
	path = t.TempDir()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	allow, err := grammar.ParsePolicy([]string{"tcp/9000"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if _, err := d.AddKey(name, allow, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.SetReach(grammar.Reach{Addrs: []string{strings.Join(names, ".") + ":3010"}}); err != nil {
		t.Fatal(err)
	}
	if p, err = d.Picture(); err != nil {
		t.Fatal(err)
	}
	return path, p
}

// reopened is the picture after the directory was opened, as at a start.
func reopened(t *testing.T, path string) Picture {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p, err := d.Picture()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{stagingDir, readyDir} {
		if _, err := os.Lstat(filepath.Join(path, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left in the directory", name)
		}
	}
	return p
}

func TestReplace(t *testing.T) {
	_, with := filled(t, "nas")
	for _, p := range []Picture{with, with[:2], nil} {
		path, before := filled(t, "old", "older")
		d, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		kept, err := d.Replace(p, now)
		if err != nil || kept != "replaced-20260102T030405Z" {
			t.Fatalf("Replace = %q, %v", kept, err)
		}
		again, err := d.Replace(p, now)
		if want := kept + "-2"; err != nil || again != want && p != nil {
			t.Fatalf("a second Replace = %q, %v; want %q", again, err, want)
		}
		if unknown, err := d.unknown(); len(unknown) > 0 || err != nil {
			t.Errorf("unknown files %v, %v", unknown, err)
		}
		d.Close()
		if got := reopened(t, path); !got.Equal(p) {
			t.Errorf("it holds %d files, want %d", len(got), len(p))
		}
		for _, f := range before {
			b, err := os.ReadFile(filepath.Join(path, kept, f.Name))
			if err != nil || string(b) != string(f.Data) {
				t.Errorf("the copy of %s: %q, %v", f.Name, b, err)
			}
		}
	}
}

// A process may end, and a machine lose its power, at every step of an import: the next start finds the state of before or, from
// the moment on at which all files are written, the new one, and nothing in between.
func TestReplaceCutShort(t *testing.T) {
	_, after := filled(t, "nas")
	after = slices.DeleteFunc(slices.Clone(after), func(f File) bool { return f.Name == addressFile }) // one that is to go
	for steps := 0; ; steps++ {
		path, before := filled(t, "old", "older")
		d, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		todo := []func() error{
			func() error { _, err := d.keepCopy(time.Now()); return err },
			func() error { return d.root.Mkdir(stagingDir, 0o700) },
			func() error { return d.create(stagingDir+"/identity.pem", []byte("half")) },
			func() error { return errors.Join(d.root.RemoveAll(stagingDir), d.stage(after)) },
			func() error { return d.root.Rename(readyDir+"/"+identityFile, identityFile) },
			func() error { return d.root.Rename(readyDir+"/"+keysFile, keysFile) },
			func() error { return d.root.Remove(addressFile) },
			func() error { return d.root.Remove(readyDir + "/" + listFile) },
		}
		const commit = 4 // what is done is done
		if steps > len(todo) {
			d.Close()
			return
		}
		for _, do := range todo[:steps] {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
		d.Close()
		want := before
		if steps >= commit {
			want = after
		}
		if got := reopened(t, path); !got.Equal(want) {
			t.Errorf("after %d steps it holds neither the state of before nor the new one, or the wrong one", steps)
		}
	}
}

// What cannot be written leaves all as it was.
func TestReplaceFails(t *testing.T) {
	path, before := filled(t, "old")
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"no/folder", "../up", "/etc/up", ""} {
		if kept, err := d.Replace(append(slices.Clone(before), File{bad, nil}), time.Now()); err == nil || kept != "" {
			t.Errorf("Replace with a file %q = %q, %v", bad, kept, err)
		}
	}
	// The very last step.
	if err := os.MkdirAll(filepath.Join(path, readyDir, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, after := filled(t, "new")
	if kept, err := d.Replace(after, time.Now()); err == nil || kept != "" {
		t.Errorf("Replace where %s is taken = %q, %v", readyDir, kept, err)
	}
	d.Close()
	if got := reopened(t, path); !got.Equal(before) {
		t.Error("it does not hold what it held")
	}
	if kept, _ := filepath.Glob(filepath.Join(path, keptPrefix+"*")); len(kept) > 0 {
		t.Errorf("copies %v are left", kept)
	}
	if up, _ := filepath.Glob(filepath.Join(path, "..", "up")); len(up) > 0 {
		t.Errorf("%v was written", up)
	}
}

// A directory that is in use is read as well; what this version does not know is named, what belongs to one machine is not.
func TestReadInUse(t *testing.T) {
	path, want := filled(t, "nas")
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, text := range map[string]string{"known": "damaged", "known.damaged": "", "certificates": "", ".keys.json.0123": ""} {
		if err := os.WriteFile(filepath.Join(path, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, unknown, err := Read(path)
	if err != nil || !got.Equal(want) || !slices.Equal(unknown, []string{"certificates"}) {
		t.Errorf("Read = %d files, %v, %v; want %d and certificates", len(got), unknown, err, len(want))
	}
	if err := os.WriteFile(filepath.Join(path, keysFile), []byte(`{"keys":[{"colour":1}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(path); err == nil || !strings.Contains(err.Error(), "colour") {
		t.Errorf("Read with keys of a newer version = %v", err)
	}
}

func TestWithoutKeys(t *testing.T) {
	_, p := filled(t, "a", "b", "c")
	got, err := p.WithoutKeys([]string{"b", "nobody"})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := got.Keys()
	if err != nil || len(keys) != 2 || keys[0].Name != "a" || keys[1].Name != "c" {
		t.Errorf("Keys = %v, %v; want a and c", keys, err)
	}
	if keys, _ := p.Keys(); len(keys) != 3 {
		t.Errorf("the picture that it is made of has keys %v", keys)
	}
}
