package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"reverser/internal/admin"
	"reverser/internal/config"
	"reverser/internal/state"
	"reverser/internal/sys"
)

// adminAddress is the TCP address where the API and the page are served. A nil one is that of a process without.
type adminAddress struct {
	addr     string
	token    string
	file     string // that has the token
	tls      bool
	settings func() config.Settings // those in force
	log      *slog.Logger

	mu       sync.Mutex
	listener net.Listener // guarded by mu, as below; nil: it is not open
	stopping bool
}

// A process that is stopping serves its address until its successor has taken the state directory, which it looks for at this interval. The
// successor tries the address again meanwhile.
const (
	takenOverEvery = 100 * time.Millisecond
	adminTryAgain  = 20 * time.Millisecond
	adminTries     = 500
)

// openAdminAddress opens the address of --admin, before the role serves: what is wrong with it is seen at the start.
func openAdminAddress(ctx context.Context, set config.Settings, dir *state.Dir, log *slog.Logger) (*adminAddress, error) {
	if set.Admin.Addr == "" {
		return nil, nil
	}
	a := &adminAddress{addr: set.Admin.Addr, tls: set.Admin.Certificate != nil, log: log}
	var err error
	if a.token, a.file, err = dir.AdminToken(); err != nil {
		return nil, usage(err)
	}
	if _, err = a.listen(); sys.PortTaken(err) && hasPredecessor(ctx, dir) {
		for try := 0; sys.PortTaken(err) && try < adminTries && pause(ctx, adminTryAgain); try++ {
			_, err = a.listen()
		}
	}
	if err != nil {
		return nil, adminListenError(err, set)
	}
	return a, nil
}

// hasPredecessor reports whether a process that is stopping still answers for a directory that this one has opened.
func hasPredecessor(ctx context.Context, dir *state.Dir) bool {
	c, err := state.DialAdmin(ctx, dir.Path())
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// awaitSuccessor gives the address up once another process has taken the state directory.
func (a *adminAddress) awaitSuccessor(ctx context.Context, dir *state.Dir) {
	if a == nil {
		return
	}
	for !dir.TakenOver() {
		if !pause(ctx, takenOverEvery) {
			return
		}
	}
	a.close()
}

func adminListenError(err error, set config.Settings) error {
	err = fmt.Errorf("--admin %s: %w", set.Admin.Addr, err)
	if at, ok := set.Origin["admin"]; ok {
		err = fmt.Errorf("%w (from %s in %s)", err, at.Key, at)
	}
	hint := "give an address of this machine, such as 127.0.0.1:3011"
	switch {
	case sys.PortTaken(err):
		hint = "another process has that port, perhaps the other role on this machine: choose another one with --admin"
	case sys.PortRefused(err):
		hint = "this user may not open that port: choose one from 1024 on with --admin"
	}
	return &exitError{code: exitUsage, err: err, hint: hint}
}

// listen opens the address.
func (a *adminAddress) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", a.addr)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopping {
		l.Close()
		return nil, net.ErrClosed
	}
	a.listener = l
	return l, nil
}

// close gives the address up, for the next process. Those who are being answered go on.
func (a *adminAddress) close() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopping = true
	if a.listener != nil {
		a.listener.Close()
	}
}

// closed reports whether the address was given up.
func (a *adminAddress) closed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stopping
}

// The connections of the admin address have descriptors of their own, so that an operator gets in when users have taken all the others.
const (
	mostAdminConnections  = 64
	leastAdminConnections = 4
)

// serve serves the address until ctx ends. When it fails, which takes nothing from users, it is opened again.
func (a *adminAddress) serve(ctx context.Context, s *admin.Server) {
	if a == nil {
		return
	}
	pool := sys.Descriptors()
	connections := min(mostAdminConnections, max(leastAdminConnections, pool.Size(sys.ForUsers)/8))
	pool.Force(sys.ForUsers, connections)
	defer pool.Return(sys.ForUsers, connections)
	at := admin.Address{Token: a.token, Hosts: a.hosts, Connections: connections}
	if a.tls {
		at.Certificate = func() *tls.Certificate { return a.settings().Admin.Certificate }
	}
	a.mu.Lock()
	l := a.listener
	a.mu.Unlock()
	a.log.Info("the page and the API are served", "url", a.url(), "token_file", a.file)
	for told := false; ; {
		err := s.ServeTCP(ctx, l, at)
		for ctx.Err() == nil && !a.closed() {
			if err != nil && !told {
				a.log.Error("the admin address cannot be used, and is opened again", "addr", a.addr, "err", err, "again_in", adminRetry)
				told = true
			}
			if !pause(ctx, adminRetry) {
				return
			}
			if l, err = a.listen(); err == nil {
				a.log.Info("the admin address is open again", "addr", a.addr)
				told = false
				break
			}
		}
		if ctx.Err() != nil || a.closed() {
			return
		}
	}
}

// url is what a person opens in a browser.
func (a *adminAddress) url() string {
	scheme := "http"
	if a.tls {
		scheme = "https"
	}
	host, port, _ := net.SplitHostPort(a.addr)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return fmt.Sprintf("%s://%s/", scheme, net.JoinHostPort(host, port))
}

// hosts are the names by which the address may be asked for.
func (a *adminAddress) hosts() []string {
	hosts := slices.Clone(a.settings().Admin.Hosts)
	if host, _, err := net.SplitHostPort(a.addr); err == nil && host != "" {
		hosts = append(hosts, host)
	}
	return hosts
}
