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

	"reverser/internal/share"
)

// guesses slows those down who try passwords, by service and address. Its memory is bounded.
type guesses struct {
	once   sync.Once
	secret [32]byte  // for known
	turns  *keyTurns // of which few are checked at once: each costs a processor some time, and memory, as the key's owner likes

	mu     sync.Mutex
	from   map[netip.Prefix]guesser // guarded by mu, as all below
	known  map[[32]byte]time.Time   // passwords that were right a moment ago
	checks map[[32]byte]*check      // passwords that wait for a turn, or have it
	queued map[queuer]int           // how many of them came from an address for the services of a key
}

// check is a password that is being looked at. Requests that come with the same one meanwhile wait for the answer.
type check struct {
	over   chan struct{} // closed at its end
	looked bool          // set before over is closed, as right
	right  bool
}

// asker is who comes with a password, and for which service: who knows one of a service gains nothing at another.
type asker struct {
	service string
	from    netip.Prefix
	key     any // whose service it is
}

// queuer is whose passwords wait.
type queuer struct {
	key  any
	from netip.Prefix
}

func (a asker) queuer() queuer { return queuer{a.key, a.from} }

// guesser is an address from which wrong passwords came, by service. Behind mostServices, all others are one: "".
type guesser map[string]*record

// record is of the wrong passwords for a service since the last right one.
type record struct {
	failed int
	at     time.Time // of the last one
	until  time.Time // no other is looked at before
}

// mostServices is how many services of one address have a record of their own, and staleAfter when it makes room for another one's.
const (
	mostServices = 16
	staleAfter   = time.Hour
)

// of returns the record that counts for a service; nil: there is none.
func (f guesser) of(service string) *record {
	if r := f[service]; r != nil || len(f) < mostServices {
		return r
	}
	return f[""]
}

// note returns the record for a wrong password, and makes it if there is none.
func (f guesser) note(service string, now time.Time) *record {
	if f[service] == nil && len(f) >= mostServices {
		for s, r := range f {
			if now.Sub(r.at) > staleAfter {
				delete(f, s)
			}
		}
		if len(f) >= mostServices {
			service = ""
		}
	}
	if f[service] == nil {
		f[service] = new(record)
	}
	f[service].at = now
	return f[service]
}

// waits reports whether some service waits before it looks at another password.
func (f guesser) waits(now time.Time) bool {
	for _, r := range f {
		if now.Before(r.until) {
			return true
		}
	}
	return false
}

const (
	mostGuessers = 4096
	mostKnown    = 4096
	knownTime    = 5 * time.Minute
	freeGuesses  = 5           // wrong passwords before the next one waits
	longestWait  = time.Minute // it doubles from firstWait on
	mostQueued   = 4           // passwords of one address that wait for their turn at a key's services: others wait behind them
)

// firstWait is longer in tests, whose next guess may come late.
var firstWait = time.Second

func (g *guesses) init() {
	g.once.Do(func() {
		rand.Read(g.secret[:])
		g.turns = newKeyTurns(max(runtime.GOMAXPROCS(0)/2, 1))
		g.from, g.known = make(map[netip.Prefix]guesser), make(map[[32]byte]time.Time)
		g.checks, g.queued = make(map[[32]byte]*check), make(map[queuer]int)
	})
}

// wait is how long an address must wait before it may try again.
func (g *guesses) wait(a asker, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.from[a.from].of(a.service); r != nil {
		return r.until.Sub(now)
	}
	return 0
}

// begin reports whether a password may be looked at now. It counts as wrong until it was right: others of the same address that are
// looked at meanwhile must not be more than could come one after the other.
func (g *guesses) begin(a asker, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.from[a.from].of(a.service); r != nil && now.Before(r.until) {
		return false
	}
	g.wrongLocked(a, now)
	return true
}

// wrongLocked notes a wrong password.
func (g *guesses) wrongLocked(a asker, now time.Time) {
	f := g.from[a.from]
	if f == nil {
		for from, o := range g.from { // map order is random: one guesser cannot choose who is forgotten
			if len(g.from) < mostGuessers {
				break
			}
			if !o.waits(now) || len(g.from) >= mostGuessers {
				delete(g.from, from)
			}
		}
		f = make(guesser)
		g.from[a.from] = f
	}
	r := f.note(a.service, now)
	if r.failed++; r.failed >= freeGuesses {
		r.until = now.Add(min(firstWait<<min(r.failed-freeGuesses, 10), longestWait))
	}
}

// right notes a right password.
func (g *guesses) right(a asker, sum [32]byte, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.from[a.from]
	if r := f.of(a.service); r != nil && f[a.service] == nil { // others are counted there, too
		if r.failed--; r.failed < freeGuesses {
			r.until = time.Time{}
		}
	}
	if delete(f, a.service); len(f) == 0 {
		delete(g.from, a.from)
	}
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

// try reports whether a password is right, of which look tells that. With errSlow, errQueue and errCrowd it was not looked at. Any other
// error is that of ctx.
func (g *guesses) try(ctx context.Context, a asker, sum [32]byte, look func() bool) (right bool, err error) {
	for {
		if g.knows(sum, time.Now()) {
			return true, nil
		}
		if g.wait(a, time.Now()) > 0 {
			return false, errSlow
		}
		c, first, err := g.enqueue(a.queuer(), sum)
		switch {
		case err != nil:
			return false, err
		case first:
			return g.check(ctx, c, a, sum, look)
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
func (g *guesses) enqueue(from queuer, sum [32]byte) (c *check, first bool, err error) {
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
func (g *guesses) check(ctx context.Context, c *check, a asker, sum [32]byte, look func() bool) (right bool, err error) {
	defer g.checked(c, a.queuer(), sum)
	if err := g.turns.take(ctx, a.key); err != nil {
		return false, err
	}
	defer g.turns.end(a.key)
	if !g.begin(a, time.Now()) {
		return false, errSlow
	}
	c.right = look()
	c.looked = true
	if c.right {
		g.right(a, sum, time.Now())
	}
	return c.right, nil
}

// checked ends a check.
func (g *guesses) checked(c *check, from queuer, sum [32]byte) {
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
		a := asker{x.site.Name, share.Block(clientAddr(x.client.RemoteAddr())), x.site.Key}
		right, err := g.try(r.Context(), a, sum, func() bool { return checkPassword(users, name, password) })
		switch {
		case right:
			x.user = name
			return true
		case err == errSlow, err == errQueue:
			w.Header().Set("Retry-After", strconv.Itoa(int(max(g.wait(a, time.Now()), 0)/time.Second)+1))
			x.page(w, r, http.StatusTooManyRequests, err)
			return false
		case err == errCrowd:
			x.page(w, r, http.StatusServiceUnavailable, err)
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
