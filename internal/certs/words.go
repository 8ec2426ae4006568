package certs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"reverser/internal/escape"
)

// failure is why a certificate was not obtained.
type failure struct {
	at      time.Time
	text    string // in the authority's words, where it said something
	hint    string // what to do
	limited bool   // the authority was asked too often
	final   bool   // it would say the same again
}

// mostSaid is how much of an authority's words is kept.
const mostSaid = 600

// explain says what an error means for whoever runs this program.
func (m *Manager) explain(ctx context.Context, host string, err error) *failure {
	f := &failure{at: time.Now()}
	_, noDirectory := errors.AsType[*directoryError](err)
	unreached, isUnreached := errors.AsType[*url.Error](err)
	problem, said := errors.AsType[acme.Problem](err)
	switch {
	case isUnreached:
		at, why := m.cfg.Directory, unreached.Err.Error() // around it stands what the library did
		if unreached.URL != at {
			at = fmt.Sprintf("%s, asked at %s,", at, unreached.URL)
		}
		f.text = short(fmt.Sprintf("the authority at %s cannot be reached: %s", at, why))
		f.hint = "see that this machine reaches it, and that --acme-root has the root of its certificate if that is not a public one"
		return f
	case noDirectory:
		f.text = fmt.Sprintf("%s is no ACME directory: %s", m.cfg.Directory, short(err.Error()))
		f.hint = "give the URL of one with --acme-directory"
		return f
	case !said:
		f.text, f.hint = short(err.Error()), "it is asked again later"
		return f
	}
	f.text = words(problem)
	kind := strings.TrimPrefix(problem.Type, acme.ProblemTypeNamespace)
	ports := m.ports()
	switch kind {
	case "connection", "unauthorized", "incorrectResponse", "tls":
		where, own := whereTo(ctx, host)
		switch {
		case own:
			f.hint = fmt.Sprintf("the authority must reach %s of %s: see to firewalls and forwardings on the way", ports, host)
		case where == "":
			f.hint = fmt.Sprintf("%s has no address that can be found here: make an A or AAAA record for it that leads to this proxy", host)
		case kind == "connection":
			f.hint = fmt.Sprintf("%s points to %s: if that is not the proxy, change the record; if it is, the authority must reach %s there", host, where, ports)
		default:
			f.hint = fmt.Sprintf("somebody else answered: %s points to %s; the record must lead to the proxy, and %s there to its --https (and --http)", host, where, ports)
		}
	case "dns":
		f.hint = fmt.Sprintf("make an A or AAAA record for %s that leads to the proxy", host)
		if where, own := whereTo(ctx, host); where != "" && !own {
			f.hint += fmt.Sprintf("; seen from here it points to %s", where)
		}
	case "rateLimited":
		f.limited = true
		f.hint = "the authority was asked too often: it is asked again later, at most once an hour"
	case "caa":
		f.hint = fmt.Sprintf("a CAA record of %s, or of a domain above it, does not allow this authority: add the authority to it", host)
	case "rejectedIdentifier", "unsupportedIdentifier":
		f.hint = fmt.Sprintf("this authority issues nothing for %s: use another --acme-directory, or another name", host)
	case "externalAccountRequired":
		f.hint = "this authority wants an account that was made on its site, which is not supported: use another --acme-directory"
	case "invalidContact", "unsupportedContact":
		f.hint = "give another address with --acme-email"
	case "userActionRequired":
		f.hint = "the authority wants its operator's consent: see what it says"
	default:
		f.hint = "it is asked again later"
	}
	switch kind {
	case "rejectedIdentifier", "unsupportedIdentifier", "malformed":
		// The rules of public authorities (Baseline Requirements of the CA/Browser Forum) allow no underscore. One of one's own may: so it is asked.
		if f.final = strings.Contains(host, "_"); f.final {
			f.hint = "no public authority issues a certificate for a name with _ in it: use another name, or give a certificate from files; `reverser reload` has it asked for again, and nothing else does"
		}
	}
	return f
}

// ports are where the authority looks for a proof.
func (m *Manager) ports() string {
	switch {
	case m.cfg.HTTP && m.cfg.TLS:
		return "port 443 or 80"
	case m.cfg.HTTP:
		return "port 80"
	}
	return "port 443"
}

// words are an authority's, cut.
func words(p acme.Problem) string {
	s := fmt.Sprintf("%s: %s", strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace), p.Detail)
	for _, sub := range p.Subproblems {
		s += fmt.Sprintf("; %s: %s", strings.TrimPrefix(sub.Type, acme.ProblemTypeNamespace), sub.Detail)
	}
	return short(s)
}

// short makes a text harmless, and cuts it.
func short(s string) string {
	if len(s) > mostSaid {
		s = strings.ToValidUTF8(s[:mostSaid], "") + "…"
	}
	return escape.Text(s)
}

// whereTo is where a host leads, as this machine sees it. An address of its own leads to itself.
func whereTo(ctx context.Context, host string) (where string, own bool) {
	if _, err := netip.ParseAddr(host); err == nil {
		return host, true
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", false
	}
	var list []string
	for _, a := range addrs[:min(len(addrs), 8)] {
		if s := a.Unmap().String(); !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return strings.Join(list, " and "), false
}
