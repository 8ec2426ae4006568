package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A machine is a systemd of its own: process 1 of new namespaces, on top of this machine's files, which it does not change. Its
// network is a loopback interface.
type machine struct {
	t   *testing.T
	pid string // of its process 1, as seen from here
}

// bootScript prepares the files of a machine and becomes its process 1. What a systemd in a container expects is in
// https://systemd.io/CONTAINER_INTERFACE.
const bootScript = `
set -e
echo $$ >"$CGROUP/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --ipc --uts --net --cgroup --propagation private sh -c '
set -e
mount -t tmpfs tmpfs "$DIR"
R=$DIR/root
mkdir "$DIR/up" "$DIR/work" "$R"
mount -t overlay overlay -o "lowerdir=/,upperdir=$DIR/up,workdir=$DIR/work" "$R"
mount -t proc proc "$R/proc"
mount -t sysfs sysfs "$R/sys"
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$R/run"
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
for n in null zero full random urandom tty; do : >"$R/dev/$n"; mount --bind "/dev/$n" "$R/dev/$n"; done
mkdir "$R/dev/shm" "$R/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$R/dev/pts"
ln -s pts/ptmx "$R/dev/ptmx"
ln -s /proc/self/fd "$R/dev/fd"
install -m 755 "$PROGRAM" "$R/usr/local/bin/reverser"
rm -rf "$R/var/log/journal" "$R/etc/reverser" "$R/etc/machine-id"
echo 0123456789abcdef0123456789abcdef >"$R/etc/machine-id"
ip link set lo up
mount --make-rshared /
exec env -i container=test PATH=/usr/sbin:/usr/bin chroot "$R" /lib/systemd/systemd --unit=basic.target
'
`

// boot starts a machine, or skips the test and says why none can run here.
func boot(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a machine with systemd needs root")
	}
	need(t, program{"/lib/systemd/systemd", "systemd"}, program{"unshare", "util-linux"}, program{"ip", "iproute2"}, program{"curl", "curl"}, program{"busybox", "busybox-static"})
	group, err := newGroup()
	if err != nil {
		t.Skip("a machine with systemd needs a control group of its own: ", err)
	}
	// Without the race detector, which wants memory that is writable and executable: the unit refuses that.
	bin := filepath.Join(t.TempDir(), "reverser")
	build := exec.Command("go", "build", "-o", bin, "./cmd/reverser")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", bootScript)
	cmd.Env = append(os.Environ(), "CGROUP="+group, "DIR="+t.TempDir(), "PROGRAM="+bin)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	m := &machine{t: t}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the machine:\n%s", m.try("journalctl", "--no-pager", "--lines", "60"))
		}
		cmd.Process.Kill()
		<-ended
		removeGroup(group)
	})
	eventually(t, "systemd runs", func() bool {
		select {
		case err := <-ended:
			ended <- err
			t.Skipf("no machine with systemd can run here: %v\n%s", err, out.String())
		default:
		}
		if m.pid == "" {
			children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
			m.pid = strings.TrimSpace(string(children))
			return false
		}
		name, _ := os.ReadFile("/proc/" + m.pid + "/comm")
		return string(name) == "systemd\n" && strings.TrimSpace(m.try("systemctl", "is-active", "basic.target")) == "active"
	})
	return m
}

// newGroup makes a control group of the second version, which a systemd can have for itself.
func newGroup() (string, error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	for s := bufio.NewScanner(mounts); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 2 && f[2] == "cgroup2" {
			return os.MkdirTemp(f[1], "reverser-e2e-")
		}
	}
	return "", errors.New("no cgroup2 file system is mounted")
}

// removeGroup removes a control group when its processes have ended, as they do a moment after their process 1.
func removeGroup(dir string) {
	for range 100 {
		var dirs []string
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			os.Remove(dirs[i])
		}
		if _, err := os.Stat(dir); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
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
	out := m.do("reverser", "service", "install", "bridge", token, "9000=9904")
	if !strings.Contains(out, "link up, 1 of 1 service up") {
		t.Errorf("service install says %q", out)
	}
	m.serves("9000")
	first := m.property("MainPID")
	if status := m.do("cat", "/proc/"+first+"/status"); !regexp.MustCompile(`(?m)^CapBnd:\s+0+$`).MatchString(status) || regexp.MustCompile(`(?m)^Uid:\s+0\s`).MatchString(status) {
		t.Errorf("the bridge has capabilities, or is root:\n%s", status)
	}
	if words := m.do("cat", "/proc/"+first+"/cmdline"); strings.Contains(words, "rv1_") {
		t.Error("the token stands on the command line")
	}
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

	// A process that dies, and one that is stuck, is started again.
	m.do("mkdir", "-p", "/etc/systemd/system/reverser-bridge.service.d")
	m.do("sh", "-c", "printf '[Service]\nWatchdogSec=2\nRestartSec=100ms\n' >/etc/systemd/system/reverser-bridge.service.d/test.conf")
	m.do("systemctl", "daemon-reload")
	m.do("reverser", "service", "install", "bridge", "9000=9904", "9001=9904", "--replace") // with the token that it has
	m.serves("9001")
	for n, sig := range []string{"KILL", "STOP"} {
		m.do("sh", "-c", "kill -"+sig+" "+m.property("MainPID"))
		eventually(t, "the bridge is started again after "+sig, func() bool {
			return m.property("NRestarts") == fmt.Sprint(n+1) && m.property("ActiveState") == "active"
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
	if out := m.do("reverser", "service", "uninstall", "proxy"); !strings.Contains(out, "kept: /var/lib/reverser/proxy") {
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
