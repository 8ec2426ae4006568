package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/acmetest"
)

// cutsPatience bounds an exchange through all cuts.
const cutsPatience = 5 * time.Minute

// A kind is an exchange through a name that has to come through all cuts of the link.
type kind struct {
	public  string       // where it goes
	options string       // of its [[expose]]
	target  int          // port of the server
	bytes   int64        // that pass between server and bridge, at least
	run     func() error // the exchange, to its end
}

// TestNamesThroughCuts: each kind of exchange, all of them at once, goes through 20 cuts of the link, to the byte. Between two cuts each
// of them gets on by a twentieth or so, and the cut comes while they move.
func TestNamesThroughCuts(t *testing.T) {
	need(t, git, curl)
	pythonModule(t, "websockets", "python3-websockets")
	pythonModule(t, "grpc", "python3-grpcio")
	heavy(t)
	const cuts = 20
	dir, http80, https443 := t.TempDir(), freePort(t), freePort(t)
	chain, key := acmetest.Certificate(t, "*.example.com", "*.grpc.example.com")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	chainFile, keyFile := writeFile(t, filepath.Join(dir, "chain.pem"), string(chain)), writeFile(t, filepath.Join(dir, "key.pem"), string(key))

	client := browser(t, http80, https443, roots)
	client.Timeout = cutsPatience
	pc := programClient{t: t, dir: dir, port: http80, secure: https443, roots: chainFile}
	kinds := []kind{
		downloadKind(t, client, "http/get.example.com", 1),
		downloadKind(t, client, "https/get.example.com", 2),
		pc.upload(),
		bothWaysKind(t, client),
		eventsKind(t, client),
		longPollKind(t, client),
		tlsEchoKind("tls/passed.example.com", "", serve(t, func(c *net.TCPConn) {
			c.SetDeadline(time.Now().Add(cutsPatience))
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})
			io.Copy(s, s)
			s.CloseWrite()
		}), https443, roots),
		tlsEchoKind("tls/ended.example.com", fmt.Sprintf("certificate = %q\ncertificate_key = %q\n", chainFile, keyFile), serve(t, func(c *net.TCPConn) {
			c.SetDeadline(time.Now().Add(cutsPatience))
			echo(c)
		}), https443, roots),
		pc.git(),
	}
	kinds = append(kinds, pc.webSocket()...)
	kinds = append(kinds, pc.grpc()...)

	p := startProxy(t, "--http", loopback(http80), "--https", loopback(https443),
		"--config", writeFile(t, filepath.Join(dir, "proxy.toml"), "[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n"))
	r := startRouter(t, p.link)
	pace := startPace(cuts, r.cut)
	var conf strings.Builder
	var services []string
	for _, k := range kinds {
		fmt.Fprintf(&conf, "[[expose]]\npublic = %q\ntarget = %d\n%s", k.public, pace.tap(t, k), k.options)
		services = append(services, k.public)
	}
	b := startBridge(t, addKey(t, p.state, "web", "http/*", "https/*", "tls/*"), "--proxy", loopback(r.port), "--config", writeFile(t, filepath.Join(dir, "bridge.toml"), conf.String()))
	b.awaitUp(services...)

	var wg sync.WaitGroup
	for i, k := range kinds {
		wg.Go(func() {
			err := k.run()
			if n := pace.end(i); n < cuts {
				t.Errorf("%s: it was over after %d of %d cuts", k.public, n, cuts)
			}
			if err != nil {
				t.Errorf("%s: %v", k.public, err)
			}
		})
	}
	wg.Wait()
	client.CloseIdleConnections()
	for _, side := range []*testProcess{p.testProcess, b.testProcess} {
		for _, s := range services {
			side.awaitRecord("pair released", "service", s)
			for _, r := range side.Records("pair released", "service", s) {
				if r.Text("reason") != "eof" {
					t.Errorf("%s: a pair of %s ended as %q, want eof", side.Name, s, r.Text("reason"))
				}
			}
		}
	}
	if n := mustStatus(t, p.state).Links[0].Resumes; n < cuts {
		t.Errorf("the link was resumed %d times, want %d at least", n, cuts)
	}
}

// A pace lets exchanges get on together: each by a step, then all wait for the slowest. The link is cut in each step, when half of them
// are in the middle of it.
type pace struct {
	cuts int
	cut  func()

	mu   sync.Mutex // guards what follows, and the taps' fields
	next *sync.Cond
	taps []*tap
	step int  // the present one
	done bool // it was cut in this step
}

// A tap is what the bridge has for the server of an exchange.
type tap struct {
	step   int64
	passed int64
	over   bool
}

func startPace(cuts int, cut func()) *pace {
	p := &pace{cuts: cuts, cut: cut, step: 1}
	p.next = sync.NewCond(&p.mu)
	return p
}

// tap returns the port that leads to an exchange's server.
func (p *pace) tap(t *testing.T, k kind) (port int) {
	x := &tap{step: k.bytes / int64(p.cuts+4)} // the first step has the greetings, and the last one what is left
	p.taps = append(p.taps, x)
	return serve(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(cutsPatience))
		far, err := net.Dial("tcp", loopback(k.target))
		if err != nil {
			t.Errorf("%s: %v", k.public, err)
			return
		}
		defer far.Close()
		done := make(chan struct{}, 2)
		pass := func(dst, src *net.TCPConn) {
			defer func() { done <- struct{}{} }()
			buf := make([]byte, min(x.step, 32<<10))
			for {
				n, err := src.Read(buf)
				p.pass(x, n)
				if n > 0 {
					if _, err := dst.Write(buf[:n]); err != nil {
						src.Close()
						return
					}
				}
				if err != nil {
					if err != io.EOF {
						dst.SetLinger(0)
						dst.Close()
					}
					dst.CloseWrite()
					return
				}
			}
		}
		go pass(far.(*net.TCPConn), c)
		go pass(c, far.(*net.TCPConn))
		<-done
		<-done
	})
}

// pass waits until n more bytes of an exchange may pass, and cuts the link if it is time.
func (p *pace) pass(x *tap, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.step <= p.cuts && x.passed >= x.step*int64(p.step) {
		p.next.Wait()
	}
	x.passed += int64(n)
	running, half := 0, 0
	for _, x := range p.taps {
		if !x.over {
			running++
			if x.passed >= x.step*int64(p.step)-x.step/2 {
				half++
			}
		}
	}
	if p.step <= p.cuts && !p.done && 2*half >= running {
		p.done = true
		p.cut() // it does not wait for anybody
	}
	p.goOnLocked()
}

// end says that an exchange is over, and returns how many cuts it has come through.
func (p *pace) end(i int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taps[i].over = true
	p.goOnLocked()
	return p.step - 1
}

// goOnLocked begins the next step when all are at the end of this one.
func (p *pace) goOnLocked() {
	all := true
	for _, x := range p.taps {
		all = all && (x.over || x.passed >= x.step*int64(p.step))
	}
	if all && p.done && p.step <= p.cuts {
		p.step++
		p.done = false
		p.next.Broadcast()
	}
}

func wantPattern(r io.Reader, size int64) error {
	if n, err := readPattern(r); n != size || err != nil {
		return fmt.Errorf("%d bytes arrive, then %v; want %d", n, err, size)
	}
	return nil
}

// downloadKind is one big body.
func downloadKind(t *testing.T, client *http.Client, public string, version int) kind {
	const size = 12 << 20
	target := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(size))
		io.Copy(w, newPattern(size))
	})
	return kind{public, "", target, size, func() error {
		resp, err := client.Get(strings.Replace(public, "/", "://", 1) + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != version || resp.ContentLength != size {
			return fmt.Errorf("%s of %d bytes; want HTTP/%d and %d bytes", resp.Proto, resp.ContentLength, version, size)
		}
		return wantPattern(resp.Body, size)
	}}
}

// bothWaysKind is a body in chunks that comes back while it is sent, with trailers behind it both times.
func bothWaysKind(t *testing.T, client *http.Client) kind {
	const size = 12 << 20
	target := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum, X-Echo")
		sum := sha256.New()
		io.Copy(w, io.TeeReader(r.Body, sum))
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		w.Header().Set("X-Echo", r.Trailer.Get("X-Said"))
	})
	return kind{"http/both.example.com", "inspect = true\n", target, 2 * size, func() error {
		req, err := http.NewRequest("POST", "http://both.example.com/", io.NopCloser(newPattern(size))) // of a length that is not known
		if err != nil {
			return err
		}
		req.Trailer = http.Header{"X-Said": {"to the end"}}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err := wantPattern(resp.Body, size); err != nil {
			return err
		}
		sum := sha256.New()
		io.Copy(sum, newPattern(size))
		if got, want := resp.Trailer.Get("X-Sum"), fmt.Sprintf("%x", sum.Sum(nil)); got != want || resp.Trailer.Get("X-Echo") != "to the end" {
			return fmt.Errorf("the trailers are %v; want the sum %s, and the one that was sent", resp.Trailer, want)
		}
		return nil
	}}
}

// eventsKind is a stream of server-sent events, each of which is sent when the one before it has arrived.
func eventsKind(t *testing.T, client *http.Client) kind {
	const n = 300
	arrived := make(chan struct{}, 1)
	target := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range n {
			fmt.Fprintf(w, "id: %d\ndata: event %[1]d\n\n", i)
			w.(http.Flusher).Flush()
			select {
			case <-arrived:
			case <-r.Context().Done():
				return
			}
		}
	})
	return kind{"http/events.example.com", "", target, n * int64(len("id: 0\ndata: event 0\n\n")), func() error {
		resp, err := client.Get("http://events.example.com/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		lines := bufio.NewReader(resp.Body)
		for i := range n {
			for _, want := range []string{fmt.Sprintf("id: %d\n", i), fmt.Sprintf("data: event %d\n", i), "\n"} {
				if got, err := lines.ReadString('\n'); got != want || err != nil {
					return fmt.Errorf("the line %q, %v; want %q", got, err, want)
				}
			}
			arrived <- struct{}{}
		}
		if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
			return fmt.Errorf("behind the last event %q, %v", rest, err)
		}
		return nil
	}}
}

// longPollKind is a client that asks again and again for the next piece of news. The server has each request exactly once.
func longPollKind(t *testing.T, client *http.Client) kind {
	const n = 100
	var mu sync.Mutex
	asked := 0 // guarded by mu
	target := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "%d: news behind %s", asked, r.FormValue("after"))
		asked++
	})
	return kind{"http/poll.example.com", "", target, n * 200, func() error {
		for i := range n {
			resp, err := client.PostForm("http://poll.example.com/", map[string][]string{"after": {strconv.Itoa(i)}}) // which nothing on the way may send again
			if err != nil {
				return err
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := fmt.Sprintf("%d: news behind %[1]d", i); string(got) != want || err != nil {
				return fmt.Errorf("%s %q, %v; want %q", resp.Status, got, err, want)
			}
		}
		return nil
	}}
}

// tlsEchoKind is an echo behind TLS that the proxy cannot read.
func tlsEchoKind(public, options string, target, https443 int, roots *x509.CertPool) kind {
	const size = 8 << 20
	return kind{public, options, target, 2 * size, func() error {
		raw, err := net.Dial("tcp", loopback(https443))
		if err != nil {
			return err
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(cutsPatience))
		c := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: strings.TrimPrefix(public, "tls/")})
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(c, newPattern(size))
			sent <- errors.Join(err, c.CloseWrite())
		}()
		err = wantPattern(c, size)
		raw.Close() // after an error the other one may wait
		if err != nil {
			return err
		}
		return <-sent
	}}
}

// A programClient makes the kinds whose clients are programs.
type programClient struct {
	t      *testing.T
	dir    string
	port   int    // of http/
	secure int    // of https/
	roots  string // file with the root of the certificates there
}

// to tells a script where names of http or https are.
func (c programClient) to(scheme string) []string {
	if scheme == "https" {
		return []string{strconv.Itoa(c.secure), c.roots}
	}
	return []string{strconv.Itoa(c.port)}
}

// run runs a program to its end.
func (c programClient) run(name, path string, env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cutsPatience)
	defer cancel()
	p := prepare(c.t, name, path, env, args...)
	if err := p.Start(nil); err != nil {
		return "", err
	}
	defer p.Kill()
	code, err := p.AwaitEnd(ctx)
	if err != nil || code != 0 {
		return "", fmt.Errorf("%s: exit code %d, %v\n%s%s", name, code, err, p.Stdout.String(), p.Stderr.String())
	}
	return p.Stdout.String(), nil
}

// upload is a layer of REVERSER_E2E_UPLOAD_BYTES that a registry of images gets from curl, which asks first.
func (c programClient) upload() kind {
	size := uploadBytes(16 << 20)
	file := filepath.Join(c.dir, "layer")
	want := randomFile(c.t, file, size)
	target := serveHTTP(c.t, func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%d %x %v", n, sum.Sum(nil), err)
	})
	return kind{"http/registry.example.com", "", target, size, func() error {
		out, err := c.run("curl", curl.path(c.t), nil, "--silent", "--show-error", "--noproxy", "*", "--connect-to", "::"+loopback(c.port), "--upload-file", file,
			"--header", "Expect: 100-continue", "--expect100-timeout", "60", "--header", "Transfer-Encoding:", "http://registry.example.com/v2/blobs/uploads/1")
		if want := fmt.Sprintf("%d %s <nil>", size, want); err == nil && out != want {
			err = fmt.Errorf("the registry got %s; want %s", out, want)
		}
		return err
	}}
}

// webSocket is a conversation of 800 turns, with fragments, pings between them, and codes of the end: without TLS and with it.
func (c programClient) webSocket() (kinds []kind) {
	target := freePort(c.t)
	server := start(c.t, "websocket.py", python.path(c.t), nil, "testdata/websocket.py", "serve", strconv.Itoa(target))
	server.awaitOutput("listening")
	for _, scheme := range []string{"http", "https"} {
		kinds = append(kinds, kind{scheme + "/socket.example.com", "inspect = true\n", target, 800 * 2 * 4096, func() error {
			_, err := c.run("websocket.py over "+scheme, python.path(c.t), nil, append([]string{"testdata/websocket.py", "turns"}, c.to(scheme)...)...)
			return err
		}})
	}
	return kinds
}

// grpc are the four kinds of calls, without TLS and with it.
func (c programClient) grpc() (kinds []kind) {
	target := freePort(c.t)
	server := start(c.t, "grpc_streams.py", python.path(c.t), nil, "testdata/grpc_streams.py", "serve", strconv.Itoa(target))
	server.awaitOutput("listening")
	for call, bytes := range map[string]int64{"unary": 2 * 3 << 20, "many": 3 << 20, "total": 3 << 20, "both": 600 * 2 * 1024} {
		for _, scheme := range []string{"http", "https"} {
			kinds = append(kinds, kind{scheme + "/" + call + ".grpc.example.com", "h2c = true\n", target, bytes, func() error {
				_, err := c.run("grpc "+call+" over "+scheme, python.path(c.t), nil, append([]string{"testdata/grpc_streams.py", call}, c.to(scheme)...)...)
				return err
			}})
		}
	}
	return kinds
}

// git pushes what somebody else clones then.
func (c programClient) git() kind {
	const size = 8 << 20
	env := []string{"HOME=" + c.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_COUNT=6",
		"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*", "GIT_CONFIG_KEY_1=init.defaultBranch", "GIT_CONFIG_VALUE_1=main",
		"GIT_CONFIG_KEY_2=user.name", "GIT_CONFIG_VALUE_2=t", "GIT_CONFIG_KEY_3=user.email", "GIT_CONFIG_VALUE_3=t@test.example",
		"GIT_CONFIG_KEY_4=http.proxy", "GIT_CONFIG_VALUE_4=", "GIT_CONFIG_KEY_5=http.postBuffer", "GIT_CONFIG_VALUE_5=100000000"} // CGI has no chunks
	git := func(args ...string) (string, error) { return c.run("git", git.path(c.t), env, args...) }
	must := func(args ...string) string {
		c.t.Helper()
		out, err := git(args...)
		if err != nil {
			c.t.Fatal(err)
		}
		return out
	}
	bare, work, clone := filepath.Join(c.dir, "repos", "r.git"), filepath.Join(c.dir, "work"), filepath.Join(c.dir, "clone")
	must("init", "-q", "--bare", bare)
	must("-C", bare, "config", "http.receivepack", "true")
	must("init", "-q", work)
	want := randomFile(c.t, filepath.Join(work, "big"), size)
	must("-C", work, "add", ".")
	must("-C", work, "commit", "-qm", "first")
	backend := filepath.Join(strings.TrimSpace(must("--exec-path")), "git-http-backend")
	target := serveHTTP(c.t, (&cgi.Handler{Path: backend, Env: append(env, "GIT_PROJECT_ROOT="+filepath.Dir(bare), "GIT_HTTP_EXPORT_ALL=1")}).ServeHTTP)
	return kind{"http/127.0.0.1/r.git", "", target, 2 * size, func() error {
		url := "http://" + loopback(c.port) + "/r.git"
		if _, err := git("-C", work, "push", "-q", url, "main"); err != nil {
			return err
		}
		if _, err := git("clone", "-q", url, clone); err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(clone, "big"))
		if err == nil && sumOf(string(got)) != want {
			err = errors.New("the checksum of the clone differs")
		}
		return err
	}}
}
