package sys

import (
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

func available() int64 { return read(os.DirFS("/"), "self") }

// availableTo is available for another process; 0 where the system does not tell.
func availableTo(pid int) int64 { return read(os.DirFS("/"), strconv.Itoa(pid)) }

// read finds the limits of a process below root, which is the file system's.
func read(root fs.FS, process string) int64 {
	least := meminfo(root)
	take := func(n int64) {
		if n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	text, err := fs.ReadFile(root, path.Join("proc", process, "cgroup"))
	if err != nil { // /proc is hidden: in a container the mount begins with the container's own group
		group(root, "sys/fs/cgroup", "/", "memory.max", take)
		group(root, "sys/fs/cgroup/memory", "/", "memory.limit_in_bytes", take)
		return least
	}
	for line := range strings.Lines(string(text)) {
		// hierarchy:controllers:path; version 2 has no controllers there.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			group(root, "sys/fs/cgroup", parts[2], "memory.max", take)
			group(root, "sys/fs/cgroup/unified", parts[2], "memory.max", take)
		case strings.Contains(","+parts[1]+",", ",memory,"):
			group(root, "sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes", take)
		}
	}
	return least
}

// group reads the limit of a control group and of all above it: each of them holds. In a container the path may be the
// host's, while what is mounted begins with the container's own group: the way up ends there in any case.
func group(root fs.FS, mount, at, file string, take func(int64)) {
	for at = path.Clean("/" + at); ; at = path.Dir(at) {
		if text, err := fs.ReadFile(root, path.Join(mount, at, file)); err == nil {
			// "max" is no limit; version 1 says so with a figure that is larger than any machine.
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
				take(n)
			}
		}
		if at == "/" {
			return
		}
	}
}

// meminfo is the machine's memory.
func meminfo(root fs.FS) int64 {
	text, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			n, _ := strconv.ParseInt(f[1], 10, 53)
			return n << 10
		}
	}
	return 0
}
