package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The contenders.
const (
	direct   = "direct"
	haproxy  = "haproxy"
	reverser = "reverser"
)

// patience is how long a server may take until it answers.
const patience = 20 * time.Second

// A bed is what all contenders share: a directory, the programs, and the servers behind them.
type bed struct {
	tools    tools
	dir      string
	reverser string // the built program
	echo     *echo
	servers  *contender // the direct connection
	running  []*process
	starts   int
}

func newBed(tools tools) (*bed, error) {
	dir, err := os.MkdirTemp("", "reverser-compare-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the run: %w", err)
	}
	return &bed{tools: tools, dir: dir, reverser: filepath.Join(dir, "reverser")}, nil
}

// close ends what still runs and removes the directory.
func (b *bed) close() error {
	for _, p := range b.running {
		p.terminate() // all at once: each may take its time
	}
	for _, p := range b.running {
		p.stop()
	}
	if b.echo != nil {
		b.echo.close()
	}
	return os.RemoveAll(b.dir)
}

func (b *bed) build(ctx context.Context) error {
	cmd := command(ctx, "go", "build", "-o", b.reverser, "reverser/cmd/reverser")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build reverser (run this inside its repository): %w\n%s", err, text)
	}
	return nil
}

// serve starts the servers.
func (b *bed) serve(ctx context.Context) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	if b.echo, err = listenEcho(); err != nil {
		return err
	}
	b.servers = &contender{name: direct, http: ports[0], bulk: ports[1], echo: b.echo.addr()}
	conf, err := b.file("nginx.conf", nginxConf(b.dir, ports[0]))
	if err != nil {
		return err
	}
	// -e, because nginx otherwise opens the system's log before it reads the file.
	nginx, err := b.start("nginx", nil, b.tools["nginx"], "-e", "stderr", "-p", b.dir, "-c", conf)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(ports[1])
	iperf, err := b.start("iperf3", nil, b.tools["iperf3"], "-s", "-B", "127.0.0.1", "-p", port)
	if err != nil {
		return err
	}
	b.servers.processes = []*process{nginx, iperf}
	return b.ready(ctx, b.servers)
}

// nginxConf keeps everything in dir: as root, nginx would otherwise give the system's directories to another user.
func nginxConf(dir, addr string) string {
	return fmt.Sprintf(`worker_processes 1;
daemon off;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 1024; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path %[1]s/nginx-body;
	proxy_temp_path %[1]s/nginx-proxy;
	fastcgi_temp_path %[1]s/nginx-fastcgi;
	uwsgi_temp_path %[1]s/nginx-uwsgi;
	scgi_temp_path %[1]s/nginx-scgi;
	server { listen %[2]s; location / { return 200 "hello world\n"; } }
}
`, dir, addr)
}

// A contender is a way to the three servers: the addresses where it takes users, and the processes between.
type contender struct {
	name             string
	http, bulk, echo string
	processes        []*process
}

// contenders starts both proxied ways, the direct one being there already.
func (b *bed) contenders(ctx context.Context) ([]*contender, error) {
	ha, err := b.startHAProxy(ctx, 0)
	if err != nil {
		return nil, err
	}
	rv, err := b.startReverser(ctx)
	if err != nil {
		return nil, err
	}
	return []*contender{b.servers, ha, rv}, nil
}

// stop ends the contender's processes; the servers behind all of them stay.
func (c *contender) stop() {
	if c.name == direct {
		return
	}
	for _, p := range c.processes {
		p.stop()
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

// startHAProxy starts two HAProxies, users at the first, which is the number of hops and of processes that the tunnel
// has. They may hold conns connections.
func (b *bed) startHAProxy(ctx context.Context, conns int) (*contender, error) {
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	front, back := ports[:3], ports[3:]
	c := &contender{name: haproxy, http: front[0], bulk: front[1], echo: front[2]}
	behind := []string{b.servers.http, b.servers.bulk, b.servers.echo}
	for i, text := range []string{haproxyConf(conns, front, back), haproxyConf(conns, back, behind)} {
		name := fmt.Sprintf("haproxy-%d", i+1)
		conf, err := b.file(name+".cfg", text)
		if err != nil {
			return nil, err
		}
		p, err := b.start(name, nil, b.tools["haproxy"], "-f", conf)
		if err != nil {
			return nil, err
		}
		c.processes = append(c.processes, p)
	}
	return c, b.ready(ctx, c)
}

func haproxyConf(conns int, from, to []string) string {
	var s strings.Builder
	// HAProxy refuses to start if its limit of open files is too low for maxconn.
	fmt.Fprintf(&s, `global
	maxconn %d
defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
	option splice-auto
`, max(4000, conns+100))
	for i := range from {
		fmt.Fprintf(&s, "listen service%d\n\tbind %s\n\tserver s %s\n", i, from[i], to[i])
	}
	return s.String()
}

// startReverser starts a proxy and a bridge with default settings. A key that exists keeps the proxy from printing a
// token of its own.
func (b *bed) startReverser(ctx context.Context) (*contender, error) {
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	b.starts++
	state := filepath.Join(b.dir, fmt.Sprintf("state-%d", b.starts))
	cmd := command(ctx, b.reverser, "key", "add", "compare", "--allow", "tcp/1024-65535", "--state", state)
	cmd.Env = environ()
	token, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("add a key: %w", err)
	}
	c := &contender{name: reverser, http: ports[0], bulk: ports[1], echo: ports[2]}
	link := ports[3]
	proxy, err := b.start("proxy", nil, b.reverser, "proxy", "--listen", link, "--state", state)
	if err != nil {
		return nil, err
	}
	c.processes = append(c.processes, proxy)
	// The bridge would try again by itself, but only after a pause.
	if err := b.await(ctx, c, "the link port", func() error { return dialOnce(ctx, link) }); err != nil {
		return nil, err
	}
	bridge, err := b.start("bridge", []string{"REVERSER_TOKEN=" + strings.TrimSpace(string(token))},
		b.reverser, "bridge", "--proxy", link, "--state", state+"-bridge",
		"tcp/"+c.http+"="+b.servers.http, "tcp/"+c.bulk+"="+b.servers.bulk, "tcp/"+c.echo+"="+b.servers.echo)
	if err != nil {
		return nil, err
	}
	c.processes = append(c.processes, bridge)
	return c, b.ready(ctx, c)
}

// ready waits until all three servers answer through c.
func (b *bed) ready(ctx context.Context, c *contender) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	err := b.await(ctx, c, "nginx", func() error {
		resp, err := client.Get("http://" + c.http + "/")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := b.await(ctx, c, "the echo server", func() error { return echoOnce(ctx, c.echo) }); err != nil {
		return err
	}
	// A bare connection would count as a broken test for iperf3: let its own client ask.
	return b.await(ctx, c, "iperf3", func() error { return b.tryIperf(ctx, c.bulk) })
}

// await tries until it works. It gives up early when one of c's processes has ended.
func (b *bed) await(ctx context.Context, c *contender, what string, try func() error) error {
	pause := 10 * time.Millisecond
	for start := time.Now(); ; pause = min(2*pause, 200*time.Millisecond) {
		err := try()
		if err == nil {
			return nil
		}
		if slices.ContainsFunc(c.processes, (*process).hasEnded) {
			return c.explain(fmt.Errorf("start %s", c.name))
		}
		if time.Since(start) > patience {
			return c.explain(fmt.Errorf("%s: no answer from %s within %v: %w", c.name, what, patience, err))
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func dialOnce(ctx context.Context, addr string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// file writes a file in the run's directory and returns its path.
func (b *bed) file(name, text string) (string, error) {
	path := filepath.Join(b.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// freePorts returns loopback addresses on which nothing listens. They are below the range from which outgoing
// connections take their ports, so that no client is on them when their server starts.
func freePorts(n int) ([]string, error) {
	var addrs []string
	for range 1000 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000)))
		if err != nil {
			continue
		}
		defer ln.Close() // not before the last one is found: all are different
		if addrs = append(addrs, ln.Addr().String()); len(addrs) == n {
			return addrs, nil
		}
	}
	return nil, errors.New("no free ports on 127.0.0.1 between 10000 and 30000: stop what listens there")
}
