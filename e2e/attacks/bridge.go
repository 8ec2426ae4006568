package attacks

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// Dial opens a socket to the link port of a proxy.
type Dial func(ctx context.Context) (net.Conn, error)

// prove makes an authenticated connection with the key of a token.
func prove(ctx context.Context, token grammar.Token, instance [16]byte, dial Dial) (*auth.Conn, error) {
	sock, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	if c, ok := sock.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	return auth.Client(ctx, sock, auth.ClientConfig{KeyID: token.KeyID, Secret: token.Secret, Pin: token.Pin, Instance: instance})
}

// Idle makes an authenticated connection that says nothing more.
func Idle(ctx context.Context, token grammar.Token, dial Dial) (net.Conn, error) {
	var instance [16]byte
	rand.Read(instance[:])
	return prove(ctx, token, instance, dial)
}

// Unfinished makes an authenticated connection that asks to resume a session which does not exist, with the largest table that there
// is, and sends all of it but the last part. It returns when the proxy took that, or with an error when the proxy ended the
// connection.
func Unfinished(ctx context.Context, token grammar.Token, dial Dial) (net.Conn, error) {
	var instance, session [16]byte
	rand.Read(instance[:])
	rand.Read(session[:])
	conn, err := prove(ctx, token, instance, dial)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_, err = conn.Write(wire.AppendAttach(nil, 2, wire.Attach{
		Mode: wire.ModeResume, Slot: 1, Session: session, WantInstance: conn.Peer, Streams: wire.MaxTable, TableCRC: 1, Name: "unfinished",
	}))
	if err == nil {
		_, err = conn.Write(unfinishedTable())
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// unfinishedTable is a table of MaxTable entries without the last part.
var unfinishedTable = sync.OnceValue(func() []byte {
	var table []byte
	for i := range uint64(wire.MaxTable) {
		table = wire.AppendStreamState(table, wire.StreamState{Stream: (i+1)<<8 | 1, RcvNxt: 1, Credit: 1 << 16})
	}
	frames := wire.AppendTable(nil, table)
	return frames[:len(frames)-wire.MaxPayload]
})

// A Bridge is a session of somebody with a valid key who says whatever they like.
type Bridge struct {
	// Handle is called for every frame that comes, but PING, from one goroutine for each connection. The frame is good until it returns.
	Handle func(slot int, f wire.Frame)

	token    grammar.Token
	dial     Dial
	instance [16]byte
	session  [16]byte
	proxy    [16]byte
	secret   [32]byte
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[int]*frames // by slot; guarded by mu
}

// Begin begins a session. name is that of the host. What the proxy answers instead is an error.
func Begin(ctx context.Context, token grammar.Token, name string, dial Dial, handle func(slot int, f wire.Frame)) (*Bridge, error) {
	b := &Bridge{Handle: handle, token: token, dial: dial, conns: make(map[int]*frames)}
	rand.Read(b.instance[:])
	rand.Read(b.session[:])
	err := b.attach(ctx, 0, wire.Attach{Mode: wire.ModeNew, Session: b.session, Window: 1 << 20, MaxStreams: 4096, Name: name})
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Join attaches a further slot, which carries users' bytes.
func (b *Bridge) Join(ctx context.Context, slot int) error {
	return b.attach(ctx, slot, wire.Attach{Mode: wire.ModeJoin, Slot: uint8(slot), Session: b.session, WantInstance: b.proxy})
}

func (b *Bridge) attach(ctx context.Context, slot int, a wire.Attach) error {
	conn, err := prove(ctx, b.token, b.instance, b.dial)
	if err != nil {
		return err
	}
	if a.Mode == wire.ModeNew {
		b.proxy, b.secret = conn.Peer, auth.SessionSecret(conn, b.session)
	} else {
		a.MAC = auth.ResumeMAC(b.secret, conn.Exporter, b.session, a.Slot, 1, sha256.Sum256(nil))
	}
	c := newFrames(conn)
	conn.SetDeadline(time.Now().Add(time.Minute)) // which only bounds a proxy that hangs
	if err := c.write(wire.AppendAttach(nil, 1, a)); err != nil {
		conn.Close()
		return err
	}
	f, err := c.read()
	if err != nil {
		conn.Close()
		return fmt.Errorf("wait for ATTACHED: %w", err)
	}
	answer, err := wire.ParseAttached(f)
	if err != nil || answer.Status != wire.StatusOK {
		conn.Close()
		return fmt.Errorf("ATTACH of slot %d is answered by %s %s %q, %v", slot, f.Type, answer.Status, answer.Text, err)
	}
	conn.SetDeadline(time.Time{})
	b.mu.Lock()
	b.conns[slot] = c
	b.mu.Unlock()
	b.wg.Go(func() {
		c.serve(func(f wire.Frame) { b.Handle(slot, f) })
		c.Close()
	})
	return nil
}

// Send sends encoded frames on a slot.
func (b *Bridge) Send(slot int, frames []byte) error {
	b.mu.Lock()
	c := b.conns[slot]
	b.mu.Unlock()
	if c == nil {
		return net.ErrClosed
	}
	return c.write(frames)
}

// Close ends the session without a word.
func (b *Bridge) Close() {
	b.mu.Lock()
	for _, c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
}
