package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The rows about names instead of ports: HTTP that is spoken on the way, TLS that ends there, TLS that is passed on. Each has a server of
// its own behind two processes, as the other rows have, and a name that the first one of them finds.
//
//  1. nameProbes   the rows and their goals
//  2. startNames   starts the server and one of the ways to it: two nginx, reverser, frp, two HAProxies
//  3. nameRates    wrk, with small answers and with answers of 64 KB
//  4. weighName    what a client costs that keeps its connection

// nginxes are the two that stand where HTTP is spoken. They have a column in these rows alone.
const nginxes = "nginx"

// named is the name that all clients ask for. It leads here by itself.
const named = "localhost"

// The schemes, which are the kinds of reverser's names too.
const (
	schemeHTTP  = "http"
	schemeHTTPS = "https" // TLS ends at the first process
	schemeTLS   = "tls"   // TLS ends at the server
)

// ofNames reports whether a row is one of these.
func ofNames(row string) bool {
	scheme, _, ok := strings.Cut(row, "/")
	return ok && slices.Contains([]string{schemeHTTP, schemeHTTPS, schemeTLS}, scheme)
}

func nameProbes(set settings) (all []probe) {
	for _, s := range []struct {
		scheme string
		goals  []goal
		who    []string
	}{
		{schemeHTTP, []goal{{nginxes, 0.8}, {frp, 2}}, []string{nginxes, reverser, frp}},
		{schemeHTTPS, nil, []string{nginxes, reverser}},
		{schemeTLS, nil, []string{haproxy, reverser, frp}},
	} {
		name := s.scheme + "/, 50 clients"
		cost := kind{Name: name + ": CPU per 100 k", Unit: "s", Low: true}
		kinds := []kind{
			{Name: name, Unit: "1000/s", Goals: s.goals},
			{Name: name + ": p50", Unit: "ms", Low: true},
			{Name: name + ": p99", Unit: "ms", Low: true},
			cost,
		}
		kinds = append(append(kinds, perHalf(cost)...), kind{Name: name + ", answers of 64 KB", Unit: "1000/s"})
		all = append(all, probe{name: name, kinds: kinds, who: s.who, run: nameRates(s.scheme)})
	}
	if set.Conns > 0 {
		weight := kind{Name: "http/: memory for an idle client", Unit: "KB", Low: true, Goals: []goal{{"", 24}}}
		all = append(all, probe{name: "http/ idle", once: true, kinds: []kind{weight}, who: []string{nginxes, reverser, frp}, run: weighName})
	}
	return all
}

// names is a server and a way to it.
type names struct {
	*contender // the two processes
	scheme     string
	target     *process
	server     string // its address
}

// startNames starts the way of that name to a server of its own.
func (b *bed) startNames(ctx context.Context, name, scheme string) (n *names, err error) {
	addrs, err := freePorts(b.frontIP, 4)
	if err != nil {
		return nil, err
	}
	b.starts++
	n = &names{scheme: scheme, server: addrs[3], contender: &contender{name: name, http: addrs[0], link: addrs[1], bulk: addrs[2],
		dir: filepath.Join(b.dir, fmt.Sprintf("names-%d", b.starts))}}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.stop()
		}
	}()
	if err := n.certify(); err != nil {
		return n, err
	}
	listen := n.server
	if scheme == schemeTLS {
		listen += n.withTLS()
	}
	kb := strings.Repeat("x", 1024) // a word of its file may not be much longer
	if n.target, err = b.nginx(n.dir, "target", fmt.Sprintf(`server { listen %s; location / { return 200 "hello world\n"; } set $kb %s; location /big { return 200 %s; } }`,
		listen, kb, strings.Repeat("$kb", 64))); err != nil {
		return n, err
	}
	if err := n.startWay(ctx, b); err != nil {
		return n, err
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	return n, b.await(ctx, n.contender, "the server behind the name", func() error {
		resp, err := client.Get(n.url() + "/big")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || len(body) != 64<<10 {
			return fmt.Errorf("%s, %d bytes, %w", resp.Status, len(body), err)
		}
		return nil
	})
}

func (n *names) url() string {
	scheme := n.scheme
	if scheme == schemeTLS {
		scheme = schemeHTTPS
	}
	return scheme + "://" + named + ":" + port(n.http)
}

func (n *names) stop() {
	n.contender.stop()
	if n.target != nil {
		n.target.stop()
	}
}

// startWay starts the two processes.
func (n *names) startWay(ctx context.Context, b *bed) error {
	c := n.contender
	between := "127.0.0.2:" + port(n.http) // where the second of two equals listens
	add := func(p *process, err error) error {
		if err == nil {
			c.processes = append(c.processes, p)
		}
		return err
	}
	start := func(half int, program string, args ...string) error {
		path := b.tools[program]
		if program == reverser {
			path = b.reverser
		}
		return add(b.start(b.front, c.name+"-"+halves[half], c.env, path, args...))
	}
	switch c.name {
	case nginxes:
		front := n.http
		if n.scheme == schemeHTTPS {
			front += n.withTLS()
		}
		if err := add(b.nginx(n.dir, "front", nginxToNext(front, between))); err != nil {
			return err
		}
		return add(b.nginx(n.dir, "back", nginxToNext(between, n.server)))
	case haproxy:
		front := n.file("front.cfg", fmt.Sprintf(`global
	maxconn 4000
defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
	option splice-auto
frontend f
	bind %s
	tcp-request inspect-delay 10s
	tcp-request content accept if { req_ssl_hello_type 1 }
	use_backend b if { req.ssl_sni %s }
backend b
	server s %s
`, n.http, named, between))
		back := n.file("back.cfg", haproxyConf(4000, [][2]string{{between, n.server}}))
		return errors.Join(start(0, "haproxy", "-f", front), start(1, "haproxy", "-f", back))
	case frp:
		vhost, kind := "vhostHTTPPort", "http"
		if n.scheme == schemeTLS {
			vhost, kind = "vhostHTTPSPort", "https" // passed on, too
		}
		front := n.file("frps.toml", fmt.Sprintf("bindAddr = %q\nbindPort = %s\nproxyBindAddr = %q\n%s = %s\nauth.token = \"measured\"\n", b.frontIP, port(c.link), b.frontIP, vhost, port(n.http)))
		back := n.file("frpc.toml", fmt.Sprintf("serverAddr = %q\nserverPort = %s\nauth.token = \"measured\"\nloginFailExit = false\n[[proxies]]\nname = \"n\"\ntype = %q\nlocalIP = %q\nlocalPort = %s\ncustomDomains = [%q]\n",
			b.frontIP, port(c.link), kind, b.frontIP, port(n.server), named))
		if err := start(0, "frps", "-c", front); err != nil {
			return err
		}
		if err := b.await(ctx, c, c.link, func() error { return dialOnce(ctx, b.front, c.link) }); err != nil {
			return err
		}
		return start(1, "frpc", "-c", back)
	}
	public := n.scheme + "/" + named
	token, err := newToken(ctx, b.reverser, n.dir+"/proxy", "compare", public)
	if err != nil {
		return err
	}
	c.env = []string{"REVERSER_TOKEN=" + token}
	conf := n.file("proxy.toml", fmt.Sprintf("[[certificate]]\nchain = %q\nkey = %q\n", n.dir+"/cert.pem", n.dir+"/key.pem"))
	args := []string{"proxy", "--listen", c.link, "--state", n.dir + "/proxy", "--config", conf}
	if n.scheme == schemeHTTP {
		args = append(args, "--http", n.http)
	} else {
		args = append(args, "--https", n.http)
	}
	if err := start(0, reverser, args...); err != nil {
		return err
	}
	if err := b.await(ctx, c, c.link, func() error { return dialOnce(ctx, b.front, c.link) }); err != nil {
		return err
	}
	return start(1, reverser, "bridge", "--proxy", c.link, "--state", n.dir+"/bridge", public+"="+n.server)
}

// nginx starts one with the servers that conf has. It makes the workers that Debian's does, one for each processor.
func (b *bed) nginx(dir, name, conf string) (*process, error) {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n" // or its workers could not use dir, which is nobody else's
	}
	text := user + fmt.Sprintf(`worker_processes auto;
daemon off;
pid %[1]s/%[2]s.pid;
error_log stderr;
events { worker_connections 4096; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path %[1]s/%[2]s-body;
	proxy_temp_path %[1]s/%[2]s-proxy;
	fastcgi_temp_path %[1]s/%[2]s-fastcgi;
	uwsgi_temp_path %[1]s/%[2]s-uwsgi;
	scgi_temp_path %[1]s/%[2]s-scgi;
	%[3]s
}
`, dir, name, conf)
	path := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return b.start(b.front, "nginx-"+name, nil, b.tools["nginx"], "-e", "stderr", "-p", dir, "-c", path)
}

// nginxToNext is a plain reverse proxy that keeps its connections to what is behind it.
func nginxToNext(listen, next string) string {
	return fmt.Sprintf(`upstream next { server %s; keepalive 100; keepalive_requests 1000000000; }
	server {
		listen %s;
		location / {
			proxy_pass http://next;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_set_header X-Forwarded-Proto $scheme;
		}
	}`, next, listen)
}

// withTLS is what stands behind an address that nginx listens at.
func (n *names) withTLS() string {
	return fmt.Sprintf(" ssl; ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem", n.dir)
}

// certify makes a certificate for the name.
func (n *names) certify() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{named}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	n.file("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	n.file("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	return nil
}

// nameRates measures requests of clients that keep their connections: thousands per second, percentiles in ms, the CPU seconds of the
// processes between per 100,000, in all and each, and thousands per second of answers of 64 KB.
func nameRates(scheme string) measurement {
	return func(ctx context.Context, b *bed, who *contender, set settings) ([]float64, string, error) {
		n, err := b.startNames(ctx, who.name, scheme)
		if n != nil {
			defer n.stop()
		}
		if err != nil {
			return nil, "", err
		}
		script, err := b.file("wrk.lua", wrkScript)
		if err != nil {
			return nil, "", err
		}
		ask := func(path string) (wrkResult, error) {
			text, err := b.output(ctx, b.front, time.Duration(set.Seconds)*time.Second, b.tools["wrk"], "-t", "1", "-c", "50", "-d", strconv.Itoa(set.Seconds)+"s", "-s", script, n.url()+path)
			if err != nil {
				return wrkResult{}, n.explain(err)
			}
			return parseWrk(text)
		}
		then := n.cpu()
		small, err := ask("/")
		if err != nil {
			return nil, "", err
		}
		figures := []float64{small.rate / 1000, small.p50, small.p99}
		for _, s := range n.cpuSince(then) {
			figures = append(figures, s/(small.responses/1e5))
		}
		large, err := ask("/big")
		return append(figures, large.rate/1000), strings.Trim(small.errors+", "+large.errors, ", "), err
	}
}

// weighName finds by how many KB both processes grow for a client that has had an answer and keeps its connection.
func weighName(ctx context.Context, b *bed, who *contender, set settings) ([]float64, string, error) {
	n, err := b.startNames(ctx, who.name, schemeHTTP)
	if n != nil {
		defer n.stop()
	}
	if err != nil {
		return nil, "", err
	}
	if err := sleep(ctx, time.Second); err != nil { // the starting up is not to be counted
		return nil, "", err
	}
	before, err := n.resident()
	if err != nil {
		return nil, "", err
	}
	count := min(set.Conns, 3000)
	conns := make([]net.Conn, 0, count)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range count {
		conn, err := b.front.Dial(ctx, n.http)
		if err != nil {
			return nil, "", n.explain(err)
		}
		conns = append(conns, conn)
		_ = conn.SetDeadline(time.Now().Add(patience))
		if err := askOnce(conn); err != nil {
			return nil, "", n.explain(err)
		}
	}
	if err := sleep(ctx, settle); err != nil {
		return nil, "", err
	}
	after, err := n.resident()
	if err != nil {
		return nil, "", err
	}
	for i, conn := range conns { // or they were not worth their memory
		_ = conn.SetDeadline(time.Now().Add(patience))
		if err := askOnce(conn); err != nil {
			return nil, "", n.explain(fmt.Errorf("client %d of %d has no connection any more: %w", i+1, count, err))
		}
	}
	return []float64{float64(after-before) / float64(count)}, "", nil
}

func askOnce(conn net.Conn) error {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+named+"\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
