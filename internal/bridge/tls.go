package bridge

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/share"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// A service with a certificate: the users' TLS ends here, and the proxy passes it on unread. The target is dialled when the handshake is
// done, so that it never sees those who do not get that far.

// handshakeTime is for a user's TLS handshake. It is longer in tests.
var handshakeTime = 10 * time.Second

const mostHandshakes = 512 // of users at once

// acmeProtocol is the ALPN of a certificate authority that looks whether the name is ours (RFC 8737). Behind the handshake there is
// nothing to say.
const acmeProtocol = "acme-tls/1"

// Errors of handshakes.
var (
	errHandshakes    = fmt.Errorf("%d TLS handshakes are under way, as many as may be", mostHandshakes)
	errHandshakeSlow = fmt.Errorf("its TLS handshake is not over after %s", handshakeTime)
	errHandshakeGone = errors.New("its TLS handshake made way for others, while its part of the network had most of them")
)

// serveTLS connects a stream to its service when its user's handshake is done. The pair goes on by itself.
func (b *Bridge) serveTLS(a *traffic.Admission, s *link.Stream, svc Service) {
	h := b.hellos.enter(s)
	if h == nil {
		refuseHandshake(a, s, errHandshakes)
		return
	}
	a.Go(func() {
		s.SetDeadline(time.Now().Add(b.hellos.time))
		t, err := relay.Handshake(s, svc.TLS, h.computes.Waits, h.computes.Heard)
		s.SetDeadline(time.Time{})
		if why := h.leave(); why != nil {
			err = why
		}
		switch {
		case err != nil:
			refuseHandshake(a, s, err)
		case t.Protocol() == acmeProtocol:
			s.Close()
		case !a.Dial():
			refuseDial(a, s)
		default:
			if conn := b.reach(a, s, svc); conn != nil {
				a.BindTLS(conn, s, t, svc.TargetName())
			}
		}
	})
}

// refuseHandshake ends the stream of a user whose handshake failed. Where crypto/tls sent an alert, the user gets that, then the end.
func refuseHandshake(a *traffic.Admission, s *link.Stream, err error) {
	msg := "client refused"
	switch {
	case errors.Is(err, link.ErrReset), errors.Is(err, io.EOF): // who left is no news
		msg = ""
		s.Reset(wire.CodeReset)
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errHandshakeSlow
		s.Reset(wire.CodeReset)
	case errors.Is(err, errHandshakes), errors.Is(err, errHandshakeGone):
		s.Reset(wire.CodeLimit)
	default:
		err = fmt.Errorf("TLS handshake: %w", err)
		s.Close()
	}
	a.Refuse(traffic.RefusedHandshake, msg, "service", a.Service(), "client", a.ClientName(), "err", err)
}

// handshakes bounds what users can take who are not through their handshake: places, and the time of processors. When all places are
// taken, the oldest handshake of the client that has most of them goes, if it has at least two more than the newcomer.
type handshakes struct {
	turns *traffic.Handshakes
	time  time.Duration // that each has

	mu      sync.Mutex
	most    int // guarded by mu, as all below
	n       int
	clients map[netip.Prefix]*list.List // of *handshake, the oldest first; none is empty
}

// handshake is a place.
type handshake struct {
	of       *handshakes
	client   netip.Prefix
	stream   *link.Stream
	computes *traffic.Handshake // only the handshake's goroutine uses it

	at   *list.Element // guarded by of.mu, as gone; nil: it is out
	gone bool          // made way for another
}

// init sets how many there may be.
func (hs *handshakes) init(most, processors int) {
	hs.time = handshakeTime
	hs.most, hs.turns, hs.clients = most, traffic.NewHandshakes(processors), make(map[netip.Prefix]*list.List)
}

// enter takes a place for the handshake on a stream. It returns nil if there is none.
func (hs *handshakes) enter(s *link.Stream) *handshake {
	h := &handshake{of: hs, client: share.Block(s.Open().Client.Addr()), stream: s, computes: hs.turns.Handshake()}
	victim, ok := hs.place(h)
	if victim != nil {
		victim.stream.Reset(wire.CodeLimit)
	}
	if !ok {
		return nil
	}
	return h
}

// place gives h a place, perhaps that of victim.
func (hs *handshakes) place(h *handshake) (victim *handshake, ok bool) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.n >= hs.most {
		var largest *list.List
		for _, l := range hs.clients {
			if largest == nil || l.Len() > largest.Len() {
				largest = l
			}
		}
		own := 0
		if l := hs.clients[h.client]; l != nil {
			own = l.Len()
		}
		if largest.Len() < own+2 {
			return nil, false
		}
		victim = largest.Front().Value.(*handshake)
		victim.gone = true
		hs.removeLocked(victim)
	}
	l := hs.clients[h.client]
	if l == nil {
		l = list.New()
		hs.clients[h.client] = l
	}
	h.at = l.PushBack(h)
	hs.n++
	return victim, true
}

func (hs *handshakes) removeLocked(h *handshake) {
	if h.at == nil {
		return
	}
	l := hs.clients[h.client]
	l.Remove(h.at)
	if l.Len() == 0 {
		delete(hs.clients, h.client)
	}
	h.at = nil
	hs.n--
}

// leave gives everything back. It returns an error if the place was taken away.
func (h *handshake) leave() error {
	h.computes.Waits()
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.of.removeLocked(h)
	if h.gone {
		return errHandshakeGone
	}
	return nil
}
