package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"reverser/internal/accesslog"
	"reverser/internal/config"
	"reverser/internal/state"
	"reverser/internal/sys"
)

// settings are read as the role reads them.
func (w *World) settings(_ context.Context, v *visit) (all []Check) {
	const name = "settings"
	switch {
	case v.SettingsErr != nil:
		hint := ""
		if e, ok := errors.AsType[*config.ArgError](v.SettingsErr); ok {
			hint = e.Hint
		}
		if e, ok := errors.AsType[*config.Error](v.SettingsErr); ok && hint == "" {
			hint = e.Hint
		}
		c := fail(name, hint, "%v", v.SettingsErr)
		c.Found = strings.TrimSuffix(c.Found, ": "+hint)
		all = append(all, c)
	case v.Settings == nil && v.Snapshot != nil && v.Snapshot.Reload != nil && v.Snapshot.Reload.Error != "":
		all = append(all, fail(name, "mend the file, and `reverser reload`", "the last reload was refused, those before are in force: %s", v.Snapshot.Reload.Error))
	case v.Settings == nil && v.Snapshot == nil:
		all = append(all, skip(name, "the process that runs does not say"))
	case v.Settings == nil:
		all = append(all, ok(name, "those of the running process"))
	default:
		all = append(all, ok(name, "%s", describe(v.Settings)))
	}
	if s := v.Snapshot; s != nil && s.Reloading.Slow(w.Now()) {
		all = append(all, warn(name, "look at the disk that has it: the reload goes on by itself when that answers, and until then the settings stay as they were",
			"a reload has read %s since %s, and is not through", s.Reloading.What(), inUTC(s.Reloading.Since)))
	}
	for _, warning := range v.Warnings {
		if v.Settings != nil && w.isOfCertificate(v.Settings, warning.Text) {
			continue // which has a line of its own
		}
		all = append(all, warn(name, "", "%s", warning))
	}
	return all
}

// describe says in a few words what settings are.
func describe(set *config.Settings) string {
	if set.Role == config.RoleBridge {
		return count(len(set.Bridge.Services), "service")
	}
	words := []string{"--listen " + set.Proxy.Listen}
	for _, port := range portsOf(set.Proxy)[1:] {
		words = append(words, "--"+port.name+" "+port.addr)
	}
	return strings.Join(words, ", ")
}

// stateDir is looked at as a start does it.
func (w *World) stateDir(_ context.Context, v *visit) []Check {
	const name = "state"
	held := ""
	if v.seen.Held {
		held = ", held by a process that runs"
		if v.seen.PID != 0 {
			held = fmt.Sprintf(", held by the process that runs (pid %d)", v.seen.PID)
		}
	}
	switch {
	case v.AskErr != nil && !v.silent():
		return []Check{faulty(name, v.AskErr, "")}
	case v.seenErr != nil && !sys.DiskFull(v.seenErr): // which disk says
		return []Check{faulty(name, v.seenErr, "")}
	case v.seen.Missing && v.seenErr != nil:
		return []Check{skip(name, "%s is not there yet, and its disk has no room for it", v.seen.Path)}
	case v.seen.Missing:
		return []Check{ok(name, "%s is not there yet, and can be made", v.seen.Path)}
	case v.seen.Note != "":
		return []Check{warn(name, "", "%s: %s", v.seen.Path, v.seen.Note)}
	}
	return []Check{ok(name, "%s%s", v.seen.Path, held)}
}

// silent reports whether a process runs and does not answer.
func (v *visit) silent() bool {
	_, is := errors.AsType[*state.SilentError](v.AskErr)
	return is
}

// troubles are what a process that runs says of itself.
func (w *World) troubles(_ context.Context, v *visit) (all []Check) {
	s := v.Snapshot
	switch {
	case v.silent():
		return []Check{faulty("process", v.AskErr, "")}
	case s == nil:
		return nil
	}
	up := time.Duration(s.UptimeSeconds * float64(time.Second)).Round(time.Second)
	if s.Stopping {
		all = append(all, warn("process", "a successor may start on the same state directory", "version %s, up %s, is stopping", s.Version, up))
	} else {
		all = append(all, ok("process", "version %s, up %s", s.Version, up))
	}
	if u := s.Unstored; u != nil {
		all = append(all, fail("process", "make room: until it is stored, "+u.Then(), "%s is not stored: %s", u.What(), u.Error))
	}
	for _, fault := range s.Faults {
		all = append(all, fail("process", "", "%s", fault))
	}
	for _, p := range s.Pressure {
		who := ""
		if p.Largest.Key != "" {
			who = fmt.Sprintf(", %d by key %s", p.Largest.Used, p.Largest.Key)
		}
		all = append(all, warn("process", p.Hint, "short of %s: %d of %d used%s", p.What, p.Used, p.Limit, who))
	}
	if u := s.Usage; u != nil && u.Error != "" {
		all = append(all, fail("usage", "users are served all the same: make room, or mend the directory", "%s cannot be written, what was counted is kept in memory: %s", u.File, u.Error))
	}
	if u := s.Usage; u != nil && u.PutAside != "" {
		all = append(all, warn("usage", "what it held before is missing from `reverser usage`", "a damaged file was put aside as %s: %s", u.PutAside, u.Damage))
	}
	if l := s.AccessLog; l != nil && l.Error != "" {
		all = append(all, fail("access log", "users are served all the same: make room, or mend its directory", "%s cannot be written, and %d lines are lost: %s", l.Name(), l.Lost, l.Error))
	} else if l != nil && l.Lost > 0 {
		all = append(all, warn("access log", "", "%s lost %d lines since the start, and is written again", l.Name(), l.Lost))
	} else if l != nil {
		all = append(all, ok("access log", "%s, %s", l.Name(), count(int(l.Written), "line")))
	}
	return all
}

// hasFiles reports whether the state directory is there and can be used.
func (v *visit) hasFiles() bool {
	return !v.seen.Missing && (v.seenErr == nil || sys.DiskFull(v.seenErr))
}

// usage is what is counted: it has to find its file. Of a disk that fails, the process that runs tells.
func (w *World) usage(_ context.Context, v *visit) []Check {
	const name = "usage"
	if !v.hasFiles() || v.Snapshot != nil && v.Snapshot.Usage != nil && v.Snapshot.Usage.Error != "" {
		return nil
	}
	if err := state.LookUsage(v.seen.Path, v.Trusted...); err != nil {
		c := faulty(name, err, "")
		c.Found += ": what is counted cannot be stored"
		return []Check{c}
	}
	return []Check{ok(name, "what is counted can be stored")}
}

// accessLog is looked at as a start opens it. A process that runs has it open, and troubles tells of it.
func (w *World) accessLog(_ context.Context, v *visit) []Check {
	const name = "access log"
	if v.Settings == nil || v.Settings.AccessLog == "" || v.Snapshot != nil {
		return nil
	}
	if err := accesslog.Look(v.Settings.AccessLog); err != nil {
		c := faulty(name, err, "name a file that this user can write with --access-log")
		c.Found = strings.TrimLeft(strings.TrimPrefix(c.Found, name), ": ")
		return []Check{c}
	}
	return []Check{ok(name, "%s can be written", v.Settings.AccessLog)}
}

// adminPort is where the API and the page are served besides the admin socket.
func (w *World) adminPort(ctx context.Context, v *visit) (all []Check) {
	const name = "admin"
	if v.Settings == nil {
		return v.unsaid(name, "whether it has an --admin address")
	}
	if v.Settings.Admin.Addr == "" {
		return nil
	}
	a := v.Settings.Admin
	who := "only this machine reaches it"
	switch {
	case a.Loopback():
	case a.Certificate == nil: // of which the settings warn
		who = "other machines reach it without TLS"
	default:
		who = "other machines reach it by TLS"
		if fault := config.Dated(a.Certificate.Leaf, w.Now()); fault != "" {
			what, hint, _ := strings.Cut(fault, ": ")
			all = append(all, fail(name, hint, "the certificate in %s %s", a.CertificateFile, what))
		} else if until := a.Certificate.Leaf.NotAfter; until.Sub(w.Now()) < soon {
			all = append(all, warn(name, "get a new one", "the certificate in %s expires on %s", a.CertificateFile, inUTC(until)))
		}
	}
	if v.hasFiles() {
		if err := state.LookAdminToken(v.seen.Path, v.Trusted...); err != nil {
			all = append(all, faulty(name, err, ""))
		}
	}
	if v.Snapshot == nil && !v.seen.Held {
		c := w.canListen(name, "admin", a.Addr, "--admin")
		if c.State == OK {
			c.Found += "; " + who
		}
		return append([]Check{c}, all...)
	}
	conn, err := w.Dial(ctx, "tcp", reachable(a.Addr))
	if err != nil {
		return append(all, warn(name, "its log says why; `reverser doctor --state DIR` and the other commands use the admin socket", "%s %s", a.Addr, outcome(err)))
	}
	conn.Close()
	return append([]Check{ok(name, "%s takes connections; %s", a.Addr, who)}, all...)
}

// reachable is where this machine reaches what listens on an address.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	ip, _ := netip.ParseAddr(host)
	switch {
	case err != nil || host != "" && !ip.IsUnspecified():
		return addr
	case ip.IsValid() && ip.Is6():
		return net.JoinHostPort("::1", port)
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// unsaid is a step about settings that a process which runs does not tell.
func (v *visit) unsaid(name, what string) []Check {
	if v.Snapshot == nil || v.SettingsErr != nil { // there is no process, or a fault of the settings has been told
		return nil
	}
	return []Check{skip(name, "the process does not say %s: `reverser doctor %s` with the flags and --config of its start shows it", what, v.Role)}
}

// notices are not sent to look whether they arrive.
func (w *World) notices(_ context.Context, v *visit) []Check {
	const name = "notify"
	if v.Settings == nil {
		return v.unsaid(name, "whether its file has a [[notify]]")
	}
	if len(v.Settings.Notify) == 0 {
		return nil
	}
	return []Check{skip(name, "%s in the file: `reverser notify --test` sends to each, while the process runs", count(len(v.Settings.Notify), "[[notify]]"))}
}
