package proxy

import (
	"errors"

	"reverser/internal/entrance"
	"reverser/internal/registry"
	"reverser/internal/relay"
	"reverser/internal/traffic"
	"reverser/internal/wire"
)

// effects does what the registry decided: see registry.Doer. Nothing here waits.
type effects struct{ *Proxy }

func (p effects) Open(s registry.Socket, attempt uint64) { p.entrances.Open(s, attempt) }
func (p effects) Close(s registry.Socket)                { p.entrances.Close(s) }

// Tell sends a CLAIMED. The bridge is to prove that the port answers when the service came up, and until it has.
func (p effects) Tell(t registry.Told) {
	answer := wire.Claimed{Status: t.Status, Public: t.Public.String(), Text: t.Bridge}
	if rt := p.registry.View().Find(t.Public); t.Status == wire.ClaimUp && rt != nil {
		answer.Nonce = p.service(rt).probes.Expect(t.Fresh)
	}
	linkOf(t.Way).Say(uint64(t.ID), wire.AppendClaimed(nil, t.ID, answer))
	if !t.News {
		return
	}
	switch public := t.Public.String(); t.Status {
	case wire.ClaimUp:
		p.say.info(t.Key, "service up", "service", public, "key", t.KeyName, "target", t.Asked.Target)
	case wire.ClaimDenied:
		p.say.warn(t.Key, "service denied", "service", t.Asked.Public, "key", t.KeyName, "reason", t.Reason)
	case wire.ClaimRetrying:
		p.say.warn(t.Key, "service cannot be opened, trying again", "service", public, "key", t.KeyName, "reason", t.Reason)
	}
}

// Unclaimed sends an UNCLAIMED.
func (p effects) Unclaimed(w registry.Way, id uint32) {
	linkOf(w).Say(uint64(id), wire.AppendUnclaimed(nil, id, w.Marks()))
}

// errKeyRemoved ends the links of a key.
var errKeyRemoved = errors.New("the key was removed")

// End resets the connections of a removed key. Its link goes when the bridge knows why, or it would learn no more than that the
// link is lost.
func (p effects) End(w registry.Way) {
	l := linkOf(w)
	p.conns.End(relay.ReasonRemoved, wire.CodeService, func(a *traffic.Admission) bool { return a.Key() == l.KeyID() })
	p.wg.Go(func() {
		l.Flush(lastWords)
		l.Kill(errKeyRemoved)
	})
}

// service is what the proxy keeps with a route.
type service struct {
	account *traffic.Account
	probes  entrance.Probes
}

func (p *Proxy) service(rt *registry.Route) *service {
	return rt.Data(func() any { return &service{account: p.conns.Account(rt.Key, rt.Public.String())} }).(*service)
}
