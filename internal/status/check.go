package status

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxNamed is how many services an error of Check names.
const maxNamed = 5

// Check returns nil when users are served, and else an error that says in one line what is down.
//
// A proxy serves when it listens and is not stopping, whatever bridges are connected. A bridge serves when a link and all its
// services are up, or drained by order of the proxy's operator. With public, a canonical PUBLIC, only that service counts, at a bridge
// with the link, and must be up.
func (s *Snapshot) Check(public string) error { return s.check(public, ServiceUp) }

// Ready returns nil when the process does all that is up to it, and else an error that says in one line what is missing. It is what Check
// wants, but for services that the proxy has denied: waiting changes nothing about them.
func (s *Snapshot) Ready() error { return s.check("", ServiceUp, ServiceDenied) }

// check is Check, for services in one of the states.
func (s *Snapshot) check(public string, states ...string) error {
	if s.Stopping {
		return fmt.Errorf("the %s is stopping", s.Role)
	}
	if s.Role == "bridge" {
		if err := s.checkLinks(); err != nil {
			return err
		}
	}
	if public != "" {
		return s.checkService(public)
	}
	if s.Role == "proxy" { // what a bridge asks for and does not get is that bridge's to report
		return nil
	}
	var down []string
	for _, v := range s.Services {
		if !v.Drained && !slices.Contains(states, v.State) {
			down = append(down, v.fault())
		}
	}
	if len(down) == 0 {
		return nil
	}
	if more := len(down) - maxNamed; more > 0 {
		down = append(down[:maxNamed], fmt.Sprintf("%d more services are not up", more))
	}
	return errors.New(strings.Join(down, "; "))
}

// checkLinks wants a link that is up. With several proxies one is enough, as it is for a service.
func (s *Snapshot) checkLinks() error {
	var down []string
	for _, l := range s.Links {
		if l.State == LinkUp {
			return nil
		}
		down = append(down, fmt.Sprintf("the link to %s is %s", l.Remote, l.State))
	}
	if down == nil {
		return errors.New("there is no link")
	}
	return errors.New(strings.Join(down, "; "))
}

// checkService wants a service that is up. At a proxy several bridges may ask for it, and one has it.
func (s *Snapshot) checkService(public string) error {
	var down, others []string
	for _, v := range s.Services {
		switch {
		case v.Public != public:
			if len(others) == maxNamed {
				others = append(others, "…")
			}
			if len(others) < maxNamed {
				others = append(others, v.Public)
			}
		case v.State == ServiceUp:
			return nil
		default:
			down = append(down, v.fault())
		}
	}
	switch {
	case down != nil:
		return errors.New(strings.Join(down, "; "))
	case s.Role == "proxy":
		return fmt.Errorf("no bridge offers %s", public)
	default:
		return fmt.Errorf("%s is none of this bridge's services: %s", public, strings.Join(others, ", "))
	}
}

// fault says what is wrong with a service that is not up.
func (v *Service) fault() string {
	reason := v.Why()
	if reason == "" && v.State == ServiceAway {
		reason = "no bridge is connected for it"
	}
	if reason == "" {
		return fmt.Sprintf("%s is %s", v.Public, v.State)
	}
	return fmt.Sprintf("%s is %s: %s", v.Public, v.State, reason)
}

// Why is Reason for a line that says name and state before it: a refusal has both in it.
func (v *Service) Why() string {
	why := strings.TrimPrefix(v.Reason, v.Public+" ")
	return strings.TrimPrefix(why, v.State+": ")
}
