package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"reverser/internal/accesslog"
	"reverser/internal/config"
	"reverser/internal/sys"
)

// fewDescriptors are so few that users will soon be refused: many systems give 1,024 where nobody asked for more.
const fewDescriptors = 1024

func (w *World) descriptors(_ context.Context, v *visit) []Check {
	const name = "descriptors"
	const hint = "raise the limit (ulimit -n, LimitNOFILE=)"
	whose, but := "the running process", ""
	if v.pid() == 0 {
		whose, but = "a process that is started here", "; a service may have another limit"
	}
	n := w.Descriptors(v.pid())
	switch err := sys.CheckDescriptorLimit(n); {
	case n == 0:
		return []Check{skip(name, "the limit of the running process is not known")}
	case err != nil:
		return []Check{fail(name, hint, "%s may have %d open%s: %v", whose, n, but, err)}
	case n < fewDescriptors:
		return []Check{warn(name, hint, "%s may have %d open, one for each connection of a user%s", whose, n, but)}
	}
	return []Check{ok(name, "%s may have %d open%s", whose, n, but)}
}

// littleMemory is what a process with some users and links has, and no more.
const littleMemory = 64 << 20

func (w *World) memory(_ context.Context, v *visit) []Check {
	const name = "memory"
	n := w.Memory(v.pid())
	switch {
	case n <= 0:
		return []Check{skip(name, "this system does not say how much there is")}
	case n < littleMemory:
		return []Check{warn(name, "raise the limit of the container or service", "%d MiB may be used, some of it by what is under way: with many users the system ends the process", n>>20)}
	}
	return []Check{ok(name, "%d MiB may be used", n>>20)}
}

// kernel are the settings and tables of Linux that this program depends on. Those of one role do not matter to the other.
func (w *World) kernel(_ context.Context, v *visit) (all []Check) {
	const name = "kernel"
	if w.Machine == nil {
		return []Check{skip(name, "its settings are looked at on Linux only")}
	}
	looked := 0
	// number calls judge with a field of a file in /proc, if there is one.
	number := func(file string, field int, judge func(n int64)) {
		text, err := fs.ReadFile(w.Machine, "proc/"+file)
		f := strings.Fields(string(text))
		if err != nil || field >= len(f) {
			return
		}
		if n, err := strconv.ParseInt(f[field], 10, 64); err == nil {
			looked++
			judge(n)
		}
	}
	if v.Role == config.RoleProxy {
		number("sys/net/core/somaxconn", 0, func(n int64) {
			if n < 1024 {
				all = append(all, warn(name, "sysctl net.core.somaxconn=4096", "net.core.somaxconn is %d: when more users come at once than that, the rest waits seconds for the next try", n))
			}
		})
		number("sys/net/ipv4/tcp_max_syn_backlog", 0, func(n int64) {
			if n < 256 {
				all = append(all, warn(name, "sysctl net.ipv4.tcp_max_syn_backlog=1024", "net.ipv4.tcp_max_syn_backlog is %d: when more users come at once than that, the rest waits seconds for the next try", n))
			}
		})
	} else {
		number("sys/net/ipv4/ip_local_port_range", 0, func(low int64) {
			number("sys/net/ipv4/ip_local_port_range", 1, func(high int64) {
				if n := high - low + 1; n < 16384 {
					all = append(all, warn(name, "widen net.ipv4.ip_local_port_range, or give the bridge more addresses with --source",
						"net.ipv4.ip_local_port_range has %d ports: so many connections to one target at most", n))
				}
			})
		})
	}
	number("sys/net/ipv4/tcp_wmem", 2, func(auto int64) {
		number("sys/net/core/wmem_max", 0, func(most int64) {
			if n := max(auto, 2*most); n < 1<<20 {
				all = append(all, warn(name, `sysctl net.ipv4.tcp_wmem="4096 16384 4194304"`, "net.ipv4.tcp_wmem and net.core.wmem_max let %d KB be under way: over 100 ms that is %d Mbit/s at most", n>>10, n*80/1e6))
			}
		})
	})
	number("sys/net/netfilter/nf_conntrack_max", 0, func(most int64) {
		number("sys/net/netfilter/nf_conntrack_count", 0, func(n int64) {
			const hint = "raise net.netfilter.nf_conntrack_max, or leave the ports of users out of the firewall's tracking (notrack)"
			switch {
			case most > 0 && n >= most:
				all = append(all, fail(name, hint, "the table of the firewall's connections is full (%d): new users are dropped", most))
			case most > 0 && n*10 >= most*8:
				all = append(all, warn(name, hint, "the table of the firewall's connections is nearly full: %d of %d", n, most))
			}
		})
	})
	number("sys/fs/file-nr", 0, func(n int64) {
		number("sys/fs/file-nr", 2, func(most int64) {
			if most > 0 && n*10 >= most*9 {
				all = append(all, warn(name, "sysctl fs.file-max, or find who has them open", "the machine has %d of %d files open", n, most))
			}
		})
	})
	number("sys/net/ipv4/tcp_mem", 1, func(pressure int64) {
		if n := tcpPages(w.Machine); n >= pressure && pressure > 0 {
			all = append(all, warn(name, "raise net.ipv4.tcp_mem, or give the machine more memory", "the sockets of the machine hold %d pages of memory, and from %d on the kernel slows all of them down", n, pressure))
		}
	})
	switch {
	case len(all) > 0:
		return all
	case looked == 0:
		return []Check{skip(name, "it tells this process nothing of its settings")}
	}
	return []Check{ok(name, "%s that matter here are as they should be", count(looked, "figure"))}
}

// tcpPages is how much memory all TCP sockets hold.
func tcpPages(root fs.FS) int64 {
	text, _ := fs.ReadFile(root, "proc/net/sockstat")
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		for i, word := range f {
			if f[0] == "TCP:" && word == "mem" && i+1 < len(f) {
				n, _ := strconv.ParseInt(f[i+1], 10, 64)
				return n
			}
		}
	}
	return 0
}

// clock is judged by what must lie in the past.
func (w *World) clock(_ context.Context, v *visit) []Check {
	const name = "clock"
	const hint = "set it (timedatectl, NTP): certificates are judged by it, and what is in the log is hard to find"
	now := w.Now()
	const slack = 24 * time.Hour // time zones, and the clock of who built it
	oldest := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	if w.Built.After(oldest) {
		oldest = w.Built
	}
	if now.Before(oldest.Add(-slack)) {
		return []Check{fail(name, hint, "it says %s, which was before this program was written", inUTC(now))}
	}
	for _, file := range []string{"lock", "identity.pem", "keys.json"} {
		if info, err := os.Stat(filepath.Join(v.State, file)); err == nil && info.ModTime().After(now.Add(slack)) {
			return []Check{warn(name, hint, "it says %s, and %s was written at %s: it went back, or was ahead then", inUTC(now),
				filepath.Join(v.State, file), inUTC(info.ModTime()))}
		}
	}
	return []Check{ok(name, "%s", inUTC(now))}
}

// littleDisk is where a disk is nearly full: state is small, and logs are not.
const littleDisk = 16 << 20

func (w *World) disk(_ context.Context, v *visit) (all []Check) {
	const hint = "make room: keys and certificates cannot be stored without"
	places := []string{existing(v.State)}
	if log := v.accessLogFile(); log != "" {
		places = append(places, existing(filepath.Dir(log)))
	}
	for i, path := range places {
		if i > 0 && path == places[0] {
			continue
		}
		d, err := w.Disk(path)
		switch {
		case i == 0 && sys.DiskFull(v.seenErr):
			all = append(all, fail("disk", hint, "that of %s is full: %v", path, plain(v.seenErr)))
		case err != nil || d.Size == 0: // of what is no disk, such as /proc
			all = append(all, skip("disk", "the room at %s is not known", path))
		case i == 0 && d.Free < littleDisk:
			all = append(all, warn("disk", hint, "%s free of %s at %s", size(d.Free), size(d.Size), path))
		case d.Free < littleDisk:
			all = append(all, warn("disk", "make room, or the access log loses lines", "%s free of %s at %s", size(d.Free), size(d.Size), path))
		default:
			all = append(all, ok("disk", "%s free of %s at %s", size(d.Free), size(d.Size), path))
		}
	}
	return all
}

// accessLogFile is the file of the access log, "" if there is none or it is no file.
func (v *visit) accessLogFile() string {
	file := ""
	switch {
	case v.Settings != nil:
		file = v.Settings.AccessLog
	case v.Snapshot != nil && v.Snapshot.AccessLog != nil:
		file = v.Snapshot.AccessLog.File
	}
	if file == accesslog.Stdout {
		return ""
	}
	return file
}

// existing is the nearest directory above a path, or the path itself, that is there.
func existing(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// plain is the innermost error.
func plain(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok || u.Unwrap() == nil {
			return err
		}
		err = u.Unwrap()
	}
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MB", n>>20)
	}
	return fmt.Sprintf("%d KB", n>>10)
}
