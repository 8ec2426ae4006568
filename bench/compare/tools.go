package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// needed are the programs that nobody here wrote and that no run can do without, each with the Debian package it comes in.
var needed = []struct{ program, pkg, version string }{
	{"haproxy", "haproxy", "-v"},
	{"iperf3", "iperf3", "--version"},
	{"nginx", "nginx", "-v"},
	{"wrk", "wrk", "-v"},
}

// welcome are programs that are measured where they are there. Nobody is told of those that have no place to get them from.
var welcome = []struct{ program, version, get string }{
	{earlierProgram, "version", ""},
	{"frps", "--version", "github.com/fatedier/frp"},
	{"frpc", "--version", "github.com/fatedier/frp"},
	{"rathole", "--version", "github.com/rathole-org/rathole"},
	{"chisel", "--version", "github.com/jpillora/chisel"},
	{"sshd", "-V", "the Debian package openssh-server"},
	{"ssh", "-V", "the Debian package openssh-client"},
	{"ssh-keygen", "", "the Debian package openssh-client"},
}

// tools has the path of each program that is there.
type tools map[string]string

// findTools looks for the programs in dir, if that is not "", and on the PATH.
func findTools(dir string) (tools, error) {
	found := make(tools)
	var programs, pkgs []string
	for _, n := range needed {
		if path := lookPath(n.program); path != "" {
			found[n.program] = path
			continue
		}
		programs = append(programs, n.program)
		pkgs = append(pkgs, n.pkg)
	}
	if len(pkgs) > 0 {
		return nil, missing(programs, pkgs)
	}
	for _, w := range welcome {
		path := ""
		if dir != "" {
			path, _ = exec.LookPath(filepath.Join(dir, w.program))
		}
		if path == "" {
			path = lookPath(w.program)
		}
		if path != "" {
			found[w.program], _ = filepath.Abs(path) // sshd wants to know where it is
		}
	}
	return found, nil
}

// absent says which of the ways cannot be measured, and where to get what they need.
func (t tools) absent() (lines []string) {
	for _, w := range ways {
		for _, program := range w.programs {
			i := slices.IndexFunc(welcome, func(x struct{ program, version, get string }) bool { return x.program == program })
			if _, ok := t[program]; !ok && i >= 0 && welcome[i].get != "" {
				lines = append(lines, fmt.Sprintf("%s is not measured: no %s on the PATH or in the directory of -peers; it comes from %s", w.title, program, welcome[i].get))
				break
			}
		}
	}
	return lines
}

func missing(programs, pkgs []string) error {
	return fmt.Errorf("not found: %s\nThey are Debian packages; this installs them:\n\n    sudo apt-get install %s\n",
		strings.Join(programs, ", "), strings.Join(pkgs, " "))
}

// lookPath also looks where Debian puts servers, which is not in everybody's PATH.
func lookPath(program string) string {
	for _, name := range []string{program, "/usr/sbin/" + program, "/usr/local/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// machine describes what the figures depend on.
type machine struct {
	Time       time.Time         `json:"time"`
	CPU        string            `json:"cpu"`
	Cores      int               `json:"cores"`
	Memory     float64           `json:"memory_gb"`
	Kernel     string            `json:"kernel"`
	Congestion string            `json:"tcp_congestion_control"`
	Go         string            `json:"go"`
	Revision   string            `json:"revision"` // of reverser; empty outside a repository
	Programs   map[string]string `json:"programs"`
	LoadBefore string            `json:"load_before"`
	LoadAfter  string            `json:"load_after"`
	Nice       int               `json:"nice,omitempty"` // of this program, and so of all that it starts
}

func describe(ctx context.Context, b *bed) machine {
	m := machine{
		Time: time.Now(), CPU: cpuModel(readFile("/proc/cpuinfo")), Cores: runtime.NumCPU(),
		Kernel: readFile("/proc/sys/kernel/osrelease"), Congestion: readFile("/proc/sys/net/ipv4/tcp_congestion_control"),
		Go: runtime.Version(), Nice: niceness(),
		Programs: make(map[string]string), LoadBefore: loadAverage(),
	}
	// Not from the program's build info: people switch that off, in a container for instance.
	if rev, err := command(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Revision = strings.TrimSpace(string(rev))
	}
	m.Memory = memTotal(readFile("/proc/meminfo"))
	ask := func(program, flag string) {
		if b.tools[program] == "" || flag == "" {
			return
		}
		// Some of them print it to stderr, or exit with 1 after it.
		text, _ := command(ctx, b.tools[program], flag).CombinedOutput()
		m.Programs[program] = versionIn(string(text))
	}
	for _, n := range needed {
		ask(n.program, n.version)
	}
	for _, w := range welcome {
		ask(w.program, w.version)
	}
	return m
}

// memTotal is in GB.
func memTotal(meminfo string) float64 {
	for line := range strings.Lines(meminfo) {
		if value, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
			return math.Round(kb * 1024 / 1e9)
		}
	}
	return 0
}

// versionIn finds the version in what a program says of itself. A number behind a colon is the time of its build.
func versionIn(text string) string {
	if m := versionNumber.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

var versionNumber = regexp.MustCompile(`(?m)(?:^|[\s/_(v])(\d+\.\d+(?:\.\d+)*(?:p\d+)?)`)

func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown " + runtime.GOARCH
}

// loadAverage returns the load of the last minute, which shows whether the machine had anything else to do.
func loadAverage() string {
	first, _, _ := strings.Cut(readFile("/proc/loadavg"), " ")
	return first
}

func readFile(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimSpace(string(text))
}
