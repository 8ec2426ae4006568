package proxy

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// userFrom connects from the nth loopback address.
func (w *world) userFrom(n int, addr string) *net.TCPConn {
	w.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("127.0.1.%d", n))}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(limit))
	w.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// TestKeyShare: a key's users get half of the descriptors; the next waits in the kernel and is served when one leaves. Bridges and
// another key's users still get in.
func TestKeyShare(t *testing.T) {
	addr, pub := free(t)
	otherAddr, otherPub := free(t)
	k, other := key(t, "nas", "tcp/1024-65535"), key(t, "desk", "tcp/1024-65535")
	w := start(t, Config{MaxConns: 16, Settings: Settings{Keys: []Key{k, other}}})
	b := w.bridge(k, how{instance: 1}, pub)
	w.idle() // the probe is over
	var users []*net.TCPConn
	for i := range 8 {
		u := w.userFrom(i+1, addr)
		talk(t, u, b.stream(), "?")
		users = append(users, u)
	}
	late := w.userFrom(100, addr)
	late.Write([]byte("late"))
	eventually(t, "the limit is reached", func() bool {
		return w.log.Count("running short", "of=descriptors for users", "largest_key=nas", "limit=16") == 1
	})
	select {
	case <-b.streams:
		t.Fatal("a stream was opened for one more than the limit")
	default:
	}
	o := w.bridge(other, how{instance: 2, silent: true}, otherPub) // the door for bridges is another one
	w.pair(o, otherAddr)
	for i := range 3 {
		w.userFrom(101+i, addr) // more than one wait
	}
	users[0].SetLinger(0)
	users[0].Close()
	s := b.stream()
	got := make([]byte, 4)
	if _, err := io.ReadFull(s, got); string(got) != "late" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	for _, u := range users[1:] {
		u.SetLinger(0)
		u.Close()
	}
	for range 3 {
		b.stream()
	}
	n := w.log.Count("running short, some are refused or wait", "of=descriptors for users")
	over := w.log.Count("no longer running short", "of=descriptors for users") // where the machine is so busy that they come slowly
	if n == 0 || n > over+1 {
		t.Errorf("%d lines about the limit, and %d that it is over; want each time one", n, over)
	}
}
