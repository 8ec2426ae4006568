package registry

import (
	"fmt"
	"slices"
	"strings"

	"reverser/internal/grammar"
	"reverser/internal/wire"
)

// KeyID names a key.
type KeyID [16]byte

// Policy says who may have what. Configure takes it whole and never changes it.
type Policy struct {
	Keys  []Key
	Offer []grammar.Public // public ports that the proxy owns; each goes to a claim of grammar.KindOffered whose key allows it
	Own   []uint16         // ports of the process itself, which no claim gets
	Named []grammar.Kind   // kinds whose names share a port of the process itself, which is open
	Bind  string           // address of public ports that have none of their own; "": every one. What New or Thaw was given stays
	Given []string         // names of the certificates from files; of a wildcard none comes by itself
	Names int              // how many names without sockets are held at most, see crowd.go; 0: no limit
	// Drained are the names that let no newcomers in.
	Drained []Drain
}

// Drain says which names let no newcomers in: those that Allow means, or all of a key.
type Drain struct {
	Allow grammar.Allow
	Key   KeyID
}

// Means reports whether d is about a name of a key.
func (d Drain) Means(pub grammar.Public, key KeyID) bool {
	return d.Allow.Means(pub) || d.Allow == (grammar.Allow{}) && d.Key == key
}

// DrainedText is why a service that is drained lets nobody in.
const DrainedText = "drained by the operator of the proxy: it takes no new users"

// at is where users of a name connect.
func (p *policy) at(pub grammar.Public) grammar.Public { return pub.At(p.Bind) }

// twin is the other name of the very same port: with Bind, one names the address and the other does not. There is none without Bind.
func (p *policy) twin(pub grammar.Public) (twin grammar.Public, ok bool) {
	switch {
	case p.Bind == "" || pub.Kind != grammar.KindTCP:
		return grammar.Public{}, false
	case pub.Host == "":
		return p.at(pub), true
	case pub.Host == p.Bind:
		pub.Host = ""
		return pub, true
	}
	return grammar.Public{}, false
}

// drains reports whether a name of a key lets no newcomers in.
func (p *policy) drains(pub grammar.Public, key KeyID) bool {
	return slices.ContainsFunc(p.Drained, func(d Drain) bool { return d.Means(pub, key) })
}

// Key is what one key may do.
type Key struct {
	ID          KeyID
	Incarnation [32]byte // another value under the same ID is another key; for example a hash of the secret
	Name        string
	Allow       grammar.Policy
	Groups      []string // groups of bridges that it may join
	MaxServices int      // names at once, as sizeOf counts them; the earliest ones have the places. 0: no limit
}

func (k *Key) equal(o *Key) bool {
	return k.Incarnation == o.Incarnation && k.Name == o.Name && k.MaxServices == o.MaxServices &&
		slices.Equal(k.Allow, o.Allow) && slices.Equal(k.Groups, o.Groups)
}

// Claim is what a bridge asks for under a claim id.
type Claim struct {
	Public    string // PUBLIC, as the bridge wrote it
	Target    string // for display
	Group     string // of bridges that share the name; "": the key alone has it
	Weight    uint32 // share of the newcomers; 0 counts as 1
	Unhealthy bool   // gets newcomers when no other does
	Drained   bool   // gets no newcomers
	Unknown   uint8  // a critical field of the claim that this program does not know; 0: none
	Options   string // for grammar.ParseProxyOptions
}

// ClaimOf is what a CLAIM asks for.
func ClaimOf(c wire.Claim) Claim {
	return Claim{
		Public: c.Public, Target: c.Target, Group: c.Group, Weight: c.Weight, Unhealthy: c.Health == wire.HealthBad,
		Drained: c.Drained, Unknown: c.Unknown, Options: string(c.Options),
	}
}

// Why is a reason for which a claim is not up.
type Why uint8

// The reasons. WhyNone stands with ClaimUp.
const (
	WhyNone     Why = iota
	WhyDenied       // the policy does not allow it; the text says more
	WhyStopping     // the proxy is stopping
	WhyTwice        // another claim of the same session has the name
	WhyHeld         // another key has the name
	WhyOverlap      // a name of which the address covers this one is held
	WhyLimit        // a limit of the key
	WhyReplaced     // a newer session of the key took over
	WhySocket       // the socket could not be opened
	WhyShort        // the key has its share of the proxy's descriptors
	WhyCrowded      // the key has its share of the names for which the proxy has memory
)

// judge sets what the policy says of a claim: the name that it is for, or why it is denied.
func (p *policy) judge(c *claim) {
	c.public, c.denied = grammar.Public{}, ""
	key := p.keys[c.session.key]
	pub, err := grammar.ParsePublic(c.asked.Public)
	if err != nil {
		c.denied = fmt.Sprintf("denied: %s", err)
		return
	}
	if pub.Kind == grammar.KindOffered {
		if len(p.Offer) == 0 {
			c.denied = fmt.Sprintf("%s denied: the proxy offers no public port: WorkPort in its file does, or the bridge names one that key %q is allowed (%s)", pub, key.Name, key.Allow)
			return
		}
		// Where the key is allowed none of them, the first one is denied as if the bridge had named it.
		pub = p.Offer[max(0, slices.IndexFunc(p.Offer, key.Allow.Permits))]
	}
	c.public = pub
	_, wrong := grammar.ParseProxyOptions([]byte(c.asked.Options))
	switch {
	case c.asked.Unknown != 0:
		c.denied = fmt.Sprintf("%s denied: the bridge asks for something that this proxy does not know (field %d of its claim): update the proxy", pub, c.asked.Unknown)
	case !key.Allow.Permits(pub):
		c.denied = fmt.Sprintf("%s denied: the policy of key %q allows %s", pub, key.Name, key.Allow)
	case !p.serves(pub):
		c.denied = fmt.Sprintf("%s denied: %s", pub, missingEntrance(pub.Kind))
	case !p.certifies(pub):
		c.denied = fmt.Sprintf("%s denied: no certificate for a wildcard comes by itself: give the proxy one ([[certificate]] in its file), or claim each host", pub)
	case slices.Contains(p.Own, pub.Port):
		c.denied = fmt.Sprintf("%s denied: the link itself uses this port", pub)
	case wrong != nil:
		c.denied = fmt.Sprintf("%s denied: %s", pub, wrong)
	case c.asked.Group != "" && !slices.Contains(key.Groups, c.asked.Group):
		c.denied = fmt.Sprintf("%s denied: key %q is not in group %q", pub, key.Name, c.asked.Group)
	}
}

// serves reports whether this proxy has what the kind of a name needs.
func (p *policy) serves(pub grammar.Public) bool {
	return pub.Kind == grammar.KindTCP || slices.Contains(p.Named, pub.Kind)
}

// certifies reports whether the proxy has a certificate for a name, or gets one by itself.
func (p *policy) certifies(pub grammar.Public) bool {
	switch {
	case pub.Kind != grammar.KindHTTPS || !strings.HasPrefix(pub.Host, "*"):
		return true
	case pub.Host == "*": // for each host that one of them is for
		return len(p.Given) > 0
	}
	return slices.Contains(p.Given, pub.Host)
}

// missingEntrance says why names of a kind are not served.
func missingEntrance(k grammar.Kind) string {
	if k == grammar.KindTLS || k == grammar.KindHTTPS {
		return "the proxy has no port for names: start it with --https ADDR, such as --https :443"
	}
	if k == grammar.KindHTTP {
		return "the proxy has no port for HTTP: start it with --http ADDR, such as --http :80"
	}
	return "this proxy serves tcp/, http/, https/ and tls/ only"
}

// admits reports whether the key that a session proved is still there.
func (p *policy) admits(s *session) bool {
	key := p.keys[s.key]
	return key != nil && key.Incarnation == s.secret
}

// permits reports whether a session's key may still have a name that it inherited.
func (p *policy) permits(s *session, pub grammar.Public) bool {
	key := p.keys[s.key]
	return key.Allow.Permits(pub) && p.serves(pub) && p.certifies(pub) && !slices.Contains(p.Own, pub.Port)
}

// policy is a Policy with an index.
type policy struct {
	Policy
	keys map[KeyID]*Key
}

func newPolicy(p Policy) *policy {
	np := &policy{Policy: p, keys: make(map[KeyID]*Key, len(p.Keys))}
	for i := range p.Keys {
		np.keys[p.Keys[i].ID] = &p.Keys[i]
	}
	return np
}
