package status_test

import (
	"fmt"
	"testing"

	"reverser/internal/status"
)

func TestCheck(t *testing.T) {
	link := func(state string) status.Link { return status.Link{Remote: "192.0.2.1:3010", State: state} }
	service := func(public, state, reason string) status.Service {
		return status.Service{Public: public, State: state, Reason: reason}
	}
	up, down, draining := link(status.LinkUp), link(status.LinkDown), link(status.LinkDraining)
	good := service("tcp/9000", status.ServiceUp, "")
	denied := service("tcp/22", status.ServiceDenied, "the policy of key nas allows tcp/9000 only")
	drained := service("tcp/9000", status.ServiceAway, "drained by the operator of the proxy")
	drained.Drained = true
	var many []status.Service
	for i := range 8 {
		many = append(many, service(fmt.Sprintf("tcp/%d", 9001+i), status.ServiceRetrying, ""))
	}
	bridge := func(links []status.Link, services ...status.Service) status.Snapshot {
		return status.Snapshot{Role: "bridge", Links: links, Services: services}
	}
	proxy := func(services ...status.Service) status.Snapshot {
		return status.Snapshot{Role: "proxy", Services: services}
	}
	stopping := func(s status.Snapshot) status.Snapshot {
		s.Stopping = true
		return s
	}
	tests := []struct {
		name   string
		s      status.Snapshot
		public string
		want   string // "": in order
	}{
		{"bridge", bridge([]status.Link{up}, good), "", ""},
		{"bridge, its service", bridge([]status.Link{up}, good, denied), "tcp/9000", ""},
		{"bridge, another service denied", bridge([]status.Link{up}, good, denied), "", "tcp/22 is denied: the policy of key nas allows tcp/9000 only"},
		{"bridge, denied", bridge([]status.Link{up}, good, denied), "tcp/22", "tcp/22 is denied: the policy of key nas allows tcp/9000 only"},
		{"bridge, denied by a proxy, which names it itself", bridge([]status.Link{up}, service("tcp/22", status.ServiceDenied, "tcp/22 denied: the policy of key nas")), "", "tcp/22 is denied: the policy of key nas"},
		{"bridge, denied without a name", bridge([]status.Link{up}, service("x/y", status.ServiceDenied, "denied: there is no x/")), "", "x/y is denied: there is no x/"},
		{"bridge, no such service", bridge([]status.Link{up}, good, denied), "tcp/23", "tcp/23 is none of this bridge's services: tcp/9000, tcp/22"},
		{"bridge, none of many", bridge([]status.Link{up}, many...), "tcp/1", "tcp/1 is none of this bridge's services: tcp/9001, tcp/9002, tcp/9003, tcp/9004, tcp/9005, …"},
		{"bridge, no service at all", bridge([]status.Link{up}), "", ""},
		{"bridge, many down", bridge([]status.Link{up}, many...), "", "tcp/9001 is retrying; tcp/9002 is retrying; tcp/9003 is retrying; tcp/9004 is retrying; tcp/9005 is retrying; 3 more services are not up"},
		{"bridge, link down", bridge([]status.Link{down}, good), "", "the link to 192.0.2.1:3010 is down"},
		{"bridge, link down, its service", bridge([]status.Link{down}, good), "tcp/9000", "the link to 192.0.2.1:3010 is down"},
		{"bridge, proxy stopping", bridge([]status.Link{draining}, good), "", "the link to 192.0.2.1:3010 is draining"},
		{"bridge, one proxy of two", bridge([]status.Link{down, up}, good), "", ""},
		{"bridge, no proxy of two", bridge([]status.Link{down, draining}, good), "", "the link to 192.0.2.1:3010 is down; the link to 192.0.2.1:3010 is draining"},
		{"bridge, no link", bridge(nil), "", "there is no link"},
		{"bridge, stopping", stopping(bridge([]status.Link{up}, good)), "tcp/9000", "the bridge is stopping"},
		{"bridge, no data connection", bridge([]status.Link{up}, service("tcp/9000", status.ServiceAway, "")), "", "tcp/9000 is away: no bridge is connected for it"},
		{"bridge, drained", bridge([]status.Link{up}, drained), "", ""},
		{"bridge, drained, another denied", bridge([]status.Link{up}, drained, denied), "", "tcp/22 is denied: the policy of key nas allows tcp/9000 only"},
		{"bridge, drained, link down", bridge([]status.Link{down}, drained), "", "the link to 192.0.2.1:3010 is down"},
		{"bridge, the drained service", bridge([]status.Link{up}, drained), "tcp/9000", "tcp/9000 is away: drained by the operator of the proxy"},
		{"proxy, the drained service", proxy(drained), "tcp/9000", "tcp/9000 is away: drained by the operator of the proxy"},
		{"proxy", proxy(), "", ""},
		{"proxy, a bridge's trouble", proxy(good, denied), "", ""},
		{"proxy, service", proxy(good), "tcp/9000", ""},
		{"proxy, service of two keys", proxy(service("tcp/9000", status.ServiceRetrying, "key nas has it"), good), "tcp/9000", ""},
		{"proxy, service away", proxy(service("tcp/9000", status.ServiceAway, "")), "tcp/9000", "tcp/9000 is away: no bridge is connected for it"},
		{"proxy, nobody's service", proxy(good), "tcp/22", "no bridge offers tcp/22"},
		{"proxy, stopping", stopping(proxy(good)), "", "the proxy is stopping"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := tt.s.Check(tt.public); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("Check(%q) = %q; want %q", tt.public, got, tt.want)
			}
		})
	}
}
