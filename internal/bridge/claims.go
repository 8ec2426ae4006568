package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// Claimed implements link.Owner: the proxy says what became of a service.
func (b *Bridge) Claimed(l *link.Link, id uint16, c wire.Claimed) {
	if int(id) >= len(b.cfg.Services) {
		return
	}
	states := map[wire.ClaimStatus]string{
		wire.ClaimUp: status.ServiceUp, wire.ClaimDenied: status.ServiceDenied, wire.ClaimRetrying: status.ServiceRetrying,
	}
	svc := b.cfg.Services[id]
	b.mu.Lock()
	if b.link != l { // of a proxy that is stopping
		b.mu.Unlock()
		return
	}
	s := &b.services[id]
	before := *s
	s.state, s.reason = states[c.Status], c.Text
	s.answers++
	nth := s.answers
	if c.Public != "" && c.Status == wire.ClaimUp {
		s.public = c.Public
	}
	now := *s
	remote := b.remote
	b.mu.Unlock()
	log := b.log.With("service", now.public, "target", svc.target())
	switch {
	case now.state == before.state && now.reason == before.reason:
	case c.Status == wire.ClaimDenied:
		log.Error("service denied by the proxy", "reason", c.Text)
	case c.Status == wire.ClaimRetrying && b.draining.Load():
		log.Info("another process serves new users", "reason", c.Text)
	case c.Status == wire.ClaimRetrying:
		log.Warn("service cannot be opened at the proxy, which goes on trying", "reason", c.Text)
	}
	if b.cfg.OnService != nil {
		b.cfg.OnService(svc.Public, status.Service{Public: now.public, Target: svc.target(), State: now.state, Reason: now.reason})
	}
	if c.Status != wire.ClaimUp || c.Nonce == ([16]byte{}) {
		return
	}
	pub, err := grammar.ParsePublic(now.public)
	if err != nil {
		return
	}
	b.wg.Go(func() {
		say := b.prove(pub, remote, c.Nonce, svc)
		if b.awaitCarrier(l, id, nth) {
			say()
		}
	})
}

// awaitCarrier waits until users of the service can be served: the port may be open, and the carriers' own port blocked, which
// the reporter says. false: there is nothing to say of this answer any more, the nth to the claim.
func (b *Bridge) awaitCarrier(l *link.Link, id uint16, nth int) bool {
	for {
		b.mu.Lock()
		latest, attached := b.services[id].answers == nth, b.attached
		b.mu.Unlock()
		if !latest || l.Up() {
			return latest
		}
		select {
		case <-attached:
		case <-l.Done():
			return false
		case <-b.ctx.Done():
			return false
		}
	}
}

// prove dials the public port as a user would and checks that this proxy answers there. It returns what there is to say.
func (b *Bridge) prove(pub grammar.Public, remote net.Addr, nonce [16]byte, svc Service) (say func()) {
	log := b.log.With("service", pub.String(), "target", svc.target())
	addr, ok := probeAddr(pub, b.proxy, remote)
	if !ok {
		return func() {
			log.Info("service up", "public", "not proven: it is bound to an address that only the proxy's host reaches")
		}
	}
	begin := time.Now()
	err := probe(b.ctx, addr, nonce)
	took := time.Since(begin)
	return func() {
		switch {
		case err == nil:
			log.Info("service up", "public", addr, "answered_ms", float64(took.Microseconds())/1000)
		case b.ctx.Err() == nil:
			log.Warn("service up, but its public port did not answer from here"+probeHint(err), "public", addr, "err", err)
		}
	}
}

// errNoAnswer says that the port was reached, and that whoever took the connection did not answer.
var errNoAnswer = errors.New("wait for the proxy's answer")

var errOther = errors.New("something else than the proxy answers there")

// probeHint says what may stand between the bridge and a public port.
func probeHint(err error) string {
	switch {
	case errors.Is(err, errOther):
		return ": does another machine or program have this address?"
	case errors.Is(err, errNoAnswer):
		return ": has the proxy as many users as its descriptor limit allows (its log says so), or does something in between take connections?"
	}
	return ": does a firewall or the cloud's security group block it?"
}

// probeAddr is where the bridge reaches a public port; false: it cannot.
func probeAddr(pub grammar.Public, proxy string, remote net.Addr) (string, bool) {
	host, _, _ := net.SplitHostPort(proxy)
	port := strconv.Itoa(int(pub.Port))
	bind := net.ParseIP(pub.Host)
	at, _ := remote.(*net.TCPAddr)
	switch {
	case bind == nil || bind.IsUnspecified():
		return net.JoinHostPort(host, port), true
	case bind.IsLoopback() && (at == nil || !at.IP.IsLoopback()):
		return "", false
	}
	return net.JoinHostPort(pub.Host, port), true
}

// probe shows the nonce at addr and checks the answer.
func probe(ctx context.Context, addr string, nonce [16]byte) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if _, err := c.Write(nonce[:]); err != nil {
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
