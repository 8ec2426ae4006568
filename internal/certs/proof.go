package certs

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// Protocol is the ALPN protocol of an authority that wants a proof at port 443.
const Protocol = acmez.ACMETLS1Protocol

// Pages is the beginning of the paths at which an authority looks for a proof at port 80.
const Pages = "/.well-known/acme-challenge/"

// proofs are the answers to what authorities ask about names, while they may.
type proofs struct {
	mu    sync.Mutex
	pages map[string]string // guarded by mu, as certs; by host and path
	certs map[string]*tls.Certificate
}

// page returns the answer for port 80.
func (p *proofs) page(host, path string) (string, bool) {
	if !strings.HasPrefix(path, Pages) {
		return "", false
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(strings.ToLower(host), "."), "["), "]")
	p.mu.Lock()
	defer p.mu.Unlock()
	text, ok := p.pages[host+path]
	return text, ok
}

// certificate returns the answer for port 443.
func (p *proofs) certificate(name string) *tls.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.certs[strings.ToLower(strings.TrimSuffix(name, "."))]
}

// pageSolver and certSolver keep an answer as long as the authority may want it.
type pageSolver struct{ *proofs }

// Present implements acmez.Solver.
func (s pageSolver) Present(_ context.Context, c acme.Challenge) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pages == nil {
		s.pages = make(map[string]string)
	}
	s.pages[c.Identifier.Value+c.HTTP01ResourcePath()] = c.KeyAuthorization
	return nil
}

// CleanUp implements acmez.Solver.
func (s pageSolver) CleanUp(_ context.Context, c acme.Challenge) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pages, c.Identifier.Value+c.HTTP01ResourcePath())
	return nil
}

type certSolver struct{ *proofs }

// Present implements acmez.Solver.
func (s certSolver) Present(_ context.Context, c acme.Challenge) error {
	cert, err := acmez.TLSALPN01ChallengeCert(c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.certs == nil {
		s.certs = make(map[string]*tls.Certificate)
	}
	s.certs[askedAs(c.Identifier.Value)] = cert
	return nil
}

// CleanUp implements acmez.Solver.
func (s certSolver) CleanUp(_ context.Context, c acme.Challenge) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.certs, askedAs(c.Identifier.Value))
	return nil
}

// askedAs is the server name with which an authority asks about a host. That of an address is its name for reverse lookups (RFC 8738,
// section 6), since an address is no server name.
func askedAs(host string) string {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	b := addr.Unmap().AsSlice()
	var name strings.Builder
	for i := len(b) - 1; i >= 0; i-- {
		if addr.Unmap().Is4() {
			fmt.Fprintf(&name, "%d.", b[i])
		} else {
			fmt.Fprintf(&name, "%x.%x.", b[i]&15, b[i]>>4)
		}
	}
	if addr.Unmap().Is4() {
		return name.String() + "in-addr.arpa"
	}
	return name.String() + "ip6.arpa"
}
