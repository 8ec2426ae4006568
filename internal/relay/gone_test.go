package relay

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"reverser/internal/wire"
)

// The user fills the window of a target that never reads, then dies, while the target streams.
func TestUserDiesWithFullWindow(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	for _, c := range []any{tu.user, tu.server, tu.client.sock.conn, tu.target.sock.conn} {
		c.(*net.TCPConn).SetReadBuffer(64 << 10)
		c.(*net.TCPConn).SetWriteBuffer(64 << 10)
	}
	tu.user.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, _ := tu.user.Write(make([]byte, 16<<20))
	t.Logf("user sent %d, server reads none of it", n)
	tu.user.SetLinger(0)
	tu.user.Close() // RST
	// the server goes on writing, as a log stream does
	total := 0
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		var k int
		tu.server.SetWriteDeadline(time.Now().Add(time.Second))
		k, err = tu.server.Write(make([]byte, 64<<10))
		total += k
		if err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err == nil {
		t.Errorf("5 s after the user's RST the server has written %d MiB into the void without an error; client pair over: %v", total>>20, closed(tu.client.over))
	} else {
		t.Log("server got", err, "after", total)
	}
}

// Without any write: only the reset.
func TestResetWithFullWindowIsNotSeen(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	tu := w.tunnel(l, loopback)
	defer tu.close()
	for _, c := range []any{tu.user, tu.server, tu.client.sock.conn, tu.target.sock.conn} {
		c.(*net.TCPConn).SetReadBuffer(64 << 10)
		c.(*net.TCPConn).SetWriteBuffer(64 << 10)
	}
	tu.user.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	tu.user.Write(make([]byte, 16<<20))
	tu.user.SetLinger(0)
	tu.user.Close() // RST
	time.Sleep(3 * time.Second)
	if !closed(tu.client.over) {
		t.Errorf("3 s after the user's RST the pair is still open")
	}
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// gated: Write fails while Read has EOF in hand.
type gated struct {
	net.Conn
	eof  chan struct{} // closed: Read returns EOF
	hold chan struct{} // CloseWrite/Set... unused
}

func (g *gated) Read([]byte) (int, error)    { <-g.eof; return 0, io.EOF }
func (g *gated) Write(p []byte) (int, error) { return 0, io.ErrClosedPipe }
func (g *gated) Close() error                { return g.Conn.Close() }

// EOF of the reader and failure of the writer at the same time.
func TestEOFAndWriteErrorAtOnce(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	hung := 0
	const rounds = 2000
	for range rounds {
		px, br := w.open(l)
		user, accepted := inMemory.user(t)
		g := &gated{Conn: accepted, eof: make(chan struct{})}
		var wg sync.WaitGroup
		p := run(&wg, New(Client, g, px, nil))
		go close(g.eof)
		br.Write([]byte("x"))
		time.Sleep(3 * time.Millisecond)
		if !closed(p.over) {
			time.Sleep(200 * time.Millisecond)
			if !closed(p.over) {
				hung++
				if hung > 2 {
					p.End(ReasonDrain, wire.CodeDrain)
					wg.Wait()
					user.Close()
					br.Close()
					break
				}
			}
		}
		p.End(ReasonDrain, wire.CodeDrain)
		wg.Wait()
		user.Close()
		br.Close()
	}
	if hung > 0 {
		t.Errorf("%d pairs hung half-open although the socket is dead", hung)
	}
}
