package main

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"reverser/internal/certs"
	"reverser/internal/config"
	"reverser/internal/lines"
	"reverser/internal/state"
)

// authority is where the certificates of this process come from that come by themselves.
type authority struct {
	*certs.Manager
	say *lines.Log
}

// newAuthority returns one that keeps what it gets in the state directory. Whoever connects to port 443 of a name reaches it, and to port
// 80 if web says so. The authority is reached by dial (nil: as the environment says), and not asked before ready says that a host can be
// reached (nil: always).
func newAuthority(set config.Common, web bool, dir *state.Dir, ready func(host string) bool, dial func(ctx context.Context, network, addr string) (net.Conn, error), log *slog.Logger) *authority {
	say := lines.New(log)
	return &authority{certs.New(certs.Config{
		Files: dir.TLS(), Email: set.ACME.Email, Directory: set.ACME.Directory, Roots: set.ACME.Roots, HTTP: web, TLS: true, Log: say, Ready: ready, Dial: dial,
	}), say}
}

// take puts the certificates from files in the place of those that were in force.
func (a *authority) take(set config.Proxy) {
	var all []certs.Given
	for _, g := range set.Given {
		all = append(all, certs.Given{Certificate: *g.Certificate, Names: g.Names, File: g.Chain})
	}
	a.Give(all)
}

// run gets and renews certificates until ctx ends.
func (a *authority) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(a.say.Run)
	a.Run(ctx)
	a.say.Stop()
	wg.Wait()
}
