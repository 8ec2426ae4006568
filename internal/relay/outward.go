package relay

import (
	"errors"
	"io"
	"os"
	"time"

	"reverser/internal/link"
)

// takeHead moves bytes of the head, n at the most, into a chunk.
func (p *Pair) takeHead(n int) *link.Chunk {
	head := p.outward.head
	c := link.NewChunk()
	n = copy(c.Room(), head[:min(n, len(head))])
	c.Grow(n)
	p.outward.bytes.Add(uint64(n))
	if head = head[n:]; len(head) == 0 {
		head = nil
	}
	p.outward.head = head
	return c
}

// readable is called by the poller when the socket is readable. It reads one chunk at once. When there is more, or no credit, it starts
// outbound. more means that a short read does not show that the socket is empty. The result reports whether the stream
// has something to flush.
func (p *Pair) readable(more bool) (flush bool) {
	if !p.enter() {
		return false
	}
	defer p.wg.Done()
	if !p.outward.reading.CompareAndSwap(false, true) { // whoever reads finds it all
		if more && p.finished() { // but nobody does
			p.noteReset()
		}
		return false
	}
	p.sock.eager = false
	if p.tls != nil { // what it sends may have to wait for credit
		p.start(p.outbound)
		return false
	}
	for room := p.stream.TryRoom(); room > 0 && !p.sock.eager; room = p.stream.TryRoom() {
		n, err := p.sock.tryRead(room)
		if n > 0 {
			flush = true
			p.outward.bytes.Add(uint64(n))
			p.stream.Put(p.sock.taken()...)
			p.sock.release()
		}
		switch {
		case errors.Is(err, errNothing), err == nil && !p.sock.eager && !more: // a short read took everything (epoll(7))
			p.outward.reading.Store(false)
			return flush
		case errors.Is(err, io.EOF) && p.outDone():
			p.stream.PutFIN()
			return true
		case err != nil:
			p.localReset()
			return flush
		}
	}
	p.start(p.outbound)
	return flush
}

// outbound moves bytes from the socket into the stream. It waits for permission to send, then for the socket, and takes a buffer only
// then. Where a poller watches the socket, outbound ends and leaves it to the poller as soon as a read brings less than a chunk, or
// nothing for a while. As long as there is much to read, a goroutine of its own is faster.
func (p *Pair) outbound() {
	watched := p.sock.polled
	if watched {
		p.sock.polled = false
		p.watchFor(false)
	}
	gone := p.sock.gone
	for {
		room, err := p.stream.Room(gone)
		if err != nil {
			if errors.Is(err, link.ErrNoWait) {
				p.sendRest()
				p.localReset()
			}
			return // otherwise the pair is being frozen, or the stream is over: its end reaches us as a Receiver
		}
		if len(p.outward.head) > 0 {
			p.stream.Send(p.takeHead(room))
			continue
		}
		n, err := p.readBulk(room)
		if errors.Is(err, errNothing) {
			if watched {
				p.readUntil(time.Now().Add(bulkPause))
			}
			if n, err = p.sock.read(room); n > 0 && p.tls != nil {
				p.encrypt(n)
			} else if n > 0 {
				link.TakeTurn(n)
				p.send(n)
				link.EndTurn(n)
			}
		}
		silent := errors.Is(err, os.ErrDeadlineExceeded) && (watched || !p.mayMove())
		switch {
		case errors.Is(err, io.EOF) && p.outDone():
			if p.tls != nil {
				p.tls.closeWrite()
			}
			p.stream.CloseWrite()
			if !watched && p.sock.raw != nil {
				p.noteResetLater()
			}
			return
		case err != nil && !silent:
			p.localReset()
			return
		case watched && (silent || !p.sock.eager):
			p.readUntil(time.Time{})
			p.sock.polled = true
			p.outward.reading.Store(false)
			p.watchFor(true)
			return
		case silent:
			return
		}
	}
}

// bulkPause is how long a goroutine waits for more of a socket that had much to say.
const bulkPause = time.Second

// readBulk reads what a busy socket has already, and sends it, in one turn (link.TakeTurn). Waiting for the socket is not part of a
// turn: readBulk returns errNothing instead.
func (p *Pair) readBulk(room int) (n int, err error) {
	if !p.sock.eager || p.sock.raw == nil || p.tls != nil {
		return 0, errNothing
	}
	link.TakeTurn(link.ChunkSize)
	defer link.EndTurn(link.ChunkSize)
	if n, err = p.sock.tryRead(room); n > 0 {
		p.send(n)
	}
	return n, err
}

// send sends the n bytes that were just read.
func (p *Pair) send(n int) {
	p.outward.bytes.Add(uint64(n))
	p.stream.Send(p.sock.taken()...)
	p.sock.release()
}

// sendRest sends what the peer had sent before it reset the connection: the rest of the head, and the bytes that the kernel still
// holds. It ignores the flow-control window.
func (p *Pair) sendRest() {
	if p.tls != nil {
		p.encryptRest()
		return
	}
	for len(p.outward.head) > 0 {
		if !p.stream.SendRest(p.takeHead(len(p.outward.head))) {
			return
		}
	}
	for p.sock.raw != nil {
		n, err := p.sock.tryRead(readAhead * link.ChunkSize)
		if n == 0 || err != nil {
			return
		}
		p.outward.bytes.Add(uint64(n))
		taken := p.stream.SendRest(p.sock.taken()...)
		p.sock.release()
		if !taken {
			return
		}
	}
}

// watchFor tells the poller whether it is to call when bytes come.
func (p *Pair) watchFor(bytes bool) {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.life.reason == "" {
		p.life.watch.arm(&p.sock, bytes)
	}
}

// readUntil sets how long a read may wait. It does nothing while the pair is being frozen: Freeze has set a deadline that stops all
// reads, and it must stay.
func (p *Pair) readUntil(t time.Time) {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.life.phase == moving {
		p.sock.conn.SetReadDeadline(t)
	}
}

// mayMove reports whether bytes move: the pair is neither frozen nor about to be.
func (p *Pair) mayMove() bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	return p.life.phase == moving
}
