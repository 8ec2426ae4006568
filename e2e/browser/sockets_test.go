package browser

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
)

// TestWebSocketPrograms: a program talks to a server over WebSocket with messages of 16 MiB in fragments, with pings of both ends between the
// fragments, while the link is cut again and again. Both ends see the code and the reason of the other one's close.
func TestWebSocketPrograms(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	type ended struct {
		code   websocket.StatusCode
		reason string
	}
	ends, ponged := make(chan ended, 1), make(chan bool, 4)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /socket", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		c.SetReadLimit(size)
		ctx, cancel := context.WithTimeout(r.Context(), lifetime)
		defer cancel()
		var pings sync.WaitGroup
		defer pings.Wait()
		defer c.CloseNow()
		for {
			kind, in, err := c.Reader(ctx)
			if err != nil {
				closed := websocket.CloseError{Reason: err.Error()}
				errors.As(err, &closed)
				ends <- ended{closed.Code, closed.Reason}
				return
			}
			pings.Go(func() { // its pong comes between fragments
				if c.Ping(ctx) == nil {
					ponged <- true
				}
			})
			out, err := c.Writer(ctx, kind)
			if err == nil {
				if _, err = io.Copy(out, in); err == nil { // each part is a fragment
					err = out.Close()
				}
			}
			if err != nil {
				t.Errorf("the server answers: %v", err)
				return
			}
			if r.URL.RawQuery == "once" {
				c.Close(4008, "once only, 一次")
				return
			}
		}
	})
	s := startSite(t, mux)
	roots := x509.NewCertPool()
	roots.AddCert(s.certs[0])
	for scheme, origin := range s.origins() {
		t.Run(scheme, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), lifetime)
			defer cancel()
			at, err := url.Parse(origin)
			if err != nil {
				t.Fatal(err)
			}
			tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+at.Port())
			}}
			defer tr.CloseIdleConnections()
			connect := func(query string) *websocket.Conn {
				t.Helper()
				c, _, err := websocket.Dial(ctx, strings.Replace(origin, "http", "ws", 1)+"/socket"+query, &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.CloseNow() })
				c.SetReadLimit(size)
				return c
			}
			c := connect("")
			message := make([]byte, size)
			rand.Read(message)
			want := sha256.Sum256(message)
			sent := make(chan error, 1)
			go func() {
				out, err := c.Writer(ctx, websocket.MessageBinary)
				for at := 0; err == nil && at < size; at += size / 64 {
					if _, err = out.Write(message[at : at+size/64]); err == nil && at%(size/8) == 0 {
						err = c.Ping(ctx)
					}
				}
				if err == nil {
					err = out.Close()
				}
				sent <- err
			}()
			kind, in, err := c.Reader(ctx)
			if err != nil {
				t.Fatal(err)
			}
			sum, cuts := sha256.New(), map[string]int{"http": 10, "https": 4}[scheme]
			for i := range cuts {
				if _, err := io.CopyN(sum, in, int64(size/cuts)); err != nil {
					t.Fatalf("behind %d cuts: %v", i, err)
				}
				s.cut(t)
			}
			if _, err := io.Copy(sum, in); err != nil || kind != websocket.MessageBinary || [32]byte(sum.Sum(nil)) != want {
				t.Errorf("the echo is a message of kind %v with the sum %x, %v; want %x", kind, sum.Sum(nil), err, want)
			}
			if err := <-sent; err != nil {
				t.Errorf("the client writes: %v", err)
			}
			c.CloseRead(ctx) // so that a late ping is answered, too
			select {
			case <-ponged:
			case <-ctx.Done():
				t.Error("the server has no pong")
			}
			err = c.Close(4003, "enough, 够了")
			late := errors.Is(err, context.DeadlineExceeded) // the package waits 5 seconds for the other end's close, and then hangs up
			if err != nil && !late {
				t.Errorf("close: %v", err)
			}
			if got, want := <-ends, (ended{4003, "enough, 够了"}); got != want && !late {
				t.Errorf("closed by the client: the server sees %+v; want %+v", got, want)
			}

			c = connect("?once")
			if err := c.Write(ctx, websocket.MessageText, []byte("你好")); err != nil {
				t.Fatal(err)
			}
			if kind, b, err := c.Read(ctx); kind != websocket.MessageText || string(b) != "你好" || err != nil {
				t.Errorf("the echo of a text: %v %q %v", kind, b, err)
			}
			var closed websocket.CloseError
			if _, _, err := c.Read(ctx); !errors.As(err, &closed) || closed.Code != 4008 || closed.Reason != "once only, 一次" {
				t.Errorf("closed by the server: %v", err)
			}
			if r := said(t, s.proxy, "pair released", "service", fmt.Sprintf("%s/%s", scheme, at.Hostname())); r.Text("reason") != "eof" && !late {
				t.Errorf("the pair ended as %q; want eof", r.Text("reason"))
			}
		})
	}
}
