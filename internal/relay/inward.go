package relay

import (
	"errors"
	"net"
	"os"
	"syscall"

	"reverser/internal/wire"
)

// Receive implements link.Receiver: straight into the socket, as far as it takes it.
func (p *Pair) Receive(bufs [][]byte) int {
	p.inward.fresh = false
	n, err := p.sock.tryWrite(bufs)
	p.inward.bytes.Add(uint64(n))
	if err != nil {
		p.writeFailed()
	}
	return n
}

// Behind implements link.Receiver. A user who is slower than the link would otherwise get a large window, for as long as the
// kernel's buffer takes everything, and keep it when it is full.
func (p *Pair) Behind() bool { return p.sock.unsent() > 0 }

// Backlogged implements link.Receiver. What arrived while the socket was connected has room in it, more often than not.
func (p *Pair) Backlogged() {
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
		p.stream.Discard()
		p.stream.Backlog() // there is none any more
	}
}

// drain writes what the socket did not take at once. It may wait as long as the socket's peer does.
func (p *Pair) drain() {
	for b := p.stream.Backlog(); b != nil; b = p.stream.Backlog() {
		n, err := p.sock.conn.Write(b)
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

// writeFailed: the socket does not take any more. What its peer sent before may still be read as far as there is credit, and
// then comes the reset; the reader notices by itself, since a dead socket is readable.
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
	if kind == wire.FIN {
		p.life.mu.Lock()
		if p.life.reason != "" { // or a RST that is under way would become a FIN
			p.life.mu.Unlock()
			return
		}
		p.life.finSent = true
		err := p.sock.closeWrite(p.life.outDone) // if the peer has finished already, closing the socket is all that remains
		p.life.mu.Unlock()
		if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ENOTCONN) {
			p.localReset()
			return
		}
		p.inDone()
		return
	}
	reason := p.remote(code)
	if p.sock.queued() == 0 {
		p.finish(reason, true)
		return
	}
	p.resetLater(reason, flushLimit)
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
	}
	if p.side == Client {
		return ReasonTargetReset
	}
	return ReasonClientReset
}
