package sys

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestHasUnacked: it tells what the peer's kernel has not taken, for as long as that is so.
func TestHasUnacked(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("this system does not tell")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if HasUnacked(c) {
		t.Error("bytes are unacknowledged before any was written")
	}
	var n int64
	for buf, stood := make([]byte, 16<<10), false; !stood; { // until nobody takes any more; Wine can forget to end a large write
		c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		some, err := c.Write(buf)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		stood = some == 0 && n > 0 // a busy machine may have let the time pass before the first byte
		n += int64(some)
	}
	if !HasUnacked(c) {
		t.Error("the peer's kernel is full, and everything is said to be acknowledged")
	}
	if _, err := io.CopyN(io.Discard, peer, n); err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(time.Minute); HasUnacked(c); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("the peer has read all, and bytes are said to be unacknowledged")
		}
	}
	c.Close()
	if HasUnacked(c) {
		t.Error("a closed connection has unacknowledged bytes")
	}
}
