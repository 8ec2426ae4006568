package reverser_test

import (
	"context"
	"net"
	"testing"
	"time"

	"reverser"
)

// The context ends while a connection waits for Accept, and nobody accepts any more.
func TestContextEndsWithAWaitingConnection(t *testing.T) {
	tok := startProxy(t, "tcp/1024-65535")
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
	defer user.Close()
	user.Write([]byte("x"))
	time.Sleep(500 * time.Millisecond)
	cancel()
	time.Sleep(3 * time.Second)
	n := 0
	for {
		c, err := ln.Accept()
		if err != nil {
			break
		}
		n++
		c.Close()
	}
	if n > 0 {
		t.Errorf("3 s after its context ended the listener still ran: Accept returned %d connection(s)", n)
	}
	ln.Close()
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
	total := 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		n, err := user.Write(make([]byte, 64<<10))
		total += n
		if err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("the user sent %d MiB to a connection that the program closed 4 s ago", total>>20)
}
