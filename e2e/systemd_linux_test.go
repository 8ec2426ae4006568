package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"reverser/e2e/process"
)

// A machine is a systemd of its own: process 1 of new namespaces, on top of this machine's files, which it does not change. Its
// network is a loopback interface.
type machine struct {
	t   *testing.T
	pid string // of its process 1, as seen from here
}

// boot starts a machine.
func boot(t *testing.T) *machine {
	t.Helper()
	needRoot(t)
	need(t, program{"/lib/systemd/systemd", "systemd"}, program{"unshare", "util-linux"}, program{"ip", "iproute2"}, program{"curl", "curl"}, program{"busybox", "busybox-static"})
	// Without the race detector, which wants memory that is writable and executable: the unit refuses that.
	bin := filepath.Join(t.TempDir(), "reverser")
	if err := process.Build(t.Context(), "..", bin); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("testdata/machine", t.TempDir(), "/")
	var said bytes.Buffer
	cmd.Stderr = &said
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the machine:\n%s", m.try("journalctl", "--no-pager", "--lines", "60"))
		}
		stdin.Close()
		cmd.Wait()
	})
	out, err := io.ReadAll(stdout) // it closes this when it has come up
	if m.pid = strings.TrimSpace(string(out)); err != nil || m.pid == "" {
		lacks(t, fmt.Sprintf("no machine with systemd can run here: %v\n%s", err, said.String()))
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	to := "/proc/" + m.pid + "/root/usr/local/bin/reverser"
	syscall.ForkLock.RLock() // a program that another test starts now would have the file open for a moment, and it could not be run
	err = errors.Join(os.WriteFile(to, program, 0o755), os.Chmod(to, 0o755))
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) command(args ...string) *exec.Cmd {
	enter := []string{"-t", m.pid, "-m", "-p", "-i", "-u", "-n", "-C", "-r", "-w", "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	return exec.Command("nsenter", append(enter, args...)...)
}

// try runs a command in the machine and returns all that it wrote.
func (m *machine) try(args ...string) string {
	if m.pid == "" {
		return ""
	}
	out, _ := m.command(args...).CombinedOutput()
	return string(out)
}

// do runs a command that must succeed.
func (m *machine) do(args ...string) string {
	m.t.Helper()
	cmd := m.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		m.t.Fatalf("%q: %v\n%s%s", hideTokens(args), err, out, stderr.String())
	}
	return string(out)
}

// refuses runs a command that must fail with an exit code and these words.
func (m *machine) refuses(code int, words string, args ...string) {
	m.t.Helper()
	cmd := m.command(args...)
	out, err := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), words) {
		m.t.Errorf("%q: exit code %d (%v), want %d and %q:\n%s", hideTokens(args), got, err, code, words, out)
	}
}

// serves waits until a user gets an answer at a port of the machine.
func (m *machine) serves(port string) {
	m.t.Helper()
	eventually(m.t, "port "+port+" answers", func() bool {
		return regexp.MustCompile(`^[2-5]\d\d$`).MatchString(m.try("curl", "--silent", "--output", "/dev/null", "--max-time", "5", "--write-out", "%{http_code}", "http://127.0.0.1:"+port+"/"))
	})
}

func (m *machine) property(name string) string {
	return strings.TrimSpace(m.try("systemctl", "show", "--value", "--property", name, "reverser-bridge"))
}

// Both roles live as services of a real systemd: installed, replaced, refused, killed, stuck, reloaded, removed without a trace.
func TestSystemd(t *testing.T) {
	t.Parallel()
	m := boot(t)
	m.do("systemd-run", "--quiet", "--unit=target", "busybox", "httpd", "-f", "-p", "127.0.0.1:9904", "-h", "/usr/share")

	line := m.do("reverser", "service", "install", "proxy", "--listen", "127.0.0.1:3010", "--advertise", "127.0.0.1")
	token := tokenPattern.FindString(line)
	if token == "" {
		t.Fatalf("no token in %q", line)
	}
	// Paths with everything that a unit reads in its own way.
	const state, config = `/var/lib/reverser/it's "here", 5% $HOME`, `/etc/reverser/a 'b' "c" 5% $d.toml`
	m.do("mkdir", "-p", "/etc/reverser")
	m.do("sh", "-c", `printf 'drain = "2s"\n' >"$0"`, config)
	out := m.do("reverser", "service", "install", "bridge", token, "9000=9904", "--state", state, "--config", config)
	if !strings.Contains(out, "link up, 1 of 1 service up") {
		t.Errorf("service install says %q", out)
	}
	m.serves("9000")
	first := m.property("MainPID")
	if status := m.do("cat", "/proc/"+first+"/status"); !regexp.MustCompile(`(?m)^CapBnd:\s+0+$`).MatchString(status) || regexp.MustCompile(`(?m)^Uid:\s+0\s`).MatchString(status) {
		t.Errorf("the bridge has capabilities, or is root:\n%s", status)
	}
	words := strings.Split(m.do("cat", "/proc/"+first+"/cmdline"), "\x00")
	if strings.Contains(strings.Join(words, " "), "rv1_") {
		t.Error("the token stands on the command line")
	}
	if !slices.Contains(words, state) || !slices.Contains(words, "--config="+config) {
		t.Errorf("the command line is %q; want %q and %q in it", words, state, config)
	}
	m.do("test", "-f", state+"/lock")
	if mode := m.do("stat", "-c", "%a %U", "/etc/reverser/bridge.token"); mode != "600 root\n" {
		t.Errorf("the file of the token is %q", mode)
	}
	if log := m.do("journalctl", "--no-pager"); strings.Contains(log, "rv1_") {
		t.Error("a token stands in the journal")
	}
	// The other commands find it.
	for _, command := range []string{"status", "key list", "reload"} {
		m.do(append([]string{"reverser"}, strings.Fields(command)...)...)
	}
	m.do("systemctl", "reload", "reverser-bridge")

	// A unit of one's own: the first key is not made where its token would stand in the journal.
	m.do("systemd-run", "--quiet", "--unit=byhand", "reverser", "proxy", "--listen", "127.0.0.1:3999", "--state", "/var/lib/byhand")
	eventually(t, "the proxy says how to make a key", func() bool {
		return strings.Contains(m.try("journalctl", "--no-pager", "--unit", "byhand"), "reverser key add NAME")
	})
	m.do("reverser", "key", "add", "mine", "--allow", "tcp/9100", "--state", "/var/lib/byhand")
	m.do("systemctl", "stop", "byhand")
	if log := m.do("journalctl", "--no-pager"); strings.Contains(log, "rv1_") {
		t.Error("a token stands in the journal")
	}

	// What is refused leaves what runs alone.
	other := addKey(t, t.TempDir(), "other", "tcp/9000")
	m.refuses(1, "installed already", "reverser", "service", "install", "bridge", token, "9001=9904")
	m.refuses(2, "mistyped", "reverser", "service", "install", "bridge", token[:len(token)-4]+"AAAA", "9001=9904", "--replace")
	m.refuses(2, "cannot reach", "reverser", "service", "install", "bridge", token, "9001=unix:/tmp/app.sock", "--replace")
	m.refuses(1, "this user may not", "setpriv", "--reuid=1", "--regid=1", "--clear-groups", "reverser", "service", "install", "bridge", token, "9001=9904", "--replace")
	if now := m.property("MainPID"); now != first {
		t.Errorf("process %s became %s by an installation that was refused", first, now)
	}
	// What does not work gives way to what ran.
	m.refuses(1, "the service that was there before is back", "reverser", "service", "install", "bridge", other, "9000=9904", "--proxy", "127.0.0.1", "--replace")
	m.serves("9000")
	m.refuses(1, "address already in use", "reverser", "service", "install", "proxy", "--listen", "127.0.0.1:9904", "--replace")
	m.serves("9000")
	// What it says is found although the journal takes it late, as on a busy machine, when the process is gone and the next one was started.
	m.do("systemctl", "kill", "--signal=STOP", "systemd-journald")
	t.Cleanup(func() { m.try("systemctl", "kill", "--signal=CONT", "systemd-journald") })
	refused := make(chan struct{})
	go func() {
		defer close(refused)
		m.refuses(1, "address already in use", "reverser", "service", "install", "proxy", "--listen", "127.0.0.1:9904", "--replace")
	}()
	eventually(t, "the proxy was started again", func() bool {
		n, err := strconv.Atoi(strings.TrimSpace(m.try("systemctl", "show", "--value", "--property", "NRestarts", "reverser-proxy")))
		return err == nil && n > 0
	})
	m.do("systemctl", "kill", "--signal=CONT", "systemd-journald")
	<-refused
	m.serves("9000")

	// A process that dies, and one that is stuck, is started again.
	m.do("mkdir", "-p", "/etc/systemd/system/reverser-bridge.service.d")
	m.do("sh", "-c", "printf '[Service]\nWatchdogSec=2\nRestartSec=100ms\n' >/etc/systemd/system/reverser-bridge.service.d/test.conf")
	m.do("systemctl", "daemon-reload")
	m.do("reverser", "service", "install", "bridge", "9000=9904", "9001=9904", "--replace") // with the token and the state directory that it has
	m.do("test", "-S", state+"/admin.sock")
	m.do("rm", config)
	m.serves("9001")
	for _, sig := range []string{"KILL", "STOP"} {
		pid := m.property("MainPID")
		m.do("sh", "-c", "kill -"+sig+" "+pid)
		eventually(t, "the bridge is started again after "+sig, func() bool { // once, or more often where a busy machine has no turn for it in 2 seconds
			now := m.property("MainPID")
			return now != pid && now != "0" && m.property("NRestarts") != "0" && m.property("ActiveState") == "active"
		})
		m.serves("9001")
	}

	// A service that does not come up says why.
	m.do("mv", "/usr/local/bin/reverser", "/usr/local/bin/reverser.gone")
	m.try("systemctl", "restart", "reverser-bridge")
	eventually(t, "the status says that the program is gone", func() bool {
		return strings.Contains(m.try("reverser.gone", "service", "status", "bridge"), "exit code 203: the program cannot be run")
	})
	m.do("mv", "/usr/local/bin/reverser.gone", "/usr/local/bin/reverser")
	m.do("reverser", "service", "start", "bridge")
	m.serves("9001")

	m.do("reverser", "service", "stop", "bridge")
	m.refuses(1, "stopped", "reverser", "service", "status", "bridge")
	if out := m.do("reverser", "service", "uninstall", "proxy"); !strings.Contains(out, "still there: /var/lib/reverser/proxy (the state directory, with the identity and the keys") {
		t.Errorf("service uninstall says %q", out)
	}
	m.do("reverser", "service", "uninstall", "proxy", "--purge")
	m.do("reverser", "service", "uninstall", "bridge", "--purge")
	m.refuses(1, "no service is installed", "reverser", "service", "status")
	for _, path := range []string{"/etc/reverser", "/etc/systemd/system", "/var/lib/reverser", "/var/lib/private/reverser"} {
		if left := m.try("find", path, "-name", "*reverser*"); strings.Contains(left, "/reverser") && !strings.Contains(left, "No such file") {
			t.Errorf("left behind:\n%s", left)
		}
	}
}
