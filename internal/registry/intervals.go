package registry

import "slices"

// intervals is a set of claim ids. Bridges count, so it is a few ranges, however many ids it holds.
type intervals []interval

type interval struct{ low, high uint32 }

// maxIntervals bounds a set: the live claims of a session stand between the ids that were given back.
const maxIntervals = 2*MaxClaims + 2

func (iv intervals) find(id uint32) (at int, in bool) {
	return slices.BinarySearchFunc(iv, id, func(r interval, id uint32) int {
		switch {
		case r.high < id:
			return -1
		case r.low > id:
			return 1
		}
		return 0
	})
}

func (iv intervals) has(id uint32) bool {
	_, in := iv.find(id)
	return in
}

// add puts an id into the set; false: there is no room for it.
func (iv *intervals) add(id uint32) bool {
	at, in := iv.find(id)
	if in {
		return true
	}
	s := *iv
	left := at > 0 && s[at-1].high == id-1
	right := at < len(s) && s[at].low == id+1
	switch {
	case left && right:
		s[at-1].high = s[at].high
		s = slices.Delete(s, at, at+1)
	case left:
		s[at-1].high = id
	case right:
		s[at].low = id
	case len(s) >= maxIntervals:
		return false
	default:
		s = slices.Insert(s, at, interval{id, id})
	}
	*iv = s
	return true
}
