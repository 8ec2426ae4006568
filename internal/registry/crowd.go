package registry

import (
	"cmp"
	"slices"

	"reverser/internal/grammar"
)

// A name that has no socket costs memory only. So that one key does not take all of it, such names have a number of places, Policy.Names. Who
// holds a name has a place. A key without a limit of its own may take at most half of the places that are free at the moment, as it may of
// descriptors (shareLeft). A name that finds no place waits: nobody holds it. It gets one as soon as another name gives it back.

// crowding is who has the places. It follows from the holdings, and from who wants names that nobody holds.
type crowding struct {
	held    int               // places that are taken
	of      map[KeyID]int     // by key
	tenants map[KeyID]*tenant // those with names that wait
	waiting int               // how many do, each for one key
	freed   bool              // a place was given back, or somebody may have more: those that wait are to be looked at
}

// placed reports whether a name needs a place.
func placed(pub grammar.Public) bool { return pub.Kind.Named() }

// addPlace counts a name that a key holds, or does not hold any more.
func (co *core) addPlace(pub grammar.Public, key KeyID, n int) {
	if !placed(pub) {
		return
	}
	cr := &co.crowding
	cr.held += n
	if cr.of[key] += n; cr.of[key] == 0 {
		delete(cr.of, key)
	}
	cr.freed = cr.freed || n < 0
}

// placeLeft reports whether a key may hold one name more.
func (co *core) placeLeft(pub grammar.Public, key KeyID) bool {
	most := co.policy.Names
	if most == 0 || !placed(pub) {
		return true
	}
	free := most - co.crowding.held
	if co.policy.keys[key].MaxServices > 0 { // its operator has said how many
		return free > 0
	}
	return co.crowding.of[key] < free
}

// await notes which of the keys that may have a name wait for a place for it. Those do for which nobody holds it.
func (co *core) await(n *name, keys []*tenant) {
	if len(keys) == 0 && n.awaiting == 0 {
		return
	}
	note := func(r *tenant) {
		if ws, is := r.names[n.public], slices.Contains(keys, r); is != ws.awaits {
			co.setAwaits(r, ws, is)
			n.all = true // it is an answer of its own
		}
	}
	for _, c := range n.claims {
		note(c.session.tenant)
	}
	for _, h := range n.heirs {
		note(h.session.tenant)
	}
}

func (co *core) setAwaits(r *tenant, ws *wish, awaits bool) {
	cr := &co.crowding
	ws.awaits = awaits
	at, _ := slices.BinarySearchFunc(r.awaiting, ws.place, func(o *wish, place uint64) int { return cmp.Compare(o.place, place) })
	if awaits {
		r.awaiting = slices.Insert(r.awaiting, at, ws)
		ws.name.awaiting++
		cr.waiting++
		cr.tenants[r.id] = r
		return
	}
	r.awaiting = slices.Delete(r.awaiting, at, at+1)
	ws.name.awaiting--
	cr.waiting--
	if len(r.awaiting) == 0 {
		delete(cr.tenants, r.id)
	}
}

// fill gives places that are free to names that wait: first to the keys that have the fewest, of each its earliest names.
func (co *core) fill() {
	cr := &co.crowding
	for cr.freed && cr.waiting > 0 {
		cr.freed = false
		var turns []*tenant
		for _, r := range cr.tenants {
			turns = append(turns, r)
		}
		slices.SortFunc(turns, func(a, b *tenant) int {
			return cmp.Or(cmp.Compare(cr.of[a.id], cr.of[b.id]), cmp.Compare(a.awaiting[0].place, b.awaiting[0].place))
		})
		for _, r := range turns {
			for held := true; held && len(r.awaiting) > 0 && co.placeLeft(r.awaiting[0].name.public, r.id); {
				n := r.awaiting[0].name
				co.visit(n)
				co.hold(n)
				held = n.held != nil // by this key or by one that asked earlier, and so it does not wait any more
			}
		}
	}
	cr.freed = false
}

// Crowd is how many names without sockets are held.
type Crowd struct {
	Held, Most int   // Most 0: any number
	Waiting    int   // how many wait for a place
	Largest    KeyID // the key that holds most
	ByLargest  int
}

// Crowd returns how many names without sockets are held, and by whom where some wait.
func (r *Registry) Crowd() Crowd {
	r.mu.Lock()
	defer r.mu.Unlock()
	cr := &r.core.crowding
	c := Crowd{Held: cr.held, Most: r.core.policy.Names, Waiting: cr.waiting}
	if cr.waiting == 0 {
		return c
	}
	for key, n := range cr.of {
		if n > c.ByLargest || n == c.ByLargest && slices.Compare(key[:], c.Largest[:]) < 0 {
			c.Largest, c.ByLargest = key, n
		}
	}
	return c
}
