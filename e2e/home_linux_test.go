package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A home is a place where programs run as in a container or under a service manager: with mounts and a user of its own.
type home struct {
	*testing.T
	dir    string   // may be seen by all users
	bin    string   // the program, which all users may run
	uid    int      // which no passwd file knows, unless it is 0
	mounts []string // shell commands, in a mount namespace of the program's own
	cgroup string   // a memory cgroup; "": none
	env    []string // all of it: no HOME
}

// nobodyKnows is a user id that no passwd file has.
const nobodyKnows = 54_321

func newHome(t *testing.T, uid int) *home {
	t.Helper()
	if os.Geteuid() != 0 {
		lacks(t, "it needs root, to mount and to start programs as other users")
	}
	if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		lacks(t, fmt.Sprintf("no mount namespace: %v: %s", err, out))
	}
	dir, err := os.MkdirTemp("", "reverser-home-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &home{T: t, dir: dir, bin: filepath.Join(dir, "reverser"), uid: uid, env: []string{"PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}}
	h.chmod(dir, 0o755)
	if err := os.Link(reverser(t), h.bin); err != nil { // no copy: see publicProgram
		t.Fatal(err)
	}
	return h
}

func (h *home) chmod(path string, mode os.FileMode) {
	h.Helper()
	if err := os.Chmod(path, mode); err != nil {
		h.Fatal(err)
	}
}

// write makes a file of that user.
func (h *home) write(path, text string, uid int, mode os.FileMode) string {
	h.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(h.dir, path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.Fatal(err)
	}
	if err := os.Chown(path, uid, uid); err != nil {
		h.Fatal(err)
	}
	h.chmod(path, mode)
	return path
}

// volume makes a directory of that user which stays writable whatever becomes of the rest.
func (h *home) volume(name string, uid int, mode os.FileMode) string {
	h.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		h.Fatal(err)
	}
	if err := os.Chown(path, uid, 0); err != nil {
		h.Fatal(err)
	}
	h.chmod(path, mode)
	h.mount("mount --bind %s %s", path, path)
	return path
}

// mount adds a command to what is done before a program starts.
func (h *home) mount(format string, args ...any) {
	h.mounts = append(h.mounts, fmt.Sprintf(format, args...))
}

// readOnly mounts a file or a directory read-only on itself.
func (h *home) readOnly(path string) {
	h.mount("mount --bind %s %s && mount -o remount,bind,ro %s", path, path, path)
}

// start starts reverser there.
func (h *home) start(name string, args ...string) *testProcess {
	h.Helper()
	script := ""
	if h.cgroup != "" {
		script += "echo $$ > " + h.cgroup + "/cgroup.procs\n"
	}
	script += strings.Join(h.mounts, "\n") + "\n"
	script += fmt.Sprintf(`exec env -i %s setpriv --reuid %d --regid 0 --clear-groups "$@"`, strings.Join(h.env, " "), h.uid)
	all := append([]string{"--mount", "--propagation", "private", "/bin/sh", "-ec", script, "sh", h.bin}, args...)
	return start(h.T, name, "unshare", nil, all...)
}

// refused starts reverser, and wants it to refuse with exit code 2 and these words.
func (h *home) refused(words []string, args ...string) {
	h.Helper()
	p := h.start("refused", args...)
	p.quiet = true
	if code := p.awaitEnd(); code != 2 {
		h.Errorf("%q: exit code %d, want 2: %s", args, code, p.Stderr.String())
	}
	for _, word := range words {
		if !strings.Contains(p.Stderr.String(), word) {
			h.Errorf("%q: stderr has no %q: %s", args, word, p.Stderr.String())
		}
	}
}

// tunnel starts a proxy and a bridge there, and returns where users connect to. The bridge has its token from a file.
func (h *home) tunnel(proxyState, bridgeState string, target int) (addr string, proxy, bridge *testProcess) {
	h.Helper()
	link, public := freePort(h.T), freePort(h.T)
	proxy = h.start("proxy", "proxy", "--listen", loopback(link), "--state", proxyState, "--log-format", "json")
	proxy.awaitOutput("reverser bridge rv1_")
	token := h.write("run/token", tokenPattern.FindString(proxy.Stdout.String()), h.uid, 0o600)
	bridge = h.start("bridge", "bridge", "--token-file", token, "--state", bridgeState, "--log-format", "json", fmt.Sprintf("%d=%d", public, target))
	bridge.awaitRecord("service up", "service", fmt.Sprintf("tcp/%d", public))
	return loopback(public), proxy, bridge
}

// carries sends bytes there and back.
func carries(t *testing.T, addr string, size int64) {
	t.Helper()
	c := dial(t, addr)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, newPattern(size))
		sent <- err
		c.CloseWrite()
	}()
	if n, err := readPattern(c); err != nil || n != size {
		t.Fatalf("%d of %d bytes came back: %v", n, size, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// TestBareHome: HOME is not set, /proc is hidden, the root file system is read-only, and the user has a number only. Proxy and bridge run,
// and answer, all the same.
func TestBareHome(t *testing.T) {
	t.Parallel()
	h := newHome(t, nobodyKnows)
	proxyState, bridgeState := h.volume("proxy", h.uid, 0o700), h.volume("bridge", h.uid, 0o700)
	h.mount("mount -o remount,bind,ro /")
	h.mount("! touch /nothing 2> /dev/null") // or the test would show nothing
	h.mount("mount -t tmpfs -o ro none /proc && ! test -e /proc/self")
	addr, proxy, bridge := h.tunnel(proxyState, bridgeState, serve(t, echo))
	carries(t, addr, 50<<20)
	for _, state := range []string{proxyState, bridgeState} {
		p := h.start("status", "status", "--state", state)
		if code := p.awaitEnd(); code != 0 || !strings.Contains(p.Stdout.String(), "tcp/") {
			t.Errorf("status: exit code %d: %s%s", code, p.Stdout.String(), p.Stderr.String())
		}
	}
	for _, p := range []*testProcess{proxy, bridge} {
		if lines := p.Records("", "level", "ERROR"); len(lines) > 0 {
			t.Errorf("%s logs %v", p.Name, lines)
		}
	}
	// Without --state there is no place for a state directory, and the error says what to do.
	h.refused([]string{"--state DIR", "HOME"}, "proxy")
	h.env = append(h.env, "STATE_DIRECTORY="+proxyState+":/var/lib/second")
	p := h.start("status", "key", "list")
	if code := p.awaitEnd(); code != 2 || !strings.Contains(p.Stderr.String(), proxyState+"/proxy") {
		t.Errorf("key list with STATE_DIRECTORY: exit code %d: %s", code, p.Stderr.String())
	}
}

// memory makes a cgroup with that much memory and no swap, for what is started next.
func (h *home) memory(limit int64) {
	h.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		h.Fatal(err)
	}
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		var base, file string
		switch {
		case strings.Contains(","+parts[1]+",", ",memory,"):
			base, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		case parts[0] == "0":
			base, file = "/sys/fs/cgroup", "memory.max"
			os.WriteFile(base+"/cgroup.subtree_control", []byte("+memory"), 0o600) // it may be there already, or not be allowed
		default:
			continue
		}
		group, err := os.MkdirTemp(base, "reverser-test-")
		if err != nil {
			continue
		}
		h.chmod(group, 0o755) // the process reads its own limit
		h.Cleanup(func() {
			for range 100 { // the processes in it are just ending
				if os.Remove(group) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			h.Logf("%s is left behind", group)
		})
		if err := os.WriteFile(filepath.Join(group, file), []byte(strconv.FormatInt(limit, 10)), 0o600); err != nil {
			continue // no memory controller here
		}
		for _, swap := range []string{"memory.memsw.limit_in_bytes", "memory.swap.max"} {
			if _, err := os.Stat(filepath.Join(group, swap)); err == nil {
				os.WriteFile(filepath.Join(group, swap), []byte(map[bool]string{true: "0", false: strconv.FormatInt(limit, 10)}[swap == "memory.swap.max"]), 0o600)
			}
		}
		h.cgroup = group
		return
	}
	lacks(h.T, "no memory cgroup can be made below /sys/fs/cgroup")
}

// TestSmallMemory: with 64 MB for each of proxy and bridge, as a container's limit, several users move 50 MB each way and none is killed.
func TestSmallMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector needs several times the memory")
	}
	t.Parallel()
	h := newHome(t, nobodyKnows)
	proxyState, bridgeState := h.volume("proxy", h.uid, 0o700), h.volume("bridge", h.uid, 0o700)
	h.memory(64 << 20)
	first := h.cgroup
	link, public := freePort(t), freePort(t)
	proxy := h.start("proxy", "proxy", "--listen", loopback(link), "--state", proxyState, "--log-format", "json")
	proxy.awaitOutput("reverser bridge rv1_")
	token := h.write("run/token", tokenPattern.FindString(proxy.Stdout.String()), h.uid, 0o600)
	if got := proxy.awaitRecord("proxy listening").Number("budget_mib"); got != 16 {
		t.Errorf("the proxy's budget is %v MiB, want 16: it does not see the limit", got)
	}
	h.memory(64 << 20)
	bridge := h.start("bridge", "bridge", "--token-file", token, "--state", bridgeState, "--log-format", "json", fmt.Sprintf("%d=%d", public, serve(t, echo)))
	bridge.awaitRecord("service up")
	done := make(chan struct{})
	for range 3 {
		go func() {
			defer func() { done <- struct{}{} }()
			carries(t, loopback(public), 50<<20)
		}()
	}
	for range 3 {
		<-done
	}
	if !proxy.Running() || !bridge.Running() {
		t.Errorf("proxy running: %v, bridge running: %v", proxy.Running(), bridge.Running())
	}
	for name, group := range map[string]string{"proxy": first, "bridge": h.cgroup} {
		for _, file := range []string{"memory.max_usage_in_bytes", "memory.peak"} {
			if b, err := os.ReadFile(filepath.Join(group, file)); err == nil {
				t.Logf("%s: at most %s bytes", name, strings.TrimSpace(string(b)))
			}
		}
	}
}

// TestFilesOfThePlatform: what Docker, Kubernetes and systemd hand out is taken as it is, with a warning, and what they cannot mean is refused.
func TestFilesOfThePlatform(t *testing.T) {
	t.Parallel()
	const host = 41_000
	h := newHome(t, nobodyKnows)
	state := h.volume("state", h.uid, 0o700)
	link, public := freePort(t), freePort(t)
	token := addKey(t, startProxyAt(t, t.TempDir(), link).state, "nas", fmt.Sprintf("tcp/%d", public))
	bridge := func(args ...string) []string {
		return append(append([]string{"bridge"}, args...), "--state", state, "--proxy", loopback(link), "--log-format", "json", fmt.Sprintf("%d=9", public))
	}
	taken := func(warning string, args ...string) {
		t.Helper()
		p := h.start("bridge", bridge(args...)...)
		p.awaitRecord("connected to the proxy")
		var warnings []string
		for _, r := range p.Said("") {
			if r.Text("level") == "WARN" && strings.Contains(r.Text("msg"), "taken all the same") {
				warnings = append(warnings, r.Text("msg"))
			}
		}
		if (warning == "") != (len(warnings) == 0) || !strings.Contains(strings.Join(warnings, " "), warning) {
			t.Errorf("%q logs the warnings %q, want %q", args, warnings, warning)
		}
		p.Kill()
	}

	secret := h.write("run/secrets/token", token, host, 0o444)
	h.refused([]string{"mode 0444", "mount it read-only"}, bridge("--token-file", secret)...)
	h.readOnly(secret)
	taken("read-only mount", "--token-file", secret)

	file := h.write("etc/bridge.toml", fmt.Sprintf("token_file = %q\n", secret), host, 0o644)
	h.refused([]string{"uid 41000", "--trust-owner 41000"}, bridge("--config", file)...)
	taken("", "--config", file, "--trust-owner", "41000", "--token-file", h.write("run/own", token, h.uid, 0o600))
	h.readOnly(file)
	taken("bridge.toml", "--config", file)
	h.chmod(file, 0o666)
	taken("mode 0666", "--config", file)

	loose := h.write("etc/loose.toml", "", 0, 0o666)
	h.refused([]string{"others on this machine can write it"}, bridge("--config", loose, "--trust-owner", "0")...)

	// Kubernetes: links through ..data, 0440 root:fsGroup.
	kube := filepath.Dir(h.write("kube/..2026/token", token, 0, 0o440))
	for name, to := range map[string]string{"..data": "..2026", "token": "..data/token"} {
		if err := os.Symlink(to, filepath.Join(filepath.Dir(kube), name)); err != nil {
			t.Fatal(err)
		}
	}
	h.readOnly(filepath.Dir(kube))
	taken("mode 0440", "--token-file", filepath.Join(filepath.Dir(kube), "token"))

	credential := h.write("credentials/token", token, 0, 0o444)
	h.refused([]string{"mode 0444"}, bridge("--token-file", credential)...)
	h.env = append(h.env, "CREDENTIALS_DIRECTORY="+filepath.Dir(credential))
	taken("$CREDENTIALS_DIRECTORY", "--token-file", credential)
	h.chmod(credential, 0o666)
	h.refused([]string{"mode 0666"}, bridge("--token-file", credential)...)
}

// TestStateOfAnotherUser: a state directory on a bind mount of the host's user, or on a volume that a group shares.
func TestStateOfAnotherUser(t *testing.T) {
	t.Parallel()
	const host = 41_000
	h := newHome(t, nobodyKnows)
	proxy := func(state string, args ...string) []string {
		return append([]string{"proxy", "--state", state, "--listen", loopback(freePort(t)), "--log-format", "json"}, args...)
	}
	runs := func(args ...string) *testProcess {
		t.Helper()
		p := h.start("proxy", args...)
		p.awaitRecord("proxy listening")
		return p
	}
	closed := h.volume("closed", host, 0o700)
	h.refused([]string{closed, "uid 41000", "chown", strconv.Itoa(h.uid), "--state DIR"}, proxy(closed)...)
	h.refused([]string{closed, "uid 41000"}, proxy(closed, "--trust-owner", "41000")...)

	open := h.volume("open", host, 0o770) // of group 0, as the process
	h.refused([]string{open, "belongs to another user, uid 41000", "--trust-owner 41000"}, proxy(open)...)
	h.refused([]string{open, "--trust-owner 41000"}, "key", "add", "nas", "--allow", "tcp/9000", "--state", open)
	p := runs(proxy(open, "--trust-owner", "41000")...)
	key := h.start("key", "key", "add", "nas", "--allow", "tcp/9000", "--state", open, "--trust-owner", "41000")
	if code := key.awaitEnd(); code != 0 {
		t.Errorf("key add: exit code %d: %s", code, key.Stderr.String())
	}
	p.Kill()
	// As Kubernetes leaves the files of a volume with fsGroup.
	for _, name := range []string{"identity.pem", "keys.json", "lock"} {
		h.chmod(filepath.Join(open, name), 0o660)
	}
	p = runs(proxy(open, "--trust-owner", "41000")...)
	p.Kill()

	// Root is told, and served.
	h.uid = 0
	mine := h.volume("mine", host, 0o700)
	p = runs(proxy(mine)...)
	p.awaitLogged("belongs to another user", "uid 41000", "--trust-owner 41000")
	p.Kill()
	p = runs(proxy(mine, "--trust-owner", "41000")...)
	if strings.Contains(p.Stderr.String(), "belongs to another user") {
		t.Error("--trust-owner does not silence the warning")
	}
}
