package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/status"
	"reverser/internal/sys"
)

const (
	probeLimit = 4 * time.Second
	probeTimes = 2                // how often a busy proxy is asked
	probeAge   = 50 * time.Second // how long a nonce is good for; the proxy knows it for a minute
	maxProbes  = 16               // at once
	probeRest  = time.Second      // between two of a service: a proxy that lies may ask for one with each answer
)

// prober proves public ports: it dials them as a user would and checks that this proxy answers there. It runs one probe at
// a time for each service of a proxy, one in probeRest on one link, and maxProbes at once. A probe waits until the link has a carrier: the port may be open,
// and the carriers' own port blocked, which the reporter says. Its fields are guarded by Bridge.mu.
type prober struct {
	waiting map[*uplink][]*probe // the oldest first
	queued  map[probed]*probe    // those in waiting, one for each service
	running map[probed]bool
	asked   map[probed]asked  // when one was last queued that had not to rest
	resting map[probed]*probe // came too soon behind the last one; the latest of each service
	timed   bool              // a goroutine waits for the end of their rest
	sweep   int               // how many of asked are looked through for those that matter no more
	turn    int               // of the uplink that is asked first for the next probe
}

// asked is when a service was to be probed, on which link.
type asked struct {
	l  *link.Link
	at time.Time
}

// probed names a service of a proxy.
type probed struct {
	u  *uplink
	id uint32
}

// probe is one attempt to prove a public port.
type probe struct {
	probed
	l       *link.Link
	say     sayFunc
	answers int            // of the proxy to the claim: a later one makes the probe pointless
	claimed grammar.Public // of the bridge's own configuration
	remote  net.Addr       // that the control connection reached
	nonce   [16]byte       // zero: the proxy wants no probe
	came    time.Time      // when the nonce did
}

// probeSoonLocked queues a probe in place of one of the same service that has not begun.
func (b *Bridge) probeSoonLocked(p *probe) {
	pr := &b.probes
	if pr.queued == nil {
		pr.waiting, pr.queued, pr.running = make(map[*uplink][]*probe), make(map[probed]*probe), make(map[probed]bool)
		pr.asked, pr.resting = make(map[probed]asked), make(map[probed]*probe)
	}
	q := pr.queued[p.probed]
	switch last := pr.asked[p.probed]; {
	case q != nil:
		*q = *p
	case last.l == p.l && time.Since(last.at) < probeRest:
		pr.resting[p.probed] = p
		if !pr.timed {
			pr.timed = true
			b.wg.Go(b.endRests)
		}
		return
	default:
		pr.queueLocked(p)
	}
	b.startProbesLocked()
}

func (pr *prober) queueLocked(p *probe) {
	if len(pr.asked) >= pr.sweep { // services come and go
		maps.DeleteFunc(pr.asked, func(of probed, last asked) bool {
			return pr.resting[of] == nil && time.Since(last.at) >= probeRest
		})
		pr.sweep = 2*len(pr.asked) + 64
	}
	pr.asked[p.probed] = asked{p.l, time.Now()}
	pr.queued[p.probed] = p
	pr.waiting[p.u] = append(pr.waiting[p.u], p)
}

// endRests queues the probes that have rested, until none rests.
func (b *Bridge) endRests() {
	pr := &b.probes
	again := time.NewTicker(probeRest)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-b.ctx.Done():
			return
		}
		b.mu.Lock()
		for of, last := range pr.asked {
			if time.Since(last.at) < probeRest {
				continue
			}
			delete(pr.asked, of)
			if p := pr.resting[of]; p != nil {
				delete(pr.resting, of)
				pr.queueLocked(p)
			}
		}
		b.startProbesLocked()
		pr.timed = len(pr.resting) > 0
		done := !pr.timed
		b.mu.Unlock()
		if done {
			return
		}
	}
}

// startProbesLocked starts the probes that may run now. It is called from goroutines that Run waits for only.
func (b *Bridge) startProbesLocked() {
	for len(b.probes.running) < maxProbes {
		p := b.nextProbeLocked()
		if p == nil {
			return
		}
		b.wg.Go(func() { b.probeOn(p) })
	}
}

// probeOn runs a probe, and others behind it.
func (b *Bridge) probeOn(p *probe) {
	for p != nil {
		p.prove(b.ctx)
		b.mu.Lock()
		delete(b.probes.running, p.probed)
		p = b.nextProbeLocked()
		b.mu.Unlock()
	}
}

// nextProbeLocked takes a probe that may run now off the queue. The proxies have their turns: one may ask for probes without end.
func (b *Bridge) nextProbeLocked() *probe {
	pr := &b.probes
	for i := range b.uplinks {
		at := (pr.turn + i) % len(b.uplinks)
		u := b.uplinks[at]
		if len(u.carriers) == 0 || b.ctx.Err() != nil {
			continue
		}
		if p := pr.nextLocked(u); p != nil {
			pr.turn = at + 1
			return p
		}
	}
	return nil
}

// nextLocked takes the first probe of an uplink that may run, and drops those before it that are of no interest any more.
func (pr *prober) nextLocked(u *uplink) (next *probe) {
	var kept []*probe // their service is just being probed: a few at most
	queue := pr.waiting[u]
	for len(queue) > 0 && next == nil {
		p := queue[0]
		queue[0], queue = nil, queue[1:]
		switch {
		case pr.running[p.probed] && p.latestLocked():
			kept = append(kept, p)
			continue
		case p.latestLocked():
			next = p
			pr.running[p.probed] = true
		}
		delete(pr.queued, p.probed)
	}
	if len(kept) > 0 {
		queue = append(kept, queue...)
	}
	if len(queue) == 0 {
		delete(pr.waiting, u)
	} else {
		pr.waiting[u] = queue
	}
	return next
}

// prove probes, and says what came of it unless the proxy has said something else meanwhile.
func (p *probe) prove(ctx context.Context) {
	addr, why := probeAddr(p.claimed, p.remote)
	if why == "" && p.nonce == ([16]byte{}) {
		why = "the proxy asks for no probe: its public ports may have another address than its link (--bind there)"
	}
	if w := p.u.b.wayTo(p.u.proxy); w != nil { // its address is what the control connection reached
		why = "the way to the proxy goes through " + w.String()
	}
	switch p.claimed.Kind {
	case grammar.KindHTTP, grammar.KindHTTPS, grammar.KindTLS:
		why = "names have no port of their own"
	}
	if time.Since(p.came) > probeAge { // it would go to the service as a user's connection
		why = "its turn came too late behind those of other services"
	}
	if why != "" {
		if p.over(true, status.Probe{State: status.ProbeNone, Text: why}) {
			p.say(slog.LevelInfo, "service up", "public", "not proven: "+why)
		}
		return
	}
	begin := time.Now()
	err := p.u.b.ask(ctx, addr, p.nonce)
	for times := 1; times < probeTimes && errors.Is(err, context.DeadlineExceeded) && errors.Is(err, errNoAnswer) && time.Since(p.came) < probeAge; times++ {
		err = p.u.b.ask(ctx, addr, p.nonce) // the kernel of a busy proxy takes a connection long before the proxy does
	}
	took := time.Since(begin)
	failed := err != nil && !sys.NoRoute(err)
	outcome := status.Probe{State: status.ProbeAnswered, Text: addr}
	switch {
	case failed:
		outcome = status.Probe{State: status.ProbeFailed, Text: fmt.Sprintf("%s: %v%s", addr, err, probeHint(err))}
	case err != nil:
		outcome = status.Probe{State: status.ProbeNone, Text: "this machine has no way to " + addr}
	}
	switch {
	case !p.over(!failed, outcome) || ctx.Err() != nil:
	case err == nil:
		p.say(slog.LevelInfo, "service up", "public", addr, "answered_ms", float64(took.Microseconds())/1000)
	case failed:
		p.say(slog.LevelWarn, "service up, but its public port did not answer from here"+probeHint(err), "public", addr, "err", err)
	default:
		p.say(slog.LevelInfo, "service up", "public", "not proven: "+outcome.Text)
	}
}

// over notes what came of the probe, and whether there is nothing to prove any more. It reports whether the outcome is still of interest.
func (p *probe) over(done bool, outcome status.Probe) bool {
	b := p.u.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if !p.latestLocked() {
		return false
	}
	if done {
		p.u.claims.Proved(p.id, p.answers)
	}
	p.u.claims.Probed(p.id, p.answers, outcome)
	return true
}

// latestLocked reports whether the proxy's answer that the probe is about is its last one.
func (p *probe) latestLocked() bool {
	k := p.u.claims.Known(p.id)
	return p.u.link == p.l && k != nil && k.Answers == p.answers
}

// errNoAnswer means that the port was reached, and that no answer came on the connection.
var errNoAnswer = errors.New("wait for the proxy's answer")

var errOther = errors.New("something else than the proxy answers there")

// probeHint says what may stand between the bridge and a public port.
func probeHint(err error) string {
	switch {
	case errors.Is(err, errOther):
		return ": does another machine or program have this address?"
	case errors.Is(err, errNoAnswer):
		return ": has the proxy as many users as its descriptor limit or this key's limit allows (its log says so), or does something in between take connections?"
	}
	return ": does a firewall or the cloud's security group block it?"
}

// probeAddr returns where the public port of a service is probed, or why it is not. The bridge dials nothing that a proxy
// names: the address is the one that the control connection reached, or the bind address of the bridge's own configuration, and
// the port is of the own configuration. So a service whose port the proxy chooses is not probed: behind the address that the
// bridge dials, a tunnel or router may lead other ports to machines that are not the proxy's.
func probeAddr(claimed grammar.Public, remote net.Addr) (addr, why string) {
	tcp, _ := remote.(*net.TCPAddr)
	if tcp == nil {
		return "", "the link goes over something else than TCP"
	}
	if claimed.Port == 0 {
		return "", "the proxy chose its port"
	}
	reached := tcp.AddrPort().Addr().Unmap()
	bind, err := netip.ParseAddr(claimed.Host)
	switch {
	case claimed.Host == "":
		bind = reached
	case err != nil:
		return "", "its address is not known"
	case bind.IsUnspecified() && bind.Is4() != reached.Is4():
		return "", "it is open for another family of addresses than the one that the link goes over"
	case bind.IsUnspecified():
		bind = reached
	case bind.IsLoopback() && !reached.IsLoopback():
		return "", "it is bound to an address that only the proxy's host reaches"
	}
	return net.JoinHostPort(bind.String(), strconv.Itoa(int(claimed.Port))), ""
}

// ask asks at addr what only this proxy can answer, and checks the answer.
func (b *Bridge) ask(ctx context.Context, addr string, nonce [16]byte) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	c, err := b.socket(ctx, "tcp", addr, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	question := link.ProbeQuestion(nonce)
	if _, err := c.Write(question[:]); err != nil {
		return err
	}
	var answer [16]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = ctx.Err()
		}
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	if answer != link.ProbeAnswer(nonce) {
		return errOther
	}
	return nil
}
