package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRemoveOnAFullDisk: a stolen token is worthless at once though the disk of the state directory is full; the command and status say
// that this is not stored, and it is stored when there is room. The disk is real: a tmpfs in a namespace of the proxy's own. Where a
// system has no such namespaces, internal/admin tests the same with files that cannot be written.
func TestRemoveOnAFullDisk(t *testing.T) {
	t.Parallel()
	p, root := startProxyOnDisk(t, "64k")
	service := serve(t, echo)
	port := freePort(t)
	public := fmt.Sprintf("tcp/%d", port)
	b := startBridge(t, addKey(t, p.state, "stolen", public), fmt.Sprintf("%d=%d", port, service))
	b.awaitUp(public)
	c := dial(t, loopback(port))
	exchange(t, c, "before")

	other := filepath.Join(root, "other")
	addKey(t, other, "other", "tcp/9000")

	filler := fillDisk(t, root)

	out, err := exec.Command(reverser(t), "key", "remove", "stolen", "--state", p.state).CombinedOutput()
	if ee, ok := errors.AsType[*exec.ExitError](err); !ok || ee.ExitCode() != 1 {
		t.Fatalf("key remove = %v, want exit code 1: %s", err, out)
	}
	for _, word := range []string{`key "stolen" is removed and no longer honoured`, "not stored", "no space left", "make room"} {
		if !strings.Contains(string(out), word) {
			t.Errorf("key remove does not say %q: %s", word, out)
		}
	}
	for _, args := range [][]string{{"add", "new", "--allow", "tcp/9000"}, {"edit", "default", "--allow", "tcp/1-65535"}, {"rotate", "default"}} {
		out, err := exec.Command(reverser(t), append(append([]string{"key"}, args...), "--state", p.state)...).CombinedOutput()
		if ee, ok := errors.AsType[*exec.ExitError](err); !ok || ee.ExitCode() != 1 {
			t.Errorf("key %v = %v, want exit code 1: %s", args, err, out)
		}
		if s := string(out); !strings.Contains(s, "keys.json: no space left on device: make room") || strings.Count(s, "write") != 1 {
			t.Errorf("key %v does not say once what failed, and what to do: %s", args, s)
		}
	}
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection of the removed key ended with %v, want a reset", err)
	}
	if _, err := readPattern(tryDial(loopback(port))); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial of the removed key's port: %s; want refused", describe(err))
	}
	if list := quick(t, "key", "list", "--state", p.state); strings.Contains(list, "stolen") {
		t.Errorf("the key is listed: %s", list)
	}
	quick(t, "reload", "--state", p.state) // which reads the file that has the key still
	if list := quick(t, "key", "list", "--state", p.state); strings.Contains(list, "stolen") {
		t.Errorf("after a reload the key is listed: %s", list)
	}
	if text := quick(t, "status", "--state", p.state); !strings.Contains(text, "NOT STORED: the removal of key stolen") {
		t.Errorf("status does not say that something is not stored:\n%.500s", text)
	}
	for _, dir := range []string{other, filepath.Join(root, "new"), filepath.Join(root, "a", "new")} {
		out, err := exec.Command(reverser(t), "doctor", "proxy", "--state", dir, "--listen", loopback(freePort(t))).CombinedOutput()
		if ee, ok := errors.AsType[*exec.ExitError](err); !ok || ee.ExitCode() != 1 {
			t.Errorf("doctor of %s = %v, want exit code 1: %s", dir, err, out)
		}
		if s := string(out); !strings.Contains(s, "is full: no space left on device") || !strings.Contains(s, "make room") || strings.Contains(s, "can be made") {
			t.Errorf("doctor of %s does not say what is wrong, and what to do:\n%s", dir, s)
		}
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 3 {
		t.Errorf("doctor left something behind: %v, %v", entries, err)
	}
	stored := func() bool {
		keys, err := os.ReadFile(filepath.Join(p.state, "keys.json"))
		if err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(string(keys), "stolen")
	}
	if stored() {
		t.Fatal("the disk is not full")
	}
	if out, err := exec.Command(reverser(t), "proxy", "--state", filepath.Join(root, "new"), "--listen", loopback(freePort(t))).CombinedOutput(); err == nil || !strings.Contains(string(out), "make room") {
		t.Errorf("a start on a full disk = %v, want what to do: %s", err, out)
	}
	importOnAFullDisk(t, exportWithout(t, p.state, "stolen"), other)

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal is stored", stored)
	eventually(t, "status says no more of it", func() bool {
		return !strings.Contains(quick(t, "status", "--state", p.state), "NOT STORED")
	})
}

// TestEditOnAFullDisk: what an edit takes away is gone at once though the disk is full, and is stored when there is room. An edit that gives
// something is refused.
func TestEditOnAFullDisk(t *testing.T) {
	t.Parallel()
	p, root := startProxyOnDisk(t, "64k")
	service := serve(t, echo)
	one, two := freePort(t), freePort(t)
	kept, gone := fmt.Sprintf("tcp/%d", one), fmt.Sprintf("tcp/%d", two)
	b := startBridge(t, addKey(t, p.state, "nas", kept, gone), fmt.Sprintf("%d=%d", one, service), fmt.Sprintf("%d=%d", two, service))
	b.awaitUp(kept)
	b.awaitUp(gone)
	filler := fillDisk(t, root)

	refused := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(reverser(t), append(append([]string{"key", "edit", "nas"}, args...), "--state", p.state)...).CombinedOutput()
		if ee, ok := errors.AsType[*exec.ExitError](err); !ok || ee.ExitCode() != 1 {
			t.Fatalf("key edit %v = %v, want exit code 1: %s", args, err, out)
		}
		return string(out)
	}
	if out, err := exec.Command(reverser(t), "key", "edit", "nas", "--allow", kept, "--allow", gone, "--state", p.state).CombinedOutput(); err != nil || !strings.Contains(string(out), "nothing has changed") {
		t.Errorf("an edit that changes nothing = %v: %s", err, out)
	}
	if text := quick(t, "status", "--state", p.state); strings.Contains(text, "NOT STORED") {
		t.Errorf("after an edit that changes nothing:\n%.500s", text)
	}
	if out := refused("--max-connections", "0", "--allow", "tcp/1-65535"); !strings.Contains(out, "keys.json: no space left on device: make room") || strings.Contains(out, "in force") {
		t.Errorf("an edit that gives something: %s", out)
	}
	until := time.Now().Add(720 * time.Hour).UTC().Format(time.RFC3339) // of 30d, the second one would be later, and give something
	for range 2 {                                                       // asked again, the answer is the same
		out := refused("--allow", kept, "--max-services", "5", "--expires", until)
		for _, word := range []string{`the change of key "nas" is in force`, "not stored", "no space left", "make room"} {
			if !strings.Contains(out, word) {
				t.Errorf("key edit does not say %q: %s", word, out)
			}
		}
	}
	if _, err := readPattern(tryDial(loopback(two))); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial of the port that was taken away: %s; want refused", describe(err))
	}
	exchange(t, dial(t, loopback(one)), "still")
	refused("--allow", kept, "--allow", gone) // what was taken away is not given back in memory alone
	quick(t, "reload", "--state", p.state)    // which reads the file that has it still
	if list := quick(t, "key", "list", "--state", p.state); !strings.Contains(list, "5 at most") || strings.Contains(list, gone) {
		t.Errorf("the key is listed as\n%s", list)
	}
	if text := quick(t, "status", "--state", p.state); !strings.Contains(text, "NOT STORED: the change of key nas: ") {
		t.Errorf("status does not say that something is not stored:\n%.500s", text)
	}
	file := filepath.Join(t.TempDir(), "proxy.state")
	if err := os.WriteFile(passphrase(file), []byte("correct horse battery"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(reverser(t), "state", "export", file, "--state", p.state, "--passphrase-file", passphrase(file)).CombinedOutput(); err == nil || !strings.Contains(string(out), "the change of key nas is not stored") {
		t.Errorf("export of what has more rights than are in force = %v: %s", err, out)
	}
	stored := func() bool {
		keys, err := os.ReadFile(filepath.Join(p.state, "keys.json"))
		if err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(string(keys), gone) && strings.Contains(string(keys), `"max_services": 5`) && strings.Contains(string(keys), `"expires"`)
	}
	if stored() {
		t.Fatal("the disk is not full")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the edit is stored", stored)
	eventually(t, "status says no more of it", func() bool {
		return !strings.Contains(quick(t, "status", "--state", p.state), "NOT STORED")
	})
	run(t, reverser(t), "key", "edit", "nas", "--allow", kept, "--allow", gone, "--state", p.state)
	b.awaitUp(gone)
}

// startProxyOnDisk starts a proxy whose working directory, with the state directory in it, is a disk of its own, and returns where that is.
func startProxyOnDisk(t *testing.T, size string, args ...string) (p *proxyProcess, root string) {
	t.Helper()
	if out, err := exec.Command("unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt").CombinedOutput(); err != nil {
		lacks(t, fmt.Sprintf("no mounts in a namespace of one's own: %v: %s", err, out))
	}
	disk := t.TempDir()
	p = &proxyProcess{link: freePort(t)}
	p.testProcess = start(t, "proxy", "unshare", nil, append([]string{"-rm", "/bin/sh", "-c",
		`d=$1 p=$2 l=$3; shift 3; mount -t tmpfs -o size=` + size + `,mode=700 none "$d" && mkdir -m 700 "$d/state" && cd "$d" && exec "$p" proxy --listen "$l" --state "$d/state" --log-format json "$@"`,
		"sh", disk, reverser(t), loopback(p.link)}, args...)...)
	root = fmt.Sprintf("/proc/%d/root%s", p.Cmd.Process.Pid, disk)
	p.state = filepath.Join(root, "state")
	p.awaitReady()
	return p, root
}

// fillDisk fills a disk to the last byte, and returns the file that does it.
func fillDisk(t *testing.T, disk string) string {
	t.Helper()
	filler := filepath.Join(disk, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 4096; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return filler
}

// exportWithout exports a state directory, in whose file a key is that was removed, and returns the export. That key is not in it.
func exportWithout(t *testing.T, state, removed string) (file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "proxy.state")
	if err := os.WriteFile(passphrase(file), []byte("correct horse battery"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, reverser(t), "state", "export", file, "--state", state, "--passphrase-file", passphrase(file))
	copied := filepath.Join(dir, "copy")
	run(t, reverser(t), "state", "import", file, "--state", copied, "--passphrase-file", passphrase(file))
	if list := run(t, reverser(t), "key", "list", "--state", copied); strings.Contains(list, removed) || !strings.Contains(list, "default") {
		t.Errorf("the export has the keys\n%s, want default, and not %s", list, removed)
	}
	return file
}

// passphrase is the file with the passphrase of an export.
func passphrase(export string) string { return export + ".pass" }

// importOnAFullDisk imports into a directory that has no room for it, and finds there what was there before.
func importOnAFullDisk(t *testing.T, file, state string) {
	t.Helper()
	content := func() string {
		t.Helper()
		entries, err := os.ReadDir(state)
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, e := range entries {
			if e.Name() == "lock" { // it has the last process's id
				continue
			}
			b, err := os.ReadFile(filepath.Join(state, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all += e.Name() + ":\n" + string(b) + "\n"
		}
		return all
	}
	before := content()
	p := start(t, "import", reverser(t), nil, "state", "import", file, "--state", state, "--replace", "--passphrase-file", passphrase(file))
	if code := p.awaitEnd(); code != 1 || !strings.Contains(p.Stderr.String(), "no space left") {
		t.Errorf("an import on a full disk: exit code %d, %q; want 1 and the cause", code, p.Stderr.String())
	}
	if after := content(); after != before {
		t.Errorf("an import on a full disk changed what was there:\n%s\nbefore:\n%s", after, before)
	}
}
