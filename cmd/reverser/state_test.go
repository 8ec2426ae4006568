package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reverser/internal/config"
	"reverser/internal/service"
)

// snapshot is every file of a directory with its content, but for the lock's.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || path == "lock" {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, path))
		all.WriteString(path + "\n" + string(b) + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// An export that was cut off or changed anywhere leaves the directory as it is, also with --replace. (internal/export tries every byte.)
func TestImportOfADamagedExport(t *testing.T) {
	t.Setenv(config.PassphraseEnv, "correct horse battery")
	defer func(work int) { passphraseWork = work }(passphraseWork)
	passphraseWork = 1
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	command := func(args ...string) (code int, said string) {
		var out bytes.Buffer
		code = run(args, strings.NewReader(""), &out, &out)
		return code, out.String()
	}
	for _, args := range [][]string{
		{"key", "add", "nas", "--allow", "tcp/9000", "--state", at("old")},
		{"state", "export", at("whole"), "--state", at("old")},
		{"key", "add", "other", "--allow", "tcp/9000", "--state", at("other")},
	} {
		if code, said := command(args...); code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, said)
		}
	}
	whole, err := os.ReadFile(at("whole"))
	if err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, at("other"))
	for n := 0; n < len(whole); n += 1 + n/50 {
		changed := bytes.Clone(whole)
		changed[n] ^= 1
		for what, b := range map[string][]byte{"cut off": whole[:n], "changed": changed} {
			if err := os.WriteFile(at("damaged"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			code, said := command("state", "import", at("damaged"), "--state", at("other"), "--replace")
			if code != 2 || !strings.Contains(said, "read the export "+at("damaged")) {
				t.Fatalf("%s at byte %d: exit code %d, %q; want 2 and what is wrong with the file", what, n, code, said)
			}
			if after := snapshot(t, at("other")); after != before {
				t.Fatalf("%s at byte %d: the directory holds\n%s\nand held\n%s", what, n, after, before)
			}
		}
	}
	if code, said := command("state", "import", at("whole"), "--state", at("other"), "--replace"); code != 0 {
		t.Errorf("the whole export: exit code %d, %s", code, said)
	}
	if after := snapshot(t, at("other")); !strings.Contains(after, `"name": "nas"`) {
		t.Errorf("the whole export is not in the directory:\n%s", after)
	}
}

// installed is a service manager with a service that has this state directory.
type installed struct {
	service.Manager
	state string
}

func (m installed) State(string) string { return m.state }

// Where a service is installed, an export goes from its directory if there is no other, and an import wants to know where to.
func TestStateOfAService(t *testing.T) {
	t.Setenv(config.PassphraseEnv, "correct horse battery")
	defer func(work int) { passphraseWork = work }(passphraseWork)
	passphraseWork = 1
	dir := t.TempDir()
	for _, name := range []string{"HOME", "XDG_STATE_HOME", "LocalAppData", "USERPROFILE"} { // of the default directories
		t.Setenv(name, filepath.Join(dir, "home"))
	}
	t.Setenv("STATE_DIRECTORY", "")
	of := filepath.Join(dir, "service")
	var out bytes.Buffer
	if code := run([]string{"key", "add", "nas", "--allow", "tcp/9000", "--state", of}, strings.NewReader(""), &out, &out); code != 0 {
		t.Fatal(out.String())
	}
	out.Reset()
	c := &cli{stdout: &out, stderr: &out, manager: installed{state: of}}
	file := filepath.Join(dir, "exported")
	if err := c.exportState(t.Context(), stateDir{}, file, "", false); err != nil || !strings.Contains(out.String(), "in "+of+" with key nas") {
		t.Errorf("export: %v, %s", err, out.String())
	}
	err := c.importState(t.Context(), stateDir{}, file, "", false)
	if err == nil || !strings.Contains(err.Error(), "or "+of+": name one") {
		t.Errorf("import: %v, want a question where to", err)
	}
}
