package registry

import (
	"hash/maphash"
	"maps"

	"reverser/internal/grammar"
)

// View finds routes by their names. It is never changed: a change makes another one, which shares what is equal, so that one more
// name among many thousands costs little.
type View struct{ branches [fan]*branch }

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

// with returns a view in which the names have the routes that they have now.
func (v *View) with(changed []*name) *View {
	w := *v
	var branches [fan]bool // that are w's own
	var leaves [fan][fan]bool
	for _, n := range changed {
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
