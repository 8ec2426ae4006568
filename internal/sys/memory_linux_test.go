package sys

import (
	"testing"
	"testing/fstest"
)

func TestRead(t *testing.T) {
	const machine = "MemTotal:       1048576 kB\nMemFree:         1000 kB\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  int64 // MiB
	}{
		"nothing":    {nil, 0},
		"machine":    {map[string]string{"proc/meminfo": machine}, 1024},
		"no figure":  {map[string]string{"proc/meminfo": "MemTotal: many kB\n"}, 0},
		"only group": {map[string]string{"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "268435456\n"}, 256},
		"v2, no limit": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
		}, 1024},
		"v2, a service's": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/system.slice/reverser.service\n",
			"sys/fs/cgroup/system.slice/reverser.service/memory.max": "268435456\n", "sys/fs/cgroup/system.slice/memory.max": "536870912\n",
		}, 256},
		"v2, a parent's": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "134217728\n",
		}, 128},
		"v2, a container that sees the host's path": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/memory.max": "268435456\n",
		}, 256},
		"v2, above its own root": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/memory.max": "268435456\n",
		}, 256},
		"v1": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "268435456\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 256},
		"v1, no limit": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 1024},
		"more than the machine has": {map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "99999999999\n",
		}, 1024},
		"v2, /proc is hidden": {map[string]string{"sys/fs/cgroup/memory.max": "67108864\n"}, 64},
		"v1, /proc is hidden": {map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "67108864\n"}, 64},
		"nonsense":            {map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "\n:\n0::\nx:y:z\n"}, 1024},
	} {
		fsys := fstest.MapFS{}
		for file, text := range c.files {
			fsys[file] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := read(fsys, "self") / mib; got != c.want {
			t.Errorf("%s: %d MiB, want %d", name, got, c.want)
		}
	}
}
