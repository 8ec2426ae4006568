package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/doctor"
	"reverser/internal/events"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/metrics"
	"reverser/internal/page"
	"reverser/internal/proxy"
	"reverser/internal/state"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/traffic"
	meter "reverser/internal/usage" // usage is an error here
)

// server is what proxy and bridge have in common.
type server interface {
	Run(context.Context) error
	Drain()
	Status() status.Snapshot
	EndPairs(traffic.Which) int
	meter.Source
	metrics.Process
}

// inspecting is a role that speaks HTTP for services.
type inspecting interface {
	Inspected(grammar.Public) *inspect.Recorder
}

// examined is a role that looks at what only it can, for `reverser doctor`.
type examined interface {
	Examine(context.Context, config.Settings) []doctor.Check
}

// begun is what a role needs before it is made.
type begun struct {
	set   config.Settings
	level *slog.LevelVar
	log   *slog.Logger
	host  *supervision
	lines *accessLog
	said  *events.Log // what log said last
	flush func()      // writes what is left of the log
}

// begin reads the settings of a role, and makes the process ready to run it for long.
func (c *cli) begin(source config.Source) (_ begun, err error) {
	sys.WidenDescriptorTable()
	dumps := sys.NoCoreDumps() // before a secret is read
	set, warnings, err := source.Load()
	if err != nil {
		return begun{}, badSettings(err)
	}
	outliveReaders()
	level := new(slog.LevelVar)
	level.Set(set.LogLevel)
	log, flush, err := newLogger(c.log, set.LogFormat, level)
	if err != nil {
		return begun{}, err
	}
	said := events.New()
	log = slog.New(said.Handler(log.Handler()))
	logWarnings(log, warnings)
	if dumps != nil {
		log.Warn("core dumps of this process cannot be turned off: one would hold its keys", "err", dumps)
	}
	if err := enoughDescriptors(); err != nil {
		flush()
		return begun{}, err
	}
	lines := newAccessLog(log)
	if err := lines.Open(set.AccessLog); err != nil {
		lines.Close()
		flush()
		return begun{}, usage(err)
	}
	supervision, leave := c.supervision(log)
	end := func() {
		leave()
		lines.Close()
		flush()
	}
	return begun{set, level, log, supervision, lines, said, end}, nil
}

// serve runs s, with its admin socket and its admin address, until it ends or is asked to: the first
// signal drains it, the second one stops it. Meanwhile r changes its settings.
func serve(ctx context.Context, s server, dir *state.Dir, keys admin.Keys, web *adminAddress, r *reloader, said *events.Log, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stopping atomic.Bool
	host := r.host
	noticeCtx, endNotices := context.WithCancel(ctx)
	yielded := make(chan struct{})
	drain := func() {
		stopping.Store(true)
		endNotices() // what ends now was asked to
		host.stop(drainOf(r.settings()))
		r.stop()
		s.Drain() // which has freed the ports: a successor may start
		if err := dir.Yield(); err != nil {
			log.Warn("the state directory cannot be given up early: a successor has to wait until this process has ended", "err", err)
			return
		}
		close(yielded)
	}
	reload := make(chan struct{}, 1)
	again := func() {
		select {
		case reload <- struct{}{}:
		default: // one is about to begin, and reads what is there then
		}
	}
	// Before the admin socket is there: whoever sees it may send a signal.
	leave := func() {
		leaveInTime(log, func() {
			if stopping.Load() {
				os.Exit(exitOK)
			}
			os.Exit(exitFailed)
		})
	}
	stopSignals := withSignals(log, host.signals(), again, drain, cancel, leave)
	defer stopSignals()
	// The admin socket outlives ctx: a process that is stopping still says how
	// far it is.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	tend := &tender{dir: dir, log: log}
	store := meter.New(s, dir.Usage(), log)
	snapshot := func() status.Snapshot {
		snap := s.Status()
		snap.Reload, snap.Stopping, snap.Faults = r.lastReload(), stopping.Load(), tend.found()
		snap.Reloading = r.underway()
		snap.AccessLog = r.lines.status()
		kept := store.State()
		snap.Usage = &kept
		return snap
	}
	notices := newNotices(r, log)
	a := &admin.Server{Status: snapshot, Keys: keys, Orders: r, End: endPairs(s), Drain: drainUsers(s), Events: said, Usage: store, TestNotices: notices.test, Page: page.New(), Log: log}
	a.Metrics = metrics.Handler(s, snapshot, keysOf(keys, r))
	if in, ok := s.(inspecting); ok {
		a.Inspected = in.Inspected
	}
	if e, ok := s.(examined); ok {
		a.Doctor = func(ctx context.Context) []status.Check { return checksOf(e.Examine(ctx, r.settings())) }
	}
	var wg sync.WaitGroup
	wg.Go(func() { notices.run(noticeCtx, s.Status) })
	wg.Go(func() { r.watch(adminCtx, reload) })
	listening := make(chan struct{})
	wg.Go(func() { tend.run(adminCtx) })
	wg.Go(func() { store.Run(adminCtx) }) // which ends after the last connection has
	wg.Go(func() { serveAdmin(adminCtx, a, dir, listening, log) })
	<-listening // so that whoever sees the role serve can ask it
	wg.Go(func() { web.serve(adminCtx, a) })
	wg.Go(func() {
		select {
		case <-yielded: // what is left is watched and ended here until another process wants the address
			web.awaitSuccessor(adminCtx, dir)
		case <-adminCtx.Done():
		}
	})
	wg.Go(func() { host.run(adminCtx, snapshot) })
	err := s.Run(ctx)
	leave()
	stopAdmin()
	endNotices()
	wg.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // asked to stop now
	}
	return err
}

// keysOf returns the keys for metrics; nil: a bridge has one.
func keysOf(keys admin.Keys, r *reloader) func() []metrics.Key {
	if keys == nil {
		return nil
	}
	return func() (list []metrics.Key) {
		for _, k := range r.settings().Proxy.Keys {
			list = append(list, metrics.Key{Name: k.Name, Expires: k.Expires})
		}
		return list
	}
}

// adminRetry is how long serveAdmin waits before it opens the admin socket again.
const adminRetry = 10 * time.Second

// adminPlace is where the admin socket is: a [state.Dir].
type adminPlace interface {
	ListenAdmin() (net.Listener, error)
	AdminLost() bool
}

// serveAdmin serves the admin socket until ctx ends, and opens it again when somebody removed it. It closes listening when it has tried
// to open the socket. A process without one goes on: its users need none.
func serveAdmin(ctx context.Context, a *admin.Server, at adminPlace, listening chan<- struct{}, log *slog.Logger) {
	told := false
	for {
		l, err := at.ListenAdmin()
		if listening != nil {
			close(listening)
			listening = nil
		}
		if err == nil {
			told = false
			err = serveUntilLost(ctx, a, at, l)
			if errors.Is(err, errAdminLost) && ctx.Err() == nil {
				log.Warn("the admin socket was removed by somebody: it is opened again, for status, key and reload")
				continue
			}
		}
		if ctx.Err() != nil || errors.Is(err, state.ErrSucceeded) { // the successor answers
			return
		}
		if !told {
			log.Error("the admin socket cannot be used: until it can, status, key and reload cannot ask this process", "err", err, "again_in", adminRetry)
			told = true
		}
		if !pause(ctx, adminRetry) {
			return
		}
	}
}

var errAdminLost = errors.New("the admin socket was removed")

// serveUntilLost serves the admin socket until ctx ends, or nobody can find the socket any more.
func serveUntilLost(ctx context.Context, a *admin.Server, at adminPlace, l net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for pause(ctx, tendEvery) {
			if at.AdminLost() {
				cancel(errAdminLost)
			}
		}
	})
	defer cancel(nil)
	if err := a.Serve(ctx, l); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// drainOf is how long connections have to finish when the process stops.
func drainOf(set config.Settings) time.Duration {
	if set.Drain == 0 {
		return proxy.DefaultDrain // the bridge's is the same
	}
	return max(set.Drain, 0)
}

// leaveWait is how long a process that serves nobody any more may take to store and write what is left. What takes longer hangs, such as a
// file system of the network that does not answer. leaveWord is how long it then has to say so.
const (
	leaveWait = 15 * time.Second
	leaveWord = time.Second
)

// leaveInTime calls exit if the process has not ended by itself after leaveWait.
func leaveInTime(log *slog.Logger, exit func()) {
	time.AfterFunc(leaveWait, func() {
		time.AfterFunc(leaveWord, exit) // whoever reads the log may be what hangs
		log.Error("ending without what could not be finished in time: a disk, or a file system of the network, does not answer", "waited", leaveWait)
	})
}

// withSignals calls drain at the first signal to stop, cancel and leave at the second, and reload at one that asks a daemon to reload,
// until the returned function is called, which waits for it. A drain that hangs keeps no second signal from being heard.
// asked brings what stands for signals where a service manager sends none.
func withSignals(log *slog.Logger, asked <-chan os.Signal, reload, drain, cancel, leave func()) (stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, watchedSignals()...)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		stopping := false
		for {
			var sig os.Signal
			var within time.Duration
			select {
			case <-done:
				return
			case sig = <-signals:
				if asked != nil {
					continue // such as the log-off of somebody, which Windows tells every service
				}
				within = timeToEnd(sig)
			case sig = <-asked:
			}
			switch {
			case asksReload(sig):
				reload()
			case !stopping:
				stopping = true
				hint := "a second signal stops now"
				if within > 0 {
					hint = fmt.Sprintf("the system ends this process soon: it stops in %s", within)
					limit := time.AfterFunc(within, cancel)
					defer limit.Stop()
				}
				log.Info("stopping when the last connection ends", "signal", sig.String(), "hint", hint)
				wg.Go(drain)
			default:
				leave()
				cancel() // first: whoever reads the log may have stopped
				log.Info("stopping now", "signal", sig.String())
			}
		}
	})
	return func() {
		signal.Stop(signals)
		close(done)
		wg.Wait()
	}
}

// lockWait is how long a start waits for whoever holds the directory for a moment: `reverser key`, or a process that was just asked to
// stop. A process that says that it is stopping is about to give the directory up: yieldWait is how long a start waits for that.
const (
	lockWait  = 2 * time.Second
	yieldWait = 15 * time.Second
	lockPoll  = 50 * time.Millisecond
)

// openState takes a role's state directory, "" being the default one.
func openState(ctx context.Context, set config.Common, role string, log *slog.Logger) (*state.Dir, error) {
	path, err := statePath(set.State, role)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	for tries := 1; ; tries++ {
		dir, err := state.Open(path, set.TrustOwner...)
		if err == nil {
			if note := dir.Note(); note != "" {
				log.Warn("state directory " + dir.Path() + ": " + note)
			}
			return dir, nil
		}
		// A status that is asked for holds the lock for a moment, too, and few tries may all meet such moments.
		enough := waitedLong(begun, tries, lockWait)
		if !errors.Is(err, state.ErrInUse) || time.Since(begun) > yieldWait || enough && !stopping(ctx, path) {
			return nil, usage(err)
		}
		if !pause(ctx, lockPoll) {
			return nil, ctx.Err()
		}
	}
}

func statePath(path, role string) (string, error) {
	if path != "" {
		return path, nil
	}
	path, err := state.DefaultDir(role)
	if err != nil {
		return "", usage(err)
	}
	return path, nil
}

// usualStates are the state directories of which one is meant where none is named: the default ones of the roles, then those of
// services that are installed.
func (c *cli) usualStates(roles ...string) (paths []string, err error) {
	for _, role := range roles {
		path, err := statePath("", role)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	if c.manager == nil {
		return paths, nil
	}
	for _, role := range roles {
		if path := c.manager.State(role); path != "" && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// stopping reports whether the process of the directory was asked to stop.
func stopping(ctx context.Context, path string) bool {
	client := adminOf(path)
	defer client.Close()
	s, err := client.Status(ctx)
	return err == nil && s.Stopping
}

// adminOf asks the process of a state directory.
func adminOf(path string) *admin.Client {
	client := admin.NewClient(func(ctx context.Context) (net.Conn, error) { return state.DialAdmin(ctx, path) })
	client.Silent = func() error { return state.Silent(path) }
	return client
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// first is the first value that is given.
func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
