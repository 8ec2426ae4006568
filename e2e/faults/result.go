//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A result is what a scenario found out.
type result struct {
	mu      sync.Mutex
	figures []string // guarded by mu, as all below
	missed  []string // promises about time and memory that were not kept
	broken  []string // wrong bytes, wrong ends, things that never came
	skipped string
	took    time.Duration
	logs    []string // of the processes, where something is broken
}

// keepLog keeps what a process wrote for whoever looks for the cause, without the many lines about single connections.
func (r *result) keepLog(name, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.broken) == 0 {
		return
	}
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, `"msg":"pair `) && kept.Len() < 10_000 {
			kept.WriteString(line)
		}
	}
	r.logs = append(r.logs, fmt.Sprintf("--- %s wrote:\n%s", name, kept.String()))
}

// note adds a figure to what the report says.
func (r *result) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures = append(r.figures, fmt.Sprintf(format, args...))
}

// fail says that a promise about bytes or connections is broken.
func (r *result) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.broken) < 20 {
		r.broken = append(r.broken, fmt.Sprintf(format, args...))
	}
}

func (r *result) failIf(err error, what string) {
	if err != nil {
		r.fail("%s: %v", what, err)
	}
}

// patience is by how much a time may be beyond its promise before a test fails: the machine may be busy.
const patience = 30 * time.Second

// within notes a time, and whether it is what was promised.
func (r *result) within(what string, got, promised time.Duration) {
	r.note("%s %s", what, seconds(got))
	if got > promised+patience {
		r.fail("%s: %s; promised are %s", what, seconds(got), seconds(promised))
	} else if got > promised {
		r.miss("%s %s; promised are %s", what, seconds(got), seconds(promised))
	}
}

func (r *result) miss(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.missed = append(r.missed, fmt.Sprintf(format, args...))
}

// undisturbed says that none of the link's connections was to be given up, and n were. A machine so busy that a process stands still for
// seconds may be the cause of some, all at the same time; not of many.
func (r *result) undisturbed(n int) {
	switch {
	case n > 5: // a control connection and four carriers
		r.fail("%d connections of the link were taken for dead", n)
	case n > 0:
		r.miss("%d connections of the link were taken for dead", n)
	}
}

func seconds(d time.Duration) string {
	switch {
	case d < 100*time.Millisecond:
		return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + " ms"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) + " s"
	}
	return strconv.FormatFloat(d.Seconds(), 'f', 0, 64) + " s"
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return strconv.FormatFloat(float64(n)/(1<<30), 'f', 1, 64) + " GiB"
	case n >= 1<<20:
		return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) + " MiB"
	}
	return strconv.FormatFloat(float64(n)/(1<<10), 'f', 1, 64) + " KiB"
}

// quantile is the value below which a part of the values lie; 0 for none.
func quantile[T time.Duration | float64](values []T, part float64) T {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return s[min(int(part*float64(len(s))), len(s)-1)]
}

// spread is median, 95th percentile and maximum.
func spread(values []time.Duration) string {
	return fmt.Sprintf("%s / %s / %s", seconds(quantile(values, .5)), seconds(quantile(values, .95)), seconds(quantile(values, 1)))
}

// usage is what the kernel says of a process.
type usage struct {
	rss int64 // bytes
	fds int
	cpu time.Duration
}

func usageOf(pid int) (u usage) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	status, _ := os.ReadFile(dir + "status")
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			u.rss = kb << 10
		}
	}
	fds, _ := os.ReadDir(dir + "fd")
	u.fds = len(fds)
	stat, _ := os.ReadFile(dir + "stat")
	if i := strings.LastIndexByte(string(stat), ')'); i > 0 {
		fields := strings.Fields(string(stat[i+1:]))
		if len(fields) > 12 {
			user, _ := strconv.ParseInt(fields[11], 10, 64)
			system, _ := strconv.ParseInt(fields[12], 10, 64)
			u.cpu = time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 everywhere
		}
	}
	return u
}
