package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// debian is a small Debian in a folder. Nothing runs there but what a test starts.
type debian struct {
	t    *testing.T
	root string
}

// newDebian makes one, or copies that of REVERSER_DEBIAN_ROOT.
func newDebian(t *testing.T) *debian {
	t.Helper()
	missing := t.Skip
	if os.Getenv("CI") == "true" {
		missing = t.Fatal
	}
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		missing("packages are installed in a folder by root, on Linux")
	}
	for _, name := range []string{"debootstrap", "dpkg", "rpm", "chroot", "unshare", "nsenter", "setpriv", "ip"} {
		if _, err := exec.LookPath(name); err != nil {
			missing(name + " is not installed")
		}
	}
	d := &debian{t: t, root: filepath.Join(t.TempDir(), "root")}
	if made := os.Getenv("REVERSER_DEBIAN_ROOT"); made != "" {
		d.host("cp", "-a", made, d.root)
	} else {
		d.host("debootstrap", "--variant=minbase", "--include=systemd", "bookworm", d.root)
	}
	return d
}

// pretend puts a systemctl there that writes down what it is asked for.
func (d *debian) pretend() {
	d.t.Helper()
	d.write("/usr/bin/systemctl", "#!/bin/sh\necho \"$@\" >>/var/log/systemctl\n[ ! -e /run/systemctl-fails ]\n", 0o755)
	d.write("/run/systemd/system/.keep", "", 0o644)
}

// host runs a program outside of the folder.
func (d *debian) host(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.CommandContext(d.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// try runs a shell's command in the folder.
func (d *debian) try(command string) (string, error) {
	out, err := d.command(d.t.Context(), command).CombinedOutput()
	return string(out), err
}

func (d *debian) command(ctx context.Context, command string) *exec.Cmd {
	// A mount in a namespace of its own ends with the command.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "/bin/sh", "-c", `mount -t proc proc "$0/proc" && exec chroot "$0" /bin/sh -c "$1"`, d.root, command)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	return cmd
}

func (d *debian) run(command string) string {
	d.t.Helper()
	out, err := d.try(command)
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

func (d *debian) path(p string) string { return filepath.Join(d.root, p) }

func (d *debian) write(path, text string, mode fs.FileMode) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(d.path(path)), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.path(path), []byte(text), mode); err != nil {
		d.t.Fatal(err)
	}
}

func (d *debian) exists(path string) bool {
	_, err := os.Lstat(d.path(path))
	return err == nil
}

// asked returns what systemctl was asked for since the last call.
func (d *debian) asked() []string {
	d.t.Helper()
	log, err := os.ReadFile(d.path("/var/log/systemctl"))
	if err != nil && !os.IsNotExist(err) {
		d.t.Fatal(err)
	}
	os.Remove(d.path("/var/log/systemctl"))
	return strings.FieldsFunc(string(log), func(r rune) bool { return r == '\n' })
}

func (d *debian) wantAsked(when string, want ...string) {
	d.t.Helper()
	if got := d.asked(); !slices.Equal(got, want) {
		d.t.Errorf("%s, systemctl was asked for %q; want %q", when, got, want)
	}
}

func (d *debian) wantVersion(when, want string) {
	d.t.Helper()
	if got := d.run("reverser version"); !strings.HasPrefix(got, "reverser "+want+" (") {
		d.t.Errorf("%s the version is %q; want %s", when, got, want)
	}
}

// files are all files of the folder, with what matters of them.
func (d *debian) files() map[string]string { d.t.Helper(); return filesOf(d.t, d.root) }

// filesOf leaves out logs, caches, and what dpkg and systemd keep for themselves.
func filesOf(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		for _, left := range []string{"/var/log", "/var/cache", "/var/lib/systemd", "/var/lib/dpkg/status-old", "/var/lib/dpkg/lock", "/var/lib/dpkg/triggers",
			"/var/lib/dpkg/available", "/var/lib/apt", "/dev", "/proc", "/run", "/sys"} {
			if strings.HasPrefix(name, left) {
				if e.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		what := fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %x", sha256.Sum256(data))
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " -> " + to
		}
		all[name] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantNoTrace compares with what files returned before.
func (d *debian) wantNoTrace(when string, before map[string]string) {
	d.t.Helper()
	wantSame(d.t, when, before, d.files())
}

func wantSame(t *testing.T, when string, before, after map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if before[name] != after[name] {
			t.Errorf("%s, %s is %s; it was %q", when, name, after[name], before[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if after[name] == "" {
			t.Errorf("%s, %s is gone", when, name)
		}
	}
}

// makePackages makes packages of a version and returns their paths.
func makePackages(t *testing.T, version string) (deb, rpm string) {
	t.Helper()
	r, err := newRelease(t.Context(), "..", "")
	if err != nil {
		t.Fatal(err)
	}
	r.version = version
	made, err := r.make(t.Context(), t.TempDir(), []platform{{"linux", runtime.GOARCH}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range made {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, f.data, 0o644); err != nil {
			t.Fatal(err)
		}
		switch filepath.Ext(f.name) {
		case ".deb":
			deb = path
		case ".rpm":
			rpm = path
		}
	}
	return deb, rpm
}

// await waits until a condition holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute, without success, for: %s", what)
		}
	}
}

// ourUnits are the services of the package, as systemctl is asked for them.
const ourUnits = " reverser-proxy@*.service reverser-bridge@*.service"

// TestPackages installs, replaces, breaks and removes the packages.
func TestPackages(t *testing.T) {
	d := newDebian(t)
	oldDeb, oldRPM := makePackages(t, "v1.0.0")
	newDeb, newRPM := makePackages(t, "v1.1.0-rc.1")
	for to, from := range map[string]string{"/root/old.deb": oldDeb, "/root/new.deb": newDeb} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		d.write(to, string(data), 0o644)
		if strings.HasSuffix(to, "new.deb") {
			d.write("/root/cut.deb", string(data[:len(data)/2]), 0o644)
		}
	}
	d.run("ldconfig; :") // whatever is made at first use is there
	t.Run("deb under systemd", func(t *testing.T) { d.t = t; testDebServices(d) })
	d.t = t
	d.pretend()
	before := d.files()

	t.Run("deb", func(t *testing.T) { d.t = t; testDeb(d, before) })
	t.Run("deb beside another program", func(t *testing.T) { d.t = t; testDebBeside(d, before) })
	t.Run("rpm", func(t *testing.T) { d.t = t; testRPM(d, before, oldRPM, newRPM) })
}

func testDeb(d *debian, before map[string]string) {
	t := d.t
	d.run("dpkg -i /root/old.deb")
	d.wantAsked("after the first installation", "daemon-reload")
	d.wantVersion("after the first installation", "v1.0.0")
	for _, unit := range []string{"reverser-proxy@nas.service", "reverser-bridge@nas.service"} {
		if out, err := d.try("systemd-analyze verify --man=no " + unit); err != nil || strings.Contains(out, "reverser") {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
	}

	// As the documents say: a proxy and a bridge of their files, and a bridge of `service install`.
	d.run("umask 077; reverser key add nas --allow tcp/9000 --state /var/lib/reverser/proxy-x >/etc/reverser/bridge-nas.token")
	if info, err := os.Stat(d.path("/var/lib/reverser")); err != nil || info.Mode() != fs.ModeDir|0o755 {
		t.Errorf("/var/lib/reverser is %v, %v: the users of services must get through it", info.Mode(), err)
	}
	d.run("cp /usr/share/doc/reverser/examples/proxy.toml /etc/reverser/proxy-x.toml")
	d.write("/etc/reverser/bridge-nas.toml", "proxy = \"127.0.0.1\"\n[[expose]]\npublic = 9000\n", 0o644)
	d.run("reverser check /etc/reverser/bridge-nas.toml")
	wants := "/etc/systemd/system/multi-user.target.wants/"
	d.run("ln -s /usr/lib/systemd/system/reverser-bridge@.service " + wants + "reverser-bridge@nas.service")
	plan := d.run("reverser service install bridge --dry-run --token-file /etc/reverser/bridge-nas.token --proxy 127.0.0.1 9000")
	unit, _, _ := strings.Cut(plan, "\n\n# ")
	d.write("/etc/systemd/system/reverser-bridge.service", unit+"\n", 0o644)
	d.run("ln -s ../reverser-bridge.service " + wants + "reverser-bridge.service; cp -a /etc/reverser/bridge-nas.token /etc/reverser/bridge.token")
	d.run("mkdir -p /var/lib/private/reverser/bridge-nas /var/lib/private/reverser/bridge && ln -s ../private/reverser/bridge-nas ../private/reverser/bridge /var/lib/reverser/")

	// Over a version that is running.
	pid := os.Getpid()
	own := fmt.Sprintf("127.44.%d.%d:3010", pid>>8&255, pid&255) // an address that nobody else has
	running := d.command(context.Background(), "exec reverser proxy --listen "+own+" --state /var/lib/reverser/proxy-x")
	var log bytes.Buffer
	running.Stderr = &log
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- running.Wait() }()
	defer func() {
		running.Process.Kill()
		<-ended
	}()
	await(t, "the proxy runs", func() bool {
		if len(ended) > 0 {
			err := <-ended
			ended <- nil
			t.Fatalf("the proxy does not start: %v\n%s", err, log.Bytes())
		}
		return d.exists("/var/lib/reverser/proxy-x/admin.sock")
	})
	d.run("dpkg -i /root/new.deb")
	d.wantAsked("after the upgrade", "daemon-reload", "--no-block try-restart"+ourUnits+" reverser-bridge.service")
	d.wantVersion("after the upgrade", "v1.1.0-rc.1")
	if out := d.run("reverser status --state /var/lib/reverser/proxy-x"); !strings.Contains(out, "proxy") {
		t.Errorf("the proxy that ran says: %s", out)
	}
	if err := running.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the proxy that ran: %v\n%s", err, log.Bytes())
	}
	ended <- nil

	// A file that is cut off leaves what is there.
	if out, err := d.try("dpkg -i /root/cut.deb"); err == nil {
		t.Errorf("half a package was installed:\n%s", out)
	}
	d.wantVersion("after half a package", "v1.1.0-rc.1")
	if out := d.run("dpkg-query -W -f '${Status}' reverser"); out != "install ok installed" {
		t.Errorf("after half a package the status is %q", out)
	}
	d.asked()

	// Over a broken one: no program, no unit, and an installation that was interrupted; and back to the older version.
	d.write("/usr/bin/reverser", "no program", 0o755)
	d.run("rm /usr/lib/systemd/system/reverser-bridge@.service")
	d.run("dpkg -i /root/new.deb")
	d.wantVersion("over a broken one", "v1.1.0-rc.1")
	d.run("dpkg --unpack /root/old.deb")
	d.run("dpkg -i /root/new.deb")
	d.wantVersion("over an unfinished one", "v1.1.0-rc.1")
	d.run("dpkg -i /root/old.deb")
	d.wantVersion("after the downgrade", "v1.0.0")
	if !d.exists("/usr/lib/systemd/system/reverser-bridge@.service") {
		t.Error("the unit does not come back")
	}
	// Where systemd does not answer, installation and removal succeed.
	d.write("/run/systemctl-fails", "", 0o644)
	d.run("dpkg -i /root/new.deb")
	d.run("rm /run/systemctl-fails")
	d.asked()

	d.run("dpkg -r reverser")
	d.wantAsked("at the removal", "stop"+ourUnits+" reverser-bridge.service", "daemon-reload")
	for path, want := range map[string]bool{
		"/usr/bin/reverser": false, wants + "reverser-bridge@nas.service": false, wants + "reverser-bridge.service": false,
		"/etc/reverser/bridge-nas.toml": true, "/var/lib/reverser/proxy-x/identity.pem": true, "/etc/systemd/system/reverser-bridge.service": true,
	} {
		if d.exists(path) != want {
			t.Errorf("after the removal, %s is there: %v; want %v", path, !want, want)
		}
	}
	d.run("dpkg -P reverser")
	d.asked()
	d.wantNoTrace("after the purge", before)
}

// testDebBeside: the service of a program elsewhere is none of the package's.
func testDebBeside(d *debian, before map[string]string) {
	foreign := map[string]string{
		"/etc/systemd/system/reverser-proxy.service": "[Service]\nExecStart=:/usr/local/bin/reverser proxy\n",
		"/etc/reverser/proxy.token":                  "its own",
		"/var/lib/reverser/proxy/identity.pem":       "its own",
	}
	for path, text := range foreign {
		d.write(path, text, 0o600)
	}
	d.run("dpkg -i /root/old.deb && dpkg -i /root/new.deb && dpkg -P reverser")
	for _, asked := range d.asked() {
		if strings.Contains(asked, "reverser-proxy.service") {
			d.t.Errorf("systemctl was asked for %q", asked)
		}
	}
	for path := range foreign {
		if !d.exists(path) {
			d.t.Errorf("%s is gone", path)
		}
	}
	d.run("rm -r /etc/reverser /var/lib/reverser /etc/systemd/system/reverser-proxy.service")
	d.wantNoTrace("at the end", before)
}

func testRPM(d *debian, before map[string]string, oldRPM, newRPM string) {
	t := d.t
	rpm := func(args ...string) string {
		t.Helper()
		return d.host("rpm", append([]string{"--root", d.root, "--dbpath", "/rpmdb"}, args...)...)
	}
	list := d.host("rpm", "-qpl", "--nosignature", newRPM)
	for _, want := range []string{"/usr/bin/reverser", "/usr/lib/systemd/system/reverser-bridge@.service", "/usr/share/man/man1/reverser.1.gz", "/etc/reverser"} {
		if !slices.Contains(strings.Fields(list), want) {
			t.Errorf("the rpm lacks %s:\n%s", want, list)
		}
	}
	rpm("--initdb")
	rpm("-i", "--nodeps", "--noplugins", oldRPM)
	d.wantVersion("of the rpm", "v1.0.0")
	d.wantAsked("after the first installation", "daemon-reload")
	rpm("-U", "--nodeps", "--noplugins", newRPM)
	d.wantVersion("of the newer rpm", "v1.1.0-rc.1")
	d.wantAsked("after the upgrade", "daemon-reload", "--no-block try-restart"+ourUnits)
	d.write("/var/lib/reverser/proxy-x/identity.pem", "kept", 0o600)
	rpm("-e", "--noplugins", program)
	d.wantAsked("at the removal", "stop"+ourUnits, "daemon-reload")
	if !d.exists("/var/lib/reverser/proxy-x/identity.pem") {
		t.Error("the state is gone")
	}
	d.run("rm -r /rpmdb /var/lib/reverser")
	d.wantNoTrace("after the removal of the rpm", before)
}
