package model

import (
	"fmt"
	"slices"
	"strings"
)

// label says what a step did, as a format and its numbers: it is only printed for the shortest way to a violation.
type label struct {
	format string
	n      [3]int
}

func say(format string, n ...int) label {
	l := label{format: format}
	copy(l.n[:], n)
	return l
}

func (l label) String() string {
	var args []any
	for _, n := range l.n[:strings.Count(l.format, "%")] {
		args = append(args, n)
	}
	return fmt.Sprintf(l.format, args...)
}

// system is a model: where it begins, what may happen next, what is wrong with a state (empty: nothing), whether all is
// done in it, and whether its supply of connections is used up, so that not being able to finish says nothing.
type system[S comparable] interface {
	begin() S
	next(s S, add func(S, label))
	wrong(s S) string
	done(s S) bool
	spent(s S) bool
}

// verdict is the result of a search.
type verdict struct {
	states int
	bad    string  // the first violation, by the shortest way
	way    []label // to it, or to the first state that cannot finish
	stuck  int     // states from which nothing leads to an end, though connections are left
	spent  int     // states from which nothing leads to an end because none are left
	ends   int
	capped bool // there are more states
}

// search visits every state, breadth first, until one is wrong or there are most states.
func search[S comparable](sys system[S], most int) (v verdict) {
	index := map[S]int32{sys.begin(): 0}
	states, from := []S{sys.begin()}, []int32{-1}
	var edges []int32 // the successors of state i are edges[starts[i]:starts[i+1]]
	starts := []int32{0}
	for at := 0; at < len(states) && v.bad == ""; at++ {
		if len(states) > most {
			v.capped = true
			break
		}
		sys.next(states[at], func(s S, _ label) {
			i, old := index[s]
			if !old {
				i = int32(len(states))
				index[s] = i
				states, from = append(states, s), append(from, int32(at))
				if bad := sys.wrong(s); bad != "" && v.bad == "" {
					v.bad, v.way = bad, way(sys, states, from, i)
				}
			}
			edges = append(edges, i)
		})
		starts = append(starts, int32(len(edges)))
	}
	v.states = len(states)
	if v.bad != "" || v.capped {
		return v
	}
	// Backwards from the ends: whoever is not reached can never finish.
	degree := make([]int32, len(states)+1)
	for _, to := range edges {
		degree[to+1]++
	}
	for i := range states {
		degree[i+1] += degree[i]
	}
	back, fill := make([]int32, len(edges)), slices.Clone(degree)
	for i := range states {
		for _, to := range edges[starts[i]:starts[i+1]] {
			back[fill[to]] = int32(i)
			fill[to]++
		}
	}
	fine := make([]bool, len(states))
	var work []int32
	for i, s := range states {
		if sys.done(s) {
			fine[i] = true
			work = append(work, int32(i))
		}
	}
	v.ends = len(work)
	for len(work) > 0 {
		i := work[len(work)-1]
		work = work[:len(work)-1]
		for _, p := range back[degree[i]:degree[i+1]] {
			if !fine[p] {
				fine[p] = true
				work = append(work, p)
			}
		}
	}
	for i, ok := range fine {
		switch {
		case ok:
		case sys.spent(states[i]):
			v.spent++
		default:
			if v.stuck++; v.stuck == 1 {
				v.way = way(sys, states, from, int32(i))
			}
		}
	}
	return v
}

// way returns the steps to state i.
func way[S comparable](sys system[S], states []S, from []int32, i int32) (ls []label) {
	for ; from[i] >= 0; i = from[i] {
		var l label
		sys.next(states[from[i]], func(s S, by label) {
			if s == states[i] && l.format == "" {
				l = by
			}
		})
		ls = append(ls, l)
	}
	slices.Reverse(ls)
	return ls
}
