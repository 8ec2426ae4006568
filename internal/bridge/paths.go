package bridge

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

const (
	failureCounts = 5 * time.Minute  // for so long an address that failed goes last
	retrySmall    = 15 * time.Second // for so long after a handshake that stalled the next one is tried with small segments
	keepSmall     = time.Hour        // for so long small segments are kept behind the last time that they helped
	mostPaths     = 32
	smallSegment  = 1200 // fits a path of 1,280 bytes, the least that IPv6 allows, with headers and options
)

// paths remembers what came of the addresses of the proxy. It orders the next attempts: an address that failed lately goes
// last, however well TCP connects to it.
type paths struct {
	mu   sync.Mutex
	at   map[lead]path // guarded by mu, as said: at most mostPaths
	said bool          // that small segments help
}

// path is what is known of one address. The zero value says that nothing is known.
type path struct {
	failed  time.Time // last; zero: not since it was proven last
	stalled bool      // TCP was connected, and nothing came
	small   bool      // the failure was with small segments
	helped  time.Time // when small segments helped last
	helps   int       // how often they did behind larger ones that stalled, one after the other
}

// believed is how often small segments must help until that is put down to the path: a busy proxy lets handshakes stall as well.
const believed = 2

// order returns the ways to try, the most promising first.
func (p *paths) order(places []place) []way {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	ways := make([]way, len(places))
	failed := make(map[lead]time.Time)
	for i, pl := range places {
		at := p.at[pl.lead]
		ways[i] = way{place: pl, small: at.helps >= believed && now.Sub(at.helped) < keepSmall}
		if at.stalled && now.Sub(at.failed) < retrySmall {
			ways[i].small = !at.small
		}
		if now.Sub(at.failed) < failureCounts {
			failed[pl.lead] = at.failed
		}
	}
	slices.SortStableFunc(ways, func(a, b way) int { return failed[a.lead].Compare(failed[b.lead]) })
	return ways
}

// failed notes that a way failed, or is slow: it took longer than it should.
func (p *paths) failed(w way, slow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.at[w.lead]
	at.failed, at.stalled, at.small = time.Now(), w.connected && slow, w.small
	p.put(w.lead, at)
}

// proven notes that the server at an address was proven. It reports whether small segments turned out to help: once.
func (p *paths) proven(addr lead, small bool) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.at[addr]
	at := path{}
	if small {
		at.helped, at.helps = time.Now(), before.helps+1
		if at.helps >= believed {
			news = !p.said
			p.said = true
		}
	}
	if at != before {
		p.put(addr, at)
	}
	return news
}

// put keeps what is known of an address, in place of what is oldest where there is too much. mu is held.
func (p *paths) put(addr lead, at path) {
	if _, known := p.at[addr]; !known && len(p.at) >= mostPaths {
		var oldest lead
		age := func(a lead) time.Time { return latest(p.at[a]) }
		for a := range p.at {
			if oldest == (lead{}) || age(a).Before(age(oldest)) {
				oldest = a
			}
		}
		delete(p.at, oldest)
	}
	if p.at == nil {
		p.at = make(map[lead]path)
	}
	p.at[addr] = at
}

func latest(p path) time.Time {
	return slices.MaxFunc([]time.Time{p.failed, p.helped}, func(a, b time.Time) int { return cmp.Compare(a.UnixNano(), b.UnixNano()) })
}
