package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/relay"
	"reverser/internal/state"
	"reverser/internal/status"
	"reverser/internal/traffic"
)

// fakeSource says what a test wants it to.
type fakeSource struct {
	mu       sync.Mutex
	set      config.Settings // guarded by mu, as all below
	warnings []config.Warning
	err      error
	loads    int
	changed  chan struct{} // of Watch; nil: it fails
	dead     chan struct{} // set before anybody reads: a Load that has read waits for it, as on a disk that does not answer
}

func (s *fakeSource) Load() (config.Settings, []config.Warning, error) {
	s.mu.Lock()
	s.loads++
	set, warnings, err := s.set, s.warnings, s.err
	s.mu.Unlock()
	if s.dead != nil {
		<-s.dead
	}
	return set, warnings, err
}

func (s *fakeSource) Watch(ctx context.Context, changed func()) error {
	if s.changed == nil {
		return errors.New("no watches left")
	}
	for {
		select {
		case <-s.changed:
			changed()
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *fakeSource) say(set config.Settings, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set, s.err = set, err
}

// fakeRole takes settings, unless it is told not to.
type fakeRole struct {
	mu      sync.Mutex
	applied []config.Settings // guarded by mu, as all below
	err     error
	busy    chan struct{}                  // an Apply waits for it
	wait    func(context.Context) []string // of the confirmation; nil: there is none
	refused []string                       // that it tells of
}

type fakeConfirmation struct {
	wait    func(context.Context) []string
	refused []string
}

func (c fakeConfirmation) Wait(ctx context.Context) []string { return c.wait(ctx) }
func (c fakeConfirmation) Refused() []string                 { return c.refused }

func (r *fakeRole) Apply(ctx context.Context, set config.Settings) (confirmation, error) {
	r.mu.Lock()
	busy := r.busy
	r.mu.Unlock()
	if busy != nil {
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	r.applied = append(r.applied, set)
	if r.wait == nil {
		return nil, nil
	}
	return fakeConfirmation{r.wait, r.refused}, nil
}

func (r *fakeRole) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.applied)
}

type reloadTest struct {
	*reloader
	source *fakeSource
	role   *fakeRole
	level  *slog.LevelVar
	out    *syncBuffer
}

func newReloadTest(t *testing.T, set config.Settings) *reloadTest {
	rt := &reloadTest{source: &fakeSource{set: set}, role: &fakeRole{}, level: new(slog.LevelVar), out: &syncBuffer{}}
	log := slog.New(slog.NewTextHandler(rt.out, nil))
	lines := newAccessLog(log)
	t.Cleanup(lines.Close)
	rt.reloader = newReloader(rt.source, rt.role, set, rt.level, lines, log)
	return rt
}

func exposing(t *testing.T, exposes ...string) config.Settings {
	t.Helper()
	set := config.Settings{Role: config.RoleBridge}
	for _, s := range exposes {
		e, err := grammar.ParseExpose(s)
		if err != nil {
			t.Fatal(err)
		}
		set.Bridge.Services = append(set.Bridge.Services, e)
	}
	return set
}

// TestReload: what is different is applied and said, and what is refused changes nothing and is said everywhere.
func TestReload(t *testing.T) {
	start := exposing(t, "9000=80")
	next := exposing(t, "9000=80", "9001=81")
	next.LogLevel = slog.LevelDebug
	fixed := exposing(t, "9000=80", "9001=81")
	fixed.Bridge.Proxies = []string{"other:3010"}
	for _, c := range []struct {
		name    string
		set     config.Settings
		load    error
		apply   error
		applied int
		changed []string
		err     string
	}{
		{name: "nothing", set: start},
		{name: "a service more", set: next, applied: 1, changed: []string{"log_level is debug instead of info", "service tcp/9001 added, target 127.0.0.1:81"}},
		{name: "a bad file", load: &config.Error{File: "b.toml", Line: 3, Key: "public", Text: "no such kind", Hint: "write tcp/"}, err: "b.toml:3: public: no such kind: write tcp/"},
		{name: "two faults", load: errors.Join(&config.Error{File: "b.toml", Line: 3, Text: "x"}, &config.Error{File: "b.toml", Line: 4, Text: "y"}), err: "b.toml:3: x\nb.toml:4: y"},
		{name: "nothing to expose", load: &config.ArgError{Err: errors.New("nothing to expose"), Hint: "add 9000"}, err: "nothing to expose: add 9000"},
		{name: "a fixed option", set: fixed, err: "needs a restart"},
		{name: "the role refuses", set: next, apply: errors.New("too many services"), err: "too many services"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rt := newReloadTest(t, start)
			if rt.lastReload() != nil {
				t.Error("there is word of a reload before the first one")
			}
			rt.source.say(c.set, c.load)
			rt.role.err = c.apply
			done, err := rt.Reload(t.Context())
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Fatalf("Reload = %v; want %q", err, c.err)
			}
			if !slices.Equal(done.Changed, c.changed) || rt.role.count() != c.applied {
				t.Errorf("Reload = %+v, applied %d times; want %q and %d", done, rt.role.count(), c.changed, c.applied)
			}
			if _, ok := errors.AsType[*admin.UsageError](err); err != nil && !ok {
				t.Errorf("%#v is no UsageError", err)
			}
			last := rt.lastReload()
			if last == nil || last.At.IsZero() || !strings.Contains(last.Error, c.err) || (c.err == "") != (last.Error == "") {
				t.Errorf("status has %+v", last)
			}
			if b, _ := json.Marshal(last); !strings.Contains(string(b), `"error":"`) {
				t.Errorf("in JSON: %s; want at and error", b)
			}
			wantLevel, wantServices := slog.LevelInfo, 1
			if c.applied > 0 {
				wantLevel, wantServices = slog.LevelDebug, 2
			}
			if rt.level.Level() != wantLevel || len(rt.settings().Bridge.Services) != wantServices {
				t.Errorf("level %v and %d services are in force; want %v and %d", rt.level.Level(), len(rt.settings().Bridge.Services), wantLevel, wantServices)
			}
			log := rt.out.String()
			for _, s := range c.changed {
				if !strings.Contains(log, s) {
					t.Errorf("no word of %q in the log:\n%s", s, log)
				}
			}
			if first, _, _ := strings.Cut(c.err, "\n"); c.err != "" && (!strings.Contains(log, "reload refused") || !strings.Contains(log, first)) {
				t.Errorf("no word of %q in the log:\n%s", c.err, log)
			}
			// A mended file is taken, whatever was before.
			rt.role.err = nil
			rt.source.say(next, nil)
			if _, err := rt.Reload(t.Context()); err != nil || rt.lastReload().Error != "" || len(rt.settings().Bridge.Services) != 2 {
				t.Errorf("Reload afterwards = %v, %+v", err, rt.lastReload())
			}
		})
	}
}

func TestReloadWarnings(t *testing.T) {
	rt := newReloadTest(t, exposing(t, "9000"))
	rt.source.warnings = []config.Warning{{File: "b.config", Line: 4, Text: "ignored"}}
	done, err := rt.Reload(t.Context())
	if err != nil || !slices.Equal(done.Warnings, []string{"b.config:4: ignored"}) || !strings.Contains(rt.out.String(), "b.config:4: ignored") {
		t.Errorf("Reload = %+v, %v, log %s", done, err, rt.out)
	}
}

// TestReloadConfirmed: a reload waits for the other end, but not for ever, and nobody else has to wait for that.
func TestReloadConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newReloadTest(t, exposing(t, "9000"))
		confirmed := make(chan struct{})
		rt.role.wait = func(ctx context.Context) []string {
			select {
			case <-confirmed:
				return nil
			case <-ctx.Done():
				return []string{"tcp/9001 at p:3010"}
			}
		}
		rt.source.say(exposing(t, "9000", "9001"), nil)
		begin := time.Now()
		done, err := rt.Reload(t.Context())
		if err != nil || !slices.Equal(done.Unconfirmed, []string{"tcp/9001 at p:3010"}) || time.Since(begin) != confirmLimit {
			t.Errorf("Reload = %+v, %v after %s; want a word about tcp/9001 after %s", done, err, time.Since(begin), confirmLimit)
		}
		if !strings.Contains(rt.out.String(), "tcp/9001 at p:3010") {
			t.Errorf("no word of it in the log:\n%s", rt.out)
		}

		rt.source.say(exposing(t, "9000"), nil)
		var wg sync.WaitGroup
		begin = time.Now()
		order := func(changes int) {
			wg.Go(func() {
				if done, err := rt.Reload(t.Context()); err != nil || len(done.Unconfirmed) != 0 || len(done.Changed) != changes || time.Since(begin) != time.Second {
					t.Errorf("Reload = %+v, %v after %s; want %d changes, confirmed after a second", done, err, time.Since(begin), changes)
				}
			})
			synctest.Wait()
		}
		order(1)
		// An order that finds nothing to do, because the change of the file was noticed, waits for the same confirmation. One that
		// finds something does it at once.
		order(0)
		rt.source.say(exposing(t, "9001"), nil)
		order(2)
		if n := rt.role.count(); n != 3 {
			t.Errorf("%d settings were applied; want 3: the last one does not wait for the confirmation of the one before", n)
		}
		time.Sleep(time.Second)
		close(confirmed)
		wg.Wait()
		// What is confirmed is not asked for again.
		if !rt.change.confirmed {
			t.Error("a confirmation is still waited for")
		}
	})
}

// TestReloadRefused: a reload says which services of the change the other end does not serve, and so does the next one, which finds nothing to
// do because a change of the file was noticed. That is no change of what is in force.
func TestReloadRefused(t *testing.T) {
	rt := newReloadTest(t, exposing(t, "9000"))
	waits := 0
	rt.role.wait = func(context.Context) []string { waits++; return nil }
	rt.role.refused = []string{"service tcp/9001 is denied at p:3010: not allowed"}
	rt.source.warnings = []config.Warning{{File: "b.config", Line: 4, Text: "ignored"}}
	rt.source.say(exposing(t, "9000", "9001"), nil)
	for _, changes := range []int{1, 0} {
		done, err := rt.Reload(t.Context())
		if err != nil || len(done.Changed) != changes || !slices.Equal(done.Warnings, []string{"b.config:4: ignored", rt.role.refused[0]}) {
			t.Errorf("Reload = %+v, %v; want %d changes and a word about tcp/9001", done, err, changes)
		}
	}
	if waits != 1 {
		t.Errorf("the confirmation was waited for %d times, want once", waits)
	}
	rt.role.refused = nil
	rt.source.say(exposing(t, "9000"), nil)
	if done, err := rt.Reload(t.Context()); err != nil || len(done.Warnings) != 1 {
		t.Errorf("Reload = %+v, %v; want no word about a service that is gone", done, err)
	}
}

// TestReloadOneByOne: an order waits for the one before it, and reads the settings when it is its turn.
func TestReloadOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newReloadTest(t, exposing(t, "9000"))
		rt.role.busy = make(chan struct{})
		rt.source.say(exposing(t, "9000", "9001"), nil)
		gone, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { rt.Reload(gone) })
		synctest.Wait()
		wg.Go(func() {
			if done, err := rt.Reload(t.Context()); err != nil || len(done.Changed) != 1 {
				t.Errorf("the second order: %+v, %v", done, err)
			}
		})
		synctest.Wait()
		if rt.source.loads != 1 {
			t.Errorf("%d loads while the first order is under way; want 1", rt.source.loads)
		}
		// Somebody who gives up leaves the queue.
		third, giveUp := context.WithCancel(t.Context())
		giveUp()
		if _, err := rt.Reload(third); err == nil || !strings.Contains(err.Error(), "another change is under way") {
			t.Errorf("Reload of somebody who gave up = %v", err)
		}
		// An order that has begun is carried out, also when whoever gave it has gone.
		cancel()
		synctest.Wait()
		rt.source.say(exposing(t, "9000", "9001", "9002"), nil)
		close(rt.role.busy)
		wg.Wait()
		if got := len(rt.role.applied); got != 2 || len(rt.settings().Bridge.Services) != 3 {
			t.Errorf("%d settings were applied, the last with %d services; want 2 and 3", got, len(rt.settings().Bridge.Services))
		}
	})
}

func TestReloadWhileStopping(t *testing.T) {
	rt := newReloadTest(t, exposing(t, "9000"))
	rt.stop()
	_, err := rt.Reload(t.Context())
	if err == nil || !strings.Contains(err.Error(), "stopping") || rt.source.loads != 0 || rt.lastReload() != nil {
		t.Errorf("Reload = %v, %d loads; want a word and nothing done", err, rt.source.loads)
	}
}

// TestEditedKeys: an edit of the stored keys is in force at once, with the file's tables as they were taken last, and also
// while the process stops.
func TestEditedKeys(t *testing.T) {
	pin := [32]byte{9}
	table := func(name string, id byte) config.KeyTable {
		return config.KeyTable{Name: name, Token: grammar.Token{KeyID: [16]byte{id}, Pin: pin}, File: "p.toml"}
	}
	start := config.Settings{Role: config.RoleProxy}
	start.Proxy.Tables = []config.KeyTable{table("office", 1)}
	rt := newReloadTest(t, start)
	later := start
	later.Proxy.Tables = append(later.Proxy.Tables, table("new", 2))
	rt.source.say(later, nil)
	rt.stop()
	keys := []state.Key{{Name: "nas", ID: [16]byte{3}}}
	stored := func() ([]state.Key, error) { return keys, nil }
	if err := rt.edited(stored, pin); err != nil || fmt.Sprint(rt.settings().Proxy.Keys) != "[office nas]" || rt.role.count() != 1 {
		t.Errorf("edited = %v, keys %v", err, rt.settings().Proxy.Keys)
	}
	keys = append(keys, state.Key{Name: "office", ID: [16]byte{4}})
	if err := rt.edited(stored, pin); err == nil || fmt.Sprint(rt.settings().Proxy.Keys) != "[office nas]" || rt.role.count() != 1 {
		t.Errorf("edited with two keys of one name = %v, keys %v", err, rt.settings().Proxy.Keys)
	}
	failed := errors.New("the disk is gone")
	if err := rt.edited(func() ([]state.Key, error) { return nil, failed }, pin); err != failed {
		t.Errorf("edited = %v; want %v", err, failed)
	}
	if rt.lastReload() != nil {
		t.Error("an edit of the keys counts as a reload")
	}
}

// TestUnderway: a reload that waits for a disk is told from its beginning to its end, also while another one waits for it.
func TestUnderway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newReloadTest(t, exposing(t, "9000=80"))
		rt.source.dead = make(chan struct{})
		if u := rt.underway(); u != nil {
			t.Errorf("before any reload: underway = %+v", u)
		}
		began := time.Now()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if _, err := rt.Reload(t.Context()); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(time.Hour)
		}
		u := rt.underway()
		if u == nil || !u.Since.Equal(began) {
			t.Fatalf("underway = %+v; want since %v", u, began)
		}
		var out strings.Builder
		if err := printStatus(&out, status.Snapshot{Role: "bridge", Reloading: u}, time.Now(), 0); err != nil || !strings.Contains(out.String(), "a reload began 2h0m ago, and is not through with its files: look at its disk") {
			t.Errorf("status prints %s, %v", out.String(), err)
		}
		close(rt.source.dead)
		wg.Wait()
		if u := rt.underway(); u != nil {
			t.Errorf("after the reloads: underway = %+v", u)
		}
	})
}

// TestRevokedDuringReload: a key is taken out while a reload, or an edit of the stored keys, waits for a disk that does not answer. When it answers,
// with the key, that is not honoured again.
func TestRevokedDuringReload(t *testing.T) {
	pin := [32]byte{9}
	stolen, other := state.Key{Name: "stolen", ID: [16]byte{1}}, state.Key{Name: "other", ID: [16]byte{2}}
	start, err := config.Settings{Role: config.RoleProxy}.WithKeys([]state.Key{stolen, other}, pin)
	if err != nil {
		t.Fatal(err)
	}
	next := start
	next.LogLevel = slog.LevelDebug
	for name, wait := range map[string]func(t *testing.T, rt *reloadTest, dead chan struct{}){
		"a reload": func(t *testing.T, rt *reloadTest, dead chan struct{}) {
			rt.source.dead = dead
			if done, err := rt.Reload(t.Context()); err != nil || len(done.Changed) != 1 {
				t.Errorf("Reload = %+v, %v; want the log level alone", done, err)
			}
		},
		"an edit": func(t *testing.T, rt *reloadTest, dead chan struct{}) {
			err := rt.edited(func() ([]state.Key, error) {
				keys := []state.Key{stolen, other, {Name: "new", ID: [16]byte{3}}}
				<-dead
				return keys, nil
			}, pin)
			if err != nil {
				t.Errorf("edited = %v", err)
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			rt := newReloadTest(t, start)
			rt.source.say(next, nil)
			dead := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() { wait(t, rt, dead) })
			synctest.Wait()
			revoked := make(chan error, 1)
			wg.Go(func() { revoked <- rt.revoked(stolen.ID) })
			synctest.Wait()
			select {
			case err := <-revoked:
				if got := fmt.Sprint(rt.settings().Proxy.Keys); err != nil || got != "[other]" {
					t.Errorf("%s: revoked = %v, and the keys %s are honoured", name, err, got)
				}
			default:
				t.Errorf("%s: it is waited for", name)
			}
			want := map[string]string{"a reload": "[other]", "an edit": "[other new]"}[name]
			if name == "a reload" { // an edit waits for it no more than that, and counts behind it
				narrow := state.Key{Name: "other", ID: other.ID, Expires: time.Now().Add(time.Hour)}
				if err := rt.edited(func() ([]state.Key, error) { return []state.Key{narrow}, nil }, pin); err != nil || !rt.settings().Proxy.Keys[0].Expires.Equal(narrow.Expires) {
					t.Errorf("edited = %v, keys %+v", err, rt.settings().Proxy.Keys)
				}
				defer func() {
					if rt.role.applied[2].Proxy.Keys[0].Expires != narrow.Expires {
						t.Error("the reload has undone an edit")
					}
				}()
			}
			close(dead)
			wg.Wait()
			if got := fmt.Sprint(rt.settings().Proxy.Keys); got != want || fmt.Sprint(rt.role.applied[rt.role.count()-1].Proxy.Keys) != want {
				t.Errorf("%s: the keys %s are honoured behind it, want %s", name, got, want)
			}
			// The turn of before has no say any more: a file with the key that is put back counts.
			rt.source.dead = nil
			if _, err := rt.Reload(t.Context()); err != nil || fmt.Sprint(rt.settings().Proxy.Keys) != "[stolen other]" {
				t.Errorf("%s: Reload of a file with the key = %v, keys %v", name, err, rt.settings().Proxy.Keys)
			}
		})
	}
}

// TestFollowSuccessor: a process that is stopping ends the keys that its successor removes, within a second, and takes nothing else from there.
func TestFollowSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		soon, later := time.Now().Add(time.Minute), time.Now().Add(time.Hour)
		set := config.Settings{Role: config.RoleProxy, Proxy: config.Proxy{Keys: []config.Key{
			{Name: "office", ID: [16]byte{1}, Table: config.Place{File: "f"}},
			{Name: "nas", ID: [16]byte{2}, Secret: [32]byte{2}},
			{Name: "desk", ID: [16]byte{3}, Expires: later},
		}}}
		rt := newReloadTest(t, set)
		var mu sync.Mutex
		var left []state.Key
		var failure error
		say := func(err error, keys ...state.Key) {
			mu.Lock()
			defer mu.Unlock()
			left, failure = keys, err
		}
		ctx, cancel := context.WithCancel(t.Context())
		var following sync.WaitGroup
		following.Go(func() {
			rt.follow(ctx, func() ([]state.Key, error) {
				mu.Lock()
				defer mu.Unlock()
				return left, failure
			})
		})
		nas, desk := state.Key{Name: "nas", ID: [16]byte{2}, Secret: [32]byte{2}}, state.Key{Name: "desk", ID: [16]byte{3}, Expires: later}
		rotated := nas
		rotated.Secret = [32]byte{9}
		for i, c := range []struct {
			err   error
			left  []state.Key
			want  string
			count int
		}{
			{nil, nil, "[office nas desk]", 0}, // it is not stopping so far
			{errors.New("the file is away"), nil, "[office nas desk]", 0},
			{nil, []state.Key{nas, desk}, "[office nas desk]", 0},
			{nil, []state.Key{rotated, desk, {Name: "new", ID: [16]byte{4}}}, "[office nas desk]", 0},
			{nil, []state.Key{rotated, {Name: "desk", ID: [16]byte{3}, Expires: soon}}, "[office nas desk]", 1},
			{nil, []state.Key{{Name: "nas", ID: [16]byte{5}}, {Name: "desk", ID: [16]byte{3}, Expires: soon}}, "[office desk]", 2}, // another key of that name
			{nil, []state.Key{nas}, "[office]", 3},
		} {
			say(c.err, c.left...)
			time.Sleep(time.Second)
			synctest.Wait()
			if got := fmt.Sprint(rt.settings().Proxy.Keys); got != c.want || rt.role.count() != c.count {
				t.Errorf("step %d: the keys %s, applied %d times; want %s, %d", i, got, rt.role.count(), c.want, c.count)
			}
			if c.count == 1 && !rt.settings().Proxy.Keys[2].Expires.Equal(soon) {
				t.Errorf("desk expires at %s, want %s", rt.settings().Proxy.Keys[2].Expires, soon)
			}
			if i == 0 {
				say(nil, nas, desk)
				rt.stop()
			}
		}
		cancel()
		following.Wait()
		if out := rt.out.String(); strings.Count(out, "keys=nas") != 1 || strings.Count(out, "keys=desk") != 1 {
			t.Errorf("the log has %s", out)
		}
	})
}

// TestReloadWatch: a signal and a change of the file are orders to reload.
func TestReloadWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newReloadTest(t, exposing(t, "9000"))
		rt.source.changed = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan struct{}, 1)
		done := make(chan struct{})
		go func() {
			rt.watch(ctx, asked)
			close(done)
		}()
		rt.source.say(exposing(t, "9000", "9001"), nil)
		asked <- struct{}{}
		synctest.Wait()
		if n := rt.role.count(); n != 1 {
			t.Errorf("%d applied behind a signal; want 1", n)
		}
		rt.source.say(exposing(t, "9000"), nil)
		rt.source.changed <- struct{}{}
		synctest.Wait()
		if n := rt.role.count(); n != 2 {
			t.Errorf("%d applied behind a change of the file; want 2", n)
		}
		cancel()
		<-done
	})

	// Where the file cannot be watched, there is a word, and signals still work.
	rt := newReloadTest(t, exposing(t, "9000"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rt.watch(ctx, nil)
	if !strings.Contains(rt.out.String(), "not noticed") {
		t.Errorf("log: %s", rt.out)
	}
}

// TestLastKeyGone: a proxy without a key lets no bridge in, and says so when the last one goes, as one that starts does.
func TestLastKeyGone(t *testing.T) {
	with := config.Settings{Role: config.RoleProxy, Proxy: config.Proxy{Keys: []config.Key{
		{Name: "nas", ID: [16]byte{1}, Table: config.Place{File: "f"}}, {Name: "desk", ID: [16]byte{2}},
	}}}
	without := config.Settings{Role: config.RoleProxy}
	rt := newReloadTest(t, with)
	rt.source.say(without, nil)
	if done, err := rt.Reload(t.Context()); err != nil || !slices.Contains(done.Warnings, noKeyLeft) {
		t.Errorf("Reload = %+v, %v; want a warning", done, err)
	}
	if !strings.Contains(rt.out.String(), "the proxy has no key any more") {
		t.Errorf("the log has %s", rt.out.String())
	}
	if _, err := rt.put(t.Context(), func(config.Settings) (config.Settings, error) { return with, nil }); err != nil {
		t.Fatal(err)
	}
	rt.source.say(with, nil)
	if done, err := rt.Reload(t.Context()); err != nil || len(done.Warnings) != 0 {
		t.Errorf("Reload = %+v, %v; want no warning", done, err)
	}

	// By an order: keys of the file stay.
	one := with
	one.Proxy.Keys = with.Proxy.Keys[1:]
	rt = newReloadTest(t, one)
	if err := rt.revoked([16]byte{9}); err != nil || strings.Contains(rt.out.String(), "no key any more") {
		t.Errorf("%v, and the log has %s", err, rt.out.String())
	}
	if err := rt.revoked([16]byte{2}); err != nil || !strings.Contains(rt.out.String(), "no key any more") {
		t.Errorf("%v, and the log has %s", err, rt.out.String())
	}
	rt = newReloadTest(t, with)
	if err := rt.revoked([16]byte{1}); err != nil || len(rt.settings().Proxy.Keys) != 2 {
		t.Errorf("%v, and %v are left", err, rt.settings().Proxy.Keys)
	}
}

// TestReloadOpensTheAccessLog: a reload opens the access log anew, also when nothing else is different, and with an error it stays as it is.
func TestReloadOpensTheAccessLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	set := exposing(t, "9000=80")
	set.AccessLog = path
	rt := newReloadTest(t, set)
	if err := rt.lines.Open(path); err != nil {
		t.Fatal(err)
	}
	lines := func(path string) int {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte{'\n'})
	}
	write := func(service string) {
		before := rt.lines.State().Written
		rt.lines.over(traffic.Over{Service: service, Reason: relay.ReasonEOF})
		for end := time.Now().Add(time.Minute); rt.lines.State().Written == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the line is not written")
			}
		}
	}
	write("tcp/1")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	write("tcp/2")
	if lines(path) != 1 || lines(path+".1") != 1 {
		t.Errorf("the file has %d lines, the one that was moved aside %d; want 1 each", lines(path), lines(path+".1"))
	}
	other := exposing(t, "9000=80")
	other.AccessLog = filepath.Join(path, "no", "such")
	rt.source.say(other, nil)
	if _, err := rt.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "access log") {
		t.Errorf("Reload = %v", err)
	}
	failing := exposing(t, "9001=80")
	failing.AccessLog = path + ".2"
	rt.source.say(failing, nil)
	rt.role.err = errors.New("too many services")
	if _, err := rt.Reload(t.Context()); err == nil {
		t.Error("Reload succeeded")
	}
	if st := rt.lines.status(); st == nil || st.File != path || st.Lost != 0 {
		t.Errorf("after reloads that were refused: %+v", st)
	}
	rt.role.err = nil
	if err := os.Rename(path, path+".3"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil { // so that it cannot be opened any more
		t.Fatal(err)
	}
	fewer := exposing(t, "9001=80")
	fewer.AccessLog = path
	rt.source.say(fewer, nil)
	if done, err := rt.Reload(t.Context()); err != nil || len(done.Changed) == 0 || len(done.Warnings) != 1 || !strings.Contains(done.Warnings[0], "access log") {
		t.Errorf("Reload = %+v, %v; want everything but the access log", done, err)
	}
	rt.source.say(set, nil)
	if _, err := rt.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	write("tcp/3")
	if lines(path+".3") != 2 {
		t.Error("without another file, lines do not go to the one before")
	}
	off := exposing(t, "9000=80")
	rt.source.say(off, nil)
	done, err := rt.Reload(t.Context())
	if err != nil || len(done.Changed) != 1 || done.Changed[0] != "access_log is none instead of "+path || rt.lines.status() != nil {
		t.Errorf("Reload = %+v, %v, and %+v", done, err, rt.lines.status())
	}
}
