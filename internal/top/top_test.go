package top

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"reverser/internal/status"
)

var begun = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// snapshot is a process after some seconds, with so many connections, each of which sends a thousand bytes a second times its number.
func snapshot(n int, seconds float64) status.Snapshot {
	s := status.Snapshot{
		Role: "proxy", Version: "v1.2.3", UptimeSeconds: seconds,
		Links: []status.Link{
			{Key: "nas", Bridge: "a", Remote: "192.0.2.1:4000", State: status.LinkUp, RTTMillis: 12.34, Carriers: 4, Since: begun},
			{Key: "office", Bridge: "b", Remote: "[2001:db8::1]:4000", State: status.LinkDown, Since: begun},
		},
		Services: []status.Service{
			{Public: "tcp/9000", Target: "127.0.0.1:9904", Key: "nas", State: status.ServiceUp, Connections: n},
			{Public: "tcp/22", Target: "中文:22", Key: "office", State: status.ServiceDenied, Reason: "tcp/22 denied: the policy forbids it"},
		},
	}
	var all uint64
	for i := range n {
		moved := uint64(1000 * seconds * float64(i+1))
		all += moved
		s.Pairs = append(s.Pairs, status.Pair{
			ID: fmt.Sprint(i + 1), Service: "tcp/9000", Client: fmt.Sprintf("203.0.113.%d:%d", i%250, 1000+i), Target: "127.0.0.1:9904",
			Sent: moved, Since: begun.Add(time.Duration(i) * time.Second), State: status.PairOpen,
		})
	}
	s.Services[0].Sent = all
	s.Keys = []status.Key{{Key: "nas", Connections: n, Sent: all}, {Key: "office"}}
	return s
}

// shown is a model that has seen two samples, a second apart.
func shown(t testing.TB, n int) *model {
	m := newModel(t.Context(), Source{End: func(context.Context, string) error { return nil }})
	for i := range 2 {
		m.accept(sampled{at: begun.Add(time.Duration(i) * time.Second), snap: snapshot(n, float64(i+10))})
	}
	return m
}

func press(m *model, keys ...string) (last tea.Cmd) {
	special := map[string]rune{"tab": tea.KeyTab, "down": tea.KeyDown, "up": tea.KeyUp, "enter": tea.KeyEnter, "esc": tea.KeyEscape, "end": tea.KeyEnd, "home": tea.KeyHome, "pgdown": tea.KeyPgDown, "backspace": tea.KeyBackspace}
	for _, k := range keys {
		key := tea.KeyPressMsg{Text: k, Code: []rune(k)[0]}
		if code, ok := special[k]; ok {
			key = tea.KeyPressMsg{Code: code}
		}
		_, last = m.Update(key)
	}
	return last
}

func screen(m *model) string { return ansi.Strip(m.View().Content) }

// TestScreen: what is seen at 80x24.
func TestScreen(t *testing.T) {
	m := shown(t, 3)
	for _, want := range []string{
		"proxy v1.2.3, up 11s                               sent 6.0 kB/s  received 0 B/s\n",
		"1 of 2 links up   1 of 2 services up   3 connections\n",
		"link office to [2001:db8::1]:4000 is down\n",
		"tcp/22 is denied: the policy forbids it\n",
		"tcp/9000   203.0.113.2:1002          3.0 kB          -  33.0 kB     0s open",
	} {
		if !strings.Contains(screen(m), want) {
			t.Errorf("the screen has no %q:\n%s", want, screen(m))
		}
	}
	press(m, "2")
	if s := screen(m); !strings.Contains(s, "tcp/22     denied ") || strings.Index(s, "tcp/22  ") > strings.Index(s, "tcp/9000  ") {
		t.Errorf("services, the denied one first:\n%s", s)
	}
	press(m, "tab")
	if s := screen(m); !strings.Contains(s, "up        12.3 ms     6.0 kB") {
		t.Errorf("links:\n%s", s)
	}
	m.Update(sampled{err: errors.New("no process\x1b[2J")})
	if s := screen(m); !strings.Contains(s, `the process does not answer, waiting for it: no process\u001b[2J`) || strings.Contains(s, "kB/s") {
		t.Errorf("a process that is gone:\n%s", s)
	}
	m.Update(sampled{at: begun.Add(time.Minute), snap: snapshot(3, 1)})
	if s := screen(m); strings.Contains(s, "does not answer") || !strings.Contains(s, "sent 0 B/s") {
		t.Errorf("the next process, whose counters began anew:\n%s", s)
	}
}

// TestSilence: a process that is there and does not answer is said to be silent long before a look at it is given up.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		look := func(context.Context) (status.Snapshot, error) {
			<-answer
			return snapshot(3, 20), nil
		}
		m := newModel(t.Context(), Source{Look: look})
		m.accept(sampled{at: time.Now(), snap: snapshot(3, 10)})
		// Commands run as the program runs them: each by itself, and their messages come one after the other.
		messages := make(chan tea.Msg, 16)
		do := func(cmd tea.Cmd) {
			if cmd == nil {
				return
			}
			go func() { messages <- cmd() }()
		}
		next := func() {
			switch msg := (<-messages).(type) {
			case tea.BatchMsg:
				for _, cmd := range msg {
					do(cmd)
				}
			default:
				_, cmd := m.Update(msg)
				do(cmd)
			}
		}
		begun := time.Now()
		do(m.Init())
		for !strings.Contains(screen(m), "does not answer") {
			next()
		}
		if took := time.Since(begun); took < silence || took > silence+2*every {
			t.Errorf("it is said after %s, want %s and not much more", took, silence)
		}
		close(answer)
		for strings.Contains(screen(m), "does not answer") {
			next()
		}
		for range 100 { // what was waited for before counts no more
			next()
			if strings.Contains(screen(m), "does not answer") {
				t.Fatalf("it answers, and is said not to:\n%s", screen(m))
			}
		}
		end := time.Now()
		for time.Since(end) < 2*silence { // all that waits comes to its end
			time.Sleep(every)
			for len(messages) > 0 {
				<-messages
			}
		}
	})
}

// TestLinesOfSilence: the same in lines, once.
func TestLinesOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began, looks := time.Now(), 0
		src := Source{Look: func(ctx context.Context) (status.Snapshot, error) {
			if looks++; looks == 2 {
				time.Sleep(20 * time.Second)
			}
			if looks == 4 {
				cancel()
			}
			return snapshot(3, 10+time.Since(began).Seconds()), nil
		}}
		var told []string
		if err := Lines(ctx, src, snapshot(3, 10), io.Discard, func(err error) {
			told = append(told, fmt.Sprint(time.Since(began).Truncate(time.Second), " ", err))
		}); err != nil {
			t.Errorf("Lines = %v", err)
		}
		want := []string{"8s " + ErrSilent.Error(), "22s <nil>"}
		if !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

// TestTroublesOfUsage: what cannot be stored is wrong, and so is a file that was damaged.
func TestTroublesOfUsage(t *testing.T) {
	snap := status.Snapshot{Role: "proxy", Usage: &status.Usage{File: "/x/usage.db", Error: "no space", PutAside: "/x/usage.db.damaged", Damage: "a bad checksum"}}
	got := (&sample{snap: snap}).troubles()
	want := []string{"usage cannot be stored, and is kept in memory: no space", "the file of usage was damaged and put aside as /x/usage.db.damaged: a bad checksum"}
	if !slices.Equal(got, want) {
		t.Errorf("troubles = %q, want %q", got, want)
	}
	snap.Usage = &status.Usage{File: "/x/usage.db"}
	if got := (&sample{snap: snap}).troubles(); got != nil {
		t.Errorf("troubles = %q, want none", got)
	}
}

// TestTroublesOfCertificates: what is wrong with a certificate, by its state.
func TestTroublesOfCertificates(t *testing.T) {
	snap := status.Snapshot{Role: "proxy", Certificates: []status.Certificate{
		{Host: "a", State: status.CertificateFailed, Error: "no route"}, {Host: "b", State: status.CertificateFailed},
		{Host: "c", State: status.CertificateValid, Error: "no route"}, {Host: "d", State: status.CertificatePending, Error: "no route"},
		{Host: "e", State: status.CertificateValid}, {Host: "f", State: status.CertificatePending},
	}}
	got := (&sample{snap: snap}).troubles()
	want := []string{"certificate of a failed: no route", "certificate of b failed", "certificate of c was not renewed: no route", "certificate of d has not come yet: no route"}
	if !slices.Equal(got, want) {
		t.Errorf("troubles = %q, want %q", got, want)
	}
}

// TestTroublesOfEnds: what ends within a week is said, and of a certificate that renews itself once that is late.
func TestTroublesOfEnds(t *testing.T) {
	at := func(d time.Duration) time.Time { return begun.Add(d) }
	const day = 24 * time.Hour
	snap := status.Snapshot{Role: "proxy",
		Keys: []status.Key{
			{Key: "never"}, {Key: "later", Expires: at(8 * day)}, {Key: "soon", Expires: at(40 * time.Minute)}, {Key: "over", Expires: at(-3 * time.Minute), Expired: true},
		},
		Certificates: []status.Certificate{
			{Host: "later", State: status.CertificateValid, NotAfter: at(8 * day)}, {Host: "soon", State: status.CertificateValid, NotAfter: at(3*day + 2*time.Hour)},
			{Host: "renews", State: status.CertificateValid, NotAfter: at(5 * day), RenewAt: at(day)},
			{Host: "busy", State: status.CertificateValid, NotAfter: at(5 * day), RenewAt: at(-time.Minute)},
			{Host: "late", State: status.CertificateValid, NotAfter: at(5 * day), RenewAt: at(-2 * time.Hour)},
		},
	}
	got := (&sample{at: begun, snap: snap}).troubles()
	want := []string{
		"key soon expires in 40m0s", "key over expired 3m0s ago",
		"certificate of soon expires in 3d2h", "certificate of late expires in 5d0h",
	}
	if !slices.Equal(got, want) {
		t.Errorf("troubles = %q, want %q", got, want)
	}
}

// TestFits: at any size, in any state, whatever strangers say, nothing is wider or higher than the screen, and nothing moves its cursor.
func TestFits(t *testing.T) {
	evil := "中\x1b]52;c;ZXZpbA==\x07\x1b[2J\r\n\u009b31m\u202e界" + strings.Repeat("é́́́", 2000)
	snap := snapshot(50, 20)
	snap.Version, snap.Faults = evil, []string{evil}
	for i := range snap.Pairs {
		snap.Pairs[i].Client, snap.Pairs[i].Target, snap.Pairs[i].Service = evil, evil, evil
	}
	for i := range snap.Services {
		snap.Services[i].Public, snap.Services[i].Target, snap.Services[i].Key, snap.Services[i].Reason, snap.Services[i].State = evil, evil, evil, evil, evil
	}
	for i := range snap.Links {
		snap.Links[i].Key, snap.Links[i].Remote, snap.Links[i].State = evil, evil, evil
	}
	m := shown(t, 50)
	states := map[string]func(){
		"list": func() {}, "help": func() { m.help = true }, "a question": func() { press(m, "1", "down", "x") }, "typing": func() { press(m, "/", "中") },
		"a note": func() { m.Update(ended{snap.Pairs[0], errors.New(evil)}) }, "paused": func() { press(m, "p") }, "gone": func() { m.accept(sampled{err: errors.New(evil)}) },
	}
	for name, enter := range states {
		for k := range kinds {
			m = shown(t, 50)
			m.accept(sampled{at: begun.Add(2 * time.Second), snap: snap})
			m.shown = k
			enter()
			for _, w := range []int{1, 2, 10, 19, 20, 21, 33, 40, 59, 60, 79, 80, 101, 129} {
				for _, h := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 24, 60} {
					m.Update(tea.WindowSizeMsg{Width: w, Height: h})
					content := m.View().Content
					lines := strings.Split(content, "\n")
					if len(lines) > h {
						t.Fatalf("%s, list %d: %d lines at %dx%d:\n%s", name, k, len(lines), w, h, ansi.Strip(content))
					}
					for _, line := range lines {
						if got := ansi.StringWidth(line); got > w {
							t.Fatalf("%s, list %d: a line of %d at %dx%d: %q", name, k, got, w, h, line)
						}
					}
					if at := strings.IndexFunc(ansi.Strip(content), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); at >= 0 {
						t.Fatalf("%s, list %d, %dx%d: a character that is not printable at %d of %q", name, k, w, h, at, ansi.Strip(content))
					}
					for _, part := range strings.Split(content, "\x1b")[1:] { // of sequences there are our own styles alone
						if end := strings.IndexFunc(part, unicode.IsLetter); part[0] != '[' || part[end] != 'm' {
							t.Fatalf("%s, list %d, %dx%d: the sequence %q", name, k, w, h, part)
						}
					}
				}
			}
		}
	}
}

// TestNames: names that begin and end alike can be told apart. The name has the room first, and a column without content takes none from it.
func TestNames(t *testing.T) {
	snap := snapshot(2, 20)
	long := []string{"http/app.example.com", "http/app.example.org", "http/" + strings.Repeat("a", 80) + ".example.com", "http/" + strings.Repeat("a", 80) + ".example.org"}
	snap.Services = nil
	for _, name := range long {
		snap.Services = append(snap.Services, status.Service{Public: name, Key: "nas", Target: "127.0.0.1:80", State: status.ServiceUp})
	}
	for i := range snap.Pairs {
		snap.Pairs[i].Service = long[i%2]
	}
	for _, width := range []int{80, 120} {
		for _, list := range []string{"1", "2"} {
			m := shown(t, 2)
			m.Update(tea.WindowSizeMsg{Width: width, Height: 24})
			m.accept(sampled{at: begun.Add(2 * time.Second), snap: snap})
			press(m, list)
			s := screen(m)
			for _, want := range []string{"http/app.example.com ", "http/app.example.org "} {
				if !strings.Contains(s, want) {
					t.Errorf("width %d, list %s: %q is not shown:\n%s", width, list, want, s)
				}
			}
			if list == "2" && (!regexp.MustCompile(`http/a+…[.a-z]+\.com `).MatchString(s) || !regexp.MustCompile(`http/a+…[.a-z]+\.org `).MatchString(s)) {
				t.Errorf("width %d: long names are not cut in the middle:\n%s", width, s)
			}
		}
	}
	for _, c := range []struct {
		s     string
		width int
		want  string
	}{{"abcdefgh", 8, "abcdefgh"}, {"abcdefgh", 7, "abc…fgh"}, {"abcdefgh", 6, "abc…gh"}, {"abcdefgh", 3, "a…h"}, {"中中中中", 5, "中…中"}} {
		if got := cutMiddle(c.s, c.width); got != c.want {
			t.Errorf("cutMiddle(%q, %d) = %q; want %q", c.s, c.width, got, c.want)
		}
	}
}

// ids are the connections as they are listed.
func ids(m *model) string {
	var all []string
	for _, it := range m.views[m.shown].list {
		all = append(all, it.id)
	}
	return strings.Join(all, " ")
}

// TestKeys: sorting, finding, choosing and pausing.
func TestKeys(t *testing.T) {
	m := shown(t, 4)
	for _, c := range []struct {
		keys []string
		want string
	}{
		{nil, "4 3 2 1"}, // by rate
		{[]string{"r"}, "1 2 3 4"},
		{[]string{"r", "s"}, "4 3 2 1"}, // by total
		{[]string{"s"}, "1 2 3 4"},      // by age
		{[]string{"s"}, "1 2 3 4"},      // by name
		{[]string{"s"}, "4 3 2 1"},
		{[]string{"/", "1", "0", "0", "2"}, "3"},
		{[]string{"backspace", "enter"}, "4 3 2 1"},
		{[]string{"/", "q", "x", "enter"}, ""},
		{[]string{"esc"}, "4 3 2 1"},
		{[]string{"/", "T", "C", "P", "esc"}, "4 3 2 1"},
	} {
		press(m, c.keys...)
		if got := ids(m); got != c.want {
			t.Errorf("after %q the connections are %q, want %q", c.keys, got, c.want)
		}
	}
	press(m, "down", "down")
	if got := m.views[pairs].chosen; got != "2" {
		t.Errorf("the third line has connection %q, want 2", got)
	}
	// It stays the chosen one where others pass it, and the next one is in its place when it is gone.
	snap := snapshot(4, 12)
	snap.Pairs[1].Sent += 1 << 20
	m.Update(sampled{at: begun.Add(2 * time.Second), snap: snap})
	if v := m.views[pairs]; ids(m) != "2 4 3 1" || v.chosen != "2" || v.line != 0 {
		t.Errorf("the list is %s, and %q on line %d is chosen", ids(m), v.chosen, v.line)
	}
	snap = snapshot(4, 13)
	snap.Pairs = append(snap.Pairs[:1], snap.Pairs[2:]...)
	m.Update(sampled{at: begun.Add(3 * time.Second), snap: snap})
	if v := m.views[pairs]; v.chosen != "4" || v.line != 0 {
		t.Errorf("when it is gone, %q on line %d is chosen", v.chosen, v.line)
	}
	press(m, "p")
	m.Update(sampled{at: begun.Add(4 * time.Second), snap: snapshot(1, 14)})
	if !strings.Contains(screen(m), "PAUSED") || ids(m) != "4 3 1" {
		t.Errorf("paused, it shows %q:\n%s", ids(m), screen(m))
	}
	press(m, "p")
	m.Update(sampled{at: begun.Add(5 * time.Second), snap: snapshot(1, 15)})
	if ids(m) != "1" {
		t.Errorf("afterwards it shows %q", ids(m))
	}
	if cmd := press(m, "q"); cmd == nil || cmd() != (tea.QuitMsg{}) {
		t.Error("q does not quit")
	}
}

// TestEnd: the connection that the question names is ended, whatever has moved meanwhile, and none without a yes.
func TestEnd(t *testing.T) {
	m := shown(t, 4)
	var ends []string
	m.src.End = func(_ context.Context, id string) error { ends = append(ends, id); return errors.New("no\x1b[2J") }
	press(m, "down", "x")
	if s := screen(m); !strings.Contains(s, "y ends connection 3, 203.0.113.2:1002 to tcp/9000") {
		t.Fatalf("no question:\n%s", s)
	}
	if cmd := press(m, "n"); cmd != nil || m.question != nil {
		t.Error("n is taken for a yes, or for nothing")
	}
	press(m, "x")
	snap := snapshot(4, 12)
	snap.Pairs[0].Sent += 1 << 20
	m.Update(sampled{at: begun.Add(2 * time.Second), snap: snap})
	cmd := press(m, "y")
	if cmd == nil {
		t.Fatal("y does nothing")
	}
	m.Update(cmd())
	if strings.Join(ends, " ") != "3" {
		t.Errorf("ended %v, want 3", ends)
	}
	if s := screen(m); !strings.Contains(s, `not ended: no\u001b[2J`) {
		t.Errorf("the error is not shown:\n%s", s)
	}
	press(m, "2", "x")
	if m.question != nil || !strings.Contains(screen(m), "choose one in the list of connections") {
		t.Errorf("a service:\n%s", screen(m))
	}
	m = shown(t, 0)
	if press(m, "x"); m.question != nil {
		t.Error("a question about nothing")
	}
}

// TestLines: one line a second, with rates; a process that is gone is told, and the next one goes on; some errors end it.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started, looks := time.Now(), 0
		src := Source{
			Look: func(context.Context) (status.Snapshot, error) {
				looks++
				if looks == 3 || looks == 4 {
					return status.Snapshot{}, errors.New("gone")
				}
				if looks == 7 {
					return status.Snapshot{}, errors.New("not allowed")
				}
				return snapshot(30, 10+time.Since(started).Seconds()), nil
			},
			Fatal: func(err error) bool { return err.Error() == "not allowed" },
		}
		var out bytes.Buffer
		var told []error
		err := Lines(t.Context(), src, snapshot(30, 10), &out, func(err error) { told = append(told, err) })
		if err == nil || err.Error() != "not allowed" {
			t.Errorf("Lines = %v", err)
		}
		if len(told) != 2 || told[0] == nil || told[1] != nil {
			t.Errorf("told %v; want once that it is gone, once that it is back", told)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 4 {
			t.Fatalf("%d lines, want 4:\n%s", len(lines), out.String())
		}
		for _, text := range lines {
			var l Line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatal(err)
			}
			if l.Connections != 30 || l.Sent != 465_000 || len(l.Pairs) != mostPairs || l.Pairs[0].ID != "30" || l.Pairs[0].Sent != 30_000 || len(l.Wrong) != 2 || l.Services[0].Sent != 465_000 || l.Links[0].Key != "nas" {
				t.Errorf("the line is %s", text)
			}
		}
	})
	if err := Lines(t.Context(), Source{Look: func(context.Context) (status.Snapshot, error) { return snapshot(1, 11), nil }}, snapshot(1, 10), full{}, nil); err == nil {
		t.Error("an output that takes nothing is no error")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestUnfit(t *testing.T) {
	if Unfit("xterm-256color") != "" || Unfit("linux") != "" {
		t.Error("a common terminal is refused")
	}
	if !strings.Contains(Unfit("dumb"), "cursor") {
		t.Error("TERM=dumb is accepted")
	}
}

// BenchmarkSecond is what a second costs with 10,000 connections: a sample and two screens.
func BenchmarkSecond(b *testing.B) {
	m := newModel(b.Context(), Source{})
	snaps := [2]status.Snapshot{snapshot(10_000, 10), snapshot(10_000, 11)}
	i := 0
	for b.Loop() {
		m.accept(sampled{at: begun.Add(time.Duration(i) * time.Second), snap: snaps[i%2]})
		m.View()
		m.View()
		i++
	}
}
