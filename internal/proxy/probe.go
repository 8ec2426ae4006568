package proxy

import (
	"bytes"
	"net"
	"sync"
	"time"

	"reverser/internal/route"
	"reverser/internal/traffic"
)

// listener is a public port that is open. Its connections are taken by traffic's loop, which calls Proxy.forward for each.
type listener struct {
	net.Listener
	dest    *route.Destination
	account *traffic.Account

	mu     sync.Mutex
	probes map[[16]byte]time.Time // nonces that a bridge may show, and until when; guarded by mu
}

// probeTime is how long after its claim a bridge may prove that the public port answers.
const probeTime = 5 * time.Second

// expectProbe returns a nonce that a connection to the listener may show instead of being a user's.
func (l *listener) expectProbe() [16]byte {
	n := newNonce()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for k, until := range l.probes {
		if now.After(until) {
			delete(l.probes, k)
		}
	}
	if len(l.probes) >= 4 { // a bridge that claims again and again proves the latest
		clear(l.probes)
	}
	if l.probes == nil {
		l.probes = make(map[[16]byte]time.Time)
	}
	l.probes[n] = now.Add(probeTime)
	return n
}

// probing says whether a probe is expected.
func (l *listener) probing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, until := range l.probes {
		if time.Now().Before(until) {
			return true
		}
	}
	return false
}

// match reports whether b begins as an expected nonce does, and takes a whole one off the list.
func (l *listener) match(b []byte) (prefix, whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, until := range l.probes {
		if time.Now().After(until) || !bytes.HasPrefix(n[:], b[:min(len(b), len(n))]) {
			continue
		}
		if len(b) < len(n) {
			prefix = true
			continue
		}
		delete(l.probes, n)
		return true, true
	}
	return prefix, false
}
