package admin

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// room is a listener with so many connections at once. When it is full, one is closed for the next one: the oldest of those that have not
// shown the token, so that strangers who hold connections open keep nobody out for longer than it takes to ask. Those that have shown it
// leave some places to others, as to whoever watches the health: the longest idle of them makes way. Where very many come at once, they are
// taken at a pace, and the rest waits in the kernel: each may cost a handshake of TLS, and the processors are there for users.
type room struct {
	net.Listener
	most int
	pace *rate.Limiter

	mu     sync.Mutex
	guests []*guest // guarded by mu; the oldest first
	ends   uint64   // of requests; guarded by mu
}

// guest is a connection in a room.
type guest struct {
	halfCloser
	room    *room
	known   bool   // guarded by room.mu, as what follows; it has shown the token
	running int    // requests under way
	idle    uint64 // when the last one ended: room.ends
}

// placesForOthers is which part of a room those that have shown the token leave to others.
const placesForOthers = 8

// The pace of new connections: so many a second, and at once after a quiet second.
const newPerSecond = 100

func newRoom(l net.Listener, most int) *room {
	return &room{Listener: l, most: max(most, 1), pace: rate.NewLimiter(newPerSecond, newPerSecond)}
}

func (r *room) Accept() (net.Conn, error) {
	for {
		time.Sleep(r.pace.Reserve().Delay()) // 10 ms at the most, since one goroutine accepts
		c, err := r.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g := &guest{halfCloser: halfCloser{c}, room: r}
		if r.enter(g) {
			return g, nil
		}
		c.Close()
	}
}

// enter takes a connection in, in the place of another one if there is no more room. It returns false if none makes way.
func (r *room) enter(g *guest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.guests) >= r.most {
		out := r.makesWayLocked()
		if out == nil {
			return false
		}
		out.Conn.Close()
		r.leaveLocked(out)
	}
	r.guests = append(r.guests, g)
	return true
}

func (r *room) makesWayLocked() *guest {
	var stranger, idle *guest
	strangers := 0
	for _, g := range r.guests {
		switch {
		case !g.known:
			if strangers++; stranger == nil {
				stranger = g
			}
		case g.running == 0 && (idle == nil || g.idle < idle.idle):
			idle = g
		}
	}
	if idle != nil && strangers < max(r.most/placesForOthers, 1) {
		return idle
	}
	return stranger
}

func (r *room) leaveLocked(g *guest) {
	for i, other := range r.guests {
		if other == g {
			r.guests = append(r.guests[:i], r.guests[i+1:]...)
			return
		}
	}
}

// Close implements [net.Conn].
func (g *guest) Close() error {
	g.room.mu.Lock()
	g.room.leaveLocked(g)
	g.room.mu.Unlock()
	return g.Conn.Close()
}

// connKey is in the context of requests, for the guest whose connection they came by.
type connKey struct{}

func guestOf(c net.Conn) *guest {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	g, _ := c.(*guest)
	return g
}

// beginGuest counts a request of a connection, and endGuest its end.
func beginGuest(r *http.Request) *guest {
	g, _ := r.Context().Value(connKey{}).(*guest)
	if g != nil {
		g.room.mu.Lock()
		g.running++
		g.room.mu.Unlock()
	}
	return g
}

func endGuest(g *guest) {
	if g == nil {
		return
	}
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.running--
	g.room.ends++
	g.idle = g.room.ends
}

// knownGuest keeps that a connection has shown the token. The next request may be without: the room is shared by
// people, and this is no more than a hint about whose connections to close.
func knownGuest(g *guest) {
	if g != nil {
		g.room.mu.Lock()
		g.known = true
		g.room.mu.Unlock()
	}
}
