package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"reverser/internal/admin"
	"reverser/internal/state"
	"reverser/internal/status"
)

// server is what proxy and bridge have in common.
type server interface {
	Run(context.Context) error
	Drain()
	Status() status.Snapshot
}

// serve runs s, with its admin socket, until it ends or is asked to: the first
// signal drains it, the second one stops it.
func serve(ctx context.Context, s server, dir *state.Dir, keys admin.Keys, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A successor may start from now on: Drain has freed the ports.
	drain := func() {
		s.Drain()
		if err := dir.Yield(); err != nil {
			log.Warn("the state directory cannot be given up early: a successor has to wait until this process has ended", "err", err)
		}
	}
	// Before the admin socket is there: whoever sees it may send a signal.
	stopSignals := withSignals(log, drain, cancel)
	defer stopSignals()
	l, err := dir.ListenAdmin()
	if errors.Is(err, state.ErrSucceeded) { // asked to stop already, and replaced
		return s.Run(ctx)
	}
	if err != nil {
		return usage(err)
	}
	// The admin socket outlives ctx: a process that is stopping still says how
	// far it is.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	a := &admin.Server{Status: s.Status, Keys: keys, Log: log}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Serve(adminCtx, l); err != nil {
			log.Error("the admin socket is closed: status and key cannot ask this process", "err", err)
		}
	})
	err = s.Run(ctx)
	stopAdmin()
	wg.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // asked to stop now
	}
	return err
}

// withSignals calls drain at the first signal to stop and cancel at the second,
// until the returned function is called, which waits for it.
func withSignals(log *slog.Logger, drain, cancel func()) (stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, watchedSignals()...)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		asked := false
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				switch {
				case ignoreSignal(sig):
					log.Warn("reloading is not in this version: restart to read the configuration again", "signal", sig.String())
				case !asked:
					asked = true
					log.Info("stopping when the last connection ends", "signal", sig.String(), "hint", "a second signal stops now")
					drain()
				default:
					cancel() // first: whoever reads the log may have stopped
					log.Info("stopping now", "signal", sig.String())
				}
			}
		}
	})
	return func() {
		signal.Stop(signals)
		close(done)
		wg.Wait()
	}
}

// A start waits for `reverser key`, which holds the directory for a moment when
// nobody else does, and for a live process that was just asked to stop: that
// one gives the directory up at once.
const (
	lockWait  = 2 * time.Second
	yieldWait = time.Second
	lockPoll  = 50 * time.Millisecond
)

// openState takes a role's state directory, "" being the default one.
func openState(ctx context.Context, path, role string) (*state.Dir, error) {
	path, err := statePath(path, role)
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); ; {
		dir, err := state.Open(path)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, state.ErrInUse) {
			return nil, usage(err)
		}
		limit := lockWait
		if answers(ctx, path) {
			limit = yieldWait
		}
		if time.Since(begin) > limit {
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

// answers is whether a live process serves the directory.
func answers(ctx context.Context, path string) bool {
	conn, err := state.DialAdmin(ctx, path)
	if err != nil {
		return !errors.Is(err, state.ErrNotRunning)
	}
	conn.Close()
	return true
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

// refuseAdmin is for every --admin: the unix socket is all there is so far.
func refuseAdmin(addr string) error {
	if addr == "" {
		return nil
	}
	return usageHint("leave it out: `reverser status` and `reverser key` use the socket in the state directory",
		"--admin %s: the HTTP API and page on an address of their own are not in this version", addr)
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
