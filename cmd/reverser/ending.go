package main

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"reverser/internal/bridge"
	"reverser/internal/certs"
	"reverser/internal/config"
	"reverser/internal/doctor"
	"reverser/internal/grammar"
	"reverser/internal/state"
	"reverser/internal/status"
)

// endings is how a bridge ends the TLS of its services' users.
type endings struct {
	common    config.Common
	key       string // on whose behalf certificates are asked for, as log and status name it
	log       *slog.Logger
	authority *authority // nil before begin

	changed chan struct{} // has an element when other settings are in force

	mu      sync.Mutex
	configs map[grammar.Public]*tls.Config // in force; guarded by mu, as all below
	auto    []grammar.Public               // services whose certificates come by themselves
	given   []certs.Given
	ready   map[string]bool // hosts for which an authority gets through to this process
}

func newEndings(set config.Settings, log *slog.Logger) *endings {
	return &endings{common: set.Common, key: hex.EncodeToString(set.Bridge.Token.KeyID[:4]), log: log, changed: make(chan struct{}, 1)}
}

// services are those of the settings. done puts what they are served with in the place of what was in force.
func (e *endings) services(set config.Bridge) (services []bridge.Service, done func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	configs := make(map[grammar.Public]*tls.Config)
	var auto []grammar.Public
	var given []certs.Given
	for _, x := range set.Services {
		svc := bridge.Service{Public: x.Public, Target: x.Target, Options: x.Options}
		c := set.Certificates[x.Public]
		switch {
		case c != nil:
			given = append(given, givenBy(c, x))
		case x.Options.Certificate == grammar.AutoCertificate:
			auto = append(auto, x.Public)
		default:
			services = append(services, svc)
			continue
		}
		svc.TLS = e.config(e.configs[x.Public], c, x.Options.ALPN)
		configs[x.Public] = svc.TLS
		services = append(services, svc)
	}
	return services, func() {
		e.mu.Lock()
		e.configs, e.auto, e.given = configs, auto, given
		e.mu.Unlock()
		select {
		case e.changed <- struct{}{}:
		default:
		}
	}
}

// givenBy is a certificate from files, for status.
func givenBy(c *tls.Certificate, x grammar.Expose) certs.Given {
	g := certs.Given{Certificate: *c, File: x.Options.Certificate, Names: []string{x.Public.Host}}
	for _, name := range c.Leaf.DNSNames {
		g.Names = append(g.Names, strings.ToLower(name))
	}
	return g
}

// config is what users of a service are served with: certificate c, or with nil one that comes by itself. A config that was there before
// passes on the keys of its session tickets, so that users resume their sessions behind a reload.
func (e *endings) config(before *tls.Config, c *tls.Certificate, protocols []string) *tls.Config {
	// Records of full size: the link makes small packets of what is small, and waits for nothing.
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true}
	if before != nil {
		cfg = before.Clone()
	}
	if cfg.NextProtos = protocols; protocols == nil {
		cfg.NextProtos = []string{"http/1.1"}
	}
	if c != nil {
		cfg.Certificates, cfg.GetCertificate, cfg.GetConfigForClient = []tls.Certificate{*c}, nil, nil
		return cfg
	}
	proof := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: e.certificate, NextProtos: []string{certs.Protocol}}
	cfg.Certificates, cfg.GetCertificate = nil, e.certificate
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Equal(hello.SupportedProtos, proof.NextProtos) {
			return proof, nil
		}
		return nil, nil
	}
	return cfg
}

var errNoAuthority = errors.New("this process gets no certificates")

// certificate is the one that came by itself for a name, or the proof that an authority asks for.
func (e *endings) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if e.authority == nil {
		return nil, errNoAuthority
	}
	return e.authority.GetCertificate(hello)
}

// begin gets and renews certificates until ctx ends. It is called before the bridge runs.
func (e *endings) begin(wg *sync.WaitGroup, ctx context.Context, dir *state.Dir, b *bridge.Bridge) {
	e.authority = newAuthority(e.common, false, dir, e.isReady, b.DialOut, e.log)
	wg.Go(func() { e.authority.run(ctx) })
	wg.Go(func() { e.tend(ctx, b) })
}

// isReady reports whether an authority that looks at a host gets through to this process.
func (e *endings) isReady(host string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ready[host]
}

// tend says which certificates are wanted, and for which of them an authority may be asked: those of services that are up. What is on the
// disk serves before.
func (e *endings) tend(ctx context.Context, b *bridge.Bridge) {
	var told map[string]string
	for {
		e.mu.Lock()
		auto, given := e.auto, e.given
		e.mu.Unlock()
		up, changed := b.Up(auto)
		want, ready := make(map[string]string), make(map[string]bool)
		for _, p := range auto {
			want[p.Host], ready[p.Host] = e.key, up[p]
		}
		for _, g := range given {
			if host := g.Names[0]; !strings.HasPrefix(host, "*") {
				want[host] = e.key
			}
		}
		e.mu.Lock()
		same := maps.Equal(ready, e.ready)
		e.ready = ready
		e.mu.Unlock()
		if !same || !maps.Equal(want, told) {
			e.authority.Give(given)
			e.authority.Want(want)
			told = want
		}
		select {
		case <-changed:
		case <-e.changed:
			told = nil // a certificate from files may be another one
		case <-ctx.Done():
			return
		}
	}
}

// endingBridge is a bridge whose status has the certificates too.
type endingBridge struct {
	*bridge.Bridge
	endings *endings
}

// Examine implements examined: the bridge dials its targets, and while there is no link, it goes the way to its proxy.
func (b endingBridge) Examine(ctx context.Context, set config.Settings) (all []doctor.Check) {
	w := doctor.NewWorld(built())
	var targets []doctor.Check
	var dialling sync.WaitGroup
	dialling.Go(func() { targets = w.Targets(ctx, &set) })
	if snap := b.Bridge.Status(); !doctor.HasLink(&snap) {
		all = w.Way(ctx, &set)
	}
	dialling.Wait()
	return append(all, targets...)
}

// Status implements server.
func (b endingBridge) Status() status.Snapshot {
	snap := b.Bridge.Status()
	snap.Certificates = b.endings.authority.Status()
	return snap
}
