package relay

import (
	"cmp"
	"errors"
	"net"
	"os"

	"reverser/internal/sys"
	"reverser/internal/wire"
)

// Receive implements link.Receiver. It writes to the socket at once; what that does not take waits in the stream.
func (p *Pair) Receive(bufs [][]byte) int {
	if p.tls != nil {
		return 0 // to decrypt them takes longer than the link's reader should be held up
	}
	n, err := p.write(bufs)
	if err != nil {
		p.writeFailed()
	}
	return n
}

// write writes to the socket what it takes at once, and counts it.
func (p *Pair) write(bufs [][]byte) (int, error) {
	p.inward.count.Lock() // nobody else wants it but say
	defer p.inward.count.Unlock()
	p.inward.fresh = false
	n, err := p.sock.tryWrite(bufs)
	p.inward.bytes.Add(uint64(n))
	return n, err
}

// Behind implements link.Receiver. Without it, the kernel's buffer would hide that a user is slower than the link: the window would grow
// while the buffer fills, and stay large when it is full.
func (p *Pair) Behind() bool { return p.sock.unsent() > 0 }

// Backlogged implements link.Receiver. A new socket usually has room for what arrived while it was being connected, so that is written
// without a goroutine.
func (p *Pair) Backlogged() {
	if p.tls != nil {
		if !p.start(p.decrypt) && p.over() {
			p.discardBacklog()
		}
		return
	}
	if p.inward.fresh {
		b := p.stream.Backlog()
		if b == nil { // the stream was reset meanwhile
			return
		}
		n := p.Receive([][]byte{b})
		p.stream.Consumed(n)
		if n == len(b) && p.stream.Backlog() == nil {
			return
		}
	}
	if !p.start(p.drain) && p.over() {
		p.discardBacklog()
	}
}

// discardBacklog throws away what arrived for a pair that is over.
func (p *Pair) discardBacklog() {
	p.stream.Discard()
	p.stream.Backlog() // there is none any more
}

// drain writes what the socket did not take at once. It may wait as long as the socket's peer does.
func (p *Pair) drain() {
	for b := p.stream.Backlog(); b != nil; b = p.stream.Backlog() {
		n, err := p.sock.conn.Write(b)
		p.sock.noteWrite()
		p.inward.bytes.Add(uint64(n))
		p.stream.Consumed(n)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !p.mayMove():
			return // the rest waits in the stream
		case err != nil:
			p.writeFailed()
		}
	}
}

// writeFailed is called when the socket takes no more. The reader still reads what the peer sent before, as far as there is credit, and
// then passes on the reset. It needs no wake-up: a dead socket is readable.
func (p *Pair) writeFailed() {
	p.stream.Discard()
	p.life.mu.Lock()
	p.life.poisoned = true
	readerGone := p.life.outDone
	p.life.mu.Unlock()
	p.stream.NoWait()
	if readerGone {
		p.localReset()
	}
}

// Ended implements link.Receiver.
func (p *Pair) Ended(kind wire.EndKind, code wire.Code) {
	if p.tls != nil && p.tls.closed && kind == wire.FIN {
		return // the user had said so by close_notify
	}
	if p.tls != nil && kind == wire.FIN {
		p.truncated()
		return
	}
	if kind == wire.FIN {
		p.endIn()
		return
	}
	p.remoteReset(p.remote(code))
}

// endIn passes on that the user has finished.
func (p *Pair) endIn() {
	p.life.mu.Lock()
	if p.life.reason != "" { // or a RST that is under way would become a FIN
		p.life.mu.Unlock()
		return
	}
	p.life.finSent = true
	err := p.sock.closeWrite(p.life.outDone) // if the peer has finished already, closing the socket is all that remains
	p.life.mu.Unlock()
	if err != nil && !errors.Is(err, net.ErrClosed) && !sys.NotConnected(err) {
		p.localReset()
		return
	}
	p.inDone()
}

// remoteReset resets the socket behind what was written to it.
func (p *Pair) remoteReset(reason Reason) {
	if p.sock.queued(p.inward.bytes.Load()) == 0 {
		p.finish(reason, true)
		return
	}
	p.resetLater(reason, cmp.Or(p.poller.patience, flushLimit))
}

// Abort implements link.Receiver.
func (p *Pair) Abort(code wire.Code) {
	reason := p.remote(code)
	if code == wire.CodeAborted {
		reason = ReasonLinkLost
	}
	if p.enterOr(reason, code) {
		p.finish(reason, true)
		p.wg.Done()
	}
}

// remote is the reason behind a RST that came over the link.
func (p *Pair) remote(code wire.Code) Reason {
	switch code {
	case wire.CodeRefused:
		return ReasonRefused
	case wire.CodeUnreachable:
		return ReasonUnreachable
	case wire.CodeLimit:
		return ReasonLimit
	case wire.CodeService:
		return ReasonRemoved
	case wire.CodeDrain:
		return ReasonDrain
	case wire.CodeChecksum:
		return ReasonChecksum
	case wire.CodeEnded:
		return ReasonEnded
	}
	if p.side == Client {
		return ReasonTargetReset
	}
	return ReasonClientReset
}
