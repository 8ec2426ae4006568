package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeSCM is the service manager of Windows in memory. A service with the argument "broken" ends with exit code 2 when it is started,
// one with "slow" takes 90 seconds to start and to stop, and says that it makes progress, and one with "dies" stops after that time.
type fakeSCM struct {
	services map[string]*fakeService
	sources  map[string]bool
	denied   bool
	orders   []string
	gone     time.Time // when the last process that has stopped is
}

type fakeService struct {
	scmConfig
	scmState
	until  time.Time // when a slow one has done what it is at
	stuck  bool
	failed bool
}

func (f *fakeSCM) find(order, name string) (*fakeService, error) {
	s := f.services[name]
	switch {
	case f.denied && order != "":
		return nil, fmt.Errorf("%s: %w", order, fs.ErrPermission)
	case s == nil:
		return nil, ErrNotInstalled
	}
	if order != "" {
		f.orders = append(f.orders, order)
	}
	return s, nil
}

func (f *fakeSCM) config(name string) (scmConfig, error) {
	s, err := f.find("", name)
	if err != nil {
		return scmConfig{}, err
	}
	return s.scmConfig, nil
}

func (f *fakeSCM) create(name string, c scmConfig) error {
	if _, err := f.find("create", name); !errors.Is(err, ErrNotInstalled) {
		if err == nil {
			err = errors.New("there is one")
		}
		return err
	}
	f.services[name] = &fakeService{scmConfig: c, scmState: scmState{State: Stopped, ExitCode: neverStarted}}
	return nil
}

func (f *fakeSCM) update(name string, c scmConfig) error {
	s, err := f.find("update", name)
	if err == nil {
		s.scmConfig = c
	}
	return err
}

func (f *fakeSCM) remove(name string) error {
	s, err := f.find("remove", name)
	if err != nil {
		return err
	}
	if s.State != Stopped || f.exists(7) {
		return errors.New("it runs, and would stay until it has ended")
	}
	delete(f.services, name)
	return nil
}

func (f *fakeSCM) start(name string) error {
	s, err := f.find("start", name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.Program); err != nil {
		return err
	}
	s.scmState = scmState{State: Running, PID: 7}
	switch {
	case slices.Contains(s.Args, "broken"):
		s.scmState = scmState{State: Stopped, ExitCode: 2, Own: true}
		log, err := OpenLog(stateIn(s.scmConfig))
		if err != nil {
			return err
		}
		defer log.Close()
		fmt.Fprintf(log, "<6>INF bridge starting\nreverser: the port is taken\nhint: stop the other one\n")
	case slices.Contains(s.Args, "slow"), slices.Contains(s.Args, "stuck"), slices.Contains(s.Args, "dies"):
		s.State, s.until, s.stuck = Starting, time.Now().Add(90*time.Second), slices.Contains(s.Args, "stuck")
	}
	return nil
}

func (f *fakeSCM) stop(name string) error {
	s, err := f.find("stop", name)
	if err != nil {
		return err
	}
	if s.State == Starting {
		return errors.New("the service cannot accept control messages at this time") // so says the real one
	}
	s.State, s.until = Stopping, time.Now()
	if slices.Contains(s.Args, "slow") {
		s.until = time.Now().Add(90 * time.Second)
	}
	return nil
}

func (f *fakeSCM) query(name string) (scmState, error) {
	s, err := f.find("", name)
	if err != nil {
		return scmState{}, err
	}
	switch {
	case s.stuck:
	case s.State == Starting && !time.Now().Before(s.until) && !slices.Contains(s.Args, "dies"):
		s.scmState = scmState{State: Running, PID: 7}
	case (s.State == Stopping || s.State == Starting) && !time.Now().Before(s.until):
		s.scmState = scmState{State: Stopped}
		f.gone = time.Now().Add(scmPoll)
	case s.State == Starting, s.State == Stopping:
		s.CheckPoint++
	}
	return s.scmState, nil
}

func (f *fakeSCM) exists(pid int) bool { return pid == 7 && time.Now().Before(f.gone) }

func (f *fakeSCM) addSource(name string) error    { f.sources[name] = true; return nil }
func (f *fakeSCM) removeSource(name string) error { delete(f.sources, name); return nil }

// world is a machine with Windows: its manager, and a directory with everything else.
type world struct {
	t    *testing.T
	root string
	scm  *fakeSCM
	m    *windowsServices
	open grants // accounts that may open a file, besides the administrator
	exe  string // the program that somebody has downloaded
}

// grants are who may use files, as owner or by an access list. That goes with the file, whatever its name is, and ends with it.
type grants struct {
	t   *testing.T
	all []*grant
}

type grant struct {
	info fs.FileInfo
	who  string
}

func (g *grants) set(path, who string) {
	info, err := os.Stat(path)
	must(g.t, err)
	for _, had := range g.all {
		if os.SameFile(had.info, info) {
			had.who = who
			return
		}
	}
	g.all = append(g.all, &grant{info, who})
	if runtime.GOOS == "windows" {
		return
	}
	// No other file gets its number for as long as it is open.
	f, err := os.Open(path)
	must(g.t, err)
	g.t.Cleanup(func() { f.Close() })
}

// of is "" for a file that nobody got.
func (g *grants) of(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	for _, had := range g.all {
		if os.SameFile(had.info, info) {
			return had.who
		}
	}
	return ""
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir(), scm: &fakeSCM{services: map[string]*fakeService{}, sources: map[string]bool{}}, open: grants{t: t}}
	w.exe = filepath.Join(w.root, "Downloads 100%", "reverser.exe")
	for _, dir := range []string{"Downloads 100%", "Program Files", "ProgramData"} {
		must(t, os.Mkdir(filepath.Join(w.root, dir), 0o755))
	}
	must(t, os.WriteFile(w.exe, []byte("version 1"), 0o755))
	w.m = &windowsServices{scm: w.scm, programs: filepath.Join(w.root, "Program Files"), data: filepath.Join(w.root, "ProgramData"),
		protect: func(path, account string, full bool) error {
			if _, err := os.Stat(path); err != nil {
				return err
			}
			w.open.set(path, fmt.Sprint(account, " ", full))
			return nil
		}, owned: func(path string) error {
			_, err := os.Stat(path)
			return err
		}}
	return w
}

func (w *world) spec(args ...string) Spec {
	return Spec{Role: "bridge", Program: w.exe, Args: args, Token: "rv1_secret", Drain: 30 * time.Second}
}

// files are all files, with what is in them.
func (w *world) files() map[string]string {
	all := make(map[string]string)
	must(w.t, filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			all[path] = "directory"
			return err
		}
		text, err := os.ReadFile(path)
		all[path] = string(text)
		return err
	}))
	return all
}

func TestWindowsInstall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		before := w.files()
		must(t, w.m.Install(t.Context(), w.spec("9000=9904"), false))
		s := w.scm.services["reverser-bridge"]
		home := filepath.Join(w.root, "ProgramData", "reverser")
		token := filepath.Join(home, "bridge.token")
		if want := []string{"bridge", "--state", filepath.Join(home, "bridge"), "--service", "--token-file", token, "9000=9904"}; s == nil || !slices.Equal(s.Args, want) {
			t.Fatalf("the service is %+v, want arguments %q", s, want)
		}
		if s.State != Running || s.Account != `NT SERVICE\reverser-bridge` || s.StopWithin != 45*time.Second || s.Display != "Reverser bridge" {
			t.Errorf("the service is %+v", s)
		}
		if text, _ := os.ReadFile(s.Program); string(text) != "version 1" || s.Program == w.exe {
			t.Errorf("the program is %s with %q, want a copy", s.Program, text)
		}
		want := map[string]string{home: " true", filepath.Join(home, "bridge"): s.Account + " true", token: s.Account + " false"}
		for path, who := range want {
			if got := w.open.of(path); got != who {
				t.Errorf("%s is open to %q, want %q", path, got, who)
			}
		}
		if text, _ := os.ReadFile(token); string(text) != "rv1_secret\n" {
			t.Errorf("the token's file has %q", text)
		}
		if !w.scm.sources["reverser-bridge"] {
			t.Error("the event log does not know the service")
		}
		if got := w.m.State("bridge"); got != filepath.Join(home, "bridge") {
			t.Errorf("State = %q", got)
		}
		must(t, w.m.Stop(t.Context(), "bridge"))
		if st, err := w.m.Status(t.Context(), "bridge"); err != nil || st.State != Stopped || st.Why != "" {
			t.Errorf("Status = %+v, %v; want stopped", st, err)
		}
		must(t, w.m.Start(t.Context(), "bridge"))
		kept, err := w.m.Uninstall(t.Context(), "bridge", true)
		if err != nil || len(kept) > 0 {
			t.Errorf("Uninstall = %v, %v", kept, err)
		}
		if after := w.files(); !maps.Equal(before, after) || len(w.scm.services) > 0 || len(w.scm.sources) > 0 {
			t.Errorf("left: %v, %v, %v; want %v", after, w.scm.services, w.scm.sources, before)
		}
	})
}

func paths(kept []Kept) (all []string) {
	for _, k := range kept {
		all = append(all, k.Path)
	}
	return all
}

func TestWindowsUninstallKeeps(t *testing.T) {
	w := newWorld(t)
	must(t, w.m.Install(t.Context(), w.spec("9000"), false))
	proxy := w.spec()
	proxy.Role, proxy.Token = "proxy", ""
	must(t, w.m.Install(t.Context(), proxy, false))
	home := filepath.Join(w.root, "ProgramData", "reverser")
	kept, err := w.m.Uninstall(t.Context(), "bridge", false)
	if want := []string{filepath.Join(home, "bridge")}; err != nil || !slices.Equal(paths(kept), want) {
		t.Errorf("Uninstall = %v, %v; want %v", kept, err, want)
	}
	if s := w.scm.services["reverser-proxy"]; s == nil || s.State != Running {
		t.Fatalf("the other service: %+v", s)
	}
	if _, err := os.Stat(w.scm.services["reverser-proxy"].Program); err != nil {
		t.Errorf("the program of the other service: %v", err)
	}
	if _, err := w.m.Uninstall(t.Context(), "bridge", false); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("a second Uninstall = %v, want ErrNotInstalled", err)
	}
	if kept, err = w.m.Uninstall(t.Context(), "bridge", true); err != nil {
		t.Errorf("Uninstall with purge = %v, %v", kept, err)
	}
	if _, err := os.Stat(filepath.Join(home, "bridge")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state directory behind a purge: %v", err)
	}
}

// What somebody named as the state directory may have more in it.
func TestWindowsPurgeOfAnotherDirectory(t *testing.T) {
	w := newWorld(t)
	s := w.spec("9000")
	s.State = filepath.Join(w.root, "things")
	must(t, os.Mkdir(s.State, 0o755))
	must(t, os.WriteFile(filepath.Join(s.State, "thesis.txt"), nil, 0o644))
	must(t, w.m.Install(t.Context(), s, false))
	kept, err := w.m.Uninstall(t.Context(), "bridge", true)
	if err != nil || !slices.Equal(paths(kept), []string{s.State}) || !strings.Contains(kept[0].Why, "yours to remove") {
		t.Errorf("Uninstall = %v, %v; want what --state named to stay", kept, err)
	}
	if _, err := os.Stat(filepath.Join(s.State, "thesis.txt")); err != nil {
		t.Error(err)
	}
}

// Whatever goes wrong, what ran before goes on.
func TestWindowsGoesOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		args   []string
		change func(*world, *Spec)
		err    string
	}{
		{name: "no rights", change: func(w *world, _ *Spec) { w.scm.denied = true }, err: "this user may not"},
		{name: "another account, and it does not come up", args: []string{"broken"}, change: func(_ *world, s *Spec) { s.User = "LocalService" }, err: "exit code 2"},
		{name: "it does not come up", args: []string{"broken"}, err: "exit code 2: wrong usage or configuration; it said: reverser: the port is taken (hint: stop the other one)"},
		{name: "it hangs", args: []string{"stuck"}, err: "makes no progress"},
		{name: "no program", change: func(_ *world, s *Spec) { s.Program += ".gone" }, err: "reverser.exe.gone"},
		{name: "a user with a password", change: func(_ *world, s *Spec) { s.User = "me" }, err: "an account with a password"},
		{name: "a line break", args: []string{"a\nb"}, err: "cannot stand"},
		{name: "nothing to prepare with", change: func(_ *world, s *Spec) { s.Prepare = func(string) error { return errors.New("no room") } }, err: "no room"},
		{name: "not content", change: func(_ *world, s *Spec) {
			s.Check = func(context.Context, Manager) error { return errors.New("the key is refused") }
		}, err: "the key is refused"},
		{name: "no access lists", change: func(w *world, _ *Spec) {
			w.m.protect = func(string, string, bool) error { return errors.New("a FAT disk") }
		}, err: "a FAT disk"},
		{name: "a directory of somebody else", change: func(w *world, _ *Spec) {
			w.m.owned = func(path string) error { return fmt.Errorf("%s was made by somebody else", path) }
		}, err: "was made by somebody else"},
	} {
		for _, before := range []string{"nothing", "running", "stopped"} {
			t.Run(c.name+", "+before, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					if before != "nothing" {
						must(t, w.m.Install(t.Context(), w.spec("9000"), false))
						must(t, os.WriteFile(w.exe, []byte("version 2"), 0o755))
					}
					if before == "stopped" {
						must(t, w.m.Stop(t.Context(), "bridge"))
					}
					files, s := w.files(), w.spec(c.args...)
					token, state := w.m.token("bridge"), filepath.Join(w.m.home(), "bridge")
					users := []string{w.open.of(token), w.open.of(state)}
					var was scmConfig
					if before != "nothing" {
						was = w.scm.services["reverser-bridge"].scmConfig
					}
					if c.change != nil {
						c.change(w, &s)
					}
					err := w.m.Install(t.Context(), s, before != "nothing")
					if err == nil || !strings.Contains(err.Error(), c.err) {
						t.Fatalf("Install = %v, want an error with %q", err, c.err)
					}
					wantHintThatHolds(t, err)
					now := w.scm.services["reverser-bridge"]
					switch {
					case before == "nothing" && now != nil && !now.stuck: // one that hangs cannot be removed
						t.Errorf("left: %+v", now)
					case before == "nothing":
					case now == nil || !reflect.DeepEqual(now.scmConfig, was):
						t.Errorf("the service is %+v, want %+v", now, was)
					case now.stuck:
					case before == "running" && now.State != Running || before == "stopped" && now.State != Stopped:
						t.Errorf("the service is %s and was %s before (%v)", now.State, before, w.scm.orders)
					}
					if got := []string{w.open.of(token), w.open.of(state)}; before != "nothing" && !slices.Equal(got, users) && !now.stuck {
						t.Errorf("token and state directory are open to %q, and were to %q", got, users)
					}
					after := w.files()
					delete(after, filepath.Join(w.root, "ProgramData", "reverser", "bridge", LogFile))
					if !maps.Equal(files, after) && !(now != nil && now.stuck) {
						t.Errorf("files are %v, want %v", after, files)
					}
				})
			})
		}
	}
}

// wantHintThatHolds wants the log that a hint names to be there.
func wantHintThatHolds(t *testing.T, err error) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return
	}
	if _, path, ok := strings.Cut(e.Hint, "the whole log: "); ok {
		path, _, _ = strings.Cut(path, "; ")
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the hint is %q: %v", e.Hint, err)
		}
	}
}

// A second installation is refused, and with replace takes the place of the first, its program too.
func TestWindowsTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		must(t, w.m.Install(t.Context(), w.spec("9000"), false))
		if err := w.m.Install(t.Context(), w.spec("9001"), false); !errors.Is(err, ErrInstalled) {
			t.Fatalf("Install = %v, want ErrInstalled", err)
		}
		must(t, os.WriteFile(w.exe, []byte("version 2"), 0o755))
		must(t, w.m.Install(t.Context(), w.spec("9001", "slow"), true)) // longer than its patience, but it makes progress
		s := w.scm.services["reverser-bridge"]
		if text, _ := os.ReadFile(s.Program); string(text) != "version 2" || !slices.Contains(s.Args, "9001") || s.State != Running {
			t.Errorf("the program is %q, the service %+v", text, s)
		}
		if old, _ := filepath.Glob(s.Program + ".*"); len(old) > 0 {
			t.Errorf("left of the first: %v", old)
		}
		// The program that runs is that of the service already.
		again := w.spec("9002")
		again.Program = s.Program
		must(t, w.m.Install(t.Context(), again, true))
		if text, _ := os.ReadFile(s.Program); string(text) != "version 2" {
			t.Errorf("the program has %q", text)
		}
	})
}

// A service takes no orders while it starts: whoever wants it to stop waits until it runs.
func TestWindowsStopsOneThatStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		before := w.files()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // somebody presses Ctrl-C
		defer cancel()
		if err := w.m.Install(ctx, w.spec("9000", "slow"), false); !errors.Is(err, ctx.Err()) || strings.Contains(err.Error(), "not everything could be put back") {
			t.Errorf("Install = %v, want %v and nothing else", err, ctx.Err())
		}
		if after := w.files(); !maps.Equal(before, after) || len(w.scm.services) > 0 {
			t.Errorf("left: %v, %v; want %v", after, w.scm.services, before)
		}
		must(t, w.m.Install(t.Context(), w.spec("9000", "slow"), false))
		must(t, w.m.Stop(t.Context(), "bridge"))
		must(t, w.scm.start("reverser-bridge")) // as the system does, which does not wait
		must(t, w.m.Stop(t.Context(), "bridge"))
		if st, err := w.m.Status(t.Context(), "bridge"); err != nil || st.State != Stopped {
			t.Errorf("Status = %+v, %v; want stopped", st, err)
		}
	})
}

// The process of a service that stops while it starts has its files open until it is gone, as any other.
func TestWindowsStopsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if err := w.m.Install(t.Context(), w.spec("9000", "dies"), false); err == nil || strings.Contains(err.Error(), "not everything could be put back") {
			t.Errorf("Install = %v, want an error and nothing else", err)
		}
		w = newWorld(t)
		must(t, w.m.Install(t.Context(), w.spec("9000"), false))
		must(t, w.m.Stop(t.Context(), "bridge"))
		s := w.scm.services["reverser-bridge"]
		s.Args = append(s.Args, "dies")
		must(t, w.scm.start("reverser-bridge")) // as the system does, which does not wait
		_, err := w.m.Uninstall(t.Context(), "bridge", true)
		must(t, err)
	})
}

// The identifier of a service's account is made from its name alone.
func TestAccountSID(t *testing.T) {
	// Those of two services that every Windows has.
	for name, want := range map[string]string{
		"TrustedInstaller": "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",
		"WinDefend":        "S-1-5-80-1913148863-3492339771-4165695881-2087618961-4109116736",
	} {
		if got := accountSID(`NT SERVICE\` + name); got != want {
			t.Errorf("accountSID(%s) = %s, want %s", name, got, want)
		}
	}
}

func TestLogFile(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLog(dir)
	must(t, err)
	defer l.Close()
	var events []string
	l.Events = func(line string, isError bool) { events = append(events, fmt.Sprint(isError, " ", line)) }
	fmt.Fprintf(l, "<6>INF one\n<4>WRN two\n<3>ERR three\nreverser: four\n")
	if want := []string{"false WRN two", "true ERR three", "true reverser: four"}; !slices.Equal(events, want) {
		t.Errorf("events %q, want %q", events, want)
	}
	path := filepath.Join(dir, LogFile)
	if got, want := lastLines(path, 3), []string{"WRN two", "ERR three", "reverser: four"}; !slices.Equal(got, want) {
		t.Errorf("lastLines = %q, want %q", got, want)
	}
	line := "<6>" + strings.Repeat("x", 1000) + "\n"
	for range 3 * mostLog / 1000 {
		if _, err := l.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	var sum int64
	for _, name := range []string{LogFile, LogFile + ".old"} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		sum += info.Size()
	}
	if sum > 2*mostLog {
		t.Errorf("the log has %d bytes, want %d at the most", sum, 2*mostLog)
	}
	if got := lastLines(path, 2); len(got) != 2 || got[1] != strings.Repeat("x", 1000) {
		t.Errorf("lastLines = %d lines", len(got))
	}
	if got := lastLines(filepath.Join(dir, "nosuch"), 2); got != nil {
		t.Errorf("lastLines of no file = %q", got)
	}
}

func TestWarnings(t *testing.T) {
	at := func(ago time.Duration) string { return time.Now().Add(-ago).Format(time.DateTime) }
	lines := []string{at(time.Hour) + " WRN old", at(time.Minute) + " INF pair created", at(time.Minute) + " WRN one", at(time.Second) + " ERR two", `{"level":"WARN","msg":"three"}`, "WRN"}
	if got, want := warnings(lines, 3), []string{lines[2], lines[3], lines[4]}; !slices.Equal(got, want) {
		t.Errorf("warnings = %q, want %q", got, want)
	}
	if got, want := warnings(lines, 1), []string{lines[4]}; !slices.Equal(got, want) {
		t.Errorf("the last warning is %q, want %q", got, want)
	}
}
