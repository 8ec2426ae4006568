package bridge

import (
	"errors"
	"log/slog"
	"net"
	"slices"
	"time"

	"reverser/internal/auth"
	"reverser/internal/claims"
	"reverser/internal/link"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// uplink is the bridge's way to one proxy. It keeps a link there and is its owner: what happens to the link comes here
// first. All uplinks offer the same services.
type uplink struct {
	b        *Bridge
	proxy    string   // host:port
	others   []string // host:port, which lead to the same proxy
	transfer string   // host:port that carriers dial; "": what the proxy announces
	report   *reporter
	paths    paths
	dialer   *link.Dialer

	// Guarded by Bridge.mu.
	claims   *claims.Link
	link     *link.Link   // of the present session
	leaving  []leaving    // sessions beside it, whose proxy is stopping
	carriers map[int]bool // slots that have a connection, but for the control connection
	remote   net.Addr     // that the control connection reached last
	problem  error        // why there is no control connection; nil while there is one
	telling  bool         // a goroutine sends the frames of claims
	ticking  bool         // tick runs
}

// leaving is a session whose proxy is stopping, and what it still serves.
type leaving struct {
	link   *link.Link
	claims *claims.Left
}

func (b *Bridge) newUplink(p Proxy) *uplink {
	u := &uplink{b: b, proxy: withPort(p.Addr), claims: b.services.AddLink()}
	for _, addr := range p.Others {
		u.others = append(u.others, withPort(addr))
	}
	if p.Transfer != "" {
		u.transfer = withPort(p.Transfer)
	}
	u.report = newReporter(b.log, u.proxy)
	return u
}

// say queues a log line that the proxy caused.
func (u *uplink) say(_ *link.Link, level slog.Level, msg string, args ...any) {
	u.b.say.Say(level, u.proxy, msg, append(args, "proxy", u.proxy)...)
}

// newDialer makes the dialer that keeps the link.
func (u *uplink) newDialer() {
	b := u.b
	u.dialer = link.NewDialer(link.DialerConfig{
		Owner: u, Say: u.say, Name: b.name, Dial: u.dial, Failed: u.failed, Backoff: backoff, Detach: b.cfg.ResumeWithin, Keepalive: b.cfg.Keepalive, Budget: b.budget,
		Auth: b.auth(),
	})
}

// auth is what the bridge proves itself with, and how it knows its proxy.
func (b *Bridge) auth() auth.ClientConfig {
	return auth.ClientConfig{
		KeyID: b.cfg.Token.KeyID, Secret: b.cfg.Token.Secret, Pin: b.cfg.Token.Pin, SNI: b.sni(),
		Instance: b.instance, Features: link.Features,
	}
}

// run keeps the link until the bridge stops.
func (u *uplink) run() {
	u.b.wg.Go(func() { u.watchName(func() { u.dialer.Changed(nil) }) })
	u.dialer.Run(u.b.ctx)
}

// failed implements link.DialerConfig.
func (u *uplink) failed(slot int, err error, next time.Duration) {
	if err == nil || u.b.ctx.Err() != nil {
		return
	}
	if slot == 0 {
		u.b.mu.Lock()
		u.problem = err
		u.b.mu.Unlock()
	}
	u.report.failed(slot, err, next)
}

// Attached implements link.Owner.
func (u *uplink) Attached(l *link.Link, slot int) {
	b := u.b
	remote := l.RemoteAddr()
	b.mu.Lock()
	mine := u.beginLocked(l)
	switch {
	case !mine:
	case slot == 0:
		u.problem = nil
		if remote != nil { // nil: it broke already
			u.remote = remote
		}
		u.claims.Attached()
	default:
		u.carriers[slot] = true
		b.startProbesLocked()
	}
	b.mu.Unlock()
	if !mine {
		return
	}
	u.report.attached(l, slot, l.Status()[0].Remote)
	if slot != 0 {
		return
	}
	u.tell()
	if b.draining.Load() { // the connection may have broken before the proxy was told
		l.GoAway(b.drainLeft())
	}
}

// beginLocked makes l the present session. It reports false when l is over, or beside the present session.
func (u *uplink) beginLocked(l *link.Link) bool {
	if u.link == l {
		return true
	}
	if l.Err() != nil || l.Leaving() { // Ended or GoingAway has come, or comes
		return false
	}
	u.leaveLocked()
	u.link, u.carriers = l, make(map[int]bool)
	return true
}

// leaveLocked moves the present session beside the next one: its proxy is stopping, or was replaced without a GOAWAY.
func (u *uplink) leaveLocked() {
	if u.link != nil && u.link.Err() == nil {
		u.leaving = append(u.leaving, leaving{u.link, u.claims.Leave()})
	}
	u.endLocked()
}

// besideLocked returns the place of l among the sessions beside the present one, else -1.
func (u *uplink) besideLocked(l *link.Link) int {
	return slices.IndexFunc(u.leaving, func(s leaving) bool { return s.link == l })
}

func (u *uplink) endLocked() {
	if u.link != nil {
		u.link, u.carriers = nil, nil
		u.claims.Ended()
	}
}

// tell sends what the claims have to say. Only one goroutine at a time sends, so that frames stay in order. It also
// sends what the others bring meanwhile.
func (u *uplink) tell() {
	b := u.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if u.telling {
		return
	}
	u.telling = true
	for {
		l, frames, excess := u.link, u.claims.Take(), u.claims.Excess()
		if l == nil || len(frames) == 0 && excess == nil {
			break
		}
		b.mu.Unlock()
		if excess != nil {
			l.Kill(excess)
		}
		for _, f := range frames {
			l.Say(f.Name(), f.Append(nil))
		}
		b.mu.Lock()
	}
	u.telling = false
}

// Detached implements link.Owner.
func (u *uplink) Detached(l *link.Link, slot int, err error) {
	b := u.b
	b.mu.Lock()
	switch {
	case u.link != l:
	case slot == 0:
		u.claims.Detached()
	default:
		delete(u.carriers, slot)
	}
	b.mu.Unlock()
	if errors.Is(err, link.ErrIdle) {
		u.report.rests(l, slot)
		return
	}
	if b.ctx.Err() == nil && l.Err() == nil && !l.Leaving() { // else Ended says it, or GoingAway said it
		u.report.detached(l, slot, err)
	}
}

// GoingAway implements link.Owner. The session continues while it has a connection, and the link begins a new session beside it.
func (u *uplink) GoingAway(l *link.Link, drain time.Duration) {
	b := u.b
	b.mu.Lock()
	present := u.link == l
	if present {
		u.leaveLocked()
		b.changedLocked()
	}
	b.mu.Unlock()
	if present {
		u.report.leaving(l, drain, l.ComeBack())
	}
}

// Ended implements link.Owner.
func (u *uplink) Ended(l *link.Link, err error) {
	b := u.b
	b.mu.Lock()
	if u.link == l {
		u.endLocked()
		u.problem = err
	}
	i := u.besideLocked(l)
	if i >= 0 {
		u.leaving = slices.Delete(u.leaving, i, i+1)
	}
	b.changedLocked()
	b.mu.Unlock()
	switch {
	case b.ctx.Err() != nil:
	case i >= 0:
		b.say.Say(slog.LevelInfo, u.proxy, "the proxy that was stopping has ended", "proxy", u.proxy)
	default:
		u.report.ended(l, err)
	}
}

// Message implements link.Owner: the proxy answers a CLAIM or an UNCLAIM.
func (u *uplink) Message(l *link.Link, f wire.Frame) error {
	switch f.Type {
	case wire.TypeClaimed:
		id, c, err := wire.ParseClaimed(f)
		if err != nil {
			return err
		}
		return u.heardClaimed(l, id, c)
	case wire.TypeUnclaimed:
		id, marks, err := wire.ParseUnclaimed(f)
		if err == nil {
			err = l.CheckMarks(marks)
		}
		if err != nil {
			return err
		}
		return u.heardUnclaimed(l, id, marks)
	}
	return link.Violation(wire.ErrUnexpected, "%s from a proxy", f.Type)
}

// heardClaimed takes the proxy's answer to a claim. An error means that the proxy broke the protocol.
func (u *uplink) heardClaimed(l *link.Link, id uint32, c wire.Claimed) error {
	b := u.b
	b.mu.Lock()
	if u.link != l {
		b.mu.Unlock()
		return nil
	}
	h, err := u.claims.Claimed(id, claims.AnswerOf(c))
	b.changedLocked()
	var say sayFunc
	if h.Service != nil {
		say = u.aboutService(h)
		if h.Now.State == status.ServiceUp && !h.Now.Proven {
			b.probeSoonLocked(&probe{
				probed: probed{u, id}, l: l, say: say, answers: h.Now.Answers, claimed: h.Service.Public,
				remote: u.remote, nonce: c.Nonce, came: time.Now(),
			})
		}
	}
	b.mu.Unlock()
	if err != nil {
		return link.Violation(wire.ErrClaimInvalid, "%s", err)
	}
	if h.Service == nil {
		return nil
	}
	news := h.Now.State != h.Before.State || h.Now.Reason != h.Before.Reason
	switch {
	case !news || b.draining.Load(): // a successor has what this bridge had
	case h.Now.State == status.ServiceDenied:
		say(slog.LevelError, "service denied by the proxy", "reason", h.Now.Reason)
	case h.Now.State == status.ServiceRetrying:
		say(slog.LevelWarn, "service cannot be opened at the proxy, which goes on trying", "reason", c.Text)
	case h.Now.State == status.ServiceUp && c.Text != "":
		say(slog.LevelWarn, "service takes no new users", "reason", c.Text)
	case h.Now.State == status.ServiceUp && h.Before.State == status.ServiceUp:
		say(slog.LevelInfo, "service takes new users again")
	}
	return nil
}

// sayFunc has a line written in the log.
type sayFunc func(level slog.Level, msg string, args ...any)

// aboutService names the service in log lines, and the proxy where there are several. A proxy has so many lines written only.
func (u *uplink) aboutService(h claims.Heard) sayFunc {
	about := []any{"service", h.Now.Public.String(), "target", h.Service.TargetName()}
	if len(u.b.uplinks) > 1 {
		about = append(about, "proxy", u.proxy)
	}
	return func(level slog.Level, msg string, args ...any) {
		u.b.say.Say(level, u.proxy, msg, slices.Concat(about, args)...)
	}
}

// tickEvery is how often time counts for services that are retired.
const tickEvery = 5 * time.Second

// heardUnclaimed takes the proxy's answer to UNCLAIM. An error means that the proxy broke the protocol.
func (u *uplink) heardUnclaimed(l *link.Link, id uint32, marks []wire.Mark) error {
	b := u.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if u.link != l {
		return nil
	}
	if err := u.claims.Unclaimed(id, marks); err != nil {
		return link.Violation(wire.ErrClaimInvalid, "%s", err)
	}
	b.changedLocked()
	if u.claims.Waiting() && !u.ticking {
		u.ticking = true
		b.wg.Go(u.tick)
	}
	return nil
}

// tick tells the claims how long each slot has had a connection or needed none, for as long as they wait for it. While the control
// connection is there the proxy says at once that it has a stream for a slot at rest, which ends the rest.
func (u *uplink) tick() {
	b := u.b
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-b.ctx.Done():
			return
		}
		b.mu.Lock()
		l := u.link
		if l == nil || !u.claims.Waiting() {
			u.ticking = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		slots := l.Status()
		b.mu.Lock()
		for i, st := range slots {
			if u.link == l && i > 0 && (lasts(st) || st.Resting && lasts(slots[0])) {
				u.claims.Tick(uint8(i), tickEvery)
			}
		}
		b.mu.Unlock()
	}
}

// lasts reports whether a slot has had its connection for a whole tick.
func lasts(st link.SlotStatus) bool { return st.Up && time.Since(st.Since) >= tickEvery }

// linksLocked returns the links that have a session: the present one, and those beside it.
func (u *uplink) linksLocked() (all []*link.Link) {
	if u.link != nil {
		all = append(all, u.link)
	}
	for _, s := range u.leaving {
		all = append(all, s.link)
	}
	return all
}

// snapshotLocked describes the link, and those beside it whose proxy is stopping.
func (u *uplink) snapshotLocked() (links []status.Link) {
	b := u.b
	way := ""
	if w := b.wayTo(u.proxy); w != nil {
		way = w.String()
	}
	for _, l := range u.linksLocked() {
		st := l.Snapshot(b.key(), b.name, b.draining.Load() || l.Leaving())
		if st.Remote == "" {
			st.Remote = u.proxy
		}
		st.Via = way
		if st.State == status.LinkDown {
			st.Reason = u.problemLocked()
		}
		links = append(links, st)
	}
	if links == nil {
		links = []status.Link{{Key: b.key(), Bridge: b.name, Remote: u.proxy, Via: way, State: status.LinkDown, Since: b.start, Reason: u.problemLocked()}}
	}
	return links
}

// problemLocked is why there is no control connection, "" if there is one or nothing is known yet.
func (u *uplink) problemLocked() string {
	if u.problem == nil {
		return ""
	}
	return u.problem.Error()
}

// serviceLocked describes a service as users of this proxy find it.
func (u *uplink) serviceLocked(svc *claims.Offered) status.Service {
	k := u.claims.Known(svc.ID)
	st := status.Service{Public: k.Public.String(), Target: svc.TargetName(), State: k.State, Reason: k.Reason, Drained: k.Drained, Probe: k.Probe, Inspect: svc.Options.Proxy.Inspect}
	switch {
	case st.State != status.ServiceUp:
	case st.Reason != "": // users go to it no more, by order of the proxy's operator
		st.State = status.ServiceAway
	case u.link == nil || !u.link.Up():
		st.State = status.ServiceAway
		if u.link != nil && u.link.RemoteAddr() != nil {
			st.Reason = "no connection for carriers: the proxy is there, but no user can be served"
		}
	}
	return st
}
