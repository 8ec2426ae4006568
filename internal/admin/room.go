package admin

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// room is a listener with so many connections at once. When it is full, the oldest of those that have not shown the token is closed for
// the next one: strangers who hold connections open keep nobody out for longer than it takes to ask. Where very many come at once, they are
// taken at a pace, and the rest waits in the kernel: each may cost a handshake of TLS, and the processors are there for users.
type room struct {
	net.Listener
	most int
	pace *rate.Limiter

	mu     sync.Mutex
	guests []*guest // guarded by mu; the oldest first
}

// guest is a connection in a room.
type guest struct {
	halfCloser
	room  *room
	known bool // guarded by room.mu; it has shown the token
}

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

// enter takes a connection in, in the place of a stranger's if there is no other. It returns false if there is none.
func (r *room) enter(g *guest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.guests) >= r.most {
		at := -1
		for i, other := range r.guests {
			if !other.known {
				at = i
				break
			}
		}
		if at < 0 {
			return false
		}
		r.guests[at].Conn.Close()
		r.leaveLocked(r.guests[at])
	}
	r.guests = append(r.guests, g)
	return true
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

// knownGuest keeps the connection of a request that has shown the token. The next request may be without: the room is shared by
// people, and this is no more than a hint about whose connections to close.
func knownGuest(r *http.Request) {
	if g, _ := r.Context().Value(connKey{}).(*guest); g != nil {
		g.room.mu.Lock()
		g.known = true
		g.room.mu.Unlock()
	}
}
