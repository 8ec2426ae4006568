//go:build unix

package service

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeLaunchd is launchctl. A service whose list has the word broken ends at once with exit code 2.
type fakeLaunchd struct {
	root   string
	loaded bool
	broken bool
	orders []string
	owners grants
}

func newFakeLaunchd(t *testing.T) (*fakeLaunchd, *launchd) {
	f := &fakeLaunchd{root: t.TempDir(), owners: grants{t: t}}
	return f, &launchd{root: f.root, sudo: "me", run: f.run, give: func(path, user string) error {
		f.owners.set(path, user)
		return nil
	}}
}

func (f *fakeLaunchd) run(_ context.Context, name string, args ...string) (string, error) {
	if name != "launchctl" {
		return "", errors.New("no such program")
	}
	switch args[0] {
	case "print":
		if !f.loaded {
			return "", errors.New("exit status 113: Could not find service")
		}
		state, more := "running", "\tpid = 7\n"
		if f.broken {
			state, more = "not running", ""
		}
		return "system/reverser-bridge = {\n\tstate = " + state + "\n" + more + "\tlast exit code = " + map[bool]string{true: "2", false: "(never exited)"}[f.broken] + "\n\tenvironment = {\n\t\tpid = 9\n\t}\n}\n", nil
	case "bootstrap":
		if f.loaded {
			return "", errors.New("exit status 5: Bootstrap failed")
		}
		text, err := os.ReadFile(f.root + args[2])
		if err != nil {
			return "", err
		}
		f.loaded, f.broken = true, strings.Contains(string(text), "broken")
	case "bootout":
		f.loaded = false
	}
	f.orders = append(f.orders, strings.Join(args, " "))
	return "", nil
}

// wantOwner wants the files of the bridge to be a user's.
func (f *fakeLaunchd) wantOwner(user string) {
	f.owners.t.Helper()
	for _, name := range []string{"bridge", "bridge.token"} {
		if got := f.owners.of(f.root + supportDir + "/" + name); got != user {
			f.owners.t.Errorf("%s belongs to %q, want %q", name, got, user)
		}
	}
}

func TestLaunchd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, m := newFakeLaunchd(t)
		s := bridgeSpec("9000=9904", `--config=/a "b" <c> & 'd'`)
		must(t, m.Install(t.Context(), s, false))
		f.wantOwner("me")
		if info, err := os.Stat(f.root + "/Library/Application Support/reverser/bridge.token"); err != nil || info.Mode() != 0o600 {
			t.Errorf("the token's file: %v, %v", info, err)
		}
		if st, err := m.Status(t.Context(), "bridge"); err != nil || st.State != Running || st.PID != 7 {
			t.Errorf("Status = %+v, %v", st, err)
		}
		if got := m.State("bridge"); got != "/Library/Application Support/reverser/bridge" {
			t.Errorf("State = %q", got)
		}
		if err := m.Install(t.Context(), s, false); !errors.Is(err, ErrInstalled) {
			t.Errorf("a second Install = %v, want ErrInstalled", err)
		}
		must(t, m.Stop(t.Context(), "bridge"))
		if st, err := m.Status(t.Context(), "bridge"); err != nil || st.State != Stopped {
			t.Errorf("Status = %+v, %v; want stopped", st, err)
		}
		must(t, m.Start(t.Context(), "bridge"))
		kept, err := m.Uninstall(t.Context(), "bridge", true)
		if err != nil || len(kept) > 0 || f.loaded {
			t.Errorf("Uninstall = %v, %v; loaded %t", kept, err, f.loaded)
		}
		if _, err := m.Uninstall(t.Context(), "bridge", false); !errors.Is(err, ErrNotInstalled) {
			t.Errorf("a second Uninstall = %v", err)
		}
	})
}

// What somebody named as the state directory may have more in it.
func TestLaunchdPurgeOfAnotherDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, m := newFakeLaunchd(t)
		s := bridgeSpec("9000")
		s.State = "/Users/me/things"
		must(t, os.MkdirAll(f.root+s.State, 0o755))
		must(t, os.WriteFile(f.root+s.State+"/thesis.txt", nil, 0o644))
		must(t, m.Install(t.Context(), s, false))
		kept, err := m.Uninstall(t.Context(), "bridge", true)
		if err != nil || !slices.Equal(paths(kept), []string{s.State}) || !strings.Contains(kept[0].Why, "yours to remove") {
			t.Errorf("Uninstall = %v, %v; want what --state named to stay", kept, err)
		}
		if _, err := os.Stat(f.root + s.State + "/thesis.txt"); err != nil {
			t.Error(err)
		}
	})
}

// A list that launchd can read, whatever stands in it.
func TestLaunchdList(t *testing.T) {
	_, m := newFakeLaunchd(t)
	s := bridgeSpec(hardWords...)
	s.Drain = time.Hour
	text, err := m.plist(s)
	must(t, err)
	d := xml.NewDecoder(strings.NewReader(text))
	var words []string
	for {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		must(t, err)
		if start, ok := tok.(xml.StartElement); ok && start.Name.Local == "string" {
			var w string
			must(t, d.DecodeElement(&w, &start))
			words = append(words, w)
		}
	}
	i := slices.Index(words, "plain")
	if i < 0 || !slices.Equal(words[i:i+len(hardWords)], hardWords) {
		t.Errorf("the words in the list are %q, want %q in them", words, hardWords)
	}
	if !strings.Contains(text, "<key>ExitTimeOut</key><integer>3620</integer>") || strings.Contains(text, "rv1_") {
		t.Errorf("the list is\n%s", text)
	}
}

// What ran before goes on when the new one does not come up.
func TestLaunchdGoesOn(t *testing.T) {
	for _, before := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f, m := newFakeLaunchd(t)
			if before {
				must(t, m.Install(t.Context(), bridgeSpec("9000"), false))
			}
			m.uid = 501
			if err := m.Install(t.Context(), bridgeSpec("9001"), before); err == nil || !strings.Contains(err.Error(), "this user may not") {
				t.Errorf("Install without rights = %v", err)
			}
			m.uid = 0
			away := bridgeSpec("9001")
			away.Program = "/Users/me/Downloads/reverser_1.2.3_darwin_arm64/reverser"
			if p, err := m.Plan(away); err != nil || p.Obstacle == nil {
				t.Errorf("Plan of a program in Downloads has no obstacle, %v", err)
			}
			if err := m.Install(t.Context(), away, before); err == nil || !strings.Contains(err.Error(), "the folder Downloads") {
				t.Errorf("Install of a program in Downloads = %v", err)
			}
			s := bridgeSpec("broken")
			s.User = "another"
			err := m.Install(t.Context(), s, before)
			if err == nil || !strings.Contains(err.Error(), "exit code 2") {
				t.Errorf("Install = %v, want the reason", err)
			}
			if e, _ := errors.AsType[*Error](err); e == nil || strings.Contains(e.Hint, LogFile) != before {
				t.Errorf("%v has a hint at the log; want one exactly where there is a log: %t", e, before)
			}
			if before {
				f.wantOwner("me")
			}
			text, _ := os.ReadFile(f.root + "/Library/LaunchDaemons/reverser-bridge.plist")
			if f.loaded != before || f.broken && before || strings.Contains(string(text), "9000") != before || strings.Contains(string(text), "broken") {
				t.Errorf("before %t: loaded %t, broken %t, orders %q, the list is\n%s", before, f.loaded, f.broken, f.orders, text)
			}
		})
	}
}
