package reverser_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"reverser"
)

// limit is long after everything that a test waits for.
const limit = time.Minute

// standsIn waits until a goroutine is in the function.
func standsIn(t *testing.T, function string) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for late := time.Now().Add(limit); !strings.Contains(string(buf[:runtime.Stack(buf, true)]), function); runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatalf("no goroutine came to %s within %s", function, limit)
		}
	}
}

// The context ends while a connection waits for Accept, and nobody accepts any more.
func TestContextEndsWithAWaitingConnection(t *testing.T) {
	tok := startProxy(t, "tcp/1024-65535")
	addr := freeAddr(t)
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := reverser.Listen(ctx, reverser.Config{Token: tok, Public: "tcp/" + addr})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	user, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	user.Write([]byte("x"))
	standsIn(t, "reverser.(*listener).hand(")
	cancel()
	user.SetReadDeadline(time.Now().Add(limit))
	if got, err := io.ReadAll(user); len(got) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the user read %q, %v; want the end", got, err)
	}
	if c, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, %v after the context's end; want net.ErrClosed", c, err)
	}
}

// Accept knows that the context has ended, even when nobody had the time to close the listener yet.
func TestAcceptAfterTheContext(t *testing.T) {
	tok := startProxy(t, "tcp/1024-65535")
	for range 10 {
		addr := freeAddr(t)
		ctx, cancel := context.WithCancel(t.Context())
		ln, err := reverser.Listen(ctx, reverser.Config{Token: tok, Public: "tcp/" + addr})
		if err != nil {
			t.Fatal(err)
		}
		user, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		standsIn(t, "reverser.(*listener).hand(")
		cancel()
		if c, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept = %v, %v after the context's end; want net.ErrClosed", c, err)
		}
		user.Close()
		ln.Close()
	}
}

// A server that closes while its user goes on sending: TCP answers with RST.
func TestCloseIsNoticed(t *testing.T) {
	tok := startProxy(t, "tcp/1024-65535")
	addr := freeAddr(t)
	ln, err := reverser.Listen(t.Context(), reverser.Config{Token: tok, Public: "tcp/" + addr})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	user, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	user.SetWriteDeadline(time.Now().Add(limit))
	sent, p := 0, make([]byte, 64<<10)
	for err == nil && sent < 1<<30 {
		var n int
		n, err = user.Write(p)
		sent += n
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the user sent %d MiB to a connection that the program had closed, then %v; want a reset", sent>>20, err)
	}
}
