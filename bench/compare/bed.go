package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// patience is how long a server may take until it answers.
const patience = 20 * time.Second

// A bed is what all contenders share: a directory, the programs, and the servers behind them.
type bed struct {
	place
	tools    tools
	dir      string
	reverser string     // the built program
	self     string     // this program, for its helpers
	servers  *contender // the direct connection
	running  []*process
	starts   int
	returns  []returned // of fleets
}

func newBed(at place, tools tools) (*bed, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "reverser-compare-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the run: %w", err)
	}
	return &bed{place: at, tools: tools, dir: dir, self: self}, nil
}

// close ends what still runs and removes the directory.
func (b *bed) close() error {
	for _, p := range b.running {
		p.terminate() // all at once: each may take its time
	}
	for _, p := range b.running {
		p.stop()
	}
	return os.RemoveAll(b.dir)
}

// build puts the program into dir.
func build(ctx context.Context, dir string) (path string, err error) {
	path = filepath.Join(dir, "reverser")
	cmd := command(ctx, "go", "build", "-o", path, "reverser/cmd/reverser")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build reverser (run this inside its repository): %w\n%s", err, text)
	}
	return path, nil
}

// serve starts the servers.
func (b *bed) serve(ctx context.Context) error {
	addrs, err := freePorts(b.backIP, 3)
	if err != nil {
		return err
	}
	b.servers = &contender{name: direct, http: addrs[0], bulk: addrs[1], echo: addrs[2]}
	conf, err := b.file("nginx.conf", nginxConf(b.dir, addrs[0]))
	if err != nil {
		return err
	}
	// -e, because nginx otherwise opens the system's log before it reads the file.
	nginx, err := b.start(b.back, "nginx", nil, b.tools["nginx"], "-e", "stderr", "-p", b.dir, "-c", conf)
	if err != nil {
		return err
	}
	iperf, err := b.start(b.back, "iperf3", nil, b.tools["iperf3"], "-s", "-B", b.backIP, "-p", port(addrs[1]))
	if err != nil {
		return err
	}
	echo, err := b.start(b.back, "echo", nil, b.self, "serve", addrs[2])
	if err != nil {
		return err
	}
	b.servers.processes = []*process{nginx, iperf, echo}
	return b.ready(ctx, b.servers)
}

// nginxConf keeps everything in dir: as root, nginx would otherwise give the system's directories to another user.
func nginxConf(dir, addr string) string {
	return fmt.Sprintf(`worker_processes 1;
daemon off;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
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

// ready waits until all three servers answer through c.
func (b *bed) ready(ctx context.Context, c *contender) error {
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) { return b.front.Dial(ctx, addr) }
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	// The echo server first: c.took ends with its answer.
	if err := b.await(ctx, c, "the echo server", func() error { return echoOnce(ctx, b.front, c.echo) }); err != nil {
		return err
	}
	if !c.began.IsZero() {
		c.took = time.Since(c.began)
	}
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
	// A bare connection would count as a broken test for iperf3: let its own client ask.
	return b.await(ctx, c, "iperf3", func() error { return b.tryIperf(ctx, c.bulk) })
}

// await tries until it works. It gives up early when one of c's processes has ended.
func (b *bed) await(ctx context.Context, c *contender, what string, try func() error) error {
	pause := time.Millisecond
	for start := time.Now(); ; pause = min(pause+pause/8+1, 200*time.Millisecond) {
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

func dialOnce(ctx context.Context, from host, addr string) error {
	conn, err := from.Dial(ctx, addr)
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

// freePorts returns addresses on which nothing listens, as far as this machine is concerned. They are below the range
// from which outgoing connections take their ports, so that no client is on them when their server starts.
func freePorts(ip string, n int) ([]string, error) {
	var addrs []string
	for range 1000 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000)))
		if err != nil {
			continue
		}
		defer ln.Close() // not before the last one is found: all are different
		if addrs = append(addrs, net.JoinHostPort(ip, port(ln.Addr().String()))); len(addrs) == n {
			return addrs, nil
		}
	}
	return nil, errors.New("no free ports on 127.0.0.1 between 10000 and 30000: stop what listens there")
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}
