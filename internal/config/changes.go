package config

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

// Changes says, for people, what is different in next. An option that is read at the start only is refused when it differs:
// the error names it, and where next has it.
func (set Settings) Changes(next Settings) ([]string, error) {
	c := changes{old: set, next: next}
	c.fixed("state", cmp.Or(set.State, "the default directory"), cmp.Or(next.State, "the default directory"))
	c.fixed("trust_owner", owners(set.TrustOwner), owners(next.TrustOwner))
	c.fixed("log_format", cmp.Or(set.LogFormat, "text"), cmp.Or(next.LogFormat, "text"))
	c.value("log_level", strings.ToLower(set.LogLevel.String()), strings.ToLower(next.LogLevel.String()))
	c.value("access_log", cmp.Or(set.AccessLog, "none"), cmp.Or(next.AccessLog, "none"))
	c.value("pairs", strconv.FormatBool(!set.NoPairs), strconv.FormatBool(!next.NoPairs))
	c.value("drain", duration(set.Drain), duration(next.Drain))
	c.fixed("acme_email", cmp.Or(set.ACME.Email, "none"), cmp.Or(next.ACME.Email, "none"))
	c.fixed("acme_directory", cmp.Or(set.ACME.Directory, "the default one"), cmp.Or(next.ACME.Directory, "the default one"))
	c.fixed("acme_root", cmp.Or(set.ACME.Root, "none"), cmp.Or(next.ACME.Root, "none"))
	c.admin(set.Admin, next.Admin)
	if !slices.EqualFunc(set.Notify, next.Notify, Notify.equal) {
		c.say("notify has other tables")
	}
	if set.Role == RoleProxy {
		c.proxy(set.Proxy, next.Proxy)
	} else {
		c.bridge(set.Bridge, next.Bridge)
	}
	return c.said, errors.Join(c.refused...)
}

type changes struct {
	old, next Settings
	said      []string
	refused   []error
}

func (c *changes) proxy(old, next Proxy) {
	c.fixed("listen", old.Listen, next.Listen)
	c.fixed("transfer", cmp.Or(old.Transfer, "none"), cmp.Or(next.Transfer, "none"))
	c.fixed("http", cmp.Or(old.HTTP, "none"), cmp.Or(next.HTTP, "none"))
	c.fixed("https", cmp.Or(old.HTTPS, "none"), cmp.Or(next.HTTPS, "none"))
	c.fixed("bind", cmp.Or(old.Bind, "every address"), cmp.Or(next.Bind, "every address"))
	c.value("resume_within", duration(c.old.ResumeWithin), duration(c.next.ResumeWithin))
	c.value("advertise", cmp.Or(old.Advertise, "none"), cmp.Or(next.Advertise, "none"))
	c.value("sni", cmp.Or(old.SNI, "none"), cmp.Or(next.SNI, "none"))
	c.value("proxy_protocol_from", list(old.ProxyProtocolFrom, "nobody"), list(next.ProxyProtocolFrom, "nobody"))

	c.given(old.Given, next.Given)
	was, is := make(map[string]Key), make(map[string]Key)
	for _, k := range old.Keys {
		was[k.Name] = k
	}
	for _, k := range next.Keys {
		is[k.Name] = k
	}
	for _, name := range names(was, is) {
		a, before := was[name]
		b, after := is[name]
		switch {
		case !before:
			c.say("key %s added, allowed %s%s", name, b.Allow, withLimit(b))
		case !after:
			c.say("key %s removed", name)
		case a.ID != b.ID || a.Secret != b.Secret:
			c.say("key %s has another token, allowed %s%s", name, b.Allow, withLimit(b))
		default:
			if a.InFile() != b.InFile() { // who may change it from now on
				c.say("key %s %s", name, map[bool]string{true: "stands in the file", false: "stands in the file no longer"}[b.InFile()])
			}
			if a.Allow.String() != b.Allow.String() {
				c.say("key %s allowed %s instead of %s", name, b.Allow, a.Allow)
			}
			if a.MaxServices != b.MaxServices {
				c.say("max_services of key %s is %s instead of %s", name, atMost(b.MaxServices), atMost(a.MaxServices))
			}
			if !a.Expires.Equal(b.Expires) {
				c.say("key %s expires %s instead of %s", name, expiry(b.Expires), expiry(a.Expires))
			}
			if a.MaxConnections != b.MaxConnections {
				c.say("max_connections of key %s is %s instead of %s", name, atMost(b.MaxConnections), atMost(a.MaxConnections))
			}
		}
	}
	for _, public := range next.Offer {
		if !slices.Contains(old.Offer, public) {
			c.say("port %s offered", public)
		}
	}
	for _, public := range old.Offer {
		if !slices.Contains(next.Offer, public) {
			c.say("port %s offered no longer", public)
		}
	}
}

func (c *changes) bridge(old, next Bridge) {
	c.fixed("resume_within", duration(c.old.ResumeWithin), duration(c.next.ResumeWithin))
	const tokens = "the token's address"
	c.fixed("proxy", cmp.Or(strings.Join(old.Proxies, ", "), tokens), cmp.Or(strings.Join(next.Proxies, ", "), tokens))
	c.fixed("proxy_transfer", cmp.Or(old.ProxyTransfer, "none"), cmp.Or(next.ProxyTransfer, "none"))
	c.fixed("sni", cmp.Or(old.SNI, "the token's"), cmp.Or(next.SNI, "the token's"))
	c.sayVia(old.Via, next.Via)
	c.fixed("keepalive", duration(old.Keepalive), duration(next.Keepalive))
	c.value("source", list(old.Sources, "the system's choice"), list(next.Sources, "the system's choice"))
	switch same := old.Token.KeyID == next.Token.KeyID && old.Token.Pin == next.Token.Pin; {
	case old.Token.Encode() == next.Token.Encode():
	case same && old.Token.Secret != next.Token.Secret:
		c.say("token is a newer one of the same key")
	case same: // what else is in it counts at the next start, and needs no word: the proxies are reached
	default:
		place, ok := c.next.Origin["token_file"]
		if !ok {
			place = c.place("token")
		}
		c.refuse(place, "another token")
	}

	was, is := make(map[string]grammar.Expose), make(map[string]grammar.Expose)
	for _, e := range old.Services {
		was[e.Public.String()] = e
	}
	for _, e := range next.Services {
		is[e.Public.String()] = e
	}
	for _, public := range names(was, is) {
		a, before := was[public]
		b, after := is[public]
		switch {
		case !before:
			c.say("service %s added, target %s", public, b.Target)
		case !after:
			c.say("service %s removed", public)
		case a.Target != b.Target:
			c.say("service %s has target %s instead of %s", public, b.Target, a.Target)
		case !a.Options.Equal(b.Options):
			c.say("service %s has other options", public)
		default:
			c.certificate(public, old.Certificates[a.Public], next.Certificates[b.Public])
		}
	}
}

// certificate says that the files of a service have another certificate.
func (c *changes) certificate(public string, old, next *tls.Certificate) {
	if old == nil || next == nil || slices.EqualFunc(old.Certificate, next.Certificate, bytes.Equal) {
		return
	}
	c.say("service %s has another certificate, valid until %s UTC", public, next.Leaf.NotAfter.UTC().Format(time.DateTime))
}

// given are the certificates of a proxy from files.
func (c *changes) given(old, next []Given) {
	find := func(list []Given, chain string) *tls.Certificate {
		for _, g := range list {
			if g.Chain == chain {
				return g.Certificate
			}
		}
		return nil
	}
	for _, g := range next {
		switch was := find(old, g.Chain); {
		case was == nil:
			c.say("certificate of %s from %s", strings.Join(g.Names, ", "), g.Chain)
		case !slices.EqualFunc(was.Certificate, g.Certificate.Certificate, bytes.Equal):
			c.say("another certificate of %s from %s, valid until %s UTC", strings.Join(g.Names, ", "), g.Chain, g.Certificate.Leaf.NotAfter.UTC().Format(time.DateTime))
		}
	}
	for _, g := range old {
		if find(next, g.Chain) == nil {
			c.say("no certificate of %s from %s any more", strings.Join(g.Names, ", "), g.Chain)
		}
	}
}

func (c *changes) say(format string, args ...any) {
	c.said = append(c.said, fmt.Sprintf(format, args...))
}

// value is an option that may change.
func (c *changes) value(option, old, next string) {
	if old != next {
		c.say("%s is %s instead of %s", option, next, old)
	}
}

// fixed is an option that may not.
func (c *changes) fixed(option, old, next string) {
	if old != next {
		c.refuse(c.place(option), fmt.Sprintf("a change from %s to %s", old, next))
	}
}

func (c *changes) refuse(p Place, what string) {
	c.refused = append(c.refused, &Error{File: p.File, Line: p.Line, Key: p.Key, Text: what + " needs a restart", Hint: "put the old value back to reload the rest", Err: ErrNeedsRestart})
}

// ErrNeedsRestart is what errors.Is finds when an option was changed that is read at the start only.
var ErrNeedsRestart = errors.New("needs a restart")

// place is where an option stands now or, when it stands there no longer, the file in which it stood.
func (c *changes) place(option string) Place {
	if p, ok := c.next.Origin[option]; ok {
		return p
	}
	p := c.old.Origin[option]
	p.Line = 0
	p.Key = cmp.Or(p.Key, option)
	p.File = cmp.Or(p.File, "the configuration")
	return p
}

// list is a list as people read it; none is what an empty one means.
func list[T fmt.Stringer](all []T, none string) string {
	if len(all) == 0 {
		return none
	}
	words := make([]string, len(all))
	for i, v := range all {
		words[i] = v.String()
	}
	return strings.Join(words, ", ")
}

// owners are users whose files are taken, as people read them.
func owners(uids []int) string {
	if len(uids) == 0 {
		return "nobody"
	}
	words := make([]string, len(uids))
	for i, uid := range uids {
		words[i] = strconv.Itoa(uid)
	}
	return strings.Join(words, ", ")
}

// atMost is a limit as people read it.
func atMost(n int) string {
	if n == 0 {
		return "without limit"
	}
	return strconv.Itoa(n)
}

// expiry is when a key expires, as people read it.
func expiry(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return "at " + at.UTC().Format(time.RFC3339)
}

func withLimit(k Key) string {
	if k.Limits == (state.Limits{}) {
		return ""
	}
	return fmt.Sprintf(", %s at once", k.Limits)
}

// duration is a limit as people write it; what nobody gave is the role's own.
func duration(d time.Duration) string {
	switch {
	case d == 0:
		return "the default"
	case d < 0:
		return "0s"
	}
	return d.String()
}

// names are the keys of both maps, in order.
func names[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}
