package sys

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// PortHolders returns the processes that listen on a TCP port of this machine, under whichever address. Of processes of other users the
// system tells root alone. taken reports whether anybody listens.
func PortHolders(port uint16) (holders []Holder, taken bool) { return portHolders(os.DirFS("/"), port) }

func portHolders(root fs.FS, port uint16) (holders []Holder, taken bool) {
	sockets := make(map[string]bool)
	// Of this thread, not of the process: /proc/self/net is the network namespace of the main thread, which may be another one.
	for _, name := range []string{"proc/thread-self/net/tcp", "proc/thread-self/net/tcp6"} {
		text, _ := fs.ReadFile(root, name)
		for line := range strings.Lines(string(text)) {
			// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode; 0A is LISTEN (proc(5)).
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" {
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			if n, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(n) == port {
				taken = true
				sockets["socket:["+f[9]+"]"] = true
			}
		}
	}
	if !taken {
		return nil, false
	}
	processes, _ := fs.ReadDir(root, "proc")
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || !holdsAny(root, pid, sockets) {
			continue
		}
		name, _ := fs.ReadFile(root, path.Join("proc", p.Name(), "comm"))
		holders = append(holders, Holder{pid, strings.TrimSpace(string(name))})
	}
	slices.SortFunc(holders, func(a, b Holder) int { return a.PID - b.PID })
	return holders, true
}

// holdsAny reports whether a process has one of the sockets open.
func holdsAny(root fs.FS, pid int, sockets map[string]bool) bool {
	dir := path.Join("proc", strconv.Itoa(pid), "fd")
	open, _ := fs.ReadDir(root, dir)
	return slices.ContainsFunc(open, func(d fs.DirEntry) bool {
		to, err := fs.ReadLink(root, path.Join(dir, d.Name()))
		return err == nil && sockets[to]
	})
}
