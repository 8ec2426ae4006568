package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The contenders that rows and goals name.
const (
	direct   = "direct"
	splicing = "splice"
	haproxy  = "haproxy"
	reverser = "reverser"
	earlier  = "earlier"
	frp      = "frp"
)

// earlierProgram is reverser as it was: whoever wants to see what has changed puts the program of another revision into the directory of
// -peers under this name.
const earlierProgram = "reverser-earlier"

// A way is a kind of contender. All but the first are two processes, one behind the other: users at the first. What has no front is
// in some rows only, which start it.
type way struct {
	name     string
	title    string   // of the column
	programs []string // that it needs
	outward  bool     // the front connects to the back: it is no tunnel
	setup    func(ctx context.Context, b *bed, c *contender) error
	front    func(b *bed, c *contender) []string
	back     func(b *bed, c *contender) []string
}

var ways = []way{
	{name: direct, title: "direct"},
	{name: splicing, title: "2 splices", outward: true, front: spliceFront, back: spliceBack},
	{name: haproxy, title: "2 haproxies", programs: []string{"haproxy"}, outward: true, front: haproxyFront, back: haproxyBack},
	{name: reverser, title: "reverser", setup: addKey, front: reverserFront, back: reverserBack},
	{name: earlier, title: "reverser, earlier", programs: []string{earlierProgram}, setup: addKey, front: reverserFront, back: reverserBack},
	{name: frp, title: "frp", programs: []string{"frps", "frpc"}, front: frpFront, back: frpBack},
	{name: "rathole", title: "rathole", programs: []string{"rathole"}, front: ratholeFront, back: ratholeBack},
	{name: "chisel", title: "chisel", programs: []string{"chisel"}, front: chiselFront, back: chiselBack},
	{name: nginxes, title: "2 nginx", programs: []string{"nginx"}}, // see names.go
	{name: "ssh", title: "ssh -R", programs: []string{"sshd", "ssh", "ssh-keygen"},
		setup: sshKeys, front: sshFront, back: sshBack},
}

// A contender is a way to the three servers: the addresses where it takes users, and the processes between.
type contender struct {
	name             string
	http, bulk, echo string
	link             string // where the half in the back connects to
	dir              string // for files of its own
	conns            int    // that it has to hold
	env              []string
	programs         []string // paths
	processes        []*process
	began            time.Time     // when the first process was started
	took             time.Duration // from then until a user was served
}

// compete starts a contender that can hold conns connections.
func (b *bed) compete(ctx context.Context, w way, conns int) (*contender, error) {
	switch {
	case w.name == direct:
		return b.servers, nil
	case w.front == nil:
		return &contender{name: w.name}, nil // the rows that it is in start it
	}
	ports, err := freePorts(b.frontIP, 4)
	if err != nil {
		return nil, err
	}
	b.starts++
	c := &contender{name: w.name, http: ports[0], bulk: ports[1], echo: ports[2], link: ports[3], conns: conns,
		dir: filepath.Join(b.dir, fmt.Sprintf("%s-%d", w.name, b.starts))}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range w.programs {
		c.programs = append(c.programs, b.tools[name])
	}
	if w.name == reverser {
		c.programs = []string{b.reverser}
	}
	if w.setup != nil {
		if err := w.setup(ctx, b, c); err != nil {
			return nil, err
		}
	}
	if err := b.startHalves(ctx, w, c); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

var halves = [2]string{"front", "back"}

// startHalves starts first the half that the other one connects to, and the other one when it listens: that would try again
// by itself, but only after a pause.
func (b *bed) startHalves(ctx context.Context, w way, c *contender) error {
	c.began = time.Now()
	start := func(i int, at host, line func(*bed, *contender) []string) error {
		args := line(b, c)
		p, err := b.start(at, w.name+"-"+halves[i], c.env, b.path(args[0]), args[1:]...)
		if err == nil {
			c.processes = append(c.processes, p)
		}
		return err
	}
	listens := func(from host, addr string) error {
		return b.await(ctx, c, addr, func() error { return dialOnce(ctx, from, addr) })
	}
	front := func() error { return start(0, b.front, w.front) }
	back := func() error { return start(1, b.back, w.back) }
	order := []func() error{front, func() error { return listens(b.back, c.link) }, back}
	if w.outward {
		order = []func() error{back, func() error { return listens(b.front, c.between(b)[2]) }, front}
	}
	for _, step := range order {
		if err := step(); err != nil {
			return err
		}
	}
	if w.outward {
		slices.Reverse(c.processes) // the front is the first everywhere
	}
	return b.ready(ctx, c)
}

func (b *bed) path(program string) string {
	switch program {
	case "compare":
		return b.self
	case reverser:
		return b.reverser
	}
	return b.tools[program]
}

// stop ends the contender's processes, the second half first; the servers behind all of them stay.
func (c *contender) stop() {
	if c.name == direct {
		return
	}
	for i := len(c.processes) - 1; i >= 0; i-- {
		c.processes[i].stop()
	}
}

// explain adds to err which of the contender's processes have ended, and what they wrote last.
func (c *contender) explain(err error) error {
	for _, p := range c.processes {
		if p.hasEnded() {
			err = fmt.Errorf("%w\n%s has ended: %v", err, p.name, p.cmd.ProcessState)
		}
		if text := p.tail(); text != "" {
			err = fmt.Errorf("%w\n%s wrote:\n%s", err, p.name, text)
		}
	}
	return err
}

// alive reports whether all processes still run.
func (c *contender) alive() bool {
	for _, p := range c.processes {
		if p.hasEnded() {
			return false
		}
	}
	return true
}

func (c *contender) file(name, text string) string {
	path := filepath.Join(c.dir, name)
	_ = os.WriteFile(path, []byte(text), 0o600) // the program that misses it says so
	return path
}

// services are the ports for users, each with the server behind it.
func (c *contender) services(b *bed) [3][2]string {
	return [3][2]string{{c.http, b.servers.http}, {c.bulk, b.servers.bulk}, {c.echo, b.servers.echo}}
}

// between are the ports of the half in the back, for those of which the front connects to it.
func (c *contender) between(b *bed) (addrs [3]string) {
	for i, s := range c.services(b) {
		addrs[i] = b.backIP + ":" + port(s[0])
		if b.backIP == b.frontIP {
			// The front has the port itself, at the same address: another one of loopback's.
			addrs[i] = "127.0.0.2:" + port(s[0])
		}
	}
	return addrs
}

func spliceFront(b *bed, c *contender) []string {
	args := []string{"compare", "relay"}
	for i, s := range c.services(b) {
		args = append(args, s[0]+"="+c.between(b)[i])
	}
	return args
}

func spliceBack(b *bed, c *contender) []string {
	args := []string{"compare", "relay"}
	for i, s := range c.services(b) {
		args = append(args, c.between(b)[i]+"="+s[1])
	}
	return args
}

// Two HAProxies, users at the first, are the number of hops and of processes that the tunnel has.

func haproxyFront(b *bed, c *contender) []string {
	var pairs [][2]string
	for i, s := range c.services(b) {
		pairs = append(pairs, [2]string{s[0], c.between(b)[i]})
	}
	return []string{"haproxy", "-f", c.file("front.cfg", haproxyConf(c.conns, pairs))}
}

func haproxyBack(b *bed, c *contender) []string {
	var pairs [][2]string
	for i, s := range c.services(b) {
		pairs = append(pairs, [2]string{c.between(b)[i], s[1]})
	}
	return []string{"haproxy", "-f", c.file("back.cfg", haproxyConf(c.conns, pairs))}
}

func haproxyConf(conns int, pairs [][2]string) string {
	var s strings.Builder
	// HAProxy refuses to start if its limit of open files is too low for maxconn and its pipes, of which it wants a quarter.
	fmt.Fprintf(&s, `global
	maxconn %d
	maxpipes %d
defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
	option splice-auto
`, max(4000, conns+20), 200)
	for i, p := range pairs {
		fmt.Fprintf(&s, "listen service%d\n\tbind %s\n\tserver s %s\n", i, p[0], p[1])
	}
	return s.String()
}

// addKey makes the key before the proxy's first start, which then prints no token of its own.
func addKey(ctx context.Context, b *bed, c *contender) error {
	token, err := newToken(ctx, c.programs[0], c.dir+"/proxy", "compare", "tcp/1024-65535")
	c.env = []string{"REVERSER_TOKEN=" + token}
	return err
}

// newToken has a program of ours make a key.
func newToken(ctx context.Context, program, dir, name, allow string) (string, error) {
	cmd := command(ctx, program, "key", "add", name, "--allow", allow, "--state", dir)
	cmd.Env = environ()
	token, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return "", fmt.Errorf("add a key: %w", err)
	}
	return strings.TrimSpace(string(token)), nil
}

func reverserFront(_ *bed, c *contender) []string {
	return []string{programOf(c), "proxy", "--listen", c.link, "--state", c.dir + "/proxy"}
}

func reverserBack(b *bed, c *contender) []string {
	args := []string{programOf(c), "bridge", "--proxy", c.link, "--state", c.dir + "/bridge"}
	for _, s := range c.services(b) {
		args = append(args, "tcp/"+s[0]+"="+s[1])
	}
	return args
}

// programOf is the one of ours that a contender is.
func programOf(c *contender) string {
	if c.name == earlier {
		return earlierProgram
	}
	return reverser
}

// The peers have what their documentation shows for a port, and their defaults for everything else.

func frpFront(b *bed, c *contender) []string {
	return []string{"frps", "-c", c.file("frps.toml", fmt.Sprintf("bindAddr = %q\nbindPort = %s\nauth.token = \"measured\"\n", b.frontIP, port(c.link)))}
}

func frpBack(b *bed, c *contender) []string {
	var s strings.Builder
	fmt.Fprintf(&s, "serverAddr = %q\nserverPort = %s\nauth.token = \"measured\"\nloginFailExit = false\n", b.frontIP, port(c.link))
	for i, sv := range c.services(b) {
		fmt.Fprintf(&s, "[[proxies]]\nname = \"s%d\"\ntype = \"tcp\"\nlocalIP = %q\nlocalPort = %s\nremotePort = %s\n", i, b.backIP, port(sv[1]), port(sv[0]))
	}
	return []string{"frpc", "-c", c.file("frpc.toml", s.String())}
}

func ratholeFront(b *bed, c *contender) []string {
	var s strings.Builder
	fmt.Fprintf(&s, "[server]\nbind_addr = %q\ndefault_token = \"measured\"\n", c.link)
	for i, sv := range c.services(b) {
		fmt.Fprintf(&s, "[server.services.s%d]\nbind_addr = %q\n", i, sv[0])
	}
	return []string{"rathole", "--server", c.file("server.toml", s.String())}
}

func ratholeBack(b *bed, c *contender) []string {
	var s strings.Builder
	fmt.Fprintf(&s, "[client]\nremote_addr = %q\ndefault_token = \"measured\"\n", c.link)
	for i, sv := range c.services(b) {
		fmt.Fprintf(&s, "[client.services.s%d]\nlocal_addr = %q\n", i, sv[1])
	}
	return []string{"rathole", "--client", c.file("client.toml", s.String())}
}

func chiselFront(b *bed, c *contender) []string {
	return []string{"chisel", "server", "--host", b.frontIP, "--port", port(c.link), "--reverse", "--auth", "a:measured"}
}

func chiselBack(b *bed, c *contender) []string {
	args := []string{"chisel", "client", "--auth", "a:measured", "http://" + c.link}
	for _, s := range c.services(b) {
		args = append(args, "R:"+s[0]+":"+s[1])
	}
	return args
}

func sshKeys(ctx context.Context, b *bed, c *contender) error {
	for _, name := range []string{"host", "client"} {
		out, err := command(ctx, b.tools["ssh-keygen"], "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(c.dir, name)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	if os.Geteuid() != 0 {
		return nil
	}
	return os.MkdirAll("/run/sshd", 0o755) // as its start script does; without it sshd refuses to run as root
}

func sshFront(b *bed, c *contender) []string {
	return []string{"sshd", "-D", "-e", "-f", c.file("sshd_config", "ListenAddress "+c.link+"\nHostKey "+c.dir+"/host\nAuthorizedKeysFile "+c.dir+"/client.pub\n"+
		"StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nGatewayPorts clientspecified\n")}
}

func sshBack(b *bed, c *contender) []string {
	name := "root"
	if me, err := user.Current(); err == nil {
		name = me.Username
	}
	args := []string{"ssh", "-F", "none", "-N", "-i", c.dir + "/client", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes", "-p", port(c.link)}
	for _, s := range c.services(b) {
		args = append(args, "-R", s[0]+":"+s[1])
	}
	return append(args, name+"@"+b.frontIP)
}
