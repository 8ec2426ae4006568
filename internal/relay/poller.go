package relay

import "time"

// Poller does for all pairs of a process what would cost a goroutine each: it watches the sockets that say nothing
// (poller_linux.go), and the resets that wait until a socket's peer has what was written before (resets.go). Its zero value is ready
// to use.
type Poller struct {
	watcher   watcher
	resets    resets
	unwatched bool          // set by tests: every pair waits with a goroutine, as on other systems
	patience  time.Duration // set by tests: how long a reset waits; 0: flushLimit
}

// add watches the pair's socket and reports whether that is possible. The pair's mu is held.
func (p *Poller) add(pair *Pair) bool { return !p.unwatched && p.watcher.add(pair) }

// Close ends the goroutines. There are no pairs any more.
func (p *Poller) Close() {
	p.watcher.close()
	p.resets.close()
}
