package registry

import (
	"cmp"
	"container/list"
	"fmt"
	"maps"
	"slices"

	"reverser/internal/grammar"
)

// Socket is where users connect: an address and a port.
type Socket struct {
	Kind grammar.Kind // tcp
	Host string       // "": Policy.Bind
	Port uint16
}

func (s Socket) String() string { return s.Public().String() }

// Public is the name that the socket alone stands for.
func (s Socket) Public() grammar.Public {
	return grammar.Public{Kind: s.Kind, Host: s.Host, Port: s.Port}
}

func socketOf(pub grammar.Public) Socket { return Socket{pub.Kind, pub.Host, pub.Port} }

// socketsOf returns the sockets that a name needs. One that shares a port of the process's own needs none.
func socketsOf(pub grammar.Public) []Socket {
	if pub.Kind != grammar.KindTCP {
		return nil
	}
	return []Socket{socketOf(pub)}
}

// socket is what became of opening one. It is an input; where there is none, none was tried.
type socket struct {
	state   socketState
	attempt uint64
	why     string        // failed
	short   bool          // failed: the share of the key's was used up, and no attempt was made
	key     KeyID         // that is charged for it, or waits to try it again; follows from who holds the name that wants it
	again   *list.Element // failed: its place among those that wait to be tried again
}

type socketState uint8

const (
	opening socketState = 1 + iota
	open
	closing
	failed // it is tried again
)

// lookAt queues the effect that opens or closes a socket, if it is open and should not be or the other way round.
func (co *core) lookAt(s Socket) {
	wanted, rec := len(co.wanters[s]) > 0, co.sockets[s]
	switch {
	case rec != nil && rec.state == failed && !wanted:
		co.forget(s)
		return
	case wanted == (rec != nil):
		return
	case rec != nil && rec.state != open: // what is under way comes to an end first
		return
	}
	if _, waits := co.waiting[placeOf(s.Public())][s]; waits {
		return
	}
	if _, twice := co.looking[s]; !twice {
		co.looking[s] = struct{}{}
		var key KeyID
		if wanted {
			key = co.wanters[s][0].held.key
		} else {
			key = rec.key
		}
		co.effects.add(key, effect{do: doSocket, socket: s})
	}
}

// begun is the moment at which the effect that lookAt queued is done. It reports what to do: opening, closing, or 0;
// or that it failed at once, which is to be settled.
func (co *core) begun(s Socket) (what socketState, attempt uint64) {
	delete(co.looking, s)
	wanted, rec := len(co.wanters[s]) > 0, co.sockets[s]
	switch {
	case wanted && rec == nil:
		if co.covered(s) {
			at := placeOf(s.Public())
			if co.waiting[at] == nil {
				co.waiting[at] = make(map[Socket]struct{})
			}
			co.waiting[at][s] = struct{}{}
			return 0, 0
		}
		key := co.wanters[s][0].held.key
		if !co.shareLeft(key, 1) {
			co.sockets[s] = &socket{state: failed, attempt: co.next(), short: true, key: key}
			co.addFailed(s)
			for _, n := range co.wanters[s] {
				co.touch(n)
			}
			return failed, 0
		}
		co.bind(s, &socket{state: opening, attempt: co.next(), key: key})
		return opening, co.sockets[s].attempt
	case !wanted && rec != nil && rec.state == open:
		rec.state = closing
		return closing, rec.attempt
	}
	return 0, 0
}

// shareLeft reports whether a key may open n sockets more: it may hold at most as many as are free beside them, half of what there
// would be without it.
func (co *core) shareLeft(key KeyID, n int) bool { return co.taken[key]+n <= co.room-n+1 }

// charge has the key that holds the name of a socket charged for it.
func (co *core) charge(s Socket, key KeyID) {
	rec := co.sockets[s]
	switch {
	case rec == nil || rec.key == key:
	case rec.state == failed:
		co.removeFailed(s)
		rec.key = key
		co.addFailed(s)
	default:
		co.addTaken(rec.key, -1)
		rec.key = key
		co.addTaken(key, 1)
	}
}

func (co *core) addTaken(key KeyID, n int) {
	if co.taken[key] += n; co.taken[key] == 0 {
		delete(co.taken, key)
	}
}

// trials are sockets of one key that failed for want of descriptors, or for another reason.
type trials struct {
	key   KeyID
	short bool
}

// addFailed puts a socket that failed behind those of its key that are to be tried again.
func (co *core) addFailed(s Socket) {
	rec := co.sockets[s]
	at := trials{rec.key, rec.short}
	if co.failed[at] == nil {
		co.failed[at] = list.New()
	}
	rec.again = co.failed[at].PushBack(s)
	if rec.short {
		co.short++
	}
}

func (co *core) removeFailed(s Socket) {
	rec := co.sockets[s]
	at := trials{rec.key, rec.short}
	if co.failed[at].Remove(rec.again); co.failed[at].Len() == 0 {
		delete(co.failed, at)
	}
	if rec.again = nil; rec.short {
		co.short--
	}
}

// forget drops the record of a socket that could not be opened.
func (co *core) forget(s Socket) {
	co.removeFailed(s)
	delete(co.sockets, s)
}

func (co *core) bind(s Socket, rec *socket) {
	co.sockets[s] = rec
	co.addTaken(rec.key, 1)
	co.addBound(s, 1)
}

// addBound counts a socket among those of its port that are open, or may be, by the family of its address.
func (co *core) addBound(s Socket, n int) {
	at := placeOf(s.Public())
	of := co.bound[at]
	of[family(co.policy.at(s.Public()))] += n
	if co.bound[at] = of; of == [3]int{} {
		delete(co.bound, at)
	}
}

// covered reports whether a socket that is open, or may be, overlaps s. A port may have very many sockets, each of an address of its own.
func (co *core) covered(s Socket) bool {
	for _, o := range co.near(s) {
		if rec := co.sockets[o]; rec != nil && rec.state != failed {
			return true
		}
	}
	at, of := co.policy.at(s.Public()), co.bound[placeOf(s.Public())]
	switch {
	case family(at) != familyWild:
		return false
	case at.Host == "":
		return of[family4]+of[family6] > 0
	case at.Host == wild4:
		return of[family4] > 0
	}
	return of[family6] > 0
}

// The addresses that cover all of a family.
const wild4, wild6 = "0.0.0.0", "::"

// near returns the sockets of which it depends on the addresses alone whether they overlap s, and which do: s itself, its twin, and those
// of wild addresses. Two other addresses of one family never cover each other.
func (co *core) near(s Socket) []Socket {
	all := []Socket{s, {s.Kind, "", s.Port}, {s.Kind, wild4, s.Port}, {s.Kind, wild6, s.Port}}
	if twin, ok := co.policy.twin(s.Public()); ok {
		all = append(all, socketOf(twin))
	}
	at := co.policy.at(s.Public())
	return slices.DeleteFunc(all, func(o Socket) bool {
		co.looks++
		return !co.policy.at(o.Public()).Overlaps(at)
	})
}

// unbind records that a socket has given up its port, and looks at the sockets that waited for it.
func (co *core) unbind(s Socket, rec *socket) {
	co.addTaken(rec.key, -1)
	at := placeOf(s.Public())
	co.addBound(s, -1)
	waiting := co.waiting[at]
	if len(waiting) == 0 {
		return
	}
	again := co.near(s)
	if family(co.policy.at(s.Public())) == familyWild {
		again = slices.SortedFunc(maps.Keys(waiting), func(a, b Socket) int { return comparePublic(a.Public(), b.Public()) })
	}
	for _, o := range again {
		if _, waits := waiting[o]; waits {
			delete(waiting, o)
			co.lookAt(o)
		}
	}
	if len(waiting) == 0 {
		delete(co.waiting, at)
	}
}

// opened takes the result of an attempt. It reports whether the attempt is the present one.
func (co *core) opened(s Socket, attempt uint64, err error) bool {
	rec := co.sockets[s]
	if rec == nil || rec.state != opening || rec.attempt != attempt {
		return false
	}
	if rec.state = open; err != nil {
		rec.state, rec.why = failed, fmt.Sprintf("open %s on the proxy: %s", s, err)
		co.addFailed(s)
		co.unbind(s, rec)
	}
	co.lookAt(s)
	for _, n := range co.wanters[s] {
		co.touch(n)
	}
	return true
}

// closed records that a socket is closed.
func (co *core) closed(s Socket) {
	if rec := co.sockets[s]; rec != nil && rec.state == closing {
		delete(co.sockets, s)
		co.unbind(s, rec)
		co.lookAt(s)
	}
}

// retryEach is how many sockets of a key are tried again at once. A key may claim thousands of addresses that the proxy's machine does not
// have, and each attempt costs the kernel and the registry something.
const retryEach = 256

// retry opens the sockets that failed again, of each key those that have waited longest. Those that failed because the key's share of the
// descriptors was used up are tried only if the share has room for them now.
func (co *core) retry() {
	var keys []trials
	for at := range co.failed {
		keys = append(keys, at)
	}
	longest := func(at trials) uint64 { return co.sockets[co.failed[at].Front().Value.(Socket)].attempt }
	slices.SortFunc(keys, func(a, b trials) int { return cmp.Compare(longest(a), longest(b)) })
	for _, at := range keys {
		waiting := co.failed[at]
		for n := range min(waiting.Len(), retryEach) {
			if at.short && !co.shareLeft(at.key, n+1) {
				break
			}
			s := waiting.Front().Value.(Socket)
			co.forget(s)
			co.lookAt(s)
		}
	}
}
