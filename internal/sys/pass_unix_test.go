//go:build unix

package sys

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestPass: a connection goes on over another descriptor when the first one is closed, and ends when the last one is.
func TestPass(t *testing.T) {
	user, accepted := accept(t)
	server, dialled := dial(t)
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	local, err := Dial(t.Context(), "unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	behind, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ far, near net.Conn }{{user, accepted}, {server, dialled}, {behind, local}} {
		defer c.far.Close()
		c.far.SetDeadline(time.Now().Add(time.Minute))
		c.far.Write([]byte("before"))
		f, err := Duplicate(c.near)
		if err != nil {
			t.Fatal(err)
		}
		c.near.Close()
		next, err := Adopt(f)
		if err != nil {
			t.Fatal(err)
		}
		if next.LocalAddr().String() != c.far.RemoteAddr().String() || next.RemoteAddr().String() != c.far.LocalAddr().String() {
			t.Errorf("addresses %s, %s; want those of %s, %s", next.LocalAddr(), next.RemoteAddr(), c.far.RemoteAddr(), c.far.LocalAddr())
		}
		b := make([]byte, 6)
		if _, err := io.ReadFull(next, b); string(b) != "before" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		next.Write([]byte("behind"))
		if _, err := io.ReadFull(c.far, b); string(b) != "behind" || err != nil {
			t.Errorf("the other end read %q, %v", b, err)
		}
		if _, tcp := c.far.(*net.TCPConn); tcp {
			next.Close()
			if n, err := c.far.Read(b); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("behind the last descriptor: read %d, %v; want ECONNRESET", n, err)
			}
		}
		next.Close()
	}
}

// TestAdoptOther: what is no connection is refused, and still its owner's.
func TestAdoptOther(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	listener, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{listener, file} {
		if c, err := Adopt(f); err == nil {
			t.Errorf("Adopt(%s) = %v; want an error", f.Name(), c)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if f, err := Duplicate(a); err == nil {
		t.Errorf("Duplicate of what has no descriptor = %v", f)
	}
}
