package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"reverser/internal/bridge"
	"reverser/internal/grammar"
)

// plannedBridge is a bridge that fleetHelper is to run.
type plannedBridge struct{ Token, From, Public string }

// fleetHelper runs bridges: a line of JSON says which. Then it takes orders: "start N" starts bridges until N are started; "again" forgets
// who served; "await DURATION" answers with a line of JSON when all that were started serve, or after so long.
func fleetHelper(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) > 0 {
		return errArgs
	}
	orders := bufio.NewReader(in)
	line, err := orders.ReadBytes('\n')
	if err != nil {
		return err
	}
	var plan []plannedBridge
	if err := json.Unmarshal(line, &plan); err != nil {
		return err
	}
	need := fleetSize{bridges: len(plan)}.files()
	if have := raiseFileLimit(need); have < need {
		return fmt.Errorf("%d bridges need %d open files, the limit is %d: raise it with `ulimit -n %d`", len(plan), need, have, need)
	}
	w := newWatch(len(plan))
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	started := 0
	for {
		line, err := orders.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch order, arg, _ := strings.Cut(strings.TrimSpace(line), " "); order {
		case "start":
			n, err := strconv.Atoi(arg)
			if err != nil || n < started || n > len(plan) {
				return fmt.Errorf("start %q: %d of %d bridges are started", arg, started, len(plan))
			}
			w.expect(n)
			for ; started < n; started++ {
				b, err := plan[started].bridge(w.of(started))
				if err != nil {
					return err
				}
				running.Go(func() { _ = b.Run(ctx) }) // it ends with ctx
			}
		case "again":
			w.again()
		case "await":
			d, err := time.ParseDuration(arg)
			if err != nil {
				return err
			}
			if err := json.NewEncoder(out).Encode(w.await(ctx, d)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("the order %q is none", line)
		}
	}
}

// bridge makes a bridge that echoes what its users say.
func (p plannedBridge) bridge(log slog.Handler) (*bridge.Bridge, error) {
	token, err1 := grammar.ParseToken(p.Token)
	public, err2 := grammar.ParsePublic(p.Public)
	from, err3 := netip.ParseAddr(p.From)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	return bridge.New(bridge.Config{
		Token: token, From: from, Log: slog.New(log),
		Settings: bridge.Settings{Services: []bridge.Service{{Public: public, Handle: sayBack}}},
	})
}

func sayBack(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c) // the user says what is missing
}

// watch knows which bridges serve, by what they log: "service up" is said when the port is open, carriers are there, and the bridge has tried it.
type watch struct {
	mu      sync.Mutex
	begun   time.Time
	serving []bool // guarded by mu, as all below
	started int
	times   []float64
	said    map[string]int
	all     chan struct{} // closed when all that were started serve
}

func newWatch(n int) *watch {
	w := &watch{serving: make([]bool, n)}
	w.again()
	return w
}

func (w *watch) again() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.serving)
	w.begun, w.times, w.said, w.all = time.Now(), nil, make(map[string]int), make(chan struct{})
}

// expect says that the bridges below n are started now.
func (w *watch) expect(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > w.started {
		w.begun, w.started, w.all = time.Now(), n, make(chan struct{})
	}
}

func (w *watch) await(ctx context.Context, limit time.Duration) served {
	w.mu.Lock()
	all, left := w.all, time.Until(w.begun.Add(limit))
	w.mu.Unlock()
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-all:
	case <-t.C:
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.times)
	return served{slices.Clone(w.times), maps.Clone(w.said)}
}

func (w *watch) serves(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.serving[i] {
		return
	}
	w.serving[i] = true
	if w.times = append(w.times, time.Since(w.begun).Seconds()); len(w.times) == w.started {
		close(w.all)
	}
}

// of returns the log of a bridge.
func (w *watch) of(i int) slog.Handler { return watchLog{w: w, bridge: i} }

// watchLog is a slog.Handler that takes nothing but news.
type watchLog struct {
	w      *watch
	bridge int
}

func (l watchLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l watchLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l watchLog) WithGroup(string) slog.Handler                    { return l }

func (l watchLog) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "service up") { // a port that did not answer the bridge in time is open nevertheless
		l.w.serves(l.bridge)
	}
	if r.Level >= slog.LevelWarn {
		l.w.mu.Lock()
		l.w.said[r.Message]++
		l.w.mu.Unlock()
	}
	return nil
}
