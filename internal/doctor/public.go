package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"reverser/internal/status"
)

// asked are the checks of the process that runs: what only it can look at.
func (v *visit) asked(ctx context.Context, name string) []Check {
	if v.Snapshot == nil || v.Ask == nil {
		return nil
	}
	all, err := v.Ask(ctx)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return []Check{skip(name, "the process that runs is of a version that cannot look at that for itself")}
	case err != nil:
		return []Check{skip(name, "the process that runs does not say: %v", err)}
	}
	return all
}

const stepPublic = "public ports"

// publicPorts are tried by the proxy that runs.
func (w *World) publicPorts(ctx context.Context, v *visit) []Check { return v.asked(ctx, stepPublic) }

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
		all = append([]Check{ok(stepPublic, "%d of %d answered when this machine dialled them as users do, %d of these also their bridges; a firewall of the provider shows from outside only", answered, tried, proven)}, all...)
	}
	for _, why := range slices.Sorted(maps.Keys(not)) {
		all = append(all, skip(stepPublic, "%s not tried: %s", count(not[why], "service"), why))
	}
	if t.Left > 0 {
		all = append(all, skip(stepPublic, "%d more were not tried: a sample is enough, and the time is short", t.Left))
	}
	if t.Names > 0 {
		all = append(all, skip(stepPublic, "%s of --http and --https not tried: a request would reach the target", count(t.Names, "service")))
	}
	return all
}
