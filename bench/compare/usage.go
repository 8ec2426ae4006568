package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on every Linux.
const tick = 10 * time.Millisecond

// A task is what /proc says of a process.
type task struct {
	parent int
	cpu    time.Duration // of its own and of the children that have ended
}

// tasks is all processes at one time.
type tasks map[int]task

func allTasks() tasks {
	all := make(tasks)
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		if pid, t, err := parseStat(string(text)); err == nil {
			all[pid] = t
		}
	}
	return all
}

// parseStat reads the text of /proc/PID/stat. The name in it may hold spaces and brackets.
func parseStat(text string) (pid int, t task, err error) {
	before, _, _ := strings.Cut(text, " (")
	end := strings.LastIndex(text, ") ")
	if end < 0 {
		return 0, t, fmt.Errorf("no name in %.100q", text)
	}
	f := strings.Fields(text[end+2:]) // f[0] is the third field of proc(5)
	if len(f) < 15 {
		return 0, t, fmt.Errorf("too few fields in %.100q", text)
	}
	if pid, err = strconv.Atoi(before); err != nil {
		return 0, t, err
	}
	if t.parent, err = strconv.Atoi(f[1]); err != nil {
		return 0, t, err
	}
	for _, s := range f[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, t, err
		}
		t.cpu += time.Duration(n) * tick
	}
	return pid, t, nil
}

// family returns root and all that descend from it.
func (all tasks) family(root int) map[int]bool {
	in := map[int]bool{root: true}
	for grown := true; grown; {
		grown = false
		for pid, t := range all {
			if in[t.parent] && !in[pid] {
				in[pid], grown = true, true
			}
		}
	}
	return in
}

// cpu is what the process and its descendants have used.
func (all tasks) cpu(root int) (sum time.Duration) {
	for pid := range all.family(root) {
		sum += all[pid].cpu
	}
	return sum
}

// others is what all have used that do not descend from root.
func (all tasks) others(root int) (sum time.Duration) {
	ours := all.family(root)
	for pid, t := range all {
		if !ours[pid] {
			sum += t.cpu
		}
	}
	return sum
}

// cpu returns what each process of c has used so far, descendants included.
func (c *contender) cpu() []time.Duration {
	all := allTasks()
	var used []time.Duration
	for _, p := range c.processes {
		used = append(used, all.cpu(p.cmd.Process.Pid))
	}
	return used
}

// cpuSince returns the seconds that c's processes have used since then, first in all and then each.
func (c *contender) cpuSince(then []time.Duration) []float64 {
	sum := []float64{0}
	for i, d := range c.cpu() {
		s := (d - then[i]).Seconds()
		sum[0] += s
		sum = append(sum, s)
	}
	return sum
}

// resident returns the resident KB of all processes of c.
func (c *contender) resident() (kb int, err error) {
	all := allTasks()
	for _, p := range c.processes {
		for pid := range all.family(p.cmd.Process.Pid) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				return 0, c.explain(fmt.Errorf("weigh %s: %w", p.name, err))
			}
			n, err := parseResident(string(text))
			if err != nil {
				return 0, fmt.Errorf("weigh %s: %w", p.name, err)
			}
			kb += n
		}
	}
	return kb, nil
}

// parseResident finds VmRSS in the text of /proc/PID/status.
func parseResident(status string) (kb int, err error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
		}
	}
	return 0, errors.New("no VmRSS: the process has ended")
}
