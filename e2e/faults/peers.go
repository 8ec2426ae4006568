//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"reverser/e2e/faultnet"
	"reverser/e2e/process"
)

// A peer is another program that makes a public port of a private service. Server and client are its two halves, on
// loopback like everything here.
type peer struct {
	name    string
	needs   []string // programs
	version []string // a command line that prints it
	setup   func(p *peerRun) error
	server  func(p *peerRun) []string // command lines; the first word is a program of needs
	client  func(p *peerRun) []string
}

// peerRun is a peer on its way into a tunnel.
type peerRun struct {
	dir                                string
	link, dials                        string // where the server listens for clients, and where the client dials
	linkPort, dialPort, public, target string // of these, and of users and service, the ports
	paths                              map[string]string
}

func (p *peerRun) file(name, text string) string {
	path := filepath.Join(p.dir, name)
	_ = os.WriteFile(path, []byte(text), 0o600) // the program that misses it says so
	return path
}

var peers = []peer{
	{name: "frp", needs: []string{"frps", "frpc"}, version: []string{"frps", "--version"},
		server: func(p *peerRun) []string {
			return []string{"frps", "-c", p.file("frps.toml", "bindAddr = \"127.0.0.1\"\nbindPort = "+p.linkPort+"\nauth.token = \"measured\"\n")}
		},
		client: func(p *peerRun) []string {
			return []string{"frpc", "-c", p.file("frpc.toml", "serverAddr = \"127.0.0.1\"\nserverPort = "+p.dialPort+"\nauth.token = \"measured\"\nloginFailExit = false\n"+
				"[[proxies]]\nname = \"x\"\ntype = \"tcp\"\nlocalIP = \"127.0.0.1\"\nlocalPort = "+p.target+"\nremotePort = "+p.public+"\n")}
		}},
	{name: "rathole", needs: []string{"rathole"}, version: []string{"rathole", "--version"},
		server: func(p *peerRun) []string {
			return []string{"rathole", "--server", p.file("server.toml", "[server]\nbind_addr = \""+p.link+"\"\ndefault_token = \"measured\"\n[server.services.x]\nbind_addr = \"127.0.0.1:"+p.public+"\"\n")}
		},
		client: func(p *peerRun) []string {
			return []string{"rathole", "--client", p.file("client.toml", "[client]\nremote_addr = \""+p.dials+"\"\ndefault_token = \"measured\"\n[client.services.x]\nlocal_addr = \"127.0.0.1:"+p.target+"\"\n")}
		}},
	{name: "chisel", needs: []string{"chisel"}, version: []string{"chisel", "--version"},
		server: func(p *peerRun) []string {
			return []string{"chisel", "server", "--host", "127.0.0.1", "--port", p.linkPort, "--reverse", "--auth", "a:measured"}
		},
		client: func(p *peerRun) []string {
			return []string{"chisel", "client", "--auth", "a:measured", "http://" + p.dials, "R:127.0.0.1:" + p.public + ":127.0.0.1:" + p.target}
		}},
	{name: "ssh -R", needs: []string{"sshd", "ssh", "ssh-keygen"}, version: []string{"ssh", "-V"},
		setup: func(p *peerRun) error {
			for _, name := range []string{"host", "client"} {
				out, err := exec.Command(p.paths["ssh-keygen"], "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(p.dir, name)).CombinedOutput()
				if err != nil {
					return fmt.Errorf("ssh-keygen: %w: %s", err, out)
				}
			}
			return os.MkdirAll("/run/sshd", 0o755) // as its start script does; without it sshd refuses to run as root
		},
		server: func(p *peerRun) []string {
			return []string{"sshd", "-D", "-e", "-f", p.file("sshd_config", "ListenAddress "+p.link+"\nHostKey "+p.dir+"/host\nAuthorizedKeysFile "+p.dir+"/client.pub\n"+
				"StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nMaxStartups 100\nMaxSessions 1000\nClientAliveInterval 5\nClientAliveCountMax 3\n")}
		},
		client: func(p *peerRun) []string { // in a loop, as people run it
			me, _ := user.Current()
			return []string{"sh", "-c", "while :; do " + p.paths["ssh"] + " -F none -N -i " + p.dir + "/client -o BatchMode=yes -o StrictHostKeyChecking=no" +
				" -o UserKnownHostsFile=/dev/null -o ExitOnForwardFailure=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -p " + p.dialPort +
				" -R 127.0.0.1:" + p.public + ":127.0.0.1:" + p.target + " " + me.Username + "@127.0.0.1; sleep 1; done"}
		}},
}

// find looks for the peer's programs in dir and on the PATH.
func (p peer) find(dir string) map[string]string {
	paths := map[string]string{"sh": "/bin/sh"}
	for _, name := range p.needs {
		path := lookPath(name)
		if dir != "" {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				path = filepath.Join(dir, name)
			}
		}
		if path == "" {
			return nil
		}
		paths[name] = path
	}
	return paths
}

var versionNumber = regexp.MustCompile(`\d+\.\d+(\.\d+|p\d+)`) // not the fraction of a second in a time

// peerTable is what the same harness found out about each program.
type peerTable struct {
	names, missing []string
	rows           []string
	cells          map[string][]string // by program, as rows
}

func (t *peerTable) markdown() string {
	var s strings.Builder
	s.WriteString("The headline scenarios with a small configuration of each program, all on loopback, with the same users, service and relay between the two halves " +
		"(which the others do not get to see: on a stall their TCP connections stay acknowledged by the relay's kernel).\n\n| |")
	for _, n := range t.names {
		fmt.Fprintf(&s, " %s |", n)
	}
	s.WriteString("\n|---|" + strings.Repeat("---|", len(t.names)) + "\n")
	for i, row := range t.rows {
		fmt.Fprintf(&s, "| %s |", cell(row))
		for _, n := range t.names {
			fmt.Fprintf(&s, " %s |", cell(t.cells[n][i]))
		}
		s.WriteByte('\n')
	}
	if len(t.names) == 1 {
		s.WriteString("\n**No other program was found on this machine, so there is nothing beside.**")
	}
	for _, n := range t.names {
		if strings.HasPrefix(n, "ssh") {
			s.WriteString("\nssh -R runs in a loop, with keep-alives every 5 s and three of them missing at the most, on both sides. sshd serves a session in a process " +
				"of its own, which outlives its parent.\n")
		}
	}
	if len(t.missing) > 0 {
		fmt.Fprintf(&s, "\nNot measured, because not installed: %s. `make faults FAULTS='-peers DIRECTORY'` takes binaries from a directory.\n", strings.Join(t.missing, ", "))
	}
	return s.String()
}

// measurePeers runs the headline scenarios against reverser and every peer that is there.
func measurePeers(ctx context.Context, set settings, dir string, progress io.Writer) *peerTable {
	t := &peerTable{cells: make(map[string][]string)}
	measure := func(name string, p *peer, paths map[string]string) {
		s := scenario{id: "headline", run: func(ctx context.Context, b *bed) error {
			rows, cells := b.headline(ctx, options{relay: true, peer: p, peerPaths: paths})
			t.rows, t.cells[name] = rows, cells
			return nil
		}}
		t.names = append(t.names, name)
		res := runScenario(ctx, s, set)
		fmt.Fprintf(progress, "     %-34s %6s\n", name, seconds(res.took))
	}
	measure("reverser", nil, nil)
	for _, p := range peers {
		paths := p.find(dir)
		if paths == nil {
			t.missing = append(t.missing, p.name)
			continue
		}
		out, _ := exec.Command(paths[p.version[0]], p.version[1:]...).CombinedOutput()
		measure(p.name+" "+versionNumber.FindString(string(out)), &p, paths)
	}
	return t
}

// peerProcess starts one half of the peer instead of a half of reverser.
func (t *tunnel) peerProcess(name string, line func(*peerRun) []string) (*process.Process, error) {
	args := line(t.peerRun)
	path := t.peerRun.paths[args[0]]
	return t.start(nil, name, path, nil, args[1:]...)
}

// startPeer starts both halves and waits until a user is served.
func (t *tunnel) startPeer(ctx context.Context) error {
	port := func(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }
	t.peerRun = &peerRun{dir: t.dir, link: t.link, dials: t.dials, linkPort: port(t.link), dialPort: port(t.dials),
		public: port(t.public), target: port(t.target.Addr().String()), paths: t.opts.peerPaths}
	if t.opts.peer.setup != nil {
		if err := t.opts.peer.setup(t.peerRun); err != nil {
			return err
		}
	}
	if err := t.startProxy(ctx); err != nil {
		return err
	}
	pass(ctx, 300*time.Millisecond) // some clients wait for long after a first dial that failed
	if err := t.startBridge(ctx); err != nil {
		return err
	}
	_, err := t.served(ctx, 30*time.Second)
	return err
}

// served waits until a new user is served, trying again as users do, and says how long that took.
func (t *tunnel) served(ctx context.Context, limit time.Duration) (time.Duration, error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		attempt, end := context.WithTimeout(ctx, 2*time.Second)
		l, err := t.connect(attempt)
		end()
		if err == nil {
			l.close()
			return time.Since(begin), nil
		}
		if !pass(ctx, 20*time.Millisecond) {
			return 0, fmt.Errorf("no user was served within %v: %w", limit, err)
		}
	}
}

// headline measures F1, F4, F8, F9 and L1 in small. A cell says what went wrong where something did.
func (b *bed) headline(ctx context.Context, o options) (rows, cells []string) {
	add := func(row string, f func(t *tunnel) (string, error)) {
		rows = append(rows, row)
		sub := &bed{size: b.size, bin: b.bin, dir: filepath.Join(b.dir, fmt.Sprint(len(rows)))}
		defer sub.close()
		err := os.MkdirAll(sub.dir, 0o700)
		var text string
		if err == nil {
			var t *tunnel
			if t, err = sub.tunnel(ctx, o); err == nil {
				text, err = f(t)
			}
		}
		if err != nil {
			text = "failed: " + err.Error()
		}
		cells = append(cells, text)
	}
	cuts := by(b, 3, 10, 20)
	add(fmt.Sprintf("F1: resets of the link that a download survives, of %d", cuts), func(t *tunnel) (string, error) {
		l, err := t.connect(ctx)
		if err != nil {
			return "", err
		}
		down := newFlow(-1)
		down.rate = 5e6
		done := make(chan error, 1)
		go func() { done <- l.duplex(newFlow(100), down) }()
		survived := 0
		for ; survived < cuts; survived++ {
			pass(ctx, time.Second)
			t.relay.Cut()
			at := down.received.Load()
			wait, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := await(wait, "more bytes", func() bool {
				return down.received.Load() > at+100_000 || len(done) > 0
			})
			cancel()
			if err != nil || len(done) > 0 {
				break
			}
		}
		close(down.stop)
		if survived < cuts {
			l.close()
			return fmt.Sprintf("%d (then: %s)", survived, ending1(<-done)), nil
		}
		if err := <-done; err != nil {
			return "", err
		}
		return fmt.Sprintf("%d, checksum equal", survived), nil
	})
	stall := by(b, 3*time.Second, 30*time.Second, 30*time.Second)
	add(fmt.Sprintf("F4: of 10 users, how many go on after %v without the link, and how soon; a new user", stall), func(t *tunnel) (string, error) {
		users, err := t.echoUsers(ctx, 10, 50*time.Millisecond)
		if err != nil {
			return "", err
		}
		t.relay.Stall(faultnet.Up, faultnet.Down)
		pass(ctx, stall)
		t.relay.Heal()
		healed := time.Now()
		wait, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		alive, worst := 0, time.Duration(0)
		for _, u := range users {
			if await(wait, "an answer", func() bool { _, ok := u.since(healed); return ok }) == nil {
				d, _ := u.since(healed)
				alive, worst = alive+1, max(worst, d)
			}
		}
		took, err := t.served(ctx, 2*time.Minute)
		text := fmt.Sprintf("%d", alive)
		if alive > 0 {
			text += ", after " + seconds(worst)
		}
		if err != nil {
			return text + "; no new user within 2 min", nil
		}
		return text + "; new: " + seconds(max(took, time.Since(healed)-20*time.Second)), nil
	})
	crash := func(t *tunnel, kill func(), restart func() error) (string, error) {
		lines, err := t.busyLines(ctx, 10)
		if err != nil {
			return "", err
		}
		wait := endings(lines, 20*time.Second)
		pass(ctx, 300*time.Millisecond)
		kill()
		pass(ctx, 200*time.Millisecond)
		if err := restart(); err != nil {
			return "", err
		}
		took, err := t.served(ctx, 2*time.Minute)
		if err != nil {
			return "", err
		}
		users, _ := wait()
		seen := map[string]int{}
		for _, u := range users {
			seen[u.how]++
		}
		var parts []string
		for _, how := range []string{endRST, endFIN, endNone} {
			if seen[how] > 0 {
				parts = append(parts, fmt.Sprintf("%d × %s", seen[how], how))
			}
		}
		return strings.Join(parts, ", ") + "; " + seconds(took), nil
	}
	add("F8: LAN side killed and restarted: what 10 users in a download see; a new user is served after", func(t *tunnel) (string, error) {
		return crash(t, t.bridge.Kill, func() error { return t.startBridge(ctx) })
	})
	add("F9: public side killed and restarted: the same", func(t *tunnel) (string, error) {
		return crash(t, t.proxy.Kill, func() error { return t.startProxy(ctx) })
	})
	n := by(b, 100, 2000, 5000)
	add(fmt.Sprintf("L1: memory for each of %d idle connections, both processes", n), func(t *tunnel) (string, error) {
		if t.opts.peer != nil && strings.HasPrefix(t.opts.peer.name, "ssh") {
			return "not measured: its processes come and go", nil
		}
		if _, err := t.served(ctx, time.Minute); err != nil {
			return "", err
		}
		memory := func() int64 { return usageOf(t.proxy.Cmd.Process.Pid).rss + usageOf(t.bridge.Cmd.Process.Pid).rss }
		before := memory()
		if _, err := t.connectAll(ctx, n); err != nil {
			return "", err
		}
		pass(ctx, 3*time.Second)
		return bytesText((memory() - before) / int64(n)), nil
	})
	return rows, cells
}

// ending1 is the first line of what ended a transfer.
func ending1(err error) string {
	switch {
	case err == nil:
		return "a clean end"
	case isReset(err):
		return "RST"
	case errors.Is(err, net.ErrClosed):
		return "no more bytes"
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}
