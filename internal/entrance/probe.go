package entrance

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"net"
	"sync"
	"time"

	"reverser/internal/link"
	"reverser/internal/traffic"
)

// Probes are the nonces by which a bridge, or this proxy itself, may prove that the sockets of a name answer. The zero value expects none.
type Probes struct {
	mu     sync.Mutex
	nonces map[[nonceLen]byte]nonce // by what is shown of it; guarded by mu, as all below
	proven bool                     // by a bridge
}

type nonce struct {
	is    [nonceLen]byte
	given time.Time
	own   bool // of this proxy
}

const nonceLen = 16

// ProbeTime is how long behind its claim most bridges prove that the public port answers, and MostProbeTime is the longest that one may take: it
// may have many ports, and proves few at once.
const (
	ProbeTime     = 5 * time.Second
	MostProbeTime = time.Minute
)

// maxNonces of one name are expected at once: a bridge that claims again and again proves the latest.
const maxNonces = 4

// Expect returns a nonce. A connection may show that it has it, instead of being a user's. It returns none, the zero value, once the sockets are
// proven, unless they are to be proven again.
func (p *Probes) Expect(again bool) (n [nonceLen]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proven = p.proven && !again; p.proven {
		return n
	}
	rand.Read(n[:])
	now := time.Now()
	bridges := 0
	for k, at := range p.nonces {
		if now.Sub(at.given) > MostProbeTime {
			delete(p.nonces, k)
		} else if !at.own {
			bridges++
		}
	}
	if bridges >= maxNonces {
		maps.DeleteFunc(p.nonces, func(_ [nonceLen]byte, n nonce) bool { return !n.own })
	}
	p.addLocked(nonce{is: n, given: now})
	return n
}

// ExpectOwn returns a nonce for this proxy's own attempt to reach the sockets as users do. It is good until withdraw is called. Whether a
// bridge has proven them does not matter to it, nor does it change that.
func (p *Probes) ExpectOwn() (n [nonceLen]byte, withdraw func()) {
	rand.Read(n[:])
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addLocked(nonce{is: n, given: time.Now(), own: true})
	return n, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.nonces, link.ProbeQuestion(n))
	}
}

func (p *Probes) addLocked(n nonce) {
	if p.nonces == nil {
		p.nonces = make(map[[nonceLen]byte]nonce)
	}
	p.nonces[link.ProbeQuestion(n.is)] = n
}

// Proven reports whether a bridge has proven that the sockets answer, and is not asked to prove it again.
func (p *Probes) Proven() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proven
}

// Expected reports whether a probe may come.
func (p *Probes) Expected() bool {
	return p.expected(MostProbeTime, false) || p.expected(MostProbeTime, true)
}

// expected reports whether a nonce was given no longer than d ago, to this proxy itself or to a bridge.
func (p *Probes) expected(d time.Duration, own bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, n := range p.nonces {
		if n.own == own && now.Sub(n.given) < d {
			return true
		}
	}
	return false
}

// match reports whether b begins as what a bridge shows of an expected nonce, and takes a whole one off the list.
func (p *Probes) match(b []byte) (prefix, whole bool, is [nonceLen]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for question, n := range p.nonces {
		if now.Sub(n.given) > MostProbeTime || !bytes.HasPrefix(question[:], b[:min(len(b), nonceLen)]) {
			continue
		}
		if len(b) < nonceLen {
			prefix = true
			continue
		}
		delete(p.nonces, question)
		p.proven = p.proven || !n.own
		return true, true, n.is
	}
	return prefix, false, is
}

// strangerTime is how long a client that says nothing is taken for a probe when it comes from elsewhere than the bridge's link: a
// bridge may leave by two ways, but it shows its nonce at once.
const strangerTime = 300 * time.Millisecond

// look is how long one read waits for the first bytes of a connection, between two looks whether a probe is still expected.
const look = 20 * time.Millisecond

// Answer answers whoever proves the port, a bridge or this proxy itself, and tells it from a user by the first bytes. It waits for them only while a probe is
// expected, and returns what it read of a user's, or that the connection is over. near says that it comes from where the bridge's link
// does.
func (p *Probes) Answer(ctx context.Context, conn net.Conn, near bool) (got []byte, over bool) {
	var patience time.Duration
	fresh, own := p.expected(ProbeTime, false), p.expected(MostProbeTime, true)
	switch {
	case fresh && near, own && fromHere(conn):
		patience = ProbeTime
	case fresh, own, near && p.Expected(): // a router may lead this proxy back to itself under another address
		patience = strangerTime
	default: // a late probe from elsewhere is not worth a user's time
		return nil, false
	}
	buf := make([]byte, nonceLen)
	deadline := time.Now().Add(patience)
	for p.Expected() && time.Now().Before(deadline) && ctx.Err() == nil {
		conn.SetReadDeadline(time.Now().Add(look))
		n, err := conn.Read(buf[:nonceLen-len(got)])
		got = append(got, buf[:n]...)
		if errors.Is(err, io.EOF) {
			break // a user who is finished: the pair finds out by itself
		}
		if timeout, ok := errors.AsType[net.Error](err); err != nil && !(ok && timeout.Timeout()) {
			// This read took the reset off the socket: a pair would see a clean end.
			traffic.Reset(conn)
			return nil, true
		}
		if len(got) == 0 {
			continue
		}
		prefix, whole, nonce := p.match(got)
		if whole {
			answer(conn, nonce)
			return nil, true
		}
		if !prefix {
			break
		}
	}
	conn.SetReadDeadline(time.Time{})
	return got, false
}

// fromHere reports whether a connection comes from this machine.
func fromHere(conn net.Conn) bool {
	from, to := traffic.AddrPort(conn.RemoteAddr()).Addr(), traffic.AddrPort(conn.LocalAddr()).Addr()
	return from.IsValid() && (from.Unmap() == to.Unmap() || from.Unmap().IsLoopback())
}

// AnswerBegun answers a bridge that proves its port on a connection of which got was read already, and that is no user's if it is no
// bridge's. It reports whether it is.
func (p *Probes) AnswerBegun(conn net.Conn, got []byte) bool {
	if prefix, _, _ := p.match(got); len(got) == 0 || len(got) >= nonceLen || !prefix {
		return false
	}
	question := append(make([]byte, 0, nonceLen), got...)
	conn.SetReadDeadline(time.Now().Add(strangerTime))
	n, _ := io.ReadFull(conn, question[len(got):nonceLen])
	_, whole, nonce := p.match(question[:len(got)+n])
	if whole {
		answer(conn, nonce)
	}
	return whole
}

// answer tells the bridge that it reached the proxy, and waits a moment until it has heard it.
func answer(conn net.Conn, nonce [nonceLen]byte) {
	a := link.ProbeAnswer(nonce)
	conn.SetDeadline(time.Now().Add(time.Second))
	conn.Write(a[:])
	if c, ok := conn.(interface {
		SetLinger(int) error
		CloseWrite() error
	}); ok {
		c.SetLinger(-1)
		c.CloseWrite()
		io.Copy(io.Discard, conn)
	}
	conn.Close()
}
