package proxy

import (
	"cmp"
	"context"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/traffic"
)

// Settings is what may change while the proxy runs.
type Settings struct {
	Keys         []Key
	Given        []string         // names of the certificates from files
	Offer        []grammar.Public // public ports that the proxy owns and offers to whom its key allows them
	Drain        time.Duration    // 0: DefaultDrain; negative: reset at once
	NoPairs      bool             // the beginning and the end of each pair are not logged
	ResumeWithin time.Duration    // how long connections outlive a break of their link; 0: link.DetachLimit. For links to come
	// ProxyProtocolFrom are the addresses of balancers, of which a header of the PROXY protocol is required at every port for users.
	ProxyProtocolFrom []netip.Prefix
}

// Apply puts settings in force, whole. When it returns, no new user enters under the old ones, and what a key that is gone held has
// ended: links, listeners and connections. What is equal keeps its route, socket, connections and counters. An error is that of Settled.
func (p *Proxy) Apply(ctx context.Context, set Settings) error {
	p.applying.Lock()
	defer p.applying.Unlock()
	p.setKeys(set) // first: a bridge whose key is gone does not come back
	p.registry.Configure(p.policy(set))
	if p.port.host != nil {
		p.port.host.SetDetach(set.ResumeWithin)
	}
	return p.Settled(ctx)
}

// Settled returns when everything that the present settings ask for is done. With an error from ctx they are in force all the
// same, and sockets or words to bridges are on their way.
func (p *Proxy) Settled(ctx context.Context) error {
	if p.life.running.Load() {
		return p.registry.Done(ctx)
	}
	return nil // nobody has a session
}

func (p *Proxy) setKeys(set Settings) {
	if set.Drain == 0 {
		set.Drain = DefaultDrain
	}
	set.Drain = max(set.Drain, 0)
	limits := make(map[[16]byte]traffic.Limits, len(set.Keys))
	for _, k := range set.Keys {
		limits[k.ID] = traffic.Limits{Connections: k.MaxConnections}
	}
	p.conns.SetKeys(limits)
	p.conns.LogPairs(!set.NoPairs)
	p.balancers.from.Store(&set.ProxyProtocolFrom)
	p.sayExpiry(p.putKeys(set))
}

func (p *Proxy) putKeys(set Settings) (news []expiryNews) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.keys
	p.set = set
	p.keys = make(map[[16]byte]Key, len(set.Keys))
	for _, k := range set.Keys {
		p.keys[k.ID] = k
	}
	p.keepNames(before)
	p.keepSecrets(before)
	news = p.markExpired(before)
	p.drains = slices.DeleteFunc(slices.Clone(p.drains), func(d registry.Drain) bool { // or nobody could undo it
		_, still := p.keys[d.Key]
		return d.Allow == (grammar.Allow{}) && !still
	})
	for id := range p.duplicates {
		if _, still := p.keys[id]; !still {
			delete(p.duplicates, id)
		}
	}
	return news
}

// policy is what the registry needs to know of the settings.
func (p *Proxy) policy(set Settings) registry.Policy {
	rp := registry.Policy{Offer: set.Offer, Given: set.Given, Names: p.cfg.Names}
	p.mu.Lock()
	expired, rotation := p.expired, p.rotation // which are never changed
	rp.Drained = slices.Clone(p.drains)
	p.mu.Unlock()
	for _, k := range set.Keys {
		if expired[k.ID] {
			continue // as if it were not there
		}
		rp.Keys = append(rp.Keys, registry.Key{
			ID: k.ID, Incarnation: rotation[k.ID].incarnation, Name: k.Name, Allow: k.Allow, MaxServices: k.MaxServices,
		})
	}
	rp.Bind = p.cfg.Bind
	if p.port.ln != nil {
		rp.Own = append(rp.Own, portOf(p.Addr()))
	}
	if p.port.carrier != nil {
		rp.Own = append(rp.Own, portOf(p.TransferAddr()))
	}
	if p.names.ln != nil {
		rp.Own = append(rp.Own, portOf(p.names.ln.Addr()))
		rp.Named = append(rp.Named, grammar.KindTLS)
		if p.cfg.Certificates != nil {
			rp.Named = append(rp.Named, grammar.KindHTTPS)
		}
	}
	if p.web.ln != nil {
		rp.Own = append(rp.Own, portOf(p.web.ln.Addr()))
		rp.Named = append(rp.Named, grammar.KindHTTP)
	}
	return rp
}

func (p *Proxy) settings() Settings {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.set
}

func (p *Proxy) secret(id [16]byte) (secret [32]byte, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.keys[id]
	return k.Secret, ok
}

// mostRemoved is how many names of removed keys are kept. Whoever counts asks for one within seconds, and keeps it.
const mostRemoved = 4096

// keepNames keeps the names of keys that were removed. mu is held.
func (p *Proxy) keepNames(before map[[16]byte]Key) {
	for id, k := range before {
		if _, still := p.keys[id]; still {
			continue
		}
		if len(p.removed) >= mostRemoved {
			clear(p.removed)
		}
		p.removed[id] = k.Name
	}
}

// KeyName is what people call a key, or called it when it was removed a short time ago; "" if it is not known.
func (p *Proxy) KeyName(id [16]byte) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, there := p.keys[id]; there {
		return k.Name
	}
	return p.removed[id]
}

func (p *Proxy) keyName(id [16]byte) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[id].Name
}

// logName names a key in the log: by its id, as `reverser key list` does, when it was removed.
func (p *Proxy) logName(id [16]byte) string {
	return cmp.Or(p.keyName(id), hex.EncodeToString(id[:4]))
}
