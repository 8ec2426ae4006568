package doctor

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/bridge"
	"reverser/internal/config"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/relay"
	"reverser/internal/status"
	"reverser/internal/sys"
)

// token is well-formed where settings could be read.
func (w *World) token(_ context.Context, v *visit) []Check {
	if v.Settings == nil {
		return nil
	}
	t := v.Settings.Bridge.Token
	return []Check{ok("token", "key %s, for the proxy with the identity %s", hex.EncodeToString(t.KeyID[:4]), hex.EncodeToString(t.Pin[:4]))}
}

// link is that of a bridge that runs.
func (w *World) link(_ context.Context, v *visit) (all []Check) {
	if v.Snapshot == nil {
		return nil
	}
	const name = "link"
	for _, l := range v.Snapshot.Links {
		at := l.Remote
		if l.Via != "" {
			at += " via " + l.Via
		}
		switch {
		case l.State == status.LinkUp && l.Carriers == 0:
			all = append(all, warn(name, "it may be so for a moment; where it stays so, is the --transfer port of the proxy open?", "up to %s, but without a connection for users", at))
		case l.State == status.LinkUp:
			all = append(all, ok(name, "up to %s for %s, round trip %.1f ms: in use by the running process, and left alone", at, w.since(l.Since), l.RTTMillis))
		case l.State == status.LinkDraining:
			all = append(all, ok(name, "to %s ends with its last connection", at))
		case l.Reason != "":
			all = append(all, fail(name, "the process goes on trying; mend what it says", "%s to %s: %s", l.State, at, l.Reason))
		default:
			all = append(all, fail(name, "the process goes on trying, and its log says why", "%s to %s", l.State, at))
		}
	}
	return few(all, "links")
}

func (w *World) since(t time.Time) time.Duration { return max(w.Now().Sub(t), 0).Round(time.Second) }

// way tests each step to the proxy, unless a process of ours has a link there. Without settings, the process that runs does it: it has the token.
func (w *World) way(ctx context.Context, v *visit) (all []Check) {
	switch {
	case v.Snapshot != nil && (v.Snapshot.Stopping || HasLink(v.Snapshot)): // of one that stops, a successor may use the key
		return nil
	case v.Settings != nil:
		all = w.Way(ctx, v.Settings)
	default:
		all = v.asked(ctx, "link", func(name string) bool { return name != stepTargets && name != stepSource })
	}
	if v.Snapshot == nil {
		for i, c := range all {
			if c.Found == keyInUse && v.AskErr != nil { // mostly by the process that cannot be asked
				all[i] = ok(c.Name, keyInUse)
			}
		}
		return all
	}
	return slices.DeleteFunc(all, func(c Check) bool { // services has those of the process that runs
		return strings.HasPrefix(c.Name, stepServices) && (c.State == OK || c.State == Skip)
	})
}

// Way goes the way to each proxy of a bridge with these settings, up to the proof of the key, and says what is found step by step. No
// session begins.
func (w *World) Way(ctx context.Context, s *config.Settings) (all []Check) {
	set := s.Bridge
	settings := bridge.Settings{Via: set.Via}
	for _, e := range set.Services {
		settings.Services = append(settings.Services, bridge.Service{Public: e.Public, Target: e.Target})
	}
	cfg := bridge.Config{Token: set.Token, Proxies: ProxiesOf(set), Settings: settings, SNI: set.SNI}
	examined, err := w.Walk(ctx, cfg)
	if err != nil {
		return []Check{faulty("settings", err, "")}
	}
	for _, e := range examined {
		of := ""
		if len(examined) > 1 {
			of = " of " + e.Proxy
		}
		for _, c := range w.wayTo(ctx, e, s) {
			c.Name += of
			all = append(all, c)
		}
	}
	return all
}

// ProxiesOf are the proxies that get a link. Where the settings name none, the token has the address.
func ProxiesOf(set config.Bridge) (all []bridge.Proxy) {
	for _, addr := range set.Proxies {
		all = append(all, bridge.Proxy{Addr: addr, Transfer: set.ProxyTransfer})
	}
	if len(all) == 0 {
		p := bridge.ProxyOf(set.Token)
		p.Transfer = set.ProxyTransfer
		all = append(all, p)
	}
	return all
}

// HasLink reports whether a process has a link.
func HasLink(s *status.Snapshot) bool {
	return slices.ContainsFunc(s.Links, func(l status.Link) bool { return l.State == status.LinkUp })
}

// The steps of the way to a proxy.
const (
	stepName     = "name"
	stepWay      = "way out"
	stepRoute    = "route"
	stepPort     = "link port"
	stepIdentity = "identity"
	stepKey      = "key"
	stepServices = "services"
)

// wayTo tells one way to a proxy step by step. Behind the first that fails the others are skipped.
func (w *World) wayTo(ctx context.Context, e bridge.Examined, set *config.Settings) (all []Check) {
	steps := []string{stepName, stepWay, stepRoute, stepPort, stepIdentity, stepKey, stepServices}
	say := func(c Check) { all = append(all, c) }
	rest := func(behind string) []Check {
		for _, step := range steps[len(all):] {
			say(skip(step, "not looked at: %s failed", behind))
		}
		return all
	}
	// The name: of the proxy, or of the way out to it, which looks the proxy's name up itself.
	var addrs []string
	for _, a := range e.Addrs {
		addrs = append(addrs, a.Addr().String())
	}
	dialled := e.Proxy
	if e.Way != nil {
		dialled = e.Way.Addr()
	}
	host, _, _ := net.SplitHostPort(dialled)
	_, noName := netip.ParseAddr(host)
	switch {
	case len(e.Addrs) == 0 && e.Err != nil:
		c := faulty(stepName, e.Err, "")
		if dns, isDNS := errors.AsType[*net.DNSError](e.Err); isDNS && dns.IsNotFound {
			c.Found = fmt.Sprintf("there is no such name as %s: %v", host, dns)
		}
		say(c)
		return rest(stepName)
	case e.Err != nil:
		c := faulty(stepName, e.Err, "")
		c.State = Warn
		say(c)
	case noName == nil:
		say(ok(stepName, "%s is an address: there is nothing to look up", host))
	default:
		say(ok(stepName, "%s has %s", host, names(addrs)))
	}
	best := furthest(e.Tries)
	if e.Way != nil && !best.Reached {
		say(faulty(stepWay, best.Err, "docs/NETWORKS.md says what each answer of a way out means"))
		return rest(stepWay)
	}
	if e.Way != nil {
		say(ok(stepWay, "%s leads there", set.Bridge.Via))
	} else {
		say(ok(stepWay, "none: it is dialled directly"))
	}
	from, known := best.Local, error(nil)
	if !from.IsValid() {
		from, known = w.Route(best.Addr)
	}
	switch {
	case sys.NoRoute(best.Err) || sys.NoRoute(known):
		say(fail(stepRoute, "is it connected to a network? `ip route` shows its ways", "this machine has no way to %s: %v", best.Addr.Addr(), plain(cmp.Or(known, best.Err))))
		return rest(stepRoute)
	case known != nil:
		say(skip(stepRoute, "this system does not say from which address it would dial: %v", known))
	default:
		say(ok(stepRoute, "from %s", from))
	}
	switch {
	case best.TCP == 0:
		say(unanswered(stepPort, best.Addr.String(), best.Err))
		return rest(stepPort)
	case e.Way != nil:
		say(ok(stepPort, "%s through the way out", best.Target))
	default:
		say(ok(stepPort, "%s took the connection after %s", best.Addr, best.TCP.Round(time.Microsecond*100)))
	}
	switch err := best.Err; {
	case err == nil:
		say(ok(stepIdentity, "the proxy that the token was made for, by TLS 1.3"))
		all = append(all, answers(best, set.Bridge.Services)...)
	case errors.Is(err, auth.ErrRefused):
		say(ok(stepIdentity, "the proxy that the token was made for, by TLS 1.3"))
		say(faulty(stepKey, err, ""))
		return rest(stepKey)
	default:
		c := faulty(stepIdentity, err, "")
		if e.Way == nil && !isVersion(err) {
			if who := w.whoAnswers(ctx, best.Addr.String()); who != "" {
				c.Found = fmt.Sprintf("%s answers at %s: %s", who, best.Addr, c.Found)
			}
		}
		say(c)
		return rest(stepIdentity)
	}
	for _, t := range e.Tries { // those that a bridge would not need
		if best.Err == nil && t.Err != nil {
			c := unanswered(stepPort, "another address of the proxy, "+t.Addr.String()+",", t.Err)
			c.State = Warn
			say(c)
		}
	}
	return all
}

const keyInUse = "accepted, and in use: another live bridge holds it, so this one would be refused"

// answers are what the proxy said of the key and of the services.
func answers(t bridge.Try, asked []grammar.Expose) (all []Check) {
	took := t.Proven.Round(100 * time.Microsecond)
	switch err := t.Answer.Err; {
	case t.AskErr != nil:
		return []Check{ok(stepKey, "accepted after %s in all", took), skip(stepServices, "whether the key may have them shows when a bridge starts: %v", t.AskErr)}
	case errors.Is(err, link.ErrDuplicate):
		all = append(all, fail(stepKey, "give each bridge a key of its own (`reverser key add NAME --allow …` at the proxy), or stop the other bridge",
			keyInUse))
	case err != nil:
		what, hint, _ := strings.Cut(t.Answer.Text, ": at the proxy, ")
		if hint != "" {
			hint = "at the proxy, " + hint
		}
		return []Check{fail(stepKey, hint, "proven, but the proxy would begin no session: %s", cmp.Or(what, err.Error())), skip(stepServices, "not looked at: %s failed", stepKey)}
	default:
		all = append(all, ok(stepKey, "accepted after %s in all, and no other bridge uses it", took))
	}
	var denied []Check
	for _, why := range t.Answer.Why {
		if why != "" {
			what, hint := reasonOf(why, unknownDenial).hint(why, false)
			denied = append(denied, fail(stepServices, hint, "%s", what))
		}
	}
	n := len(t.Answer.Why)
	if len(denied) < n || n == 0 {
		all = append(all, ok(stepServices, "the proxy would serve %d of %d; whether their ports are free shows when a bridge starts", n-len(denied), n))
	}
	all = append(all, few(denied, "services would not be served")...)
	if left := len(asked) - n; left > 0 && n > 0 {
		all = append(all, skip(stepServices, "%d more were not asked for", left))
	}
	return all
}

// allowHint is what to do about a service that a key may not have.
const allowHint = "at the proxy, let the key have it (`reverser key edit NAME --allow …`, with all that it may have), or ask for what it may have"

// isVersion reports whether the proxy is the right one, and too old or too new.
func isVersion(err error) bool {
	_, version := errors.AsType[*auth.VersionError](err)
	_, feature := errors.AsType[*auth.FeatureError](err)
	return version || feature || errors.Is(err, auth.ErrFake)
}

// furthest is the try that got furthest. There is one.
func furthest(tries []bridge.Try) bridge.Try {
	far := func(t bridge.Try) int {
		switch {
		case t.Err == nil:
			return 4
		case errors.Is(t.Err, auth.ErrRefused):
			return 3
		case t.Reached:
			return 2
		case t.TCP > 0:
			return 1
		}
		return 0
	}
	best := tries[0]
	for _, t := range tries[1:] {
		if far(t) > far(best) {
			best = t
		}
	}
	return best
}

// unanswered is fail for a dial, which has the remedy in its error, or is told what it mostly means.
func unanswered(name, what string, err error) Check {
	hint := remedyOf(err)
	if hint == "" {
		hint = meaning(err)
	}
	return fail(name, hint, "%s %s", what, outcome(err))
}

// outcome is what came of a dial, for a sentence that begins with who was dialled.
func outcome(err error) string {
	var timeout net.Error
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "cannot be looked up: there is no such name"
	case errors.As(err, &dns):
		return "cannot be looked up: " + dns.Error()
	case sys.Refused(err):
		return "refused the connection"
	case sys.Reset(err):
		return "reset the connection"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "does not answer"
	}
	text := err.Error()
	if h, ok := errors.AsType[interface {
		error
		Remedy() string
	}](err); ok {
		text = faulty("", h, "").Found
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		text = plain(op.Err).Error()
	}
	return "cannot be reached: " + text
}

// meaning is what a failed dial mostly means, for errors that have no remedy of their own.
func meaning(err error) string {
	var timeout net.Error
	var dns *net.DNSError
	switch {
	case sys.Forbidden(err):
		return "a firewall or security module of this very machine forbids it"
	case errors.As(err, &dns):
		return "is the name right, and does this machine have DNS?"
	case sys.Refused(err):
		return "nothing listens there: is the service running, and on this address and port?"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "is the machine on, and does a firewall in between drop what is sent?"
	}
	return "is the address right, and is there a way to it from this machine?"
}

// services are what the proxy said about each one.
func (w *World) services(_ context.Context, v *visit) (all []Check) {
	const name = "services"
	if v.Snapshot == nil { // way has asked
		return nil
	}
	up := 0
	for _, s := range v.Snapshot.Services {
		told := func(why string) string {
			if why != "" {
				why = ": " + why
			}
			return why
		}
		state := Fail
		whose := ""
		if v.Role == config.RoleProxy { // what a bridge asks for and does not get is that bridge's to mend
			state, whose = Warn, fmt.Sprintf(" (key %s)", s.Key)
		}
		switch s.State {
		case status.ServiceUp:
			up++
		case status.ServiceDenied:
			why, hint := reasonOf(s.Why(), unknownDenial).hint(s.Why(), v.Role == config.RoleProxy)
			all = append(all, Check{name, state, fmt.Sprintf("%s is denied%s%s", s.Public, whose, told(why)), hint})
		case status.ServiceRetrying:
			all = append(all, w.retrying(s, v.Role, whose, len(all) < mostLines))
		default:
			hint := "it comes back with the link"
			if s.Drained {
				hint = "`reverser drain` with --undo at the proxy lets new users in again"
			} else if v.Role == config.RoleProxy {
				hint = "its bridge is not connected: `reverser doctor` there says why"
			}
			all = append(all, Check{name, Warn, fmt.Sprintf("%s is %s%s%s", s.Public, s.State, whose, told(s.Why())), hint})
		}
	}
	all = few(all, "services are not up")
	if len(v.Snapshot.Services) == 0 {
		return []Check{ok(name, "none")}
	}
	if up > 0 {
		all = append([]Check{ok(name, "%d of %d up", up, len(v.Snapshot.Services))}, all...)
	}
	return all
}

// retrying is a service that the proxy does not serve at present, and goes on trying to. Who has its port is looked for where find is true:
// that takes a look at every process.
func (w *World) retrying(s status.Service, role, whose string, find bool) Check {
	atProxy := role == config.RoleProxy
	r := reasonOf(s.Reason, unknownDelay)
	public, err := grammar.ParsePublic(s.Public)
	hasPort := err == nil && public.Port != 0
	why, hint := r.hint(s.Reason, atProxy)
	what := "is not served"
	if r.socket && hasPort {
		what = "cannot be opened"
	}
	if why != "" {
		why = ": " + why
	}
	c := fail("services", hint, "%s %s%s%s", s.Public, what, whose, why)
	if !atProxy || !hasPort || !r.port || !find {
		return c
	}
	if who := w.holders(public.Port); who != "" {
		c.Found += ": " + who
		c.Hint = takenHint
	}
	return c
}

// holders says who listens on a port of this machine, "" if nobody does or that is not known.
func (w *World) holders(port uint16) string {
	holders, taken := w.Holders(port)
	var who []string
	for _, h := range holders {
		who = append(who, h.String())
	}
	switch {
	case len(who) > 0:
		return fmt.Sprintf("port %d is held by %s", port, names(who))
	case taken:
		return fmt.Sprintf("port %d is held by a process of another user: root sees which", port)
	}
	return ""
}

// probes are what came of the bridge's own look at its public ports.
func (w *World) probes(_ context.Context, v *visit) (all []Check) {
	const name = stepPublic
	if v.Snapshot == nil {
		return []Check{skip(name, "a bridge that runs dials them itself")}
	}
	answered, none := 0, make(map[string]int)
	for _, s := range v.Snapshot.Services {
		switch {
		case s.State != status.ServiceUp:
		case s.Probe.State == status.ProbeFailed:
			what, hint, found := strings.Cut(s.Probe.Text, ": does ")
			if found {
				hint = "does " + hint
			}
			all = append(all, fail(name, hint, "%s is up at the proxy, and did not answer from here: %s", s.Public, what))
		case s.Probe.State == status.ProbeAnswered:
			answered++
		default:
			none[s.Probe.Text]++
		}
	}
	all = few(all, "ports did not answer")
	if answered > 0 {
		all = append([]Check{ok(name, "%s answered from here when it came up", count(answered, "port"))}, all...)
	}
	for _, why := range slices.Sorted(maps.Keys(none)) {
		all = append(all, skip(name, "%s not probed: %s", count(none[why], "service"), cmp.Or(why, "nothing came of it yet")))
	}
	return all
}

const (
	stepTargets = "targets"
	stepSource  = "source"
)

const (
	targetLimit   = 4 * time.Second  // for one target
	targetsLimit  = 10 * time.Second // for all of them
	targetsAtOnce = 64
)

// target is where services lead.
type target struct {
	grammar.Target
	public string // the first service that leads there
	err    error
	done   bool
}

// SourceHint says what to do about an address that targets cannot be dialled from.
const SourceHint = "give --source an address of this machine, or leave it out"

// targets are dialled by the process that runs: it has rights and sources of its own. What only the settings have, it does not dial yet.
func (w *World) targets(ctx context.Context, v *visit) []Check {
	if v.Snapshot == nil && v.Settings == nil {
		return nil
	}
	if v.Snapshot == nil {
		return w.Targets(ctx, v.Settings)
	}
	running := targetsOf(v.Snapshot)
	all := v.asked(ctx, stepTargets, func(name string) bool { return name == stepTargets || name == stepSource })
	if !slices.ContainsFunc(all, func(c Check) bool { return c.State != Skip }) { // an older one cannot do it
		all = w.dialTargets(ctx, running, sourcesOf(v.Settings), "%d of %d answer this command, which dials with its own rights: %s")
	}
	if v.Settings != nil {
		more := slices.DeleteFunc(targetsIn(v.Settings), func(t *target) bool {
			return slices.ContainsFunc(running, func(r *target) bool { return r.Target == t.Target })
		})
		all = append(all, w.dialTargets(ctx, more, sourcesOf(v.Settings), "%d of %d that the process does not have yet answer: %s")...)
	}
	if Worst(all) != Fail {
		all = append(all, w.lastUsers(ctx, v)...)
	}
	return all
}

// Targets says which targets of a bridge with these settings answer, and which of its sources they cannot be dialled from.
func (w *World) Targets(ctx context.Context, set *config.Settings) []Check {
	return append(w.sources(set), w.dialTargets(ctx, targetsIn(set), sourcesOf(set), "%d of %d answer: %s")...)
}

// sources are those that are no address of this machine.
func (w *World) sources(set *config.Settings) (all []Check) {
	for _, source := range set.Bridge.Sources {
		addr := net.JoinHostPort(source.String(), "0")
		l, err := w.Listen(grammar.ListenNetwork("tcp", addr), addr)
		switch {
		case err == nil:
			l.Close()
		case sys.NoRoute(err):
			all = append(all, warn(stepSource, SourceHint, "%s is no address of this machine: no target is dialled from it", source))
		default:
			all = append(all, warn(stepSource, SourceHint, "%s cannot be dialled from: %v", source, plain(err)))
		}
	}
	if len(all) == len(set.Bridge.Sources) { // else the others serve
		for i := range all {
			all[i].State = Fail
		}
	}
	return few(all, "sources cannot be dialled from")
}

// dialTargets dials as for a user. What answers is let go again without a word. good tells of those that answer, of how many, and which.
func (w *World) dialTargets(ctx context.Context, list []*target, sources []netip.Addr, good string) (all []Check) {
	if len(list) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, targetsLimit)
	defer cancel()
	var dialer relay.Dialer
	dialer.SetSources(sources)
	// In a process that runs, users may need the descriptors.
	pool := sys.Descriptors()
	next := make(chan *target)
	var dialling sync.WaitGroup
	for range min(targetsAtOnce, len(list), max(pool.Free(sys.ForUsers)/4, 1)) {
		dialling.Go(func() {
			for t := range next {
				if !pool.Acquire(ctx, sys.ForUsers) {
					continue
				}
				t.err = knock(ctx, &dialer, t.Target)
				pool.Give(sys.ForUsers)
				t.done = t.err == nil || ctx.Err() == nil
			}
		})
	}
feed:
	for _, t := range list {
		select {
		case next <- t:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	dialling.Wait()
	checked, sourceless := 0, 0
	var answered []string
	for _, t := range list {
		_, noSource := errors.AsType[*relay.SourceError](t.err)
		switch {
		case !t.done:
			continue
		case t.err == nil:
			answered = append(answered, t.String())
		case noSource:
			sourceless++
		default:
			c := unanswered(stepTargets, fmt.Sprintf("%s, where %s leads,", t.Target, t.public), t.err)
			if t.Network == "unix" {
				c.Hint = "is the service running, and may the user that the bridge runs as open its socket?"
			}
			all = append(all, c)
		}
		checked++
	}
	all = few(all, "targets do not answer")
	if sourceless > 0 {
		all = append(all, skip(stepTargets, "%d of %d cannot be dialled from any --source", sourceless, len(list)))
	}
	if left := len(list) - checked; left > 0 {
		all = append(all, skip(stepTargets, "%d of %d were not looked at: there was no time left", left, len(list)))
	}
	if len(answered) > 0 {
		all = append([]Check{ok(stepTargets, good, len(answered), checked, names(answered))}, all...)
	}
	return all
}

// targetsIn are the targets of settings, each once.
func targetsIn(set *config.Settings) []*target {
	var list targetList
	for _, e := range set.Bridge.Services {
		list.add(e.Public.String(), e.Target)
	}
	return list.all
}

// targetsOf are the targets of a process, each once.
func targetsOf(s *status.Snapshot) []*target {
	var list targetList
	for _, service := range s.Services {
		if t, err := grammar.ParseTarget(service.Target); err == nil {
			list.add(service.Public, t)
		}
	}
	return list.all
}

// targetList has each target once.
type targetList struct {
	all  []*target
	seen map[grammar.Target]bool
}

func (l *targetList) add(public string, t grammar.Target) {
	if l.seen[t] {
		return
	}
	if l.seen == nil {
		l.seen = make(map[grammar.Target]bool)
	}
	l.seen[t] = true
	l.all = append(l.all, &target{Target: t, public: public})
}

// sourcesOf are those of settings, if there are any.
func sourcesOf(set *config.Settings) []netip.Addr {
	if set == nil {
		return nil
	}
	return set.Bridge.Sources
}

// knock connects to a target and closes the connection as one does who has nothing to say.
func knock(ctx context.Context, dialer *relay.Dialer, t grammar.Target) error {
	ctx, cancel := context.WithTimeout(ctx, targetLimit)
	defer cancel()
	conn, err := dialer.Dial(ctx, t.Network, t.Address)
	if err != nil {
		return err
	}
	if c, isTCP := conn.(interface{ SetLinger(int) error }); isTCP {
		c.SetLinger(-1) // sockets of users are born so that their close is a reset
	}
	return conn.Close()
}
