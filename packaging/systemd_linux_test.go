package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a systemd that has booted on top of a folder with a Debian, which it does not change.
type machine struct {
	t   *testing.T
	pid string // of its process 1, as seen from here
}

// boot starts a machine on top of the folder.
func (d *debian) boot() *machine {
	d.t.Helper()
	cmd := exec.Command("../e2e/testdata/machine", d.t.TempDir(), d.root)
	var said bytes.Buffer
	cmd.Stderr = &said
	stdin, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	m := &machine{t: d.t}
	d.t.Cleanup(func() {
		if m.t.Failed() && m.pid != "" {
			log, _ := m.try("journalctl --no-pager --lines 80")
			m.t.Logf("the log of the machine:\n%s", log)
		}
		stdin.Close()
		cmd.Wait()
	})
	out, err := io.ReadAll(stdout) // it closes this when it has come up
	if m.pid = strings.TrimSpace(string(out)); err != nil || m.pid == "" {
		text := fmt.Sprintf("no systemd can run here: %v\n%s", err, said.String())
		if os.Getenv("CI") == "true" {
			d.t.Fatal(text)
		}
		d.t.Skip(text)
	}
	return m
}

// path is where a file of the machine is, as seen from here.
func (m *machine) path(p string) string { return filepath.Join("/proc", m.pid, "root", p) }

func (m *machine) write(path, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(path), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) command(script string) *exec.Cmd {
	return exec.Command("nsenter", "-t", m.pid, "-m", "-p", "-i", "-u", "-n", "-C", "-r", "-w",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", "cd /root\n"+script)
}

// try runs a shell's commands in the machine and returns what they wrote.
func (m *machine) try(script string) (string, error) {
	out, err := m.command(script).CombinedOutput()
	return string(out), err
}

// do runs commands that must succeed.
func (m *machine) do(script string) string {
	m.t.Helper()
	out, err := m.try("set -e\n" + script)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", hideTokens(script), err, hideTokens(out))
	}
	return out
}

// fails runs commands that must not succeed, and must write these words.
func (m *machine) fails(words, script string) {
	m.t.Helper()
	if out, err := m.try("set -e\n" + script); err == nil || !strings.Contains(out, words) {
		m.t.Errorf("%s: %v; want a failure with the words %q\n%s", hideTokens(script), err, words, hideTokens(out))
	}
}

var tokens = regexp.MustCompile(`rv1_[\w-]+`)

func hideTokens(s string) string { return tokens.ReplaceAllString(s, "rv1_…") }

// inside runs f where the sockets that it makes belong to the machine's network.
func (m *machine) inside(f func() error) (err error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		ns, err := unix.Open("/proc/"+m.pid+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNET)
			unix.Close(ns)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// echo serves a port of the machine: what a user says comes back.
func (m *machine) echo(addr string) {
	m.t.Helper()
	var l net.Listener
	if err := m.inside(func() (err error) { l, err = net.Listen("tcp4", addr); return err }); err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	m.t.Cleanup(func() {
		l.Close()
		<-ended
	})
}

// user is somebody who is connected to a port of the machine.
type user struct {
	net.Conn
	r *bufio.Reader
}

func (m *machine) dial(port string) (*user, error) {
	var c net.Conn
	err := m.inside(func() (err error) { c, err = net.DialTimeout("tcp4", "127.0.0.1:"+port, 10*time.Second); return err })
	if err != nil {
		return nil, err
	}
	return &user{c, bufio.NewReader(c)}, nil
}

// say sends a line and wants it back.
func (u *user) say(line string) error {
	u.SetDeadline(time.Now().Add(time.Minute)) // for this line: much may be done between two
	if _, err := fmt.Fprintln(u, line); err != nil {
		return err
	}
	if got, err := u.r.ReadString('\n'); err != nil || got != line+"\n" {
		return fmt.Errorf("%q comes back as %q, %v", line, got, err)
	}
	return nil
}

// serves waits until a user of a port is served.
func (m *machine) serves(port string) {
	m.t.Helper()
	await(m.t, "a user of port "+port+" is served", func() bool {
		u, err := m.dial(port)
		if err != nil {
			return false
		}
		defer u.Close()
		return u.say("hello") == nil
	})
}

// process is the process of a unit.
func (m *machine) process(unit string) string {
	m.t.Helper()
	return strings.TrimSpace(m.do("systemctl show --value --property MainPID " + unit))
}

// documented returns the commands for a shell that stand in a code block below a heading of a document, as root gives them.
func documented(t *testing.T, file, heading string) (commands []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("%s has no %q", file, heading)
	}
	section, _, _ = strings.Cut(section, "\n#")
	for i, block := range strings.Split(section, "\n```\n") {
		if i%2 == 0 {
			continue
		}
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(line, " #") // what the others read
			commands = append(commands, strings.TrimPrefix(strings.TrimSpace(line), "sudo "))
		}
	}
	return commands
}

// testDebServices is the life of the package on a machine with systemd, by the commands of its documents: somebody installs it and gives
// a service a public address, upgrades, makes a mistake, and removes it all.
func testDebServices(d *debian) {
	t := d.t
	m := d.boot()
	m.echo("127.0.0.1:9904")
	before := filesOf(t, m.path(""))
	m.do("mkdir /root/new && cd /root/new && cp /root/old.deb reverser_1.2.3_linux_amd64.deb")

	// The two commands of a service, with an address of this machine.
	install := documented(t, "docs/INSTALL.md", "## Debian, Ubuntu and the like")
	want := []string{
		"apt install ./reverser_1.2.3_linux_amd64.deb",
		"reverser service install proxy --advertise tunnel.example.com",
		"reverser service install bridge --token-file nas.token 9000=9904",
		"cp /usr/share/doc/reverser/examples/bridge.toml /etc/reverser/bridge-nas.toml",
		"install -m 600 nas.token /etc/reverser/bridge-nas.token",
		"systemctl enable --now reverser-bridge@nas",
	}
	if !slices.Equal(install, want) {
		t.Fatalf("docs/INSTALL.md has the commands\n%q, and this test knows\n%q", install, want)
	}
	m.do("cd new; " + install[0])
	line := m.do("cd new; " + strings.ReplaceAll(install[1], "tunnel.example.com", "127.0.0.1"))
	token := tokens.FindString(line)
	if !strings.Contains(line, "reverser bridge rv1_") {
		t.Fatalf("no line to paste in %q", hideTokens(line))
	}
	m.write("/root/new/nas.token", token+"\n")
	m.do("chmod 600 new/nas.token")
	if out := m.do("cd new; " + install[2]); !strings.Contains(out, "link up, 1 of 1 service up") {
		t.Errorf("the installation of the bridge says %q", hideTokens(out))
	}
	m.serves("9000")
	// It says how the processes do now, not when systemd was told last.
	if out := m.do("reverser service status"); !strings.Contains(out, "1 bridge connected, 1 of 1 service up") || strings.Count(out, "  running for ") != 2 || strings.Count(out, "starts with the machine") != 2 {
		t.Errorf("service status says\n%s", out)
	}

	// Services of files, beside them.
	m.write("/etc/reverser/proxy-x.toml", "listen = \"127.0.0.1:3999\"\n")
	m.do("systemctl enable --now reverser-proxy@x")
	m.do("cd new; umask 077; reverser key add nas --allow tcp/9100 --state /var/lib/reverser/proxy-x >nas.token")
	m.do("cd new; " + install[3])
	const settings = "proxy = \"127.0.0.1:3999\"\n[[expose]]\npublic = 9100\ntarget = 9904\n"
	m.write("/etc/reverser/bridge-nas.toml", settings)
	m.do("cd new; " + install[4] + "; " + install[5])
	m.serves("9100")
	units := []string{"reverser-proxy", "reverser-bridge", "reverser-proxy@x", "reverser-bridge@nas"}
	for _, unit := range units {
		if out, err := m.try("systemd-analyze verify --man=no " + unit + ".service"); err != nil || strings.Contains(out, "reverser") {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
		// What it rates "OK" goes to 4.9.
		if out, err := m.try("systemd-analyze security --no-pager --threshold=20 " + unit + ".service"); err != nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", unit, err, out)
		}
	}
	if log := m.do("journalctl --no-pager"); tokens.MatchString(log) {
		t.Error("a token stands in the journal")
	}
	was := map[string]string{}
	for _, unit := range units {
		was[unit] = m.process(unit)
	}
	m.do("systemctl restart reverser-bridge@nas")
	m.serves("9100")
	if was["reverser-bridge@nas"] == m.process("reverser-bridge@nas") {
		t.Error("systemctl restart starts no process")
	}

	// Half a package, and one that is broken, change nothing that runs.
	m.fails("cut.deb", "dpkg -i /root/cut.deb")
	for _, unit := range units[:3] {
		if now := m.process(unit); now != was[unit] {
			t.Errorf("half a package made process %s of %s to %s", was[unit], unit, now)
		}
	}

	// Another version, while it runs and a user is connected.
	u, err := m.dial("9100")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := u.say("before the upgrade"); err != nil {
		t.Fatal(err)
	}
	m.do("dpkg -i /root/new.deb")
	await(t, "the upgrade has told the services", func() bool {
		return strings.Contains(m.do("systemctl show --property ActiveState reverser-bridge@nas"), "deactivating")
	})
	if err := u.say("during the upgrade"); err != nil {
		t.Errorf("who was connected at the upgrade: %v", err)
	}
	u.Close()
	for _, unit := range units {
		await(t, unit+" runs the new program", func() bool {
			out, _ := m.try("[ $(systemctl is-active " + unit + ") = active ] && /proc/$(systemctl show --value --property MainPID " + unit + ")/exe version")
			return strings.HasPrefix(out, "reverser v1.1.0-rc.1 (")
		})
	}
	m.serves("9000")
	m.serves("9100")

	// A mistake in a file: what runs goes on, what starts does not, and both say why.
	m.write("/etc/reverser/bridge-nas.toml", settings+"targte = 9905\n")
	running := m.process("reverser-bridge@nas")
	m.fails("journalctl", "systemctl reload reverser-bridge@nas") // where it says why
	if now := m.process("reverser-bridge@nas"); now != running {
		t.Errorf("a reload with a mistake made process %s of %s", now, running)
	}
	m.serves("9100")
	m.fails("journalctl", "systemctl restart reverser-bridge@nas")
	await(t, "the journal says why, twice", func() bool {
		return strings.Count(m.do("journalctl --no-pager --unit reverser-bridge@nas"), "bridge-nas.toml:5: targte: there is no such key") >= 2
	})
	m.serves("9000") // the others go on
	m.write("/etc/reverser/bridge-nas.toml", settings)
	m.do("systemctl restart reverser-bridge@nas")
	m.serves("9100")

	// Gone without a trace.
	m.do("dpkg -r reverser")
	for _, port := range []string{"9000", "9100", "3010", "3999"} {
		if u, err := m.dial(port); err == nil {
			u.Close()
			t.Errorf("after the removal, something listens at port %s", port)
		}
	}
	m.do("dpkg -P reverser; rm -r /root/new")
	if out := m.do("systemctl list-units --all --plain --no-legend 'reverser*'; systemctl list-unit-files --no-legend 'reverser*' || :"); out != "" {
		t.Errorf("after the purge, systemd knows of\n%s", out)
	}
	if out := m.do("find /var/log -name '*reverser*'"); out != "" {
		t.Errorf("after the purge, these logs are left:\n%s", out)
	}
	wantSame(t, "after the purge", before, filesOf(t, m.path("")))
}
