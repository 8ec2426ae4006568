package web

import (
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

	mu    sync.Mutex
	from  map[netip.Prefix]*guesser // guarded by mu, as all below
	known map[[32]byte]time.Time    // passwords that were right a moment ago
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
)

func (g *guesses) init() {
	g.once.Do(func() {
		rand.Read(g.secret[:])
		g.turns = make(chan struct{}, max(runtime.GOMAXPROCS(0)/2, 1))
		g.from, g.known = make(map[netip.Prefix]*guesser), make(map[[32]byte]time.Time)
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

// wrong notes a wrong password.
func (g *guesses) wrong(from netip.Prefix, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
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
)

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
		from, now := block(x.client), time.Now()
		mac := hmac.New(sha256.New, g.secret[:])
		for _, s := range append([]string{x.site.Name, name, password}, users...) { // another file is another question
			mac.Write([]byte(strconv.Itoa(len(s)) + ":" + s))
		}
		sum := [32]byte(mac.Sum(nil))
		if g.knows(sum, now) {
			x.user = name
			return true
		}
		if wait := g.wait(from, now); wait > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
			x.page(w, r, http.StatusTooManyRequests, errSlow)
			return false
		}
		select {
		case g.turns <- struct{}{}:
		case <-r.Context().Done():
			return false
		}
		ok := checkPassword(users, name, password)
		<-g.turns
		if ok {
			g.right(from, sum, now)
			x.user = name
			return true
		}
		g.wrong(from, time.Now())
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
