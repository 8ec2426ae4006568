package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"reverser/internal/status"
)

// asked are the checks of the process that runs, which only it can make. It is asked once for all steps: is reports which of its checks
// belong to the one with this name.
func (v *visit) asked(ctx context.Context, name string, is func(check string) bool) (mine []Check) {
	if v.Snapshot == nil || v.Ask == nil {
		return nil
	}
	v.asking.Do(func() { v.answer, v.answerErr = v.Ask(ctx) })
	switch {
	case errors.Is(v.answerErr, errors.ErrUnsupported):
		return []Check{skip(name, "the process that runs is of a version that cannot look at that for itself")}
	case v.answerErr != nil:
		return []Check{skip(name, "the process that runs does not say: %v", v.answerErr)}
	}
	for _, c := range v.answer {
		if is(c.Name) {
			mine = append(mine, c)
		}
	}
	return mine
}

const stepPublic = "public ports"

// publicPorts are tried by the proxy that runs.
func (w *World) publicPorts(ctx context.Context, v *visit) []Check {
	return v.asked(ctx, stepPublic, func(name string) bool { return name != stepAdvertised })
}

// PublicPorts says what a proxy found that tried its own public ports. What it cannot reach itself may be reached by others all the same,
// as behind a router that does not lead it back: only a foreign answer is a failure.
func PublicPorts(t status.PublicTry) (all []Check) {
	answered, tried, proven := 0, 0, 0
	not := make(map[string]int)
	var good []Check
	for _, p := range t.Ports {
		what := fmt.Sprintf("%s at %s", p.Public, p.Addr)
		switch p.State {
		case status.TryNone:
			not[p.Text]++
			continue
		case status.TryAnswered:
			answered++
			if p.Bridge {
				proven++
			}
		case status.TryOther:
			all = append(all, fail(stepPublic, "let the name, or the router, lead here, or give --advertise the right address; where it is this machine, has the proxy, or this key, as many users as it may?",
				"%s is not answered by this proxy: %s", what, p.Text))
		default:
			if p.Bridge {
				good = append(good, ok(stepPublic, "%s does not answer this machine (%s), and answered its bridge when it came up", what, p.Text))
				break
			}
			all = append(all, warn(stepPublic, "does a firewall or the cloud's security group block the port? A router that does not let this machine reach itself by its public address is no fault",
				"%s does not answer this machine: %s", what, p.Text))
		}
		tried++
	}
	all = append(few(all, "public ports"), few(good, "public ports answered their bridges")...)
	if answered > 0 {
		all = append([]Check{ok(stepPublic, "%d of %d answered when this machine dialled them as users do, %d of these answered their bridges, too; a firewall of the provider shows from outside only", answered, tried, proven)}, all...)
	}
	for _, why := range slices.Sorted(maps.Keys(not)) {
		all = append(all, skip(stepPublic, "%s not tried: %s", count(not[why], "service"), why))
	}
	if t.Left > 0 {
		all = append(all, skip(stepPublic, "%d more were not tried: a sample is enough, and the time is short", t.Left))
	}
	return append(append(all, doors(t)...), certificatesShown(t)...)
}

const stepShown = "public names"

// doors says what a proxy found of the ports that names share, as PublicPorts does.
func doors(t status.PublicTry) (all []Check) {
	usual := map[string]string{"--http": "80", "--https": "443"}
	var good []string
	for _, d := range t.Doors {
		switch d.State {
		case status.TryAnswered:
			good = append(good, d.Public+" at "+d.Addr)
		case status.TryNone:
			all = append(all, skip(stepShown, "%s not tried: %s", d.Public, d.Text))
		case status.TryOther:
			all = append(all, fail(stepShown, "let the name, or the router, lead here, or give --advertise the right address",
				"%s at %s is not answered by this proxy: %s", d.Public, d.Addr, d.Text))
		default:
			hint := "does a firewall or the cloud's security group block the port? A router that does not let this machine reach itself by its public address is no fault"
			if _, port, _ := net.SplitHostPort(d.Addr); port != usual[d.Public] {
				hint += fmt.Sprintf(", nor is one that leads port %s to this port here", usual[d.Public])
			}
			all = append(all, warn(stepShown, hint, "%s at %s does not answer this machine: %s", d.Public, d.Addr, d.Text))
		}
	}
	if len(good) > 0 {
		all = append([]Check{ok(stepShown, "%s answered when this machine dialled as users do", strings.Join(good, " and "))}, all...)
	}
	return all
}

// certificatesShown says what a proxy found of the certificates that users are shown for https/ names.
func certificatesShown(t status.PublicTry) (all []Check) {
	var good []string
	var until time.Time // when the first of them ends
	for _, c := range t.Certificates {
		switch c.State {
		case status.TryAnswered:
			good = append(good, c.Host)
			if until.IsZero() || c.Until.Before(until) {
				until = c.Until
			}
		case status.TryUnknown:
			all = append(all, warn(stepShown, "get one of a public authority, unless all users of the name know this one",
				"the certificate of %s at %s is valid until %s, and most programs refuse it: %s", c.Host, c.Addr, inUTC(c.Until), c.Text))
		case status.TryAlone:
			all = append(all, warn(stepShown, "its file is to hold the full chain, with the certificate of its issuer behind its own; an authority of your own has to be known to all users of the name",
				"the certificate of %s at %s is valid until %s, and most programs refuse it: %s", c.Host, c.Addr, inUTC(c.Until), c.Text))
		case status.TryNone:
			all = append(all, skip(stepShown, "the certificate of %s at %s is valid until %s, its authority was not looked at: %s", c.Host, c.Addr, inUTC(c.Until), c.Text))
		case status.TryOther:
			all = append(all, fail(stepShown, "`reverser status` says where it comes from: replace it there, or, where something stands in front of this proxy, there",
				"users of %s at %s are shown a certificate that they refuse: %s", c.Host, c.Addr, c.Text))
		default:
			all = append(all, fail(stepShown, "`reverser status` says what became of its certificate", "users of %s at %s are shown no certificate: %s", c.Host, c.Addr, c.Text))
		}
	}
	all = few(all, "certificates")
	switch len(good) {
	case 0:
	case 1:
		all = append([]Check{ok(stepShown, "the certificate that users of %s are shown is valid until %s", good[0], inUTC(until))}, all...)
	default:
		all = append([]Check{ok(stepShown, "the certificates that users of %d names are shown are valid until %s at least: %s", len(good), inUTC(until), names(good))}, all...)
	}
	if t.CertificatesLeft > 0 {
		all = append(all, skip(stepShown, "the certificates of %d more names were not tried: a sample is enough, and the time is short", t.CertificatesLeft))
	}
	return all
}
