package reverser_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"

	"reverser"
	"reverser/internal/grammar"
)

// echo serves one connection of ln after the other until it is closed.
func echo(t *testing.T, ln net.Listener, wg *sync.WaitGroup) {
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	})
}

// wantEcho uses addr as a user.
func wantEcho(t *testing.T, addr, text string) {
	t.Helper()
	user, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	user.Write([]byte(text))
	user.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(user); string(got) != text || err != nil {
		t.Errorf("the user of %s read %q, %v; want %q", addr, got, err, text)
	}
}

// A program has several public addresses over one link, and adds and closes them while users are there.
func TestClient(t *testing.T) {
	tok := startProxy(t, "tcp/1024-65535")
	c := &reverser.Client{Token: tok}
	defer c.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	first, second := freeAddr(t), freeAddr(t)
	one, err := c.Listen(t.Context(), "tcp/"+first)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	user, err := net.Dial("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	accepted, err := one.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()

	two, err := c.Listen(t.Context(), "tcp/"+second)
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	echo(t, two, &serving)
	wantEcho(t, second, "hello")
	if _, err := c.Listen(t.Context(), "tcp/"+second); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener on %s: %v, want EADDRINUSE", second, err)
	}

	one.Close()
	one.Close()
	if _, err := one.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, want net.ErrClosed", err)
	}
	user.Write([]byte("still"))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(accepted, buf); err != nil || string(buf) != "still" {
		t.Errorf("after Close of the listener the connection read %q, %v", buf, err)
	}
	wantEcho(t, second, "the other")

	again, err := c.Listen(t.Context(), "tcp/"+first) // its address was given back
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	echo(t, again, &serving)
	wantEcho(t, first, "again")

	c.Close()
	if _, err := c.Listen(t.Context(), "tcp/"+first); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Listen = %v after Close, want net.ErrClosed", err)
	}
	if _, err := io.ReadAll(accepted); err == nil {
		t.Error("a connection ended cleanly when its client was closed, want a reset")
	}
}

// One denied address does not take the others down.
func TestClientDenied(t *testing.T) {
	good := freeAddr(t)
	tok := startProxy(t, "tcp/"+good)
	c := &reverser.Client{Token: tok}
	defer c.Close()
	ln, err := c.Listen(t.Context(), "tcp/"+good)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for range 2 { // it is not left behind
		if _, err := c.Listen(t.Context(), "tcp/"+freeAddr(t)); !errors.Is(err, reverser.ErrDenied) {
			t.Errorf("Listen = %v, want ErrDenied", err)
		}
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer ln.Close()
	echo(t, ln, &serving)
	wantEcho(t, good, "hello")
}

// Two listeners of one token share a link: a proxy takes one link of a key.
func TestListenTwice(t *testing.T) {
	tok := startProxy(t, "tcp/1024-65535")
	var serving sync.WaitGroup
	defer serving.Wait()
	for range 2 { // the second time, the link of the first time is gone
		var lns []net.Listener
		for range 2 {
			addr := freeAddr(t)
			ln, err := reverser.Listen(t.Context(), reverser.Config{Token: tok, Public: "tcp/" + addr})
			if err != nil {
				t.Fatal(err)
			}
			lns = append(lns, ln)
			echo(t, ln, &serving)
			wantEcho(t, addr, "hello")
		}
		for _, ln := range lns {
			ln.Close()
		}
	}
}

// A server closes its listener first when it shuts down: the connections that it has go on.
func TestConnectionOutlivesItsListener(t *testing.T) {
	tok := startProxy(t, "tcp/1024-65535")
	addr := freeAddr(t)
	ln, err := reverser.Listen(t.Context(), reverser.Config{Token: tok, Public: "tcp/" + addr})
	if err != nil {
		t.Fatal(err)
	}
	user, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	c.Write([]byte("last words"))
	c.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(user); string(got) != "last words" || err != nil {
		t.Errorf("the user read %q, %v", got, err)
	}
	user.Close()
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the program read %v, want EOF", err)
	}
	c.Close()
	c.Close()
	ln, err = reverser.Listen(t.Context(), reverser.Config{Token: tok, Public: "tcp/" + addr})
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

// What stands in the way reaches the caller, beside the end of its context.
func TestListenNamesTheCause(t *testing.T) {
	good := startProxy(t, "tcp/1024-65535")
	tok, err := grammar.ParseToken(good)
	if err != nil {
		t.Fatal(err)
	}
	wrongPin, wrongKey, wrongSecret, nobody := tok, tok, tok, tok
	wrongPin.Pin[0]++
	wrongKey.KeyID[0]++
	wrongSecret.Secret[0]++
	nobody.Addrs = []string{freeAddr(t)}
	for name, c := range map[string]struct {
		token grammar.Token
		want  string
	}{
		"wrong pin":     {wrongPin, "not the proxy that this token was made for"},
		"unknown key":   {wrongKey, "key"},
		"wrong secret":  {wrongSecret, ""},
		"unknown proxy": {nobody, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w := &warned{cancel: cancel}
			_, err := reverser.Listen(ctx, reverser.Config{Token: c.token.Encode(), Public: "tcp/" + freeAddr(t), Log: w.logger()})
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), c.want) || err.Error() == context.Canceled.Error() {
				t.Errorf("Listen = %v, want the end of the context, and its cause", err)
			}
			t.Log(err)
		})
	}
}

// warned ends a context at the first warning that says that the proxy cannot be used.
type warned struct {
	slog.Handler
	cancel context.CancelFunc
}

func (w *warned) logger() *slog.Logger {
	w.Handler = slog.DiscardHandler
	return slog.New(w)
}

func (w *warned) Enabled(context.Context, slog.Level) bool { return true }
func (w *warned) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w *warned) WithGroup(string) slog.Handler            { return w }
func (w *warned) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		w.cancel()
	}
	return nil
}
