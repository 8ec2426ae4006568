package grammar

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Allow is one rule about what a key may publish. It is comparable.
type Allow struct {
	Kind Kind
	// Host is, for tcp and udp, the one bind address that the rule covers, or ""
	// for every one; for http, https and tls a host name, "*.example.com" for one
	// label in front of example.com, or "*" for any, or an IP address of http
	// and https; for private the name, or "*" for any.
	Host string
	// Low and High are the first and the last port of tcp and udp.
	Low, High uint16
	// Path is for http and https the path that the rule covers, with all that is
	// below. "" is every path.
	Path string
}

// ParseAllow parses a rule: the PUBLIC form with port ranges (tcp/9000-9010)
// and wildcards (http/*.example.com, http/*, private/*). It takes every kind: a key may
// be allowed more than this version serves.
func ParseAllow(s string) (Allow, error) {
	a, err := parseAllow(s)
	return a, explain("allow", s, err, func(s string) bool { _, err := parseAllow(s); return err == nil }, meantAllow)
}

// ParseServices parses what chooses services: the form of a rule, in words about services.
func ParseServices(s string) (Allow, error) {
	if s == "" {
		return Allow{}, errors.New("service is empty: give the PUBLIC of one or several, such as tcp/9000, tcp/9000-9010 or http/*.example.com")
	}
	a, err := ParseAllow(s)
	if err == nil {
		return a, nil
	}
	if rest, ok := strings.CutPrefix(err.Error(), "allow "); ok {
		err = errors.New("service " + rest)
	}
	return Allow{}, err
}

func parseAllow(s string) (Allow, error) {
	if s == "" {
		return Allow{}, errors.New("allow is empty: give what the key may publish, such as tcp/9000 or tcp/9000-9010")
	}
	if s == string(KindOffered) {
		return Allow{}, fmt.Errorf("allow %q: name the port that the proxy offers, such as tcp/9000", s)
	}
	kind, rest, err := cutKind(s)
	if err != nil {
		// The grammar is that of PUBLIC, but the word must be the option's.
		return Allow{}, errors.New("allow" + strings.TrimPrefix(err.Error(), "public"))
	}
	if m := meantAllow(s); m != s && kind == KindTCP { // a port before a colon is no bind address here
		if _, err := parseAllow(m); err == nil {
			return Allow{}, fmt.Errorf("allow %q: write %s", s, m)
		}
	}
	a := Allow{Kind: kind}
	switch kind {
	case KindTCP, KindUDP:
		err = a.parsePorts(rest)
	case KindPrivate:
		if a.Host = rest; rest != "*" {
			a.Host, err = parsePrivate(rest)
		}
	default:
		a.Host, a.Path, err = parseName(kind, rest)
	}
	if err != nil {
		return Allow{}, fmt.Errorf("allow %q: %w", s, err)
	}
	return a, nil
}

// ParsePolicy parses the rules of a key, each one once. A key with no rule is refused.
func ParsePolicy(list []string) (Policy, error) {
	if len(list) == 0 {
		return nil, errors.New("a key needs at least one --allow: nothing is allowed that is not listed")
	}
	var policy Policy
	for _, s := range list {
		a, err := ParseAllow(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(policy, a) {
			policy = append(policy, a)
		}
	}
	return policy, nil
}

func (a *Allow) parsePorts(s string) error {
	if s == "*" {
		return fmt.Errorf("write %s/1-65535 for every port", a.Kind)
	}
	host, ports, err := cutBind(a.Kind, s)
	if err != nil {
		return err
	}
	a.Host = host
	low, high, isRange := strings.Cut(ports, "-")
	if !isRange || low == "" { // "-1" is a bad port, not a range
		a.Low, err = ParsePort(ports)
		a.High = a.Low
		return err
	}
	if a.Low, err = ParsePort(low); err != nil {
		return err
	}
	if a.High, err = ParsePort(high); err != nil {
		return err
	}
	if a.Low > a.High {
		return fmt.Errorf("the range %s runs backwards: write %s-%s", ports, high, low)
	}
	return nil
}

// String is the canonical form, which parses to the same rule.
func (a Allow) String() string {
	switch a.Kind {
	case KindTCP, KindUDP:
		ports := fmt.Sprint(a.Low)
		if a.High != a.Low {
			ports += fmt.Sprintf("-%d", a.High)
		}
		return string(a.Kind) + "/" + bindString(a.Host, ports)
	case "":
		return ""
	default:
		return string(a.Kind) + "/" + HostString(a.Host) + a.Path
	}
}

// MarshalText writes the canonical form, so that a Policy is a list of strings
// in JSON and TOML.
func (a Allow) MarshalText() ([]byte, error) {
	if a.Kind == "" {
		return nil, errors.New("an empty rule has no text form")
	}
	return []byte(a.String()), nil
}

// UnmarshalText parses like ParseAllow.
func (a *Allow) UnmarshalText(b []byte) (err error) {
	*a, err = ParseAllow(string(b))
	return err
}

// Permits reports whether the rule covers p. The proxy asks for the port that
// it offers, never for KindOffered itself, which no rule covers.
func (a Allow) Permits(p Public) bool {
	if a.Kind == "" || a.Kind != p.Kind {
		return false
	}
	switch a.Kind {
	case KindTCP, KindUDP:
		return (a.Host == "" || a.Host == p.Host) && a.Low <= p.Port && p.Port <= a.High
	case KindHTTP, KindHTTPS, KindTLS:
		if !Covers(a.Path, p.Path) {
			return false
		}
		if a.Host == "*" {
			return p.Host != ""
		}
		if base, wild := strings.CutPrefix(a.Host, "*."); wild {
			label, rest, ok := strings.Cut(p.Host, ".")
			return ok && label != "" && rest == base
		}
	case KindPrivate:
		if a.Host == "*" {
			return p.Host != ""
		}
	}
	return a.Host == p.Host
}

// Means reports whether p is one of the services that the rule names in an order of an operator, such as to drain. It is Permits, but a HOST
// without a wildcard is the service at that very path: a key that may publish a host may publish its paths, and to drain the one is not
// to drain the other.
func (a Allow) Means(p Public) bool {
	return a.Permits(p) && (a.Path == p.Path || strings.HasPrefix(a.Host, "*"))
}

// Policy is everything that a key may publish. Nothing is allowed that it does
// not list.
type Policy []Allow

// DefaultPolicy is that of the key which a new proxy makes: every public TCP
// port that needs no privilege.
func DefaultPolicy() Policy {
	return Policy{{Kind: KindTCP, Low: 1024, High: 65535}}
}

// Permits reports whether one of the rules covers p.
func (ps Policy) Permits(p Public) bool {
	for _, a := range ps {
		if a.Permits(p) {
			return true
		}
	}
	return false
}

// Within reports whether the policy gives nothing that outer does not.
func (ps Policy) Within(outer Policy) bool {
	for _, a := range ps {
		if !outer.covers(a) {
			return false
		}
	}
	return true
}

// covers reports whether the rules permit everything that a does. A range of ports may be covered by several of them.
func (ps Policy) covers(a Allow) bool {
	if a.Kind != KindTCP && a.Kind != KindUDP {
		return slices.ContainsFunc(ps, func(o Allow) bool { return o.coversName(a) })
	}
	for next := int(a.Low); next <= int(a.High); {
		i := slices.IndexFunc(ps, func(o Allow) bool {
			return o.Kind == a.Kind && (o.Host == "" || o.Host == a.Host) && int(o.Low) <= next && next <= int(o.High)
		})
		if i < 0 {
			return false
		}
		next = int(ps[i].High) + 1
	}
	return true
}

// coversName is covers for one rule about names.
func (a Allow) coversName(o Allow) bool {
	if a.Kind != o.Kind || !Covers(a.Path, o.Path) {
		return false
	}
	if a.Host == "*" || a.Host == o.Host {
		return true
	}
	return !strings.HasPrefix(o.Host, "*") && a.Permits(Public{Kind: o.Kind, Host: o.Host, Path: o.Path})
}

// String lists the rules, as in "tcp/9000, tcp/9100-9110".
func (ps Policy) String() string {
	if len(ps) == 0 {
		return "nothing"
	}
	var b strings.Builder
	for i, a := range ps {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	return b.String()
}
