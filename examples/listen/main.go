// Command listen is a web server behind a NAT whose two public addresses are on a proxy: pages for everybody, and what it
// counted on a second address, which a proxy binds to itself with tcp/127.0.0.1:9001, say.
//
//	REVERSER_TOKEN=rv1_… go run ./examples/listen -public 9000 -numbers tcp/127.0.0.1:9001
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"reverser"
)

func main() {
	public := flag.String("public", "9000", "public `address` of the pages")
	numbers := flag.String("numbers", "9001", "public `address` of the numbers")
	proxy := flag.String("proxy", "", "`host:port` of the proxy, where the token has none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c := &reverser.Client{Token: os.Getenv("REVERSER_TOKEN"), Proxy: *proxy, Log: slog.Default()}
	defer c.Close()
	if err := run(ctx, c, *public, *numbers); err != nil {
		fmt.Fprintln(os.Stderr, "listen:", err)
		os.Exit(1)
	}
}

// run serves both addresses until ctx ends, and returns when the requests that are under way were answered.
func run(ctx context.Context, c *reverser.Client, public, numbers string) error {
	var requests atomic.Int64
	pages := func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		fmt.Fprintf(w, "hello, %s\n", r.RemoteAddr) // the user's address, not the proxy's
	}
	counts := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%d requests\n", requests.Load()) }

	one, err := c.Listen(ctx, public)
	if err != nil {
		return err
	}
	two, err := c.Listen(ctx, numbers)
	if err != nil {
		return err
	}
	return serve(ctx, map[net.Listener]http.HandlerFunc{one: pages, two: counts})
}

// serve serves each listener until ctx ends.
func serve(ctx context.Context, all map[net.Listener]http.HandlerFunc) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	for ln, handler := range all {
		srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
		serving.Go(func() {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				cancel(err)
			}
		})
		serving.Go(func() {
			<-ctx.Done()
			late, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer stop()
			srv.Shutdown(late) // closes the listener; its connections finish
		})
	}
	serving.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
