package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/state"
	"reverser/internal/status"
)

// confirmLimit is how long a reload waits until the other end has confirmed what changed there.
const confirmLimit = 5 * time.Second

// applier is a role whose settings may change while it runs.
type applier interface {
	// Apply makes set what the role does: whole or, with an error, not at all. When it returns, no new user enters under the old
	// settings. The confirmation is nil if there is nothing to confirm.
	Apply(ctx context.Context, set config.Settings) (confirmation, error)
}

// confirmation is what the other end makes of a change.
type confirmation interface {
	// Wait returns when the other end has confirmed what changed there, or when ctx ends, with what is not confirmed by then.
	Wait(ctx context.Context) (unconfirmed []string)
	// Refused returns what of the change the other end does not serve at present, with the reason.
	Refused() []string
}

// reloader changes the settings of a process that runs. Reloads come one after the other, whoever orders them, and so do edits of the stored
// keys. Neither waits for the other, and an order that takes a key away waits for neither: they may be reading a file on a disk that does not
// answer. What was read before a change of the keys is put in force without undoing it. It implements [admin.Orders].
type reloader struct {
	source config.Source
	role   applier
	level  *slog.LevelVar // of the log; nil where it does not change
	log    *slog.Logger
	host   *supervision // hears of reloads; nil: nobody does
	lines  *accessLog   // is opened anew at each reload: the file may have been moved aside

	turn     chan struct{} // has room for one: who reloads, or follows a successor
	editing  chan struct{} // has room for one: who reads the stored keys after an edit
	applying chan struct{} // has room for one: who puts settings in force; that one reads no files
	stopped  chan struct{} // closed by stop

	mu       sync.Mutex
	now      config.Settings // in force; guarded by mu, as all below
	last     *status.Reload  // nil: none yet
	since    time.Time       // when the reload that reads the files now began; zero: none reads
	change   *change         // the last one; nil: none yet, or there was nothing to confirm
	stopping bool

	// Changes of the keys since somebody began to read the files: what they read may be older. Forgotten when nobody reads.
	reading int
	revokes [][16]byte                                     // were taken away
	edit    func(config.Settings) (config.Settings, error) // puts the stored keys as they were read last into settings; nil: none were
}

// change is a change of the settings that concerns the other end.
type change struct {
	confirmation
	confirmed bool // there is nothing to wait for any more
}

func newReloader(source config.Source, role applier, now config.Settings, level *slog.LevelVar, lines *accessLog, log *slog.Logger) *reloader {
	return &reloader{source: source, role: role, level: level, lines: lines, log: log, now: now, turn: make(chan struct{}, 1), editing: make(chan struct{}, 1), applying: make(chan struct{}, 1), stopped: make(chan struct{})}
}

// errStopping is the answer of a process that is about to end: whatever it opened would be gone in a moment.
var errStopping = errors.New("the process is stopping: it takes no new settings any more; the next start reads them")

// Reload reads the settings again and puts them in force: all, or none. It returns when the other end has confirmed what
// changed there, or after confirmLimit.
func (r *reloader) Reload(ctx context.Context) (admin.Reloaded, error) {
	defer r.host.reloading()()
	done, err := r.reload(ctx)
	if err != nil {
		r.log.Error("reload refused: the settings stay as they were", "err", strings.ReplaceAll(err.Error(), "\n", "; "))
		return admin.Reloaded{}, &admin.UsageError{Err: err}
	}
	for _, w := range done.Warnings {
		r.log.Warn(w)
	}
	if len(done.Changed) > 0 {
		r.log.Info("reloaded", "changes", strings.Join(done.Changed, "; "))
	} else {
		r.log.Info("reloaded: nothing is different")
	}
	var refused []string
	done.Unconfirmed, refused = r.confirm(ctx)
	if len(done.Unconfirmed) > 0 {
		r.log.Warn("the other end has not confirmed everything yet", "missing", strings.Join(done.Unconfirmed, ", "))
	}
	done.Warnings = append(done.Warnings, refused...) // which the role has logged
	return done, nil
}

// confirm waits for the confirmation of the last change, whoever made it: who orders a reload after a change of the file was
// noticed finds nothing to do, and wants to know the same.
func (r *reloader) confirm(ctx context.Context) (unconfirmed, refused []string) {
	r.mu.Lock()
	c := r.change
	wait := c != nil && !c.confirmed
	r.mu.Unlock()
	if c == nil {
		return nil, nil
	}
	if wait {
		ctx, cancel := context.WithTimeout(ctx, confirmLimit)
		defer cancel()
		if unconfirmed = c.Wait(ctx); len(unconfirmed) == 0 {
			r.mu.Lock()
			c.confirmed = true
			r.mu.Unlock()
		}
	}
	return unconfirmed, c.Refused()
}

func (r *reloader) reload(ctx context.Context) (done admin.Reloaded, err error) {
	if err := r.begin(ctx, r.turn); err != nil {
		return admin.Reloaded{}, err
	}
	defer r.end(r.turn)
	if r.isStopping() {
		return admin.Reloaded{}, errStopping
	}
	at := time.Now()
	r.reads(at)
	defer func() { r.reads(time.Time{}); r.note(at, err) }()
	next, warnings, err := r.source.Load()
	if fault, ok := errors.AsType[*config.ArgError](err); ok && fault.Hint != "" {
		err = fmt.Errorf("%w: %s", err, fault.Hint)
	}
	if err != nil {
		return admin.Reloaded{}, err
	}
	now, err := r.withKeysOfNow(next)
	if err != nil {
		return admin.Reloaded{}, err
	}
	changes, err := r.settings().Changes(now)
	if err != nil {
		return admin.Reloaded{}, err
	}
	for _, w := range warnings {
		done.Warnings = append(done.Warnings, w.String())
	}
	done.Warnings = append(done.Warnings, next.Proxy.Unclaimable()...)
	logMoves := next.AccessLog != r.settings().AccessLog
	if err := r.lines.Open(next.AccessLog); err != nil && logMoves {
		return admin.Reloaded{}, err
	} else if err != nil { // what it costs is lines: it must not hold up who takes a key away
		done.Warnings = append(done.Warnings, fmt.Sprintf("%v; everything else is reloaded, mend it and reload again", err))
	}
	r.reads(time.Time{})
	if again, ok := r.role.(interface{ Again() }); ok { // what depends on more than the settings
		again.Again()
	}
	if len(changes) == 0 {
		return done, nil
	}
	if lastKeyGone(r.settings(), now) {
		done.Warnings = append(done.Warnings, noKeyLeft)
	}
	if _, err := r.put(ctx, func(config.Settings) (config.Settings, error) { return r.withKeysOfNow(next) }); err != nil {
		if logMoves {
			err = errors.Join(err, r.lines.Open(r.settings().AccessLog))
		}
		return admin.Reloaded{}, err
	}
	done.Changed = changes
	return done, nil
}

// What is said of a proxy without a key, when the last one goes and when it starts so. It goes on: a key that is added counts at once.
const (
	noKeyLeft = "the proxy has no key any more, so no bridge can connect: `reverser key add NAME --allow tcp/9000` makes one"
	noKey     = "the proxy has no key, so no bridge can connect until one is made"
)

func lastKeyGone(old, next config.Settings) bool {
	return next.Role == config.RoleProxy && len(old.Proxy.Keys) > 0 && len(next.Proxy.Keys) == 0
}

// putKeys is put for a change of the stored keys. Nobody reads warnings about it but in the log.
func (r *reloader) putKeys(changed func(now config.Settings) (config.Settings, error)) error {
	before, err := r.put(context.Background(), changed)
	if err != nil {
		return err
	}
	next := r.settings()
	if lastKeyGone(before, next) {
		r.log.Warn(noKeyLeft)
	}
	if words := next.Proxy.Unclaimable(); !slices.Equal(words, before.Proxy.Unclaimable()) {
		for _, w := range words {
			r.log.Warn(w)
		}
	}
	return nil
}

// put changes the settings that are in force, and returns those of before. It is done also when whoever asked for it has gone.
func (r *reloader) put(ctx context.Context, changed func(now config.Settings) (config.Settings, error)) (before config.Settings, err error) {
	r.applying <- struct{}{}
	defer func() { <-r.applying }()
	before = r.settings()
	next, err := changed(before)
	if err != nil {
		return before, err
	}
	c, err := r.role.Apply(context.WithoutCancel(ctx), next)
	if err != nil {
		return before, err
	}
	if r.level != nil {
		r.level.Set(next.LogLevel)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now, r.change = next, nil
	if c != nil {
		r.change = &change{confirmation: c}
	}
	return before, nil
}

// edited puts the stored keys in force after an edit, beside everything else as it is: whatever the file says by now waits for
// a reload.
func (r *reloader) edited(stored func() ([]state.Key, error), pin [32]byte) error {
	if err := r.begin(context.Background(), r.editing); err != nil {
		return err
	}
	defer r.end(r.editing)
	keys, err := stored()
	if err != nil {
		return err
	}
	edit := func(set config.Settings) (config.Settings, error) { return set.WithKeys(keys, pin) }
	return r.putKeys(func(now config.Settings) (config.Settings, error) {
		next, err := edit(now)
		if err != nil {
			return next, err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.edit = edit
		return withoutKeys(next, r.revokes...), nil
	})
}

// revoked has a key honoured no longer, beside everything else as it is.
func (r *reloader) revoked(id [16]byte) error {
	r.mu.Lock()
	r.reading++ // the key is in force until it is put out of it
	r.revokes = append(r.revokes, id)
	r.mu.Unlock()
	defer r.read()
	return r.putKeys(func(now config.Settings) (config.Settings, error) { return withoutKeys(now, id), nil })
}

// withKeysOfNow puts into settings that were read before what has become of the keys since.
func (r *reloader) withKeysOfNow(set config.Settings) (config.Settings, error) {
	r.mu.Lock()
	edit, revokes := r.edit, slices.Clone(r.revokes)
	r.mu.Unlock()
	if edit != nil {
		var err error
		if set, err = edit(set); err != nil {
			return set, err
		}
	}
	return withoutKeys(set, revokes...), nil
}

// withoutKeys leaves out keys of the state directory.
func withoutKeys(set config.Settings, ids ...[16]byte) config.Settings {
	set.Proxy.Keys = slices.DeleteFunc(slices.Clone(set.Proxy.Keys), func(k config.Key) bool { return slices.Contains(ids, k.ID) && !k.InFile() })
	return set
}

// followEvery is how often a process that is stopping looks which keys its successor has removed: they end within a second.
const followEvery = time.Second / 2

// follow has a process that is stopping end the keys that its successor removes, until ctx ends. There the orders go that are given meanwhile.
// stored are the keys that the successor has stored.
func (r *reloader) follow(ctx context.Context, stored func() ([]state.Key, error)) {
	select {
	case <-r.stopped:
	case <-ctx.Done():
		return
	}
	failed := false
	for pause(ctx, followEvery) {
		err := r.followKeys(stored)
		if err != nil && !failed {
			r.log.Error("what became of the keys at the process that has taken over is not in force here so far", "err", err)
		}
		failed = err != nil
	}
}

// followKeys takes over which of the stored keys are left, and until when. All else is the successor's, secrets included: rotated ones are
// those of the same key.
func (r *reloader) followKeys(stored func() ([]state.Key, error)) error {
	if err := r.begin(context.Background(), r.turn); err != nil {
		return err
	}
	defer r.end(r.turn)
	left, err := stored()
	if err != nil {
		return nil // the file may be away for a moment; nobody was removed by that
	}
	var removed []string
	_, err = r.put(context.Background(), func(now config.Settings) (next config.Settings, err error) {
		next, removed, err = following(now, left)
		return next, err
	})
	switch {
	case err == errNothingNew:
		return nil
	case err == nil && len(removed) > 0:
		r.log.Info("keys were removed at the process that has taken over", "keys", strings.Join(removed, ", "))
	}
	return err
}

var errNothingNew = errors.New("the keys are as they were")

// following returns settings with those of their keys that are left at the successor, and the names of the others.
func following(next config.Settings, left []state.Key) (_ config.Settings, removed []string, err error) {
	var keys []config.Key
	changed := false
	for _, k := range next.Proxy.Keys {
		if !k.InFile() {
			i := slices.IndexFunc(left, func(l state.Key) bool { return l.ID == k.ID })
			if i < 0 {
				removed = append(removed, k.Name)
				continue
			}
			changed = changed || !k.Expires.Equal(left[i].Expires)
			k.Expires = left[i].Expires
		}
		keys = append(keys, k)
	}
	if !changed && len(removed) == 0 {
		return next, nil, errNothingNew
	}
	next.Proxy.Keys = keys
	return next, removed, nil
}

// begin waits for a turn of one kind, and notes that somebody reads what becomes of the settings.
func (r *reloader) begin(ctx context.Context, turn chan struct{}) error {
	select {
	case turn <- struct{}{}:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.reading++
		return nil
	case <-ctx.Done():
		return fmt.Errorf("another change is under way: %w", context.Cause(ctx))
	}
}

func (r *reloader) end(turn chan struct{}) {
	r.read()
	<-turn
}

// read notes that somebody reads no more.
func (r *reloader) read() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reading--; r.reading == 0 {
		r.revokes, r.edit = nil, nil
	}
}

func (r *reloader) settings() config.Settings {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *reloader) isStopping() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopping
}

// stop refuses what comes from now on. It is called once.
func (r *reloader) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = true
	close(r.stopped)
}

func (r *reloader) note(at time.Time, err error) {
	last := &status.Reload{At: at.UTC().Truncate(time.Second)}
	if err != nil {
		last.Error = redact(err.Error())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = last
}

// reads notes when a reload began to read the files; the zero time: it is through.
func (r *reloader) reads(since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since = since
}

// underway is the reload that reads the files at this moment, nil if none does.
func (r *reloader) underway() *status.Reloading {
	r.mu.Lock()
	since := r.since
	r.mu.Unlock()
	if since.IsZero() {
		return nil
	}
	u := &status.Reloading{Since: since.UTC()}
	if s, ok := r.source.(interface{ Reading() string }); ok {
		u.File = s.Reading()
	}
	return u
}

// lastReload is what became of the last one, nil if there was none.
func (r *reloader) lastReload() *status.Reload {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// watch reloads at every change of the file, and whenever asked is sent to, until ctx ends.
func (r *reloader) watch(ctx context.Context, asked <-chan struct{}) {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.source.Watch(ctx, func() { r.Reload(ctx) }); err != nil {
			r.log.Warn("changes of the configuration file are not noticed: `reverser reload` reads it again", "err", err)
		}
	})
	for {
		select {
		case <-asked:
			r.Reload(ctx)
		case <-ctx.Done():
			wg.Wait()
			return
		}
	}
}
