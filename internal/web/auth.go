package web

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// guesses slows those down who try passwords, by address. Its memory is bounded.
type guesses struct {
	once   sync.Once
	secret [32]byte      // for known
	turns  chan struct{} // how many passwords are checked at once: each costs a processor some time, and memory

	mu     sync.Mutex
	from   map[netip.Prefix]*guesser // guarded by mu, as all below
	known  map[[32]byte]time.Time    // passwords that were right a moment ago
	checks map[[32]byte]*check       // passwords that wait for a turn, or have it
	queued map[netip.Prefix]int      // how many of them came from an address
}

// check is a password that is being looked at. Requests that come with the same one meanwhile wait for the answer.
type check struct {
	over   chan struct{} // closed at its end
	looked bool          // set before over is closed, as right
	right  bool
}

// guesser is an address from which wrong passwords came.
type guesser struct {
	failed int
	until  time.Time // no other is looked at before
}

const (
	mostGuessers = 4096
	mostKnown    = 4096
	knownTime    = 5 * time.Minute
	freeGuesses  = 5           // wrong passwords before the next one waits
	longestWait  = time.Minute // it doubles from a second on
	mostQueued   = 4           // passwords of one address that wait for their turn: the turns are those of all services
)

func (g *guesses) init() {
	g.once.Do(func() {
		rand.Read(g.secret[:])
		g.turns = make(chan struct{}, max(runtime.GOMAXPROCS(0)/2, 1))
		g.from, g.known = make(map[netip.Prefix]*guesser), make(map[[32]byte]time.Time)
		g.checks, g.queued = make(map[[32]byte]*check), make(map[netip.Prefix]int)
	})
}

// wait is how long an address must wait before it may try again.
func (g *guesses) wait(from netip.Prefix, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.from[from]; f != nil {
		return f.until.Sub(now)
	}
	return 0
}

// begin reports whether a password may be looked at now. It counts as wrong until it was right: others of the same address that are
// looked at meanwhile must not be more than could come one after the other.
func (g *guesses) begin(from netip.Prefix, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.from[from]; f != nil && now.Before(f.until) {
		return false
	}
	g.wrongLocked(from, now)
	return true
}

// wrongLocked notes a wrong password.
func (g *guesses) wrongLocked(from netip.Prefix, now time.Time) {
	f := g.from[from]
	if f == nil {
		for a, o := range g.from { // map order is random: one guesser cannot choose who is forgotten
			if len(g.from) < mostGuessers {
				break
			}
			if o.until.Before(now) || len(g.from) >= mostGuessers {
				delete(g.from, a)
			}
		}
		f = new(guesser)
		g.from[from] = f
	}
	if f.failed++; f.failed >= freeGuesses {
		f.until = now.Add(min(time.Second<<min(f.failed-freeGuesses, 10), longestWait))
	}
}

// right notes a right password.
func (g *guesses) right(from netip.Prefix, sum [32]byte, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.from, from)
	for s, until := range g.known {
		if len(g.known) < mostKnown && !until.Before(now) {
			break
		}
		delete(g.known, s)
	}
	g.known[sum] = now.Add(knownTime)
}

func (g *guesses) knows(sum [32]byte, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return now.Before(g.known[sum])
}

var (
	errPassword = errors.New("a name and a password are needed")
	errSlow     = errors.New("too many wrong passwords came from this address")
	errQueue    = errors.New("too many passwords came from this address at once")
)

// try reports whether a password is right, of which look tells that. With errSlow and errQueue it was not looked at. Any other error is
// that of ctx.
func (g *guesses) try(ctx context.Context, from netip.Prefix, sum [32]byte, look func() bool) (right bool, err error) {
	for {
		if g.knows(sum, time.Now()) {
			return true, nil
		}
		if g.wait(from, time.Now()) > 0 {
			return false, errSlow
		}
		c, first, err := g.enqueue(from, sum)
		switch {
		case err != nil:
			return false, err
		case first:
			return g.check(ctx, c, from, sum, look)
		}
		select {
		case <-c.over:
			if c.looked {
				return c.right, nil
			} // else the other one gave up
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// enqueue returns the check of a password, and whether it is a new one, which the caller has to make.
func (g *guesses) enqueue(from netip.Prefix, sum [32]byte) (c *check, first bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c = g.checks[sum]; c != nil {
		return c, false, nil
	}
	if g.queued[from] >= mostQueued {
		return nil, false, errQueue
	}
	g.queued[from]++
	c = &check{over: make(chan struct{})}
	g.checks[sum] = c
	return c, true, nil
}

// check looks at a password when its turn comes, unless the address has to wait by then.
func (g *guesses) check(ctx context.Context, c *check, from netip.Prefix, sum [32]byte, look func() bool) (right bool, err error) {
	defer g.checked(c, from, sum)
	select {
	case g.turns <- struct{}{}:
		defer func() { <-g.turns }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if !g.begin(from, time.Now()) {
		return false, errSlow
	}
	c.right = look()
	c.looked = true
	if c.right {
		g.right(from, sum, time.Now())
	}
	return c.right, nil
}

// checked ends a check.
func (g *guesses) checked(c *check, from netip.Prefix, sum [32]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.checks, sum)
	if g.queued[from]--; g.queued[from] == 0 {
		delete(g.queued, from)
	}
	close(c.over)
}

// authorized asks for a name and a password where the service wants one. It reports whether the request may go on.
func (x *exchange) authorized(w http.ResponseWriter, r *http.Request) bool {
	users := x.options.BasicAuth
	if len(users) == 0 {
		return true
	}
	g := &x.server.guesses
	g.init()
	name, password, given := r.BasicAuth()
	if given && len(name)+len(password) <= 1024 {
		mac := hmac.New(sha256.New, g.secret[:])
		for _, s := range append([]string{x.site.Name, name, password}, users...) { // another file is another question
			mac.Write([]byte(strconv.Itoa(len(s)) + ":" + s))
		}
		sum := [32]byte(mac.Sum(nil))
		from := block(x.client)
		right, err := g.try(r.Context(), from, sum, func() bool { return checkPassword(users, name, password) })
		switch {
		case right:
			x.user = name
			return true
		case err == errSlow, err == errQueue:
			w.Header().Set("Retry-After", strconv.Itoa(int(max(g.wait(from, time.Now()), 0)/time.Second)+1))
			x.page(w, r, http.StatusTooManyRequests, err)
			return false
		case err != nil: // the client has left
			return false
		}
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="`+strings.Map(realmRune, x.site.Name)+`", charset="UTF-8"`)
	x.page(w, r, http.StatusUnauthorized, errPassword)
	return false
}

func realmRune(r rune) rune {
	if r < ' ' || r > '~' || r == '"' || r == '\\' {
		return '_'
	}
	return r
}

// checkPassword compares in a time that does not tell whether the name exists.
func checkPassword(users []string, name, password string) bool {
	hash, exists := "", false
	for _, u := range users {
		n, h, _ := strings.Cut(u, ":")
		if n == name {
			hash, exists = h, true
		} else if !exists {
			hash = h
		}
	}
	return matches(hash, password) && exists
}

func block(c *Client) netip.Prefix {
	ip := clientAddr(c.RemoteAddr())
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}
