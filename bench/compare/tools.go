package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// needed are the programs that nobody here wrote, each with the Debian package it comes in.
var needed = []struct{ program, pkg, version string }{
	{"haproxy", "haproxy", "-v"},
	{"iperf3", "iperf3", "--version"},
	{"nginx", "nginx", "-v"},
	{"wrk", "wrk", "-v"},
}

// tools has the path of each needed program.
type tools map[string]string

func findTools() (tools, error) {
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
	return found, nil
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
	Kernel     string            `json:"kernel"`
	Congestion string            `json:"tcp_congestion_control"`
	Go         string            `json:"go"`
	Revision   string            `json:"revision"` // of reverser; empty outside a repository
	Programs   map[string]string `json:"programs"`
	LoadBefore string            `json:"load_before"`
	LoadAfter  string            `json:"load_after"`
}

func describe(ctx context.Context, b *bed) machine {
	m := machine{
		Time: time.Now(), CPU: cpuModel(readFile("/proc/cpuinfo")), Cores: runtime.NumCPU(),
		Kernel: readFile("/proc/sys/kernel/osrelease"), Congestion: readFile("/proc/sys/net/ipv4/tcp_congestion_control"),
		Go:       runtime.Version(),
		Programs: make(map[string]string), LoadBefore: loadAverage(),
	}
	// Not from the program's build info: people switch that off, in a container for instance.
	if rev, err := command(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Revision = strings.TrimSpace(string(rev))
	}
	for _, n := range needed {
		// Some of them print it to stderr, or exit with 1 after it.
		text, _ := command(ctx, b.tools[n.program], n.version).CombinedOutput()
		m.Programs[n.program] = versionNumber.FindString(string(text))
	}
	return m
}

var versionNumber = regexp.MustCompile(`\d+\.\d+(\.\d+)*`)

func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown " + runtime.GOARCH
}

// loadAverage tells whether the machine had anything else to do.
func loadAverage() string {
	first, _, _ := strings.Cut(readFile("/proc/loadavg"), " ")
	return first
}

func readFile(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimSpace(string(text))
}
