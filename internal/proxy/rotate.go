package proxy

import (
	"crypto/sha256"
	"maps"
	"slices"
)

// rotation is what a key's secrets have been.
type rotation struct {
	incarnation [32]byte  // the same for as long as each secret follows from the one before
	former      *[32]byte // that was replaced by a newer one, and is good for the session that it began, and no other; nil: there is none
}

// use is the use of a secret that [Config.Used] has not stored yet.
type use struct {
	secret [32]byte
	before [][32]byte // which it, and others since the last one that was stored, took the place of
}

// errTokenReplaced is why a bridge with a former secret has no session.
var errTokenReplaced = &goneError{"this token was replaced (reverser key rotate), and the newer one is in use: give the bridge that one"}

// keepSecrets sets what the secrets of the present keys follow from. mu is held.
func (p *Proxy) keepSecrets(before map[[16]byte]Key) {
	next := make(map[[16]byte]rotation, len(p.keys))
	for id, k := range p.keys {
		old, there := before[id]
		r := p.rotation[id]
		if there && k.Next != nil && *k.Next == old.Secret { // it was used, and who says this does not know yet
			k.Secret, k.Next = old.Secret, nil
			p.keys[id] = k
		}
		if u := p.uses[id]; there && u != nil && slices.Contains(u.before, k.Secret) { // the same, and the key was rotated again
			k.Secret = old.Secret
			p.keys[id] = k
		}
		switch {
		case there && k.Secret == old.Secret:
		case there && old.Next != nil && k.Secret == *old.Next:
			r.former = &old.Secret
		default:
			r = rotation{incarnation: sha256.Sum256(append(r.incarnation[:], k.Secret[:]...))} // another one also where an earlier secret is back
		}
		next[id] = r
	}
	p.rotation = next
}

// otherSecrets are those of a key that may be proven beside the present one.
func (p *Proxy) otherSecrets(id [16]byte) (others [][32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range []*[32]byte{p.keys[id].Next, p.rotation[id].former} {
		if s != nil {
			others = append(others, *s)
		}
	}
	return others
}

// secretUsed has the next secret of a key take the place of the one before, when it is the one that a connection has proven.
func (p *Proxy) secretUsed(id [16]byte, secret [32]byte) {
	p.mu.Lock()
	k := p.keys[id]
	first := k.Next != nil && *k.Next == secret
	if first {
		former := k.Secret
		k.Secret, k.Next = secret, nil
		p.keys[id] = k
		rotations := maps.Clone(p.rotation)
		rotations[id] = rotation{rotations[id].incarnation, &former}
		p.rotation = rotations
		if p.cfg.Used != nil {
			p.storeUseLocked(id, use{secret, [][32]byte{former}})
		}
	}
	p.mu.Unlock()
	if first {
		p.sayRotated(k.Name)
	}
}

// storeUseLocked has a use stored, behind those of the key that are under way: a later one must not be undone by an earlier one.
func (p *Proxy) storeUseLocked(id [16]byte, u use) {
	if under := p.uses[id]; under != nil {
		under.secret, under.before = u.secret, append(under.before, u.before...)
		return
	}
	p.uses[id] = &u
	p.wg.Go(func() { p.storeUses(id, &u) })
}

func (p *Proxy) storeUses(id [16]byte, u *use) {
	for stored := false; !stored; {
		p.mu.Lock()
		secret := u.secret
		p.mu.Unlock()
		p.cfg.Used(id, secret)
		p.mu.Lock()
		if stored = u.secret == secret; stored {
			delete(p.uses, id)
		}
		p.mu.Unlock()
	}
}

func (p *Proxy) sayRotated(key string) {
	p.log.Info("the new token of a key is in use: the one before is worthless from now on", "key", key)
}
