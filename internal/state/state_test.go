package state_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

func open(t *testing.T, path string) *state.Dir {
	t.Helper()
	d, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestOpenMakesAPrivateDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d := open(t, path)
	if d.Path() != path {
		t.Errorf("Path = %s, want %s", d.Path(), path)
	}
	if runtime.GOOS == "windows" {
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("mode = %04o, want 0700", got)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	_, err := state.Open(path)
	if !errors.Is(err, state.ErrInUse) {
		t.Fatalf("second Open = %v, want ErrInUse", err)
	}
	if in, ok := errors.AsType[*state.InUseError](err); !ok || in.Path != path || in.PID != os.Getpid() {
		t.Errorf("second Open = %#v, want path %s and pid %d", in, path, os.Getpid())
	}
	if !strings.Contains(err.Error(), path) {
		t.Errorf("%q does not name the directory", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

// A killed process leaves its lock file, socket and socket record behind;
// none of them stands in the way.
func TestKilledHolder(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process")
	}
	for _, deep := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "s")
		if deep {
			path = filepath.Join(t.TempDir(), strings.Repeat("d", 100))
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STATE_TEST_HOLD="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		_, inUse := state.Open(path)
		c, dialErr := state.DialAdmin(context.Background(), path)
		sock, _ := state.AdminSocket(path)
		cmd.Process.Kill()
		cmd.Wait()
		if line != "held\n" {
			t.Fatalf("holder said %q, want held", line)
		}
		if !errors.Is(inUse, state.ErrInUse) {
			t.Errorf("Open while held = %v, want ErrInUse", inUse)
		}
		if dialErr != nil {
			t.Errorf("DialAdmin while held = %v", dialErr)
		} else {
			c.Close()
		}
		if _, err := state.DialAdmin(context.Background(), path); !errors.Is(err, state.ErrNotRunning) {
			t.Errorf("DialAdmin after the kill = %v, want ErrNotRunning", err)
		}
		d := open(t, path)
		if _, err := d.ListenAdmin(); err != nil {
			t.Errorf("ListenAdmin over what the dead one left = %v", err)
		}
		if now, _ := state.AdminSocket(path); deep && now != sock && runtime.GOOS != "windows" { // a pipe leaves nothing
			if _, err := os.Stat(filepath.Dir(sock)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the dead one's %s is still there", filepath.Dir(sock))
			}
		}
	}
}

func TestUnusableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below")} {
		_, err := state.Open(path)
		if err == nil {
			t.Fatalf("Open(%s) took a file for a directory", path)
		}
		if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "--state") {
			t.Errorf("Open(%s) = %q, want the path and the remedy", path, err)
		}
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	if runtime.GOOS == "windows" || os.Geteuid() == 0 {
		t.Skip("modes do not stop this user")
	}
	path := t.TempDir()
	if err := os.Chmod(path, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(path, 0o700)
	if _, err := state.Open(path); err == nil || !strings.Contains(err.Error(), "--state") {
		t.Errorf("Open = %v, want an error with the remedy", err)
	}
}

// Whoever can write the directory can put files of their own into it, such as keys.
func TestDirectoryThatOthersCanWrite(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes here")
	}
	for _, c := range []struct {
		mode os.FileMode
		who  string
	}{
		{0o777, "others on this machine"},
		{0o702, "others on this machine"},
		{0o770, "the members of its group"},
		{0o720, "the members of its group"},
		{0o777 | os.ModeSticky, "others on this machine"}, // they can put a file of theirs into it all the same
	} {
		path := t.TempDir()
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := state.Open(path)
		for _, want := range []string{path, c.who, fmt.Sprintf("mode %04o", c.mode.Perm()), "chmod go-w " + path} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Open of mode %v = %v, want %q in it", c.mode, err, want)
			}
		}
		if entries, _ := os.ReadDir(path); len(entries) > 0 {
			t.Errorf("Open made %v there", entries)
		}
	}
}

var stateFiles = []string{"lock", "identity.pem", "keys.json", "offered", "address", "known", "known.users", "admin.path"}

// filled returns a directory that has every file.
func filled(t *testing.T) string {
	t.Helper()
	path := t.TempDir()
	for _, name := range stateFiles {
		if err := os.WriteFile(filepath.Join(path, name), []byte("as it was"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestFileThatOthersCanWrite(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes here")
	}
	for _, name := range stateFiles {
		for mode, who := range map[os.FileMode]string{0o620: "the members of its group", 0o666: "others on this machine"} {
			path := filled(t)
			file := filepath.Join(path, name)
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
			_, err := state.Open(path)
			for _, want := range []string{file, who, fmt.Sprintf("mode %04o", mode), "chmod go-w " + file} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("Open with %s of mode %04o = %v, want %q in it", name, mode, err, want)
				}
			}
		}
	}
}

// TestHardLinkIsRefused: whoever links another file into the directory would have it written, and whoever links a secret out of
// it would keep it.
func TestHardLinkIsRefused(t *testing.T) {
	for _, name := range stateFiles {
		path := filled(t)
		file, other := filepath.Join(path, name), filepath.Join(t.TempDir(), "other")
		if err := os.Link(file, other); err != nil {
			t.Skip(err) // this file system has none
		}
		_, err := state.Open(path)
		for _, want := range []string{file, "hard link", "2 names", "mode 0", "remove all others"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Open with a hard link of %s = %v, want %q in it", name, err, want)
			}
		}
		if b, err := os.ReadFile(other); err != nil || string(b) != "as it was" {
			t.Errorf("the other name of %s holds %q, %v; want it untouched", name, b, err)
		}
	}

	// One that is made while the process runs, and read at a reload.
	d := open(t, t.TempDir())
	if _, err := d.AddKey("nas", nil, state.Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(d.Path(), "keys.json"), filepath.Join(t.TempDir(), "other")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Keys(); err == nil || !strings.Contains(err.Error(), "hard link") {
		t.Errorf("Keys = %v, want a refusal of the hard link", err)
	}
}

func TestIdentityIsKept(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	first, created, err := d.Identity()
	if err != nil || !created {
		t.Fatalf("Identity = created %t, %v; want a new one", created, err)
	}
	d.Close()
	second, created, err := open(t, path).Identity()
	if err != nil || created {
		t.Fatalf("Identity again = created %t, %v; want the old one", created, err)
	}
	if state.Pin(first) != state.Pin(second) {
		t.Error("the pin changed")
	}
	first.Leaf = nil // Pin parses what it was not given parsed
	if state.Pin(first) != state.Pin(second) || state.Pin(first) == [32]byte{} {
		t.Error("the pin depends on Leaf")
	}
}

func TestDamagedIdentityIsNotReplaced(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "identity.pem"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := open(t, path).Identity()
	if err == nil || !strings.Contains(err.Error(), "identity.pem") {
		t.Fatalf("Identity = %v, want an error that names the file", err)
	}
}

func TestKeys(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	if d.HasKeysFile() {
		t.Error("HasKeysFile in an empty directory")
	}
	if keys, err := d.Keys(); err != nil || len(keys) != 0 {
		t.Fatalf("Keys = %v, %v; want none", keys, err)
	}
	a, err := grammar.ParseAllow("tcp/9000-9010")
	if err != nil {
		t.Fatal(err)
	}
	nas, err := d.AddKey("nas", grammar.Policy{a}, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(path, "keys.json"))
	if err != nil || strings.Contains(string(file), "max_") || strings.Contains(string(file), "expires") { // an older program refuses the file
		t.Errorf("the file of a key without limits and end has one: %s, %v", file, err)
	}
	if _, err := d.AddKey("nas", grammar.Policy{a}, state.Limits{}); !errors.Is(err, state.ErrKeyExists) {
		t.Errorf("AddKey twice = %v, want ErrKeyExists", err)
	}
	if _, err := d.AddKey("b", nil, state.Limits{MaxServices: 7, MaxConnections: 9}); err != nil {
		t.Fatal(err)
	}
	d.Close()

	d = open(t, path)
	keys, err := d.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 2 || keys[0].Name != "nas" || keys[0].ID != nas.ID || keys[0].Secret != nas.Secret ||
		keys[0].Allow.String() != nas.Allow.String() || !keys[0].Created.Equal(nas.Created) || keys[0].MaxServices != 0 || keys[1].MaxServices != 7 || keys[1].MaxConnections != 9 || keys[0].MaxConnections != 0 {
		t.Errorf("Keys = %v, want nas as it was added, and b", keys)
	}
	for _, name := range []string{"nas", "b"} {
		if err := d.RemoveKey(name); err != nil {
			t.Errorf("RemoveKey(%s) = %v", name, err)
		}
	}
	if err := d.RemoveKey("nas"); !errors.Is(err, state.ErrNoKey) {
		t.Errorf("RemoveKey again = %v, want ErrNoKey", err)
	}
	if !d.HasKeysFile() {
		t.Error("HasKeysFile forgot that there were keys")
	}
}

// TestKeyThatExpires: when a key expires is stored, and taken out of the file when it never does any more.
func TestKeyThatExpires(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	at := time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)
	k, err := state.NewKey("guest", nil, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	k.Expires = at
	if err := d.Add(k); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(path, "keys.json"))
	if err != nil || !strings.Contains(string(file), `"expires": "2027-01-31T00:00:00Z"`) {
		t.Errorf("%s, %v", file, err)
	}
	if keys, err := d.Keys(); err != nil || len(keys) != 1 || !keys[0].Expires.Equal(at) {
		t.Errorf("Keys = %+v, %v", keys, err)
	}
	if err := d.EditKey("guest", func(k *state.Key) error { k.Expires = time.Time{}; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := d.EditKey("nobody", func(k *state.Key) error { t.Error("edited"); return nil }); !errors.Is(err, state.ErrNoKey) {
		t.Errorf("EditKey of no key = %v", err)
	}
	file, err = os.ReadFile(filepath.Join(path, "keys.json"))
	if err != nil || strings.Contains(string(file), "expires") {
		t.Errorf("%s, %v", file, err)
	}
}

// TestRotateKey: a further secret is stored beside the present one, and takes its place when it was used, also while the disk takes nothing.
func TestRotateKey(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	first, err := d.AddKey("nas", nil, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	unused, err := d.RotateKey("nas")
	if err != nil || unused.Next == nil || unused.Secret != first.Secret || unused.ID != first.ID {
		t.Fatalf("RotateKey = %v, %v", unused, err)
	}
	second, err := d.RotateKey("nas")
	if err != nil || second.Next == nil || *second.Next == *unused.Next {
		t.Fatalf("RotateKey again = %v, %v", second, err)
	}
	if _, err := d.RotateKey("nobody"); !errors.Is(err, state.ErrNoKey) {
		t.Errorf("RotateKey of no key = %v", err)
	}
	stored := func() state.Key {
		t.Helper()
		keys, err := d.Keys()
		if err != nil || len(keys) != 1 {
			t.Fatalf("Keys = %v, %v", keys, err)
		}
		return keys[0]
	}
	if k := stored(); k.Next == nil || *k.Next != *second.Next || k.Secret != first.Secret {
		t.Error("another secret is stored than RotateKey returned")
	}
	file := filepath.Join(path, "keys.json")
	before, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(before), `"next_secret"`) {
		t.Errorf("%d bytes without next_secret, %v", len(before), err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(file, "x"), 0o700); err != nil { // no file takes its place
		t.Fatal(err)
	}
	if err := d.UseSecret(first.ID, *second.Next); err == nil || d.AllStored() {
		t.Errorf("UseSecret = %v, without a place for the file", err)
	}
	if err := os.RemoveAll(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if k := stored(); k.Next != nil || k.Secret != *second.Next {
		t.Error("what was used does not count as long as it is not stored")
	}
	if err := d.Store(); err != nil || !d.AllStored() {
		t.Errorf("Store = %v", err)
	}
	d.Close()
	d = open(t, path)
	if k := stored(); k.Next != nil || k.Secret != *second.Next || k.ID != first.ID {
		t.Error("what was used is not stored")
	}
}

func TestLooseModeIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes here")
	}
	path := t.TempDir()
	d := open(t, path)
	if _, err := d.AddKey("nas", nil, state.Limits{}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(path, "keys.json")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Keys(); err == nil || !strings.Contains(err.Error(), "chmod 600") || !strings.Contains(err.Error(), file) {
		t.Errorf("Keys = %v, want the file and the remedy", err)
	}
}

// Files that were looked at with Notepad and saved are what they were, or it is said what to do. None of them is to be removed for that.
func TestFilesSavedByNotepad(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	if _, _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	if err := d.SetKeys([]state.Key{{Name: "nas", ID: [16]byte{1}, Secret: [32]byte{2}, Allow: grammar.DefaultPolicy()}}); err != nil {
		t.Fatal(err)
	}
	read := map[string]func() error{
		"identity.pem": func() error { _, _, err := d.Identity(); return err },
		"keys.json":    func() error { _, err := d.Keys(); return err },
	}
	for name, read := range read {
		b, err := os.ReadFile(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		for mark, want := range map[string]string{"\xef\xbb\xbf": "", "\xff\xfe": "save it as UTF-8", "\xfe\xff": "save it as UTF-8"} {
			if err := os.WriteFile(filepath.Join(path, name), append([]byte(mark), bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))...), 0o600); err != nil {
				t.Fatal(err)
			}
			switch err := read(); {
			case want == "" && err != nil:
				t.Errorf("%s with the mark %q: %v", name, mark, err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name)):
				t.Errorf("%s with the mark %q: %v; want %q", name, mark, err, want)
			}
		}
	}
}

func TestDamagedKeysShowNoSecret(t *testing.T) {
	secret := strings.Repeat("ab", 31) + "zz"
	tests := []string{
		`{"keys":[{"name":"nas","id":"` + strings.Repeat("0", 32) + `","secret":"` + secret + `","allow":[],"created":"2026-01-01T00:00:00Z"}]}`,
		`{"keys":[{"name":"nas","id":"0","secret":"` + secret + `"}]}`,
		`{"keys":[{"name":"nas","secrets":"` + secret + `"}]}`,
		`{"keys":[{"name":"n s"}]}`,
		`{"keys":`,
		``,
	}
	for _, content := range tests {
		path := t.TempDir()
		if err := os.WriteFile(filepath.Join(path, "keys.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := open(t, path).Keys()
		if err == nil || !strings.Contains(err.Error(), "keys.json") || strings.Contains(err.Error(), secret) {
			t.Errorf("Keys of %s = %v, want an error with the file and without the secret", content, err)
		}
		if err != nil && !strings.Contains(err.Error(), "restore it from a copy, or remove it") {
			t.Errorf("Keys of %s = %v, want what to do", content, err)
		}
	}
}

func TestKeyDoesNotPrintItsSecret(t *testing.T) {
	k, err := state.NewKey("nas", nil, state.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if k.String() != "nas" || k.GoString() != "nas" || k.LogValue().String() != "nas" {
		t.Errorf("a key shows more than its name: %s %#v", k, k)
	}
}

func TestKeyNames(t *testing.T) {
	good := []string{"a", "nas", "Office-2", "a.b_c@d", "9"}
	bad := []string{"", " ", "a b", "-a", ".", "..", "a/b", "ä", "a\n", strings.Repeat("a", 65)}
	for _, name := range good {
		if err := state.CheckKeyName(name); err != nil {
			t.Errorf("CheckKeyName(%q) = %v", name, err)
		}
	}
	for _, name := range bad {
		if state.CheckKeyName(name) == nil {
			t.Errorf("CheckKeyName(%q) = nil", name)
		}
	}
}

func TestReach(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	for _, want := range []grammar.Reach{
		{}, {Addrs: []string{"example.com:3010"}}, {SNI: "a.example"},
		{Addrs: []string{"example.com:3010", "[2001:db8::1]:443"}, SNI: "a.example"},
	} {
		if err := d.SetReach(want); err != nil {
			t.Fatal(err)
		}
		if got := d.Reach(); !reflect.DeepEqual(got, want) {
			t.Errorf("Reach = %v, want %v", got, want)
		}
	}
	for text, want := range map[string]grammar.Reach{
		"example.com:3010":                    {Addrs: []string{"example.com:3010"}}, // without a line's end
		"not an address\nsni not a name\n":    {},
		"a:1,b,c:2\nother 1\nsni a.example\n": {Addrs: []string{"a:1", "c:2"}},
	} {
		if err := os.WriteFile(filepath.Join(path, "address"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := d.Reach(); !reflect.DeepEqual(got, want) {
			t.Errorf("Reach of %q = %v, want %v", text, got, want)
		}
	}
}

func TestNoTemporaryFilesAreLeft(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	if _, _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddKey("nas", nil, state.Limits{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ListenAdmin(); err != nil {
		t.Fatal(err)
	}
	d.Close()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"identity.pem", "keys.json", "lock"}; !slices.Equal(names, want) {
		t.Errorf("files = %v, want %v", names, want)
	}
}

// TestGroupKeepsItsRights: where the users of a group share a directory, an edit leaves the files as they were.
func TestGroupKeepsItsRights(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes here")
	}
	path := t.TempDir()
	d, err := state.Open(path, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	file := filepath.Join(path, "keys.json")
	for _, mode := range []os.FileMode{0o600, 0o640, 0o660} {
		name := fmt.Sprintf("nas%o", mode)
		if _, err := d.AddKey(name, nil, state.Limits{}); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		for what, order := range map[string]func() error{
			"edit":   func() error { return d.EditKey(name, func(k *state.Key) error { k.MaxServices = 3; return nil }) },
			"rotate": func() error { _, err := d.RotateKey(name); return err },
			"add":    func() error { _, err := d.AddKey(name+".2", nil, state.Limits{}); return err },
		} {
			if err := order(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v; want mode %04o", what, info.Mode(), err, mode)
			}
		}
		if err := d.RemoveKey(name); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != mode {
			t.Errorf("remove: %v, %v; want mode %04o", info.Mode(), err, mode)
		}
	}
}

func TestRootKeepsTheOwner(t *testing.T) {
	if runtime.GOOS == "windows" || os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := t.TempDir()
	if err := os.Chown(path, 12345, 12345); err != nil {
		t.Skip(err)
	}
	d := open(t, path)
	for _, c := range []struct {
		what  string
		order func() error
	}{
		{"add", func() error { _, err := d.AddKey("nas", port(29000), state.Limits{}); return err }},
		{"add another", func() error { _, err := d.AddKey("desk", nil, state.Limits{}); return err }},
		{"edit", func() error { return d.EditKey("nas", func(k *state.Key) error { k.MaxServices = 3; return nil }) }},
		{"rotate", func() error { _, err := d.RotateKey("nas"); return err }},
		{"use of the new token", func() error {
			keys, err := d.Keys()
			if err != nil {
				return err
			}
			return d.UseSecret(keys[0].ID, *keys[0].Next)
		}},
		{"another offer", func() error { return d.FollowOffer("nas", port(29000)) }},
		{"remove", func() error { return d.RemoveKey("nas") }},
	} {
		if err := c.order(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		for _, name := range []string{"keys.json", "lock", "offered"} {
			file := filepath.Join(path, name)
			info, err := os.Stat(file)
			if err != nil && name != "offered" {
				t.Fatal(err)
			}
			if err != nil {
				continue // there is none before the offer
			}
			if uid := uidOf(t, file); uid != 12345 || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %s belongs to %d and has mode %04o, want 12345 and 0600", c.what, name, uid, info.Mode().Perm())
			}
		}
	}
	if _, err := os.Stat(filepath.Join(path, "offered")); err != nil {
		t.Error(err)
	}
	// A link that the owner left must not lead root out of the directory.
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Close()
	os.Remove(filepath.Join(path, "lock"))
	if err := os.Symlink(outside, filepath.Join(path, "lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(path); err == nil {
		t.Error("Open followed a link out of the directory")
	}
	if uid := uidOf(t, outside); uid != 0 {
		t.Errorf("the file outside belongs to %d now", uid)
	}
}

func TestDefaultDir(t *testing.T) {
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		t.Skip("XDG is for the others")
	}
	t.Setenv("STATE_DIRECTORY", "")
	t.Setenv("XDG_STATE_HOME", "/x")
	if got, err := state.DefaultDir(state.RoleProxy); got != "/x/reverser/proxy" || err != nil {
		t.Errorf("DefaultDir = %s, %v", got, err)
	}
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("HOME", "/h")
	if got, err := state.DefaultDir(state.RoleBridge); got != "/h/.local/state/reverser/bridge" || err != nil {
		t.Errorf("DefaultDir = %s, %v", got, err)
	}
	for dirs, want := range map[string]string{"/var/lib/reverser": "/var/lib/reverser/bridge", "/a:/b": "/a/bridge", "relative": "/h/.local/state/reverser/bridge"} {
		t.Setenv("STATE_DIRECTORY", dirs)
		if got, err := state.DefaultDir(state.RoleBridge); got != want || err != nil {
			t.Errorf("DefaultDir with STATE_DIRECTORY=%s = %s, %v; want %s", dirs, got, err, want)
		}
	}
}

func TestDialAdminWithNobodyThere(t *testing.T) {
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing"), filepath.Join(t.TempDir(), strings.Repeat("d", 100))} {
		if _, err := state.DialAdmin(context.Background(), path); !errors.Is(err, state.ErrNotRunning) {
			t.Errorf("DialAdmin(%s) = %v, want ErrNotRunning", path, err)
		}
	}
}
