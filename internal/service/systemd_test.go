//go:build unix

package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeSystemd is systemctl and journalctl over a directory in place of /. A unit comes up unless its text has the word broken.
type fakeSystemd struct {
	t       *testing.T
	root    string
	version string
	loaded  string // text of the unit since the last daemon-reload, "" if there was none
	active  string // text of the unit that runs, "" if none does
	failed  bool
	enabled bool
	starts  int
	said    []string // orders in order
}

const fakeUnit = "reverser-bridge.service"

func newFakeSystemd(t *testing.T) (*fakeSystemd, *systemd) {
	f := &fakeSystemd{t: t, root: t.TempDir(), version: "systemd 252 (252.38-1~deb12u1)\n+PAM"}
	if err := os.MkdirAll(f.root+"/run/systemd/system", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(f.root+"/usr/local/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.root+"/usr/local/bin/reverser", nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return f, &systemd{root: f.root, run: f.run}
}

func (f *fakeSystemd) run(_ context.Context, name string, args ...string) (string, error) {
	order := name + " " + strings.Join(args, " ")
	switch {
	case order == "systemctl --version":
		return f.version, nil
	case args[0] == "show":
		return f.show(), nil
	case name == "journalctl":
		switch {
		case !f.failed:
			return "", nil
		case !slices.Contains(args, "_PID=78"):
			return "INF the process before it stopped\n", nil // taken late, for the invocation of the one that failed
		}
		return "bridge starting\n\nreverser: the token is of another proxy\nhint: make a new one\n", nil
	}
	f.said = append(f.said, strings.Join(args, " "))
	unit, err := os.ReadFile(f.root + "/etc/systemd/system/" + fakeUnit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.t.Error(err)
	}
	switch args[0] {
	case "daemon-reload":
		f.loaded = string(unit)
	case "enable", "disable":
		if f.loaded == "" && string(unit) == "" {
			return "", errors.New("exit status 1: Unit file does not exist.")
		}
		f.enabled = args[0] == "enable"
		if slices.Contains(args, "--now") {
			f.active, f.failed = "", false
		}
	case "start", "restart":
		if f.loaded == "" {
			return "", errors.New("exit status 5: Unit not found.")
		}
		f.active, f.failed = f.loaded, strings.Contains(f.loaded, "broken")
		f.starts++
		f.makeState()
		if f.failed {
			f.active = ""
			return "", errors.New("exit status 1: Job for reverser-bridge.service failed.")
		}
	case "stop":
		f.active = ""
	case "reset-failed":
		f.failed = false
	default:
		f.t.Errorf("unknown order %q", order)
	}
	return "", nil
}

// makeState makes the directories of StateDirectory= and LogsDirectory=, as each start does.
func (f *fakeSystemd) makeState() {
	for key, base := range map[string]string{"StateDirectory": "/var/lib/", "LogsDirectory": "/var/log/"} {
		_, dir, ok := strings.Cut(f.loaded, "\n"+key+"=")
		if !ok {
			continue
		}
		dir, _, _ = strings.Cut(dir, "\n")
		private, link := f.root+base+"private/"+dir, f.root+base+dir
		must(f.t, os.MkdirAll(private, 0o700))
		must(f.t, os.MkdirAll(filepath.Dir(link), 0o755))
		if err := os.Symlink(private, link); err != nil && !errors.Is(err, fs.ErrExist) {
			f.t.Error(err)
		}
	}
}

func (f *fakeSystemd) show() string {
	p := map[string]string{"LoadState": "not-found", "ActiveState": "inactive", "Result": "success", "MainPID": "0"}
	if f.loaded != "" {
		p["LoadState"], p["FragmentPath"], p["UnitFileState"] = "loaded", "/etc/systemd/system/"+fakeUnit, "disabled"
	}
	if f.enabled {
		p["UnitFileState"] = "enabled"
	}
	if f.active != "" {
		p["ActiveState"], p["MainPID"], p["StatusText"], p["StateChangeTimestamp"] = "active", "77", "link up", "@1732863600"
	}
	if f.failed {
		p["ActiveState"], p["Result"], p["ExecMainStatus"], p["NRestarts"] = "failed", "exit-code", "2", "3"
		p["ExecMainPID"], p["ExecMainStartTimestamp"] = "78", "@1732863600"
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(p)) {
		fmt.Fprintf(&b, "%s=%s\n", k, p[k])
	}
	return b.String()
}

// tree is every file below the root, with its mode and text.
func (f *fakeSystemd) tree() map[string]string {
	all := make(map[string]string)
	err := filepath.WalkDir(f.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := []byte(nil)
		if info.Mode().IsRegular() {
			if text, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		rel, _ := filepath.Rel(f.root, path)
		all[rel] = info.Mode().String() + " " + string(text)
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return all
}

func bridgeSpec(args ...string) Spec {
	return Spec{Role: "bridge", Program: "/usr/local/bin/reverser", Args: args, Token: "rv1_secret", Drain: 30 * time.Second}
}

func TestSystemdInstall(t *testing.T) {
	f, m := newFakeSystemd(t)
	before := f.tree()
	if err := m.Install(t.Context(), bridgeSpec("9000=9904"), false); err != nil {
		t.Fatal(err)
	}
	if f.active == "" || !f.enabled {
		t.Errorf("active = %t, enabled = %t; want both", f.active != "", f.enabled)
	}
	token := f.root + "/etc/reverser/bridge.token"
	if info, err := os.Stat(token); err != nil || info.Mode() != 0o600 {
		t.Errorf("the token's file: %v, %v; want mode 0600", info, err)
	}
	if text, _ := os.ReadFile(token); string(text) != "rv1_secret\n" {
		t.Errorf("the token's file has %q", text)
	}
	if strings.Contains(f.active, "rv1_") {
		t.Error("the token stands in the unit")
	}
	st, err := m.Status(t.Context(), "bridge")
	if err != nil || st.State != Running || st.PID != 77 || st.Text != "link up" || !st.Boot || st.Why != "" {
		t.Errorf("Status = %+v, %v", st, err)
	}
	if got := m.State("bridge"); got != "/var/lib/reverser/bridge" {
		t.Errorf("State = %q", got)
	}
	if got := m.State("proxy"); got != "" {
		t.Errorf("State of what is not installed = %q", got)
	}
	kept, err := m.Uninstall(t.Context(), "bridge", true)
	if err != nil || len(kept) > 0 {
		t.Errorf("Uninstall = %v, %v", kept, err)
	}
	if f.active != "" || f.enabled || f.loaded != "" {
		t.Errorf("after uninstall: active %t, enabled %t, loaded %t", f.active != "", f.enabled, f.loaded != "")
	}
	delete(before, "etc")
	delete(before, "etc/systemd")
	after := f.tree()
	for _, dir := range []string{"etc", "etc/systemd", "etc/systemd/system", "var", "var/lib", "var/lib/private", "var/log", "var/log/private"} { // the system's own
		delete(after, dir)
	}
	if !maps.Equal(before, after) {
		t.Errorf("uninstall leaves %v, want %v", after, before)
	}
}

// What the service wrote stays, unless it is to go.
func TestSystemdUninstallKeeps(t *testing.T) {
	f, m := newFakeSystemd(t)
	if err := m.Install(t.Context(), bridgeSpec("9000"), false); err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(f.root+"/var/lib/private/reverser/bridge/lock", nil, 0o600))
	must(t, os.WriteFile(f.root+"/var/log/reverser/bridge/access.log", nil, 0o640))
	must(t, os.WriteFile(f.root+"/etc/reverser/bridge.toml", nil, 0o644))
	must(t, os.Mkdir(f.root+unitPath("bridge")+".d", 0o755))
	kept, err := m.Uninstall(t.Context(), "bridge", false)
	if want := []string{"/var/lib/reverser/bridge", "/var/log/reverser/bridge", unitPath("bridge") + ".d", "/etc/reverser"}; err != nil || !slices.Equal(paths(kept), want) {
		t.Errorf("Uninstall = %v, %v; want %v", kept, err, want)
	}
	if _, err := m.Uninstall(t.Context(), "bridge", false); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("a second Uninstall = %v, want ErrNotInstalled", err)
	}
	kept, err = m.Uninstall(t.Context(), "bridge", true)
	if want := []string{"/etc/reverser"}; err != nil || !slices.Equal(paths(kept), want) {
		t.Errorf("Uninstall with purge = %v, %v; want %v", kept, err, want)
	}
	for _, gone := range []string{"/var/lib/private/reverser", "/var/lib/reverser", "/var/log/private/reverser", "/var/log/reverser"} {
		if _, err := os.Lstat(f.root + gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there behind a purge: %v", gone, err)
		}
	}
}

// The directory of an access log goes with the service when nothing is in it.
func TestSystemdUninstallLogs(t *testing.T) {
	f, m := newFakeSystemd(t)
	if err := m.Install(t.Context(), bridgeSpec("9000"), false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.active, "\nLogsDirectory=reverser/bridge\n") {
		t.Errorf("the unit has no directory for an access log:\n%s", f.active)
	}
	must(t, os.MkdirAll(f.root+"/var/log/reverser/bridge", 0o750))
	kept, err := m.Uninstall(t.Context(), "bridge", false)
	if want := []string{"/var/lib/reverser/bridge"}; err != nil || !slices.Equal(paths(kept), want) {
		t.Errorf("Uninstall = %v, %v; want %v", kept, err, want)
	}
	if _, err := os.Lstat(f.root + "/var/log/reverser"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
	elsewhere := bridgeSpec("9000")
	elsewhere.State = "/srv/reverser"
	if text, err := m.unit(elsewhere); err != nil || strings.Contains(text, "LogsDirectory") {
		t.Errorf("a unit whose state is elsewhere: %v\n%s", err, text)
	}
}

// Whatever goes wrong, what ran before goes on.
func TestSystemdGoesOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		spec   Spec
		change func(*fakeSystemd, *systemd)
		err    string
		usage  bool
	}{
		{name: "no rights", change: func(_ *fakeSystemd, m *systemd) { m.uid = 1000 }, err: "this user may not"},
		{name: "no systemd", change: func(f *fakeSystemd, _ *systemd) { os.Remove(f.root + "/run/systemd/system") }, err: "not started by systemd"},
		{name: "an old systemd", change: func(f *fakeSystemd, _ *systemd) { f.version = "systemd 245 (245.4-4ubuntu3)" }, err: "systemd 245"},
		{name: "it does not come up", spec: bridgeSpec("broken"), err: "exit code 2: wrong usage or configuration; systemd has started it again 3 times; it said: reverser: the token is of another proxy (hint: make a new one)"},
		{name: "a quote in the program", spec: Spec{Role: "bridge", Program: `/opt/it's/reverser`}, err: "no quotes", usage: true},
		{name: "a line break", spec: bridgeSpec("--config=/etc/a\nb"), err: "cannot stand", usage: true},
		{name: "a program at home", spec: Spec{Role: "bridge", Program: "/home/me/reverser"}, err: "cannot reach it", usage: true},
		{name: "a state directory elsewhere", spec: Spec{Role: "bridge", Program: "/usr/local/bin/reverser", State: "/srv/reverser"}, err: "--state /srv/reverser", usage: true},
		{name: "a socket in /tmp", spec: Spec{Role: "bridge", Program: "/usr/local/bin/reverser", Sockets: []string{"/tmp/app.sock"}}, err: "unix:/tmp/app.sock", usage: true},
		{name: "a closed configuration", spec: Spec{Role: "bridge", Program: "/usr/local/bin/reverser", Config: "/etc/closed.toml"}, err: "/etc/closed.toml is closed to others", usage: true},
		{name: "nothing to prepare with", spec: Spec{Role: "bridge", Program: "/usr/local/bin/reverser", Prepare: func(string) error { return errors.New("no room") }}, err: "no room"},
	} {
		for _, replace := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, replace=%t", c.name, replace), func(t *testing.T) {
				f, m := newFakeSystemd(t)
				must(t, os.Mkdir(f.root+"/etc", 0o755))
				must(t, os.WriteFile(f.root+"/etc/closed.toml", nil, 0o600))
				if replace {
					must(t, m.Install(t.Context(), bridgeSpec("9000"), false))
				}
				before, active, enabled, loaded, starts := f.tree(), f.active, f.enabled, f.loaded, f.starts
				if c.spec.Role == "" {
					c.spec = bridgeSpec("9001")
				}
				if c.change != nil {
					c.change(f, m)
					before = f.tree()
				}
				err := m.Install(t.Context(), c.spec, replace)
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("Install = %v, want an error with %q", err, c.err)
				}
				if e, ok := errors.AsType[*Error](err); ok && e.Usage != c.usage {
					t.Errorf("Usage = %t, want %t: %v", e.Usage, c.usage, err)
				}
				if f.active != active || f.enabled != enabled || f.loaded != loaded || f.failed {
					t.Errorf("active %q, enabled %t, loaded %q, failed %t; want what was before:\nactive %q, enabled %t, loaded %q\norders: %q", f.active, f.enabled, f.loaded, f.failed, active, enabled, loaded, f.said)
				}
				if n := f.starts - starts; n > 0 && c.name != "it does not come up" {
					t.Errorf("the service that ran was started %d times, for an installation that did not come that far: %q", n, f.said)
				}
				after := f.tree()
				if !replace { // directories of the system's own
					for _, dir := range []string{"var", "var/lib", "var/lib/private", "var/log", "var/log/private"} {
						delete(after, dir)
					}
				}
				if !maps.Equal(before, after) {
					t.Errorf("files are %v, want what was before: %v", after, before)
				}
			})
		}
	}
}

// A second installation is refused, and with replace takes the place of the first.
func TestSystemdTwice(t *testing.T) {
	f, m := newFakeSystemd(t)
	must(t, m.Install(t.Context(), bridgeSpec("9000"), false))
	was := f.active
	err := m.Install(t.Context(), bridgeSpec("9001"), false)
	if e, ok := errors.AsType[*Error](err); !errors.Is(err, ErrInstalled) || !ok || !strings.Contains(e.Hint, "--replace") {
		t.Fatalf("Install = %v, want ErrInstalled with a hint at --replace", err)
	}
	if f.active != was {
		t.Error("another service runs behind a refusal")
	}
	if m.TokenFile("bridge") == "" {
		t.Error("TokenFile: none, want that of the first")
	}
	must(t, m.Install(t.Context(), bridgeSpec("9001"), true))
	if !strings.Contains(f.active, "9001") {
		t.Errorf("what runs is\n%s", f.active)
	}
}

// A unit of a package is not overridden.
func TestSystemdForeignUnit(t *testing.T) {
	f, m := newFakeSystemd(t)
	must(t, os.MkdirAll(f.root+"/usr/lib/systemd/system", 0o755))
	must(t, os.WriteFile(f.root+"/usr/lib/systemd/system/"+fakeUnit, nil, 0o644))
	run := m.run
	m.run = func(ctx context.Context, name string, args ...string) (string, error) {
		if args[0] == "show" {
			return "LoadState=loaded\nFragmentPath=/usr/lib/systemd/system/" + fakeUnit + "\nActiveState=inactive\n", nil
		}
		return run(ctx, name, args...)
	}
	if err := m.Install(t.Context(), bridgeSpec("9000"), true); !errors.Is(err, ErrInstalled) || !strings.Contains(err.Error(), "/usr/lib/systemd/system/") {
		t.Errorf("Install = %v, want ErrInstalled with the path of the other unit", err)
	}
	if len(f.said) > 0 {
		t.Errorf("orders: %q", f.said)
	}
}

// A service that was there and stopped is there and stopped when the new one does not come up.
func TestSystemdStoppedStaysStopped(t *testing.T) {
	f, m := newFakeSystemd(t)
	must(t, m.Install(t.Context(), bridgeSpec("9000"), false))
	must(t, m.Stop(t.Context(), "bridge"))
	was := f.loaded
	if err := m.Install(t.Context(), bridgeSpec("broken"), true); err == nil || !strings.Contains(err.Error(), "is back") {
		t.Errorf("Install = %v, want an error that says what is there", err)
	}
	if f.active != "" || f.failed || f.loaded != was {
		t.Errorf("active %q, failed %t, loaded %q; want stopped and %q", f.active, f.failed, f.loaded, was)
	}
	must(t, m.Start(t.Context(), "bridge"))
	if f.active != was {
		t.Error("another unit than the first was started")
	}
}

func TestSystemdStartSaysWhy(t *testing.T) {
	f, m := newFakeSystemd(t)
	if err := m.Start(t.Context(), "bridge"); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Start = %v, want ErrNotInstalled", err)
	}
	if err := m.Stop(t.Context(), "bridge"); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Stop = %v, want ErrNotInstalled", err)
	}
	if _, err := m.Status(t.Context(), "bridge"); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Status = %v, want ErrNotInstalled", err)
	}
	must(t, m.Install(t.Context(), bridgeSpec("9000"), false))
	f.loaded += "broken"
	err := m.Start(t.Context(), "bridge")
	if err == nil || !strings.Contains(err.Error(), "the token is of another proxy") {
		t.Errorf("Start = %v, want what the process said", err)
	}
	st, err := m.Status(t.Context(), "bridge")
	if err != nil || st.State != Failed || !strings.Contains(st.Why, "exit code 2") || len(st.Log) != 3 {
		t.Errorf("Status = %+v, %v", st, err)
	}
}

// hardWords are what a path may have and a unit reads in its own way.
var hardWords = []string{
	"plain", "with space", `it's "all": of \ 100%`, "a:b", `say "it"`, `double"quote`, "single'quote", "100%", "%d", "$HOME", "${HOME}", `back\slash`, `\n`, ";", "two  spaces", "#", "ünï/中文", "-", "{}", "~", "a=b",
}

func TestQuoteWord(t *testing.T) {
	for _, w := range hardWords {
		if got := unquoteWord(quoteWord(w)); got != w {
			t.Errorf("%q is written as %s and read as %q", w, quoteWord(w), got)
		}
		if got := unquoteDirectory(quoteDirectory(w)); got != w {
			t.Errorf("the directory %q is written as %s and read as %q", w, quoteDirectory(w), got)
		}
	}
}

// systemd itself reads the units without a complaint, whatever stands in them.
func TestSystemdVerify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no systemd-analyze: on Debian, apt install systemd")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "pro gram 100% $HOME")
	must(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	m := &systemd{}
	for name, s := range map[string]Spec{
		"plain":    {Role: "bridge", Program: program, Args: []string{"9000"}, Token: "rv1_x"},
		"hard":     {Role: "bridge", Program: program, Args: hardWords, Token: "rv1_x", State: "/var/lib/a b/c%d"},
		"proxy":    {Role: "proxy", Program: program, LowPorts: true, Drain: time.Hour},
		"quotes":   {Role: "bridge", Program: program, Args: hardWords, State: `/var/lib/reverser/say "it" 5% $HOME`},
		"all":      {Role: "bridge", Program: program, Args: hardWords, State: `/var/lib/reverser/it's "all": of \ 100% 中`},
		"own user": {Role: "proxy", Program: program, User: "daemon", State: `/srv/it's "here" 5%`},
	} {
		text, err := m.unit(s)
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".service")
		must(t, os.WriteFile(unit, []byte(text), 0o644))
		cmd := exec.Command(analyze, "verify", "--recursive-errors=no", unit)
		out, err := cmd.CombinedOutput()
		if err != nil || len(strings.TrimSpace(string(out))) > 0 {
			t.Errorf("%s: systemd-analyze verify: %v\n%s\n%s", name, err, out, text)
		}
		// How exposed the system is to it: 1.4 of 10, and 1.7 with low ports.
		if out, err := exec.Command(analyze, "security", "--no-pager", "--offline=true", "--threshold=17", unit).CombinedOutput(); err != nil {
			t.Errorf("%s: systemd-analyze security: %v\n%s", name, err, out)
		}
	}
}
