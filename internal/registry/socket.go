package registry

import (
	"fmt"
	"slices"

	"reverser/internal/grammar"
)

// Socket is where users connect: an address and a port.
type Socket struct {
	Kind grammar.Kind // tcp
	Host string
	Port uint16
}

// Network and Addr are what to listen on; see grammar.Public.
func (s Socket) Network() string { return grammar.Public(s).ListenNetwork() }

// Addr is the address to listen on.
func (s Socket) Addr() string { return grammar.Public(s).ListenAddr() }

func (s Socket) String() string { return grammar.Public(s).String() }

// socketsOf returns the sockets that a name needs.
func socketsOf(pub grammar.Public) []Socket { return []Socket{Socket(pub)} }

// socket is what became of opening one. It is an input; where there is none, none was tried.
type socket struct {
	state   socketState
	attempt uint64
	why     string // failed
}

type socketState uint8

const (
	opening socketState = 1 + iota
	open
	closing
	failed // it is tried again
)

// lookAt has a socket opened or closed if it is not as it should be.
func (co *core) lookAt(s Socket) {
	wanted, rec := len(co.wanters[s]) > 0, co.sockets[s]
	switch {
	case rec != nil && rec.state == failed && !wanted:
		delete(co.sockets, s)
		return
	case wanted == (rec != nil):
		return
	case rec != nil && rec.state != open: // what is under way comes to an end first
		return
	case slices.Contains(co.waiting[placeOf(grammar.Public(s))], s):
		return
	}
	if _, twice := co.looking[s]; !twice {
		co.looking[s] = struct{}{}
		co.effects = append(co.effects, effect{do: doSocket, socket: s})
	}
}

// begun is the moment at which the effect that lookAt queued is done. It reports what to do: open, closing, or 0.
func (co *core) begun(s Socket) (what socketState, attempt uint64) {
	delete(co.looking, s)
	wanted, rec := len(co.wanters[s]) > 0, co.sockets[s]
	switch {
	case wanted && rec == nil:
		at := placeOf(grammar.Public(s))
		if slices.ContainsFunc(co.bound[at], func(o Socket) bool { return grammar.Public(o).Overlaps(grammar.Public(s)) }) {
			if !slices.Contains(co.waiting[at], s) {
				co.waiting[at] = append(co.waiting[at], s)
			}
			return 0, 0
		}
		co.bind(s, &socket{state: opening, attempt: co.next()})
		return opening, co.sockets[s].attempt
	case !wanted && rec != nil && rec.state == open:
		rec.state = closing
		return closing, rec.attempt
	}
	return 0, 0
}

func (co *core) bind(s Socket, rec *socket) {
	co.sockets[s] = rec
	at := placeOf(grammar.Public(s))
	co.bound[at] = append(co.bound[at], s)
}

// unbind says that a socket holds its port no longer. Those that waited for it are looked at.
func (co *core) unbind(s Socket) {
	at := placeOf(grammar.Public(s))
	co.bound[at] = slices.DeleteFunc(co.bound[at], func(o Socket) bool { return o == s })
	if len(co.bound[at]) == 0 {
		delete(co.bound, at)
	}
	waiting := co.waiting[at]
	delete(co.waiting, at)
	for _, o := range waiting {
		co.lookAt(o)
	}
}

// opened says what became of an attempt. It reports whether the attempt is the present one.
func (co *core) opened(s Socket, attempt uint64, err error) bool {
	rec := co.sockets[s]
	if rec == nil || rec.state != opening || rec.attempt != attempt {
		return false
	}
	if rec.state = open; err != nil {
		rec.state, rec.why = failed, fmt.Sprintf("open %s on the proxy: %s", s, err)
		co.unbind(s)
	}
	co.lookAt(s)
	for _, n := range co.wanters[s] {
		co.touch(n)
	}
	return true
}

// closed says that a socket is closed.
func (co *core) closed(s Socket) {
	if rec := co.sockets[s]; rec != nil && rec.state == closing {
		delete(co.sockets, s)
		co.unbind(s)
		co.lookAt(s)
	}
}

// retry tries again what could not be opened.
func (co *core) retry() {
	var again []grammar.Public
	for s, rec := range co.sockets {
		if rec.state == failed {
			again = append(again, grammar.Public(s))
		}
	}
	slices.SortFunc(again, comparePublic)
	for _, s := range again {
		delete(co.sockets, Socket(s))
		co.lookAt(Socket(s))
	}
}
