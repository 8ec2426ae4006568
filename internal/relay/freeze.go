package relay

import (
	"errors"
	"net"
	"os"
	"time"

	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// A pair is handed to another process, or to another Pair of this one, in these steps:
//  1. Freeze: no byte is between socket and stream any more. Everything is in the socket, in the stream, or counted.
//  2. State and Descriptor say what the pair is; the stream is described by the link.
//  3. GiveAway on this side, and Restore and Start on the other one. Or, when it comes to nothing, Thaw.

// ErrOver is what Freeze returns for a pair that has ended, or that never moved: there is nothing to freeze.
var ErrOver = errors.New("relay: the pair is over")

// ErrTLS is what Freeze returns for a pair that ends the user's TLS: crypto/tls does not give away the keys.
var ErrTLS = errors.New("relay: the pair ends TLS, which another process cannot go on with")

// ending is how a pair was to be ended while it was frozen.
type ending struct {
	reason Reason
	code   wire.Code
}

// past is a deadline that has passed: setting it ends every wait for the socket.
var past = time.Unix(1, 0)

// Freeze stops the pair between two bytes. When it returns nil, no goroutine, timer or poller touches the socket, and
// nothing is taken from the stream; what arrives there waits. It waits for no peer. If the pair ends meanwhile, it ends as always, and Freeze
// returns ErrOver.
func (p *Pair) Freeze() error {
	life := &p.life
	life.mu.Lock()
	if life.reason != "" || life.phase != moving || p.poller == nil {
		life.mu.Unlock()
		return ErrOver
	}
	if p.tls != nil {
		life.mu.Unlock()
		return ErrTLS
	}
	life.phase = freezing
	// Deregistered by name: the kernel forgets a socket by itself only when its last descriptor is closed, and there will be another.
	life.watch.forget(&p.sock, true)
	if life.look != nil {
		life.look.Stop()
	}
	p.sock.conn.SetReadDeadline(past)
	life.mu.Unlock()

	p.stream.Detach() // Room ends, too
	life.mu.Lock()
	if life.reason == "" {
		p.sock.conn.SetWriteDeadline(past) // of drain: no Receive is under way, which would take it for a failure
		if life.reset != nil && p.poller.resets.drop(life.reset) {
			p.wg.Done()
		}
	}
	life.mu.Unlock()
	p.wg.Wait()

	life.mu.Lock()
	defer life.mu.Unlock()
	if life.reason != "" {
		return ErrOver
	}
	life.phase = frozen
	p.sock.conn.SetDeadline(time.Time{})
	p.sock.polled, p.sock.eager = false, false
	return nil
}

// State describes a frozen pair. Names are the owner's to add.
func (p *Pair) State() State {
	life := &p.life
	life.mu.Lock()
	defer life.mu.Unlock()
	st := State{
		Side: p.side, Out: p.outward.bytes.Load(), In: p.inward.bytes.Load(), Head: p.outward.head, Fresh: p.inward.fresh,
		OutDone: life.outDone, InDone: life.inDone, FinSent: life.finSent, Poisoned: life.poisoned,
	}
	if r := life.reset; r != nil {
		st.Reset, st.ResetIn = r.reason, max(time.Until(r.until), 0)
	}
	return st
}

// Descriptor returns a copy of the descriptor of a frozen pair's socket. The connection stays open until the last copy is closed.
func (p *Pair) Descriptor() (*os.File, error) {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.life.phase != frozen {
		return nil, ErrOver
	}
	p.life.shared = true
	return sys.Duplicate(p.sock.conn)
}

// GiveAway ends a frozen pair whose socket another process has now. It only closes the socket here: options and shutdown would act on
// the connection, which both processes share. No end is reported, since the connection goes on.
func (p *Pair) GiveAway() {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.life.phase == frozen {
		p.life.phase = away
		p.sock.conn.Close()
	}
}

// Thaw lets a frozen pair go on where it stopped.
func (p *Pair) Thaw() {
	life := &p.life
	life.mu.Lock()
	if life.phase != frozen {
		life.mu.Unlock()
		return
	}
	life.phase = moving
	end := life.pending
	life.pending = nil
	life.mu.Unlock()
	if end != nil {
		p.End(end.reason, end.code)
		return
	}
	p.begin()
}

// Restore returns the pair that the state describes, over a socket made of its descriptor and the stream that it had. Start lets it
// go on.
func Restore(st State, conn net.Conn, s *link.Stream) *Pair {
	p := New(st.Side, conn, s, st.Head)
	p.outward.bytes.set(st.Out)
	p.inward.bytes.set(st.In)
	p.inward.fresh = st.Fresh
	life := &p.life
	life.outDone, life.inDone, life.finSent, life.poisoned = st.OutDone, st.InDone, st.FinSent, st.Poisoned
	if st.Reset != "" {
		life.reset = &reset{reason: st.Reset, until: time.Now().Add(st.ResetIn), over: true} // begin makes one that waits
	}
	// Whoever gave the socket away may not have closed it yet.
	life.shared = true
	return p
}

// enterOr is enter, but what comes while the pair is frozen is done when it is thawed.
func (p *Pair) enterOr(reason Reason, code wire.Code) bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.life.reason == "" && p.life.phase != moving && p.life.pending == nil {
		p.life.pending = &ending{reason, code}
	}
	return p.enterLocked()
}
