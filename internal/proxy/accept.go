package proxy

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"reverser/internal/link"
	"reverser/internal/route"
)

// listener is a public port that is open.
type listener struct {
	net.Listener
	dest *route.Destination

	mu     sync.Mutex
	probes map[[16]byte]probe // by what a bridge shows; guarded by mu
}

// probe is one that is expected.
type probe struct {
	answer [16]byte
	until  time.Time
}

// acceptLoop hands each connection to handle until the listener is closed. Being out of descriptors and the like passes.
func acceptLoop(ln net.Listener, log *slog.Logger, handle func(net.Conn)) {
	pause := time.Duration(0)
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			handle(conn)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		if pause == 0 {
			log.Error("accept failed, trying again", "listen", ln.Addr().String(), "err", err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		time.Sleep(pause)
	}
}

// acceptUsers takes users' connections at a public port. When as many are open as descriptors allow, it stops accepting:
// the rest waits in the kernel, and bridges and operators still get in.
func (p *Proxy) acceptUsers(ln *listener) {
	acceptLoop(ln, p.log, func(conn net.Conn) {
		if !p.enter() {
			refuse(conn)
			return
		}
		select {
		case p.conns <- struct{}{}:
		default:
			if now := time.Now().UnixNano(); now-p.fullSaid.Load() > int64(time.Minute) {
				p.fullSaid.Store(now)
				p.log.Warn("as many connections as the descriptor limit allows, new ones wait (raise it with ulimit -n or LimitNOFILE=)", "limit", cap(p.conns))
			}
			select {
			case p.conns <- struct{}{}:
			case <-p.ctx.Done():
				refuse(conn)
				p.leave(nil)
				return
			}
		}
		p.wg.Add(1) // the crew is closed when all are done
		p.crew.Go(func() {
			defer p.wg.Done()
			if !p.forward(ln, conn) {
				<-p.conns
				p.leave(nil)
			}
		})
	})
}

// refuse resets a connection: a user must not take it for an answer.
func refuse(conn net.Conn) {
	if c, ok := conn.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	conn.Close()
}

// probeTime is how long after its claim a bridge may prove that the public port answers.
const probeTime = 5 * time.Second

// expectProbe returns the nonce of a probe that is expected from now on.
func (l *listener) expectProbe() [16]byte {
	n := newNonce()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for k, pr := range l.probes {
		if now.After(pr.until) {
			delete(l.probes, k)
		}
	}
	if len(l.probes) >= 4 { // a bridge that claims again and again proves the latest
		clear(l.probes)
	}
	if l.probes == nil {
		l.probes = make(map[[16]byte]probe)
	}
	l.probes[link.ProbeQuestion(n)] = probe{link.ProbeAnswer(n), now.Add(probeTime)}
	return n
}

// probing says whether a probe is expected.
func (l *listener) probing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, pr := range l.probes {
		if time.Now().Before(pr.until) {
			return true
		}
	}
	return false
}

// match reports whether b begins as a probe that is expected, and takes one that is whole off the list: answer is what it is to
// hear.
func (l *listener) match(b []byte) (prefix bool, answer [16]byte, whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for shown, pr := range l.probes {
		if time.Now().After(pr.until) || !bytes.HasPrefix(shown[:], b[:min(len(b), len(shown))]) {
			continue
		}
		if len(b) < len(shown) {
			prefix = true
			continue
		}
		delete(l.probes, shown)
		return true, pr.answer, true
	}
	return prefix, answer, false
}
