package relay

import (
	"time"

	"reverser/internal/wire"
)

// localReset passes on that the socket was reset, behind what was read from it.
func (p *Pair) localReset() {
	p.stream.Reset(wire.CodeReset)
	reason := ReasonClientReset
	if p.side == Target {
		reason = ReasonTargetReset
	}
	p.finish(reason, true)
}

// finished reports whether the socket's EOF was read.
func (p *Pair) finished() bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	return p.life.outDone
}

// noteReset passes on a reset that came after the socket's EOF. Nobody reads the socket any more, so without this a reset would be
// noticed only when there is something to write. The poller calls it on an event; where no poller watches, a timer does. outDone
// notices a reset that came before the EOF.
func (p *Pair) noteReset() {
	if !p.over() && p.sock.gone() {
		p.localReset()
	}
}

// noteResetLater looks now and then.
func (p *Pair) noteResetLater() {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.life.reason != "" || p.life.phase != moving {
		return
	}
	p.life.look = time.AfterFunc(noteEvery, func() {
		if p.enter() {
			defer p.wg.Done()
			p.noteReset()
			p.noteResetLater()
		}
	})
}

// noteEvery is how often a socket that is neither read nor watched is asked whether it was reset.
const noteEvery = 2 * time.Second

// outDone notes the EOF of the socket. The pair is over when the other direction has ended, too. It returns false if the EOF stands for a
// reset: the kernel reports a reset only once, and after a failed write has consumed it, a read returns EOF. Such a socket is closed both
// ways although we sent no FIN, or the system still knows of the reset.
func (p *Pair) outDone() bool {
	p.life.mu.Lock()
	reset, ended := p.sock.ended()
	if p.life.poisoned || reset || !p.life.finSent && ended {
		p.life.mu.Unlock()
		return false
	}
	p.life.outDone = true
	both := p.life.inDone
	p.life.mu.Unlock()
	if both {
		p.finish(ReasonEOF, false)
	}
	return true
}

// inDone notes that the stream's FIN went to the socket. The pair is over when the other direction has ended, too.
func (p *Pair) inDone() {
	p.life.mu.Lock()
	p.life.inDone = true
	both := p.life.outDone
	p.life.mu.Unlock()
	if both {
		p.finish(ReasonEOF, false)
	}
}

// resetLater resets the socket when its peer has what was written, or after limit.
func (p *Pair) resetLater(reason Reason, limit time.Duration) {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.life.reason != "" {
		return
	}
	now := time.Now()
	p.life.reset = &reset{reason: reason, until: now.Add(limit), flushed: p.flushed, carryOut: func() {
		p.finish(reason, true)
		p.wg.Done()
	}}
	p.wg.Add(1)
	p.poller.resets.add(p.life.reset, now)
}

// flushed reports whether there is nothing to wait for before a reset: the peer has everything, or takes nothing any more.
func (p *Pair) flushed() bool {
	p.life.mu.Lock()
	poisoned := p.life.poisoned
	p.life.mu.Unlock()
	return poisoned || p.sock.queued(p.inward.bytes.Load()) == 0 || p.sock.gone()
}

// finish ends the pair: it closes the socket, with RST or without, and starts say. Only the first call counts.
func (p *Pair) finish(reason Reason, reset bool) {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.life.reason != "" {
		return
	}
	p.life.reason = reason
	p.life.watch.forget(&p.sock, p.life.shared)
	if p.life.reset != nil && p.poller != nil && p.poller.resets.drop(p.life.reset) {
		p.wg.Done()
	}
	if p.life.look != nil {
		p.life.look.Stop()
	}
	p.sock.close(reset)
	if p.life.ended != nil {
		go p.say()
	}
}

// say waits for the pair's work and then tells its owner why it ended.
func (p *Pair) say() {
	p.wg.Wait()
	p.inward.count.Lock() // the last bytes may be with the user already, and not counted yet
	p.inward.count.Unlock()
	p.life.ended(p.life.reason)
}
