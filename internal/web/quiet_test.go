package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/acmetest"
	"reverser/internal/grammar"
	"reverser/internal/inspect"
	"reverser/internal/memnet"
)

// TestQuietForHours: what is under way stays open while nobody says anything for an hour and then for another one, whatever client and
// target speak: a WebSocket, server-sent events, a long poll whose service allows that time, an upload that pauses, an answer that nobody reads.
func TestQuietForHours(t *testing.T) {
	for _, client := range []string{"HTTP/1.1", "HTTP/2"} {
		for _, secure := range []bool{false, true} {
			for _, h2c := range []bool{false, true} {
				for _, inspected := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, TLS %v, h2c %v, inspected %v", client, secure, h2c, inspected), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { quietForHours(t, client, secure, h2c, inspected) })
					})
				}
			}
		}
	}
}

const quiet = time.Hour

// The frames of a WebSocket that says "hi", from either side.
const (
	hiMasked = "\x81\x82\x00\x00\x00\x00hi"
	hi       = "\x81\x02hi"
)

// quietTarget is silent for hours.
func quietTarget(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/socket":
		c, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		for frame := make([]byte, len(hiMasked)); ; {
			if _, err := io.ReadFull(brw, frame); err != nil {
				return
			}
			io.WriteString(c, hi)
		}
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			if i > 0 {
				time.Sleep(quiet)
			}
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
		}
	case "/poll":
		time.Sleep(2 * quiet)
		io.WriteString(w, "news")
	case "/upload":
		io.Copy(w, r.Body)
	case "/large":
		w.Write(make([]byte, 1<<20))
	}
}

func quietForHours(t *testing.T, proto string, secure, h2c, inspected bool) {
	var network memnet.Net
	listen := func(addr string) net.Listener {
		ln, err := network.Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	target := &http.Server{Handler: http.HandlerFunc(quietTarget), Protocols: new(http.Protocols)}
	target.Protocols.SetHTTP1(true)
	target.Protocols.SetUnencryptedHTTP2(true)
	var running sync.WaitGroup
	behind := listen("target:80")
	running.Go(func() { target.Serve(behind) })

	options := &grammar.ProxyOptions{H2C: h2c, Inspect: inspected, AnswerTime: grammar.Duration(3 * quiet)}
	site := &Site{Name: "http/a.example", Options: func() *grammar.ProxyOptions { return options }}
	site.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
		return func(error) {}, func(uint64, uint64) {}, nil
	}
	site.Dial = func(ctx context.Context, call Call, _ func()) (*Upstream, error) {
		c, err := network.Dial(ctx, "target:80")
		if err != nil {
			return nil, err
		}
		return &Upstream{Conn: c, ID: call.ID}, nil
	}
	store := inspect.New(1 << 20)
	rec := store.Record(site.Name, http.NotFoundHandler())
	site.Inspect = func(*grammar.ProxyOptions) *inspect.Recorder { return rec }
	s := Server{Find: func(bool, string, string) *Site { return site }, Failed: func(f Failure) { t.Errorf("a request got the page of %d: %v", f.Status, f.Err) }}
	s.Start()

	chain, key := acmetest.Certificate(t, "a.example")
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	front := listen("proxy:80")
	running.Go(func() {
		for {
			conn, err := front.Accept()
			if err != nil {
				return
			}
			conn = s.NewClient(conn, nil, nil)
			if secure {
				conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}})
				if err := conn.(*tls.Conn).Handshake(); err != nil {
					t.Error(err)
				}
			}
			s.Serve(conn)
		}
	})
	client := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return network.Dial(ctx, "proxy:80") },
	}
	scheme := "http"
	if secure {
		scheme = "https"
	}
	switch {
	case proto == "HTTP/1.1":
		client.Protocols.SetHTTP1(true)
	case secure:
		client.Protocols.SetHTTP2(true)
	default:
		client.Protocols.SetUnencryptedHTTP2(true)
	}

	begun := time.Now()
	ask := func(method, path string, body io.Reader, status int) (io.ReadCloser, error) {
		r, err := http.NewRequest(method, scheme+"://a.example"+path, body)
		if err != nil {
			return nil, err
		}
		if status == http.StatusSwitchingProtocols {
			r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
		}
		resp, err := client.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != status || !strings.HasPrefix(resp.Proto, proto) {
			resp.Body.Close()
			return nil, fmt.Errorf("%s %s after %v; want %s and %d", resp.Proto, resp.Status, time.Since(begun), proto, status)
		}
		return resp.Body, nil
	}
	// read reads that text, which has to come after that time, and if the answer is to end there, its end.
	read := func(r io.Reader, text string, after time.Duration, ends bool) error {
		got := make([]byte, len(text))
		_, err := io.ReadFull(r, got)
		if err == nil && ends {
			var rest []byte
			rest, err = io.ReadAll(r)
			got = append(got, rest...)
		}
		if took := time.Since(begun).Round(time.Second); err != nil || string(got) != text || took != after {
			return fmt.Errorf("%.50q, %v after %v; want %.50q after %v", got, err, took, text, after)
		}
		return nil
	}
	exchanges := map[string]func() error{
		"server-sent events": func() error {
			body, err := ask("GET", "/events", nil, 200)
			if err != nil {
				return err
			}
			defer body.Close()
			return errors.Join(read(body, "data: 0\n\n", 0, false), read(body, "data: 1\n\n", quiet, false), read(body, "data: 2\n\n", 2*quiet, true))
		},
		"a long poll": func() error {
			body, err := ask("GET", "/poll", nil, 200)
			if err != nil {
				return err
			}
			defer body.Close()
			return read(body, "news", 2*quiet, true)
		},
		"an upload": func() error {
			r, w := io.Pipe()
			running.Go(func() {
				for i := range 3 {
					if i > 0 {
						time.Sleep(quiet)
					}
					fmt.Fprintf(w, "part %d", i)
				}
				w.Close()
			})
			body, err := ask("POST", "/upload", r, 200)
			if err != nil {
				return err
			}
			defer body.Close()
			return read(body, "part 0part 1part 2", 2*quiet, true)
		},
		"an answer that nobody reads": func() error {
			body, err := ask("GET", "/large", nil, 200)
			if err != nil {
				return err
			}
			defer body.Close()
			time.Sleep(2 * quiet)
			return read(body, string(make([]byte, 1<<20)), 2*quiet, true)
		},
	}
	if h2c {
		// ReverseProxy's timer waits for a lock that a write to such a client holds, and in a bubble no time passes while anybody waits for a lock.
		delete(exchanges, "an answer that nobody reads")
	}
	if proto == "HTTP/1.1" && !h2c {
		exchanges["a WebSocket"] = func() error {
			body, err := ask("GET", "/socket", nil, http.StatusSwitchingProtocols)
			if err != nil {
				return err
			}
			defer body.Close()
			for i := range 3 {
				if i > 0 {
					time.Sleep(quiet)
				}
				if _, err := io.WriteString(body.(io.Writer), hiMasked); err != nil {
					return err
				}
				if err := read(body, hi, time.Duration(i)*quiet, false); err != nil {
					return err
				}
			}
			return nil
		}
	}
	var asked sync.WaitGroup
	for what, exchange := range exchanges {
		asked.Go(func() {
			if err := exchange(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	asked.Wait()
	client.CloseIdleConnections()
	front.Close()
	s.Close()
	site.Close()
	target.Close()
	store.Close()
	running.Wait()
	time.Sleep(time.Minute) // for the timers of net/http
}
