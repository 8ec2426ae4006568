package sys

import (
	"net"
	"strings"
	"testing"

	"reverser/internal/freeport"
)

// accept returns both ends of a connection to a listener of Listen.
func accept(t *testing.T) (user, accepted net.Conn) {
	t.Helper()
	ln, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if user, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if accepted, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return user, accepted
}

// dial returns both ends of a connection that Dial made.
func dial(t *testing.T) (server, dialled net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if dialled, err = Dial(t.Context(), "tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return server, dialled
}

func TestDialRefused(t *testing.T) {
	t.Parallel()
	addr, err := freeport.Addr()
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Dial(t.Context(), "tcp", addr); !Refused(err) {
		t.Errorf("Dial = %v, %v; want ECONNREFUSED", c, err)
	}
}

// Every system says the same of an address that is taken: people look for these words.
func TestListenInUse(t *testing.T) {
	l, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if again, err := Listen("tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		if err == nil {
			again.Close()
		}
		t.Errorf("Listen at an address that is taken = %v", err)
	}
}
