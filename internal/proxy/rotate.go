package proxy

import (
	"crypto/sha256"
	"maps"
)

// rotation is what a key's secrets have been.
type rotation struct {
	incarnation [32]byte  // the same for as long as each secret follows from the one before
	former      *[32]byte // that was replaced by a newer one, and is good for the session that it began, and no other; nil: there is none
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
	}
	p.mu.Unlock()
	if !first {
		return
	}
	p.sayRotated(k.Name)
	if p.cfg.Used != nil {
		p.wg.Go(func() { p.cfg.Used(id, secret) })
	}
}

func (p *Proxy) sayRotated(key string) {
	p.log.Info("the new token of a key is in use: the one before is worthless from now on", "key", key)
}
