package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"reverser/internal/admin"
	"reverser/internal/bridge"
	"reverser/internal/grammar"
	"reverser/internal/proxy"
	"reverser/internal/state"
	"reverser/internal/status"
)

const (
	demoTimeout  = 30 * time.Second // for the whole check: it takes well under one
	demoRequests = 20
	demoBody     = 1 << 20

	demoWidth  = 80              // a terminal's usual width, for everything that is printed
	demoIndent = "             " // where the message of a log line begins on a terminal
)

func (c *cli) demoCommand() *cobra.Command {
	var once bool
	var logFormat string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run proxy, bridge and a small service here, to look at",
		Long: `Run a proxy, a bridge and a small HTTP service in one process, on loopback
ports that it chooses; send real requests through the tunnel, and say what
happened and where to look. It stays until Ctrl-C, and leaves nothing behind.`,
		Example: `  reverser demo
  reverser demo --once && echo it works here`,
		Args: takes("reverser demo"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.demo(cmd.Context(), once, logFormat)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "exit after the check: 0 if all went well")
	cmd.Flags().StringVar(&logFormat, "log-format", "", "`FORMAT` of the log on stderr: text or json (default text)")
	return cmd
}

func (c *cli) demo(ctx context.Context, once bool, logFormat string) (err error) {
	outliveReaders()
	log := c.log
	if logFormat != logJSON {
		// Beside a page of words, a log that runs over the edge is hard to read.
		log = folder{c.log, demoWidth, demoIndent}
	}
	handler, err := newHandler(c.log, log, logFormat, slog.LevelInfo)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A person who watches the demo wants what it prints; a log line of every
	// connection would bury it. Once it stands, the log is the thing to watch.
	var level slog.LevelVar
	level.Set(slog.LevelWarn)
	d := &demo{log: slog.New(gate{handler, &level})}
	// At the end everything goes at once, and each part would warn that it
	// lost the others.
	end := func() {
		level.Set(slog.LevelError)
		cancel()
	}
	defer d.close()
	defer end()
	// Signals end the demo at once: there is nobody whose connection is to be
	// drained. Before the admin socket is there: whoever sees it may send one.
	stopSignals := withSignals(slog.New(slog.DiscardHandler), nil, func() {}, end, end, func() {})
	defer stopSignals()
	if err := d.start(ctx); err != nil {
		return fmt.Errorf("demo: %w", err)
	}

	fmt.Fprintf(c.stdout, `A proxy, a bridge and two small services run in this process, on loopback:

  user -> proxy %[1]s -> bridge -> HTTP service %[2]s
  user -> proxy %[3]s -> bridge -> echo service %[4]s

Between proxy and bridge is one encrypted link, which the bridge dialled at
%[5]s.

`, d.httpPublic, d.httpTarget, d.echoPublic, d.echoTarget, d.proxy.Addr())

	check, cancelCheck := context.WithTimeout(ctx, demoTimeout)
	defer cancelCheck()
	if err := d.check(check, c.stdout); err != nil {
		if ctx.Err() != nil {
			return nil // Ctrl-C
		}
		return fmt.Errorf("demo: %w", err)
	}
	if once {
		return nil
	}
	// The log that follows is to show what the reader does, not the check's end.
	for len(d.proxy.Status().Pairs)+len(d.bridge.Status().Pairs) > 0 && pause(check, 10*time.Millisecond) {
	}
	level.Set(slog.LevelInfo) // before it says so, or the first connection could go unlogged
	fmt.Fprintf(c.stdout, `
Look at it yourself:
  http://%s/
  curl --data-binary @FILE http://%s/echo
  %s status --state %s

The log of the connections follows. Ctrl-C ends the demo.

`, d.httpPublic, d.httpPublic, os.Args[0], d.dir.Path())
	select {
	case <-ctx.Done():
	case err := <-d.failed:
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// demo is everything that runs.
type demo struct {
	log    *slog.Logger
	temp   string
	dir    *state.Dir
	proxy  *proxy.Proxy
	bridge *bridge.Bridge

	httpPublic, echoPublic string // addresses of the public ports
	httpTarget, echoTarget string // addresses of the services behind them
	services               []bridge.Service
	failed                 chan error

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (d *demo) start(ctx context.Context) (err error) {
	ctx, d.cancel = context.WithCancel(ctx)
	d.failed = make(chan error, 8)

	if d.temp, err = os.MkdirTemp("", "reverser-demo-"); err != nil {
		return err
	}
	if d.dir, err = state.Open(filepath.Join(d.temp, "proxy")); err != nil {
		return err
	}
	identity, _, err := d.dir.Identity()
	if err != nil {
		return err
	}
	httpService, err := d.listen()
	if err != nil {
		return err
	}
	d.httpTarget = httpService.Addr().String()
	d.serveHTTP(ctx, httpService)
	echoService, err := d.listen()
	if err != nil {
		return err
	}
	d.echoTarget = echoService.Addr().String()
	d.serveEcho(ctx, echoService)

	var allow grammar.Policy
	var free []net.Listener
	for _, s := range []struct {
		public *string
		target string
	}{{&d.httpPublic, d.httpTarget}, {&d.echoPublic, d.echoTarget}} {
		held, err := freePort()
		if err != nil {
			return err
		}
		defer held.Close()
		free = append(free, held)
		*s.public = held.Addr().String()
		e, err := grammar.ParseExpose("tcp/" + *s.public + "=" + s.target)
		if err != nil {
			return err
		}
		a, err := grammar.ParseAllow(e.Public.String())
		if err != nil {
			return err
		}
		d.services = append(d.services, bridge.Service{Public: e.Public, Target: e.Target})
		allow = append(allow, a)
	}

	pin := state.Pin(identity)
	editor := &admin.KeyEditor{Dir: d.dir, Pin: pin, Reach: d.dir.Reach, InForce: storedKeys(d.dir, pin), Log: d.log}
	tok, err := editor.Make("demo", allow, state.Limits{})
	if err != nil {
		return err
	}
	keys, err := editor.InForce()
	if err != nil {
		return err
	}
	d.proxy = proxy.New(proxy.Config{
		Listen: "127.0.0.1:0", Identity: identity, Version: version(), Log: d.log.With("side", "proxy"),
		Settings: proxy.Settings{Keys: proxyKeys(keys)},
	})
	if err := d.proxy.Listen(); err != nil {
		return err
	}
	for _, held := range free { // only now: the proxy's own port is another one
		held.Close()
	}
	d.run(ctx, "proxy", d.proxy.Run)
	tok.Addrs = []string{d.proxy.Addr().String()}
	editor.Reach = func() grammar.Reach { return grammar.Reach{Addrs: tok.Addrs} }
	editor.Edited = func() error {
		keys, err := editor.InForce()
		if err != nil {
			return err
		}
		return d.proxy.Apply(ctx, proxy.Settings{Keys: proxyKeys(keys)})
	}

	// The bridge reads the token as if it had been pasted.
	if tok, err = grammar.ParseToken(tok.Encode()); err != nil {
		return err
	}
	b, err := bridge.New(bridge.Config{
		Token: tok, Settings: bridge.Settings{Services: d.services}, Version: version(),
		Log: d.log.With("side", "bridge"),
	})
	if err != nil {
		return err
	}
	d.bridge = b
	d.run(ctx, "bridge", b.Run)

	l, err := d.dir.ListenAdmin()
	if err != nil {
		return err
	}
	a := &admin.Server{Status: d.proxy.Status, Keys: editor, Log: d.log}
	d.run(ctx, "admin socket", func(ctx context.Context) error { return a.Serve(ctx, l) })
	return nil
}

// run starts one part; one that ends by itself ends the demo.
func (d *demo) run(ctx context.Context, name string, part func(context.Context) error) {
	d.wg.Go(func() {
		if err := part(ctx); ctx.Err() == nil {
			d.failed <- fmt.Errorf("the %s ended: %w", name, cmp.Or(err, errors.New("nobody asked it to")))
		}
	})
}

func (d *demo) close() {
	if d.cancel != nil {
		d.cancel()
	}
	d.wg.Wait()
	if d.dir != nil {
		d.dir.Close()
	}
	if d.temp != "" {
		os.RemoveAll(d.temp)
	}
}

func (d *demo) listen() (*net.TCPListener, error) {
	return net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
}

// freePort holds a port for the proxy to open. It is below those that most systems give to outgoing connections, of which one
// could have it before the proxy does. Another process that listens may still take it in between: the proxy then says so, and the check fails with that word.
func freePort() (l net.Listener, err error) {
	for range 100 {
		var port int
		if port, err = somePort(); err != nil {
			return nil, err
		}
		if l, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// somePort is a port to try. Tests have one that no other test has, nor is about to open.
var somePort = func() (int, error) { return 10000 + randv2.IntN(20000), nil }

// check sends real traffic through the tunnel.
func (d *demo) check(ctx context.Context, out io.Writer) error {
	start := time.Now()
	if err := d.waitUp(ctx); err != nil {
		return err
	}
	ok(out, start, "the bridge proved itself, and the proxy opened both ports")

	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	start = time.Now()
	body := make([]byte, demoBody)
	rand.Read(body)
	if err := post(ctx, client, "http://"+d.httpPublic+"/echo", body); err != nil {
		return err
	}
	ok(out, start, "an HTTP upload of 1 MiB came back byte for byte")

	start = time.Now()
	var wg sync.WaitGroup
	errs := make([]error, demoRequests)
	for i := range errs {
		wg.Go(func() { errs[i] = post(ctx, client, "http://"+d.httpPublic+"/echo", body[:1000+i]) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	ok(out, start, fmt.Sprintf("%d HTTP requests at once were all answered", demoRequests))

	start = time.Now()
	if err := halfClose(ctx, d.echoPublic, body); err != nil {
		return err
	}
	ok(out, start, "a client closed its side and got every byte back (half-close)")
	return nil
}

// waitUp waits until the services are up.
func (d *demo) waitUp(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		select {
		case err := <-d.failed:
			cancel(err)
		case <-ctx.Done():
		}
	})
	for _, s := range d.services {
		st, err := d.bridge.Await(ctx, s.Public)
		switch {
		case err != nil:
			return fmt.Errorf("%s is not up: %w", s.Public, err)
		case st.State != status.ServiceUp:
			return fmt.Errorf("%s is %s (%s)", st.Public, st.State, st.Reason)
		}
	}
	return nil
}

func ok(out io.Writer, start time.Time, what string) {
	fmt.Fprintf(out, "  ok  %s (%.1f ms)\n", what, float64(time.Since(start).Microseconds())/1000)
}

func post(ctx context.Context, client *http.Client, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK || !bytes.Equal(got, body) {
		return fmt.Errorf("%s answered %s with %d bytes, not the %d that were sent", url, resp.Status, len(got), len(body))
	}
	return nil
}

// halfClose sends everything, closes the sending side, and only then reads.
func halfClose(ctx context.Context, addr string, body []byte) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(body)
		if err == nil {
			err = conn.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(conn)
	if err != nil {
		conn.Close() // ends the writer
	}
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("half-close through %s: %w", addr, err)
	}
	if !bytes.Equal(got, body) {
		return fmt.Errorf("half-close through %s: %d bytes came back, not the %d that were sent", addr, len(got), len(body))
	}
	return nil
}

func (d *demo) serveHTTP(ctx context.Context, l net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		// Reading while writing: HTTP/1 needs to be told.
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, demoPage, html.EscapeString(r.Host), html.EscapeString(d.httpTarget), html.EscapeString(r.RemoteAddr), time.Now().Format(time.TimeOnly))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: demoTimeout, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	d.run(ctx, "HTTP service", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { srv.Close() })
		defer stop()
		return srv.Serve(l)
	})
}

const demoPage = `<!doctype html>
<meta charset="utf-8">
<title>reverser demo</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em}</style>
<h1>This page came through the tunnel</h1>
<p>You asked the proxy at <b>%s</b>. It passed your connection over the link to the bridge,
and the bridge to this little HTTP service at <b>%s</b>, which sees the bridge at %s.</p>
<p>It is %s here.</p>
`

// serveEcho sends back what it gets, until the other side closes.
func (d *demo) serveEcho(ctx context.Context, l *net.TCPListener) {
	d.run(ctx, "echo service", func(ctx context.Context) error {
		var wg sync.WaitGroup
		defer wg.Wait()
		defer context.AfterFunc(ctx, func() { l.Close() })()
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return err
			}
			wg.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				io.Copy(conn, conn)
			})
		}
	})
}

// gate lets pass what reaches a level that can change.
type gate struct {
	slog.Handler
	level *slog.LevelVar // shared with what With makes of it
}

func (g gate) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= g.level.Level() && g.Handler.Enabled(ctx, level)
}

func (g gate) WithAttrs(attrs []slog.Attr) slog.Handler {
	return gate{g.Handler.WithAttrs(attrs), g.level}
}
func (g gate) WithGroup(name string) slog.Handler { return gate{g.Handler.WithGroup(name), g.level} }
