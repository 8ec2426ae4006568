package proxy

import (
	"bytes"
	"net"
	"sync"
	"time"

	"reverser/internal/link"
	"reverser/internal/route"
	"reverser/internal/traffic"
)

// listener is a public port that is open. Its connections are taken by traffic's loop, which calls Proxy.forward for each.
type listener struct {
	net.Listener
	dest    *route.Destination
	account *traffic.Account

	mu     sync.Mutex
	probes map[[16]byte]probe // by what a bridge shows; guarded by mu
}

// probe is one that is expected.
type probe struct {
	answer [16]byte
	until  time.Time
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
