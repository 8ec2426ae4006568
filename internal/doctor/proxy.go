package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
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
	"reverser/internal/state"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/via"
)

// port is one that a proxy opens for itself.
type port struct{ name, addr string }

// portsOf are the ports of a proxy, the link port first.
func portsOf(set config.Proxy) []port {
	all := []port{{"listen", set.Listen}}
	for _, p := range []port{{"transfer", set.Transfer}, {"http", set.HTTP}, {"https", set.HTTPS}} {
		if p.addr != "" && p.addr != set.Listen { // names and links may share a port
			all = append(all, p)
		}
	}
	return all
}

// LinkOptions name the options for the ports that a proxy opens for bridges and names.
const LinkOptions = "--listen, --transfer, --http or --https"

// ListenHint says what to do about a port of its own that a process cannot open, with the options that choose another one; "": nothing is
// known.
func ListenHint(err error, options string) string {
	switch {
	case sys.PortTaken(err):
		return "another process has that port: stop it, or choose another port with " + options
	case sys.PortRefused(err):
		hint := "this user may not open that port: choose one from 1024 on with " + options
		if more := sys.PortHint(err); more != "" {
			hint += "; " + more
		}
		return hint
	case sys.NoRoute(err):
		return "this machine has no such address: leave it out, as in :3010; where a router or cloud has the public one, --advertise names it"
	}
	return ""
}

// BindHint says what to do about an address at which no public port can be opened.
const BindHint = "give --bind an address of this machine, or leave it out; where a router or cloud has the public address, give the private one that it leads to"

// ports are opened for a moment, unless a process of ours has them.
func (w *World) ports(_ context.Context, v *visit) (all []Check) {
	const name = "ports"
	if v.Settings == nil || v.Snapshot != nil || v.seen.Held {
		return nil
	}
	var free []string
	for _, p := range portsOf(v.Settings.Proxy) {
		if c := w.canListen(name, p.name, p.addr, LinkOptions); c.State == OK {
			free = append(free, p.addr)
		} else {
			all = append(all, c)
		}
	}
	if bind := v.Settings.Proxy.Bind; bind != "" {
		addr := net.JoinHostPort(bind, "0")
		if l, err := w.Listen(grammar.ListenNetwork("tcp", addr), addr); err != nil {
			all = append(all, fail(name, BindHint, "public ports cannot be opened at %s (--bind): %v", bind, plain(err)))
		} else {
			l.Close()
		}
	}
	if len(free) > 0 {
		all = append([]Check{ok(name, "%s can be opened", names(free))}, all...)
	}
	return all
}

// canListen opens a port for a moment.
func (w *World) canListen(name, option, addr, options string) Check {
	l, err := w.Listen(grammar.ListenNetwork("tcp", addr), addr)
	if err == nil {
		l.Close()
		return ok(name, "%s can be opened", addr)
	}
	c := fail(name, ListenHint(err, options), "--%s %s cannot be opened: %v", option, addr, plain(err))
	if who := w.holders(grammar.PortOf(addr, 0)); who != "" && sys.PortTaken(err) {
		c.Found += ": " + who
	}
	return c
}

// keys are those of the state directory and of the file.
func (w *World) keys(_ context.Context, v *visit) []Check {
	const name = "keys"
	const add = "`reverser key add NAME --allow tcp/9000` makes one and prints its token"
	var all []string
	kinds := make(map[grammar.Kind]string) // that some key may have → the first such key
	var ending []Check
	note := func(key string, policy grammar.Policy, expires time.Time) {
		all = append(all, key)
		more := fmt.Sprintf("`reverser key edit %s --expires 30d` gives it more time", key)
		switch left := expires.Sub(w.Now()); {
		case expires.IsZero():
		case left <= 0:
			ending = append(ending, warn(name, more+", or remove it", "key %s expired at %s: its bridge is refused", key, inUTC(expires)))
		case left < soon:
			ending = append(ending, warn(name, more, "key %s expires at %s", key, inUTC(expires)))
		}
		for _, a := range policy {
			if kinds[a.Kind] == "" {
				kinds[a.Kind] = key
			}
		}
	}
	picture, err := v.picture()
	switch {
	case errors.Is(err, state.ErrIdentity):
		return []Check{faulty(stepIdentity, err, "")}
	case err != nil:
		return []Check{faulty(name, err, "")}
	}
	stored, err := picture.Keys()
	if err != nil {
		return []Check{faulty(name, err, "")}
	}
	state.MarkOffered(v.seen.Path, stored)
	stored = v.inForce(stored)
	for _, k := range stored {
		note(k.Name, k.Allow, k.Expires)
	}
	if v.Settings != nil {
		for _, t := range v.Settings.Proxy.Tables {
			if !slices.Contains(all, t.Name) {
				note(t.Name, t.Allow, t.Expires)
			}
		}
	}
	switch {
	case len(all) == 0 && v.Settings == nil:
		return []Check{skip(name, "none in the state directory")}
	case len(all) == 0 && !picture.HasKeys():
		return []Check{ok(name, "none: the first start makes one and prints its token")}
	case len(all) == 0:
		return []Check{warn(name, add, "none, so no bridge can connect until one is made")}
	}
	checks := append([]Check{ok(name, "%s: %s", count(len(all), "key"), names(all))}, few(ending, "keys expire")...)
	if v.Settings == nil {
		return checks
	}
	pin, _ := picture.Identity()
	if set, err := v.Settings.WithKeys(stored, pin); err == nil { // else a start says why
		for _, words := range set.Proxy.Unclaimable() {
			found, hint, _ := strings.Cut(words, ": ")
			checks = append(checks, warn(name, hint, "%s", found))
		}
	}
	for _, missing := range []struct {
		kind grammar.Kind
		port string
		flag string
	}{{grammar.KindHTTP, v.Settings.Proxy.HTTP, "--http :80"}, {grammar.KindHTTPS, v.Settings.Proxy.HTTPS, "--https :443"}, {grammar.KindTLS, v.Settings.Proxy.HTTPS, "--https :443"}} {
		if key := kinds[missing.kind]; key != "" && missing.port == "" {
			checks = append(checks, warn(name, "start the proxy with "+missing.flag, "key %s may have %s/ names, and the proxy has no port for them", key, missing.kind))
		}
	}
	return checks
}

// inForce leaves out the keys that are removed, though the disk has them.
func (v *visit) inForce(stored []state.Key) []state.Key {
	if v.Snapshot == nil || v.Snapshot.Unstored == nil {
		return stored
	}
	return slices.DeleteFunc(stored, func(k state.Key) bool { return slices.Contains(v.Snapshot.Unstored.Removed, k.Name) })
}

// picture is what the state directory holds; none if it is not there or is refused, as stateDir says.
func (v *visit) picture() (state.Picture, error) {
	if !v.hasFiles() {
		return nil, nil
	}
	p, _, err := state.Read(v.seen.Path, v.Trusted...)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return p, err
}

// links are those of a proxy that runs.
func (w *World) links(_ context.Context, v *visit) (all []Check) {
	const name = "links"
	if v.Snapshot == nil {
		return nil
	}
	up := 0
	for _, l := range v.Snapshot.Links {
		switch {
		case l.State == status.LinkDown:
			all = append(all, warn(name, "`reverser doctor` at that bridge says why", "that of key %s is down for %s; its users wait", l.Key, w.since(l.Since)))
		case l.State == status.LinkUp:
			up++
		}
	}
	all = few(all, "links are down")
	if up == 0 && len(all) == 0 {
		return []Check{warn(name, "start a bridge with the token of a key; where one runs, `reverser doctor` there says why it does not come here", "no bridge is connected")}
	}
	if up > 0 {
		all = append([]Check{ok(name, "%s connected", count(up, "bridge"))}, all...)
	}
	if idle := w.withoutBridge(v); len(idle) > 0 {
		all = append(all, ok(name, "no bridge is connected with %s: %s", count(len(idle), "key"), names(idle)))
	}
	return all
}

// withoutBridge returns the names of the keys that no bridge uses at present. A key may wait for its bridge for months, so that is no
// fault; but the link of a bridge that is gone for longer than its session is not in the snapshot, and nothing else would tell of it.
func (w *World) withoutBridge(v *visit) (idle []string) {
	used := make(map[string]bool)
	for _, l := range v.Snapshot.Links {
		used[l.Key] = true
	}
	add := func(key string, expires time.Time) {
		if !used[key] && (expires.IsZero() || expires.After(w.Now())) {
			used[key] = true // at most once in the list
			idle = append(idle, key)
		}
	}
	picture, _ := v.picture() // keys says what is wrong with it
	stored, _ := picture.Keys()
	stored = v.inForce(stored)
	if v.Settings != nil { // a table of the file may stand in the place of a stored key
		pin, _ := picture.Identity()
		if set, err := v.Settings.WithKeys(stored, pin); err == nil {
			for _, k := range set.Proxy.Keys {
				add(k.Name, k.Expires)
			}
			return idle
		}
	}
	for _, k := range stored {
		add(k.Name, k.Expires)
	}
	return idle
}

// lastUsers says which targets did not answer their last user. The proxy cannot dial them: their bridge's doctor does.
func (w *World) lastUsers(_ context.Context, v *visit) (all []Check) {
	if v.Snapshot == nil {
		return nil
	}
	for _, s := range v.Snapshot.Services {
		did := ""
		switch s.TargetState {
		case status.TargetRefused:
			did = "refused the last user"
		case status.TargetUnreachable:
			did = "could not be reached for the last user"
		}
		if did == "" || s.State != status.ServiceUp {
			continue
		}
		whose, hint := fmt.Sprintf(" (key %s)", s.Key), "`reverser doctor` at that bridge dials it and says more"
		if v.Role == config.RoleBridge {
			whose, hint = "", "it answers now; where the next user has the same, the log of the bridge says more"
		}
		c := warn(stepTargets, hint, "%s of %s%s %s, %s ago", s.Target, s.Public, whose, did, w.since(s.TargetAt))
		if s.TargetError != "" {
			c.Found += ": " + s.TargetError
		}
		all = append(all, c)
	}
	return few(all, "targets did not answer")
}

const stepAdvertised = "advertised"

// OnlyHere warns of a link port that only this machine reaches, where tokens carry an address of a wider world. It may be right: something
// on this machine may pass on what comes to that address.
func OnlyHere(set config.Proxy) []Check {
	if set.Advertise == "" || !onlyHere(set.Listen) || onlyHere(set.Advertise) || set.HTTPS != "" && !onlyHere(set.HTTPS) { // where links are taken, too
		return nil
	}
	_, port, _ := net.SplitHostPort(set.Listen)
	return []Check{warn(stepAdvertised, fmt.Sprintf("listen on :%s, unless something on this machine leads from there to --listen", port),
		"--listen %s is reached from this machine only, and tokens send bridges to %s", set.Listen, set.Advertise)}
}

// onlyHere reports whether an address is reached from its own machine only.
func onlyHere(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip, _ := netip.ParseAddr(host)
	return ip.Unmap().IsLoopback() || host == "localhost"
}

// advertised goes from this machine to the address that tokens carry.
func (w *World) advertised(ctx context.Context, v *visit) []Check {
	const name = stepAdvertised
	picture, err := v.picture()
	switch {
	case err != nil:
		return nil
	case v.Snapshot == nil && v.Settings != nil: // before the start nobody can answer
		return OnlyHere(v.Settings.Proxy)
	case v.Snapshot == nil:
		return nil
	}
	reach := picture.Reach()
	keys, err := picture.Keys()
	pin, known := picture.Identity()
	switch {
	case len(reach.Addrs) == 0:
		return []Check{warn(name, "give the proxy --advertise HOST, and new tokens carry it", "tokens carry no address, so each bridge needs --proxy")}
	case err != nil || !known || len(keys) == 0:
		return []Check{skip(name, "there is no key in the state directory to try %s with", names(reach.Addrs))}
	}
	tok := grammar.Token{Addrs: reach.Addrs, SNI: reach.SNI, KeyID: keys[0].ID, Secret: keys[0].Secret, Pin: pin}
	examined, err := w.Walk(ctx, bridge.Config{Token: tok, Settings: bridge.Settings{Via: via.Choice{}}})
	if err != nil {
		return []Check{faulty(name, err, "")}
	}
	var all []Check
	for _, e := range examined {
		if len(e.Addrs) == 0 {
			all = append(all, faulty(name, e.Err, ""))
			continue
		}
		for _, t := range e.Tries {
			at := t.Target
			if host, _, _ := net.SplitHostPort(t.Target); host != t.Addr.Addr().String() {
				at = fmt.Sprintf("%s (%s)", t.Target, t.Addr)
			}
			switch {
			case t.Err == nil || errors.Is(t.Err, auth.ErrRefused): // a key of a file may stand in its place
				all = append(all, ok(name, "%s leads to this proxy, from this machine; a firewall of the provider shows from outside only", at))
			case errors.Is(t.Err, auth.ErrPin), errors.Is(t.Err, auth.ErrNotProxy):
				all = append(all, fail(name, "let the name, or the router, lead here, or give --advertise the right one", "%s leads to something else: %s", at, faulty("", t.Err, "").Found))
			default:
				if here := v.asked(ctx, name, func(check string) bool { return check == name }); Worst(here) == Warn {
					here[0].State = Fail
					return here
				}
				all = append(all, warn(name, "is the port open in the firewall? A router that does not let this machine reach itself by its public address is no fault", "%s does not answer this machine: %s", at, faulty("", t.Err, "").Found))
			}
		}
	}
	return few(all, "addresses")
}

const (
	dnsLimit  = 5 * time.Second
	dnsAtOnce = 16
	mostHosts = 500 // that are looked up
)

// dns looks the names of services up: they have to lead to this machine.
func (w *World) dns(ctx context.Context, v *visit) (all []Check) {
	const name = "names"
	if v.Snapshot == nil {
		return nil
	}
	hosts, secure, wildcards := hostsOf(v.Snapshot)
	if wildcards > 0 {
		all = append(all, skip(name, "%s with a * not looked up: DNS has no such name", count(wildcards, "service")))
	}
	if len(hosts) == 0 {
		return all
	}
	left := max(len(hosts)-mostHosts, 0)
	hosts = hosts[:len(hosts)-left]
	ctx, cancel := context.WithTimeout(ctx, dnsLimit)
	defer cancel()
	mine := w.mine(ctx, v)
	found := make([]Check, len(hosts))
	place := make(chan int)
	var looking sync.WaitGroup
	for range min(dnsAtOnce, len(hosts)) {
		looking.Go(func() {
			for i := range place {
				found[i] = w.leadsHere(ctx, hosts[i], secure[hosts[i]], mine)
			}
		})
	}
	for i := range hosts {
		place <- i
	}
	close(place)
	looking.Wait()
	var good []string
	var bad []Check
	for i, c := range found {
		if c.State == OK {
			good = append(good, hosts[i])
		} else {
			bad = append(bad, c)
		}
	}
	all = append(few(bad, "names"), all...)
	if len(good) > 0 {
		all = append([]Check{ok(name, "%s to this machine: %s", lead(len(good)), names(good))}, all...)
	}
	if left > 0 {
		all = append(all, skip(name, "%d more were not looked up", left))
	}
	return all
}

func lead(n int) string {
	if n == 1 {
		return "1 name leads"
	}
	return fmt.Sprintf("%d names lead", n)
}

// hostsOf are the hosts of the services that are claimed, and those of them for which this proxy ends TLS without a certificate as yet.
// wildcards is how many services stand for no host in particular.
func hostsOf(s *status.Snapshot) (hosts []string, wanting map[string]bool, wildcards int) {
	wanting = make(map[string]bool)
	for _, c := range s.Certificates {
		if c.State != status.CertificateValid {
			wanting[c.Host] = true
		}
	}
	for _, service := range s.Services {
		public, err := grammar.ParsePublic(service.Public)
		switch {
		case err != nil || !public.Kind.Named() || service.State == status.ServiceDenied:
		case strings.Contains(public.Host, "*"):
			wildcards++
		case !slices.Contains(hosts, public.Host):
			hosts = append(hosts, public.Host)
		}
	}
	return hosts, wanting, wildcards
}

// mine are the addresses of this machine, and those under which it is advertised.
func (w *World) mine(ctx context.Context, v *visit) []netip.Addr {
	mine := w.Addrs()
	picture, _ := v.picture()
	for _, addr := range picture.Reach().Addrs {
		host, _, _ := net.SplitHostPort(addr)
		if ips, err := w.lookUp(ctx, host); err == nil {
			mine = append(mine, ips...)
		}
	}
	return mine
}

func (w *World) lookUp(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ips, err := w.Lookup(ctx, "ip", host)
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	return ips, err
}

// leadsHere is what is found of one name. wanting says that its certificate has not come.
func (w *World) leadsHere(ctx context.Context, host string, wanting bool, mine []netip.Addr) Check {
	const name = "names"
	ips, err := w.lookUp(ctx, host)
	if dns, ok := errors.AsType[*net.DNSError](err); err != nil && !(ok && dns.IsNotFound) {
		return warn(name, "see that this machine reaches the name server of its network settings, then try again", "%s cannot be looked up here: %v", host, err)
	}
	if err != nil {
		return fail(name, "make an A record, and AAAA where the machine has IPv6, with the public address of this machine", "%s cannot be looked up: %v", host, err)
	}
	var elsewhere []string
	for _, ip := range ips {
		if !slices.Contains(mine, ip) {
			elsewhere = append(elsewhere, ip.String())
		}
	}
	if len(elsewhere) == 0 {
		return ok(name, "%s", host)
	}
	c := warn(name, "behind a NAT, or with a server in front, that may be right; else correct its A and AAAA records", "%s leads to %s, which is no address of this machine", host, names(elsewhere))
	if wanting {
		c.State = Fail
		c.Hint = "correct its A and AAAA records: a certificate comes only once the name leads here"
	}
	return c
}

// certificates are those of files and those that come by themselves.
func (w *World) certificates(_ context.Context, v *visit) (all []Check) {
	const name = "certificates"
	now := w.Now()
	var good []string
	judge := func(what string, until time.Time) {
		if left := until.Sub(now); left < soon {
			all = append(all, warn(name, "get a new one", "that of %s expires on %s", what, inUTC(until)))
			return
		}
		good = append(good, what)
	}
	if v.Settings != nil {
		for _, g := range givenOf(v.Settings) {
			if fault := config.Dated(g.leaf, now); fault != "" {
				what, hint, _ := strings.Cut(fault, ": ")
				all = append(all, fail(name, hint, "that in %s %s", g.file, what))
				continue
			}
			judge(g.file, g.leaf.NotAfter)
		}
	}
	if v.Snapshot != nil {
		for _, c := range v.Snapshot.Certificates {
			switch c.State {
			case status.CertificateValid:
				switch late := now.Sub(c.RenewAt); {
				case c.RenewAt.IsZero(): // it does not come by itself
					judge(c.Host, c.NotAfter)
				case late < renewal || c.NotAfter.Sub(now) > soon: // one for an address is never valid for more than six days
					good = append(good, c.Host)
				default:
					why := ""
					if c.Error != "" {
						why = ": " + c.Error
					}
					all = append(all, warn(name, cmp.Or(c.Hint, "`reverser events` may say why; `reverser reload` has it asked for again"),
						"that of %s expires on %s, and was to be renewed at %s%s", c.Host, inUTC(c.NotAfter), inUTC(c.RenewAt), why))
				}
			case status.CertificateFailed:
				all = append(all, fail(name, c.Hint, "that of %s: %s", c.Host, c.Error))
			default:
				text := c.Error
				if text == "" {
					text = "it is being asked for"
				}
				all = append(all, warn(name, c.Hint, "that of %s has not come yet: %s", c.Host, text))
			}
		}
	}
	all = few(all, "certificates")
	if len(good) > 0 {
		all = append([]Check{ok(name, "%s valid: %s", count(len(good), "certificate"), names(good))}, all...)
	}
	return all
}

// soon is when a certificate should have been renewed, and renewal how long that may take.
const (
	soon    = status.Soon
	renewal = time.Hour
)

// given is a certificate of a file.
type given struct {
	file string
	leaf *x509.Certificate
}

// givenOf are the certificates that settings name.
func givenOf(set *config.Settings) (all []given) {
	for _, g := range set.Proxy.Given {
		all = append(all, given{g.Chain, g.Certificate.Leaf})
	}
	for public, c := range set.Bridge.Certificates {
		all = append(all, given{"the file of " + public.String(), c.Leaf})
	}
	slices.SortFunc(all, func(a, b given) int { return strings.Compare(a.file, b.file) })
	return all
}

// isOfCertificate reports whether a warning is about a certificate's time.
func (w *World) isOfCertificate(set *config.Settings, text string) bool {
	return slices.ContainsFunc(givenOf(set), func(g given) bool {
		fault := config.Dated(g.leaf, time.Now()) // as the settings were read
		return fault != "" && strings.Contains(text, fault)
	})
}
