package proxy

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"reverser/internal/status"
)

// expiryEvery is how often the wall clock is asked whether a key has expired: a timer would not notice that the clock was set.
const expiryEvery = time.Second

// goneError is why a key has no session (any more), for whoever runs its bridge.
type goneError struct{ text string }

func (e *goneError) Error() string { return e.text }

// errKeyRemoved ends the links of a key.
var errKeyRemoved = &goneError{"the key was removed"}

// keyExpired ends them as well.
func keyExpired(at time.Time) error {
	return &goneError{fmt.Sprintf("the key expired at %s: at the proxy, `reverser key edit NAME --expires 30d` gives it more time", at.UTC().Format(time.RFC3339))}
}

func isKeyGone(err error) bool {
	_, gone := errors.AsType[*goneError](err)
	return gone
}

// admit returns why a key may not have a session (any more).
func (p *Proxy) admit(id [16]byte, secret [32]byte, begins bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, there := p.keys[id]
	former := p.rotation[id].former
	switch replaced := former != nil && secret == *former; {
	case !there:
		return errKeyRemoved
	case replaced && begins:
		return errTokenReplaced
	case !replaced && secret != k.Secret && (k.Next == nil || secret != *k.Next):
		return errKeyRemoved
	case p.expired[id]:
		return keyExpired(k.Expires)
	}
	return nil
}

// whyGone is why the sessions of a key end.
func (p *Proxy) whyGone(id [16]byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.expired[id] {
		return keyExpired(p.keys[id].Expires)
	}
	return errKeyRemoved
}

// over returns the keys whose time is over. mu is held.
func (p *Proxy) over() map[[16]byte]bool {
	now := p.cfg.Now()
	over := make(map[[16]byte]bool)
	for id, k := range p.keys {
		if !k.Expires.IsZero() && !now.Before(k.Expires) {
			over[id] = true
		}
	}
	return over
}

// markExpired notes which keys have expired, and returns those that have now, also by a new time that has passed already, and those for
// which the clock was set back. Before, the keys were these. mu is held.
func (p *Proxy) markExpired(before map[[16]byte]Key) (changed []expiryNews) {
	was := p.expired
	p.expired = p.over()
	for id, k := range p.keys {
		if old, there := before[id]; there && was[id] != p.expired[id] && (p.expired[id] || old.Expires.Equal(k.Expires)) {
			changed = append(changed, expiryNews{k, p.expired[id]})
		}
	}
	return changed
}

// expiryNews says that a key has expired, or that it has not, by a clock that was set back.
type expiryNews struct {
	key     Key
	expired bool
}

func (p *Proxy) sayExpiry(all []expiryNews) {
	for _, n := range all {
		at := n.key.Expires.UTC().Format(time.RFC3339)
		if n.expired {
			p.log.Warn("key expired: its bridge, services and connections are ended", "key", n.key.Name, "expired", at,
				"hint", fmt.Sprintf("`reverser key edit %s --expires 30d` gives it more time", n.key.Name))
		} else {
			p.log.Warn("key is honoured again: by the clock, which was set back, it has not expired", "key", n.key.Name, "expires", at)
		}
	}
}

// tendExpiry ends the sessions of keys when their time is over. The clock alone decides: one that is set back gives such a key its time
// again.
func (p *Proxy) tendExpiry() {
	tick := time.NewTicker(expiryEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.expire()
		case <-p.life.ctx.Done():
			return
		}
	}
}

// expire puts in force what the clock says of keys.
func (p *Proxy) expire() {
	p.mu.Lock()
	due := !maps.Equal(p.over(), p.expired)
	p.mu.Unlock()
	if !due {
		return
	}
	p.applying.Lock() // as Apply does, so that the registry hears of policies in their order
	defer p.applying.Unlock()
	p.mu.Lock()
	news := p.markExpired(p.keys)
	p.mu.Unlock()
	p.registry.Configure(p.policy(p.settings()))
	p.sayExpiry(news)
}

// showExpiry writes into a snapshot when keys expire.
func (p *Proxy) showExpiry(snap *status.Snapshot) {
	at := make(map[string]int, len(snap.Keys)) // in snap.Keys, by id
	for i, k := range snap.Keys {
		at[k.ID] = i
	}
	for _, k := range p.expiries() { // without p.mu, for which bridges that come wait
		i, ok := at[k.ID]
		if !ok {
			i = len(snap.Keys)
			snap.Keys = append(snap.Keys, status.Key{Key: k.Key, ID: k.ID})
		}
		snap.Keys[i].Expires, snap.Keys[i].Expired = k.Expires, k.Expired
	}
	slices.SortFunc(snap.Keys, func(a, b status.Key) int { return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.ID, b.ID)) })
}

// expiries are the keys that expire, with no more than that.
func (p *Proxy) expiries() (list []status.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, k := range p.keys {
		if !k.Expires.IsZero() {
			list = append(list, status.Key{Key: k.Name, ID: hex.EncodeToString(id[:]), Expires: k.Expires, Expired: p.expired[id]})
		}
	}
	return list
}
