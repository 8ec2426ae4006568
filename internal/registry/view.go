package registry

import (
	"hash/maphash"
	"maps"

	"reverser/internal/grammar"
)

// View finds routes by their names. It is never changed: a change makes another one, which shares what is equal, so that one more
// name among many thousands costs little.
type View struct {
	branches [fan]*branch
	secure   [fan]map[string]int // how many https/ names a host has
}

type branch [fan]map[grammar.Public]*Route

const fan = 64

var seed = maphash.MakeSeed()

func split(pub grammar.Public) (i, j int) {
	h := maphash.Comparable(seed, pub)
	return int(h % fan), int(h / fan % fan)
}

// Find returns the route of a name; nil: nobody serves it.
func (v *View) Find(pub grammar.Public) *Route {
	i, j := split(pub)
	if v.branches[i] == nil {
		return nil
	}
	return v.branches[i][j][pub]
}

// Secure reports whether somebody serves a https/ name of a host, under whatever path. The host may be a wildcard, as in names.
func (v *View) Secure(host string) bool { return v.secure[splitHost(host)][host] > 0 }

func splitHost(host string) int { return int(maphash.String(seed, host) % fan) }

// with returns a view in which the names have the routes that they have now.
func (v *View) with(changed []*name) *View {
	w := *v
	var branches [fan]bool // that are w's own
	var leaves [fan][fan]bool
	var hosts [fan]bool
	for _, n := range changed {
		if n.public.Kind == grammar.KindHTTPS && (w.Find(n.public) != nil) != (n.route != nil) {
			k := splitHost(n.public.Host)
			if !hosts[k] {
				if w.secure[k] = maps.Clone(w.secure[k]); w.secure[k] == nil {
					w.secure[k] = make(map[string]int)
				}
				hosts[k] = true
			}
			if n.route != nil {
				w.secure[k][n.public.Host]++
			} else if w.secure[k][n.public.Host]--; w.secure[k][n.public.Host] <= 0 {
				delete(w.secure[k], n.public.Host)
			}
		}
		i, j := split(n.public)
		if !branches[i] {
			own := branch{}
			if w.branches[i] != nil {
				own = *w.branches[i]
			}
			w.branches[i], branches[i] = &own, true
		}
		b := w.branches[i]
		if !leaves[i][j] {
			if b[j] = maps.Clone(b[j]); b[j] == nil {
				b[j] = make(map[grammar.Public]*Route)
			}
			leaves[i][j] = true
		}
		if n.route != nil {
			b[j][n.public] = n.route
		} else if delete(b[j], n.public); len(b[j]) == 0 {
			b[j] = nil
			leaves[i][j] = false
		}
	}
	return &w
}

// All yields every route.
func (v *View) All(yield func(*Route) bool) {
	for _, b := range v.branches {
		if b == nil {
			continue
		}
		for _, leaf := range b {
			for _, rt := range leaf {
				if !yield(rt) {
					return
				}
			}
		}
	}
}
