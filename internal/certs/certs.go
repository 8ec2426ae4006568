// Package certs gets certificates for public names by itself, from an authority that speaks ACME (RFC 8555), keeps them on disk and
// renews them. Proxy and bridge use it alike: whoever ends TLS for a name says that it wants a certificate for it.
//
//	m := certs.New(certs.Config{Files: dir.TLS(), TLS: true, Log: say})
//	go m.Run(ctx)                                       // asks the authority, renews; returns when ctx ends
//	m.Want(map[string]string{"app.example.com": "nas"}) // all names, whenever they change, and who each one is for
//	tls.Config{GetCertificate: m.GetCertificate, NextProtos: append(protocols, certs.Protocol)}
//
// The authority asks for a proof: it connects to port 443 of the name and offers [Protocol] alone (TLS-ALPN-01, RFC 8737), which
// GetCertificate answers, or gets a page from port 80 (HTTP-01), which [Manager.Page] has. So whoever accepts connections asks
// [Manager.Proves] first when a client offers nothing but Protocol, and ends TLS with GetCertificate if it says true.
//
// What happened to each certificate is in [Manager.Status]. While a name has none, GetCertificate fails for it, and all else goes on.
//
// certmagic stores, caches and renews the certificates, staples OCSP, and follows the authority's word on when to renew (ARI).
// ask.go speaks to the authority, proof.go has the answers to its questions, turns.go says who may ask when, words.go explains
// failures, and store.go is certmagic's view of the state directory. The package opens no port.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"reverser/internal/lines"
	"reverser/internal/status"
)

// DefaultDirectory is the authority where none is named: Let's Encrypt.
const DefaultDirectory = "https://acme-v02.api.letsencrypt.org/directory"

// Files is where the account, keys and certificates are kept. A *state.Folder is one.
type Files interface {
	Read(name string) ([]byte, error) // fs.ErrNotExist if there is none
	Write(ctx context.Context, name string, data []byte) error
	Remove(name string) error
	Stat(name string) (fs.FileInfo, error)
	List(name string, all bool) ([]string, error)
}

// Config says where certificates come from.
type Config struct {
	Files     Files
	Email     string         // that the authority may write to; "": none
	Directory string         // URL of the authority's directory; "": DefaultDirectory
	Roots     *x509.CertPool // that the authority's own certificate is checked with; nil: the system's
	// Dial connects to the authority; nil: as the environment says, HTTPS_PROXY and NO_PROXY.
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	HTTP, TLS bool       // whether port 80 of the names leads to Page, and port 443 to GetCertificate
	Log       *lines.Log // nil: discard
	// Ready reports whether the authority gets through to this process for a host, if it is asked now; nil: always. It is called with a lock
	// held. Call Want when it may say something else.
	Ready func(host string) bool

	// For tests; 0 is what is right for an authority of the internet.
	LookEvery  time.Duration // between looks at which certificates are due
	FirstRetry time.Duration // after the first failure; later ones wait longer
}

// Manager gets and keeps certificates. Make it with New; its methods may be called at any time.
type Manager struct {
	cfg    Config
	magic  *certmagic.Config
	cache  *certmagic.Cache
	ask    *asker
	proofs proofs
	turns  turns
	disk   chan struct{} // has a place for everybody who reads a certificate
	wake   chan struct{}

	mu    sync.Mutex
	names map[string]*entry // guarded by mu, as all below; by host
	given []Given           // certificates that somebody else has got
}

// entry is what is known of the certificate for one host.
type entry struct {
	host, owner string
	wanted      bool
	busy        bool      // is read, or asks, or waits for its turn
	missing     bool      // there is none on the disk, or it is due
	loaded      bool      // there is one
	next        time.Time // when to ask again
	failures    int       // since the last success
	failed      *failure  // the last one; nil: none since the last success
	issued      bool      // by the authority, and not stored yet
	cancel      context.CancelFunc

	renewAt time.Time // when the one that is there is renewed
	renewOf string    // the hash of that one, and "" when renewAt is to be read again
}

// Given is a certificate from files.
type Given struct {
	Certificate tls.Certificate
	Names       []string // canonical; with wildcards
	File        string   // for people
}

// New returns a manager that has done nothing yet.
func New(cfg Config) *Manager {
	if cfg.Directory == "" {
		cfg.Directory = DefaultDirectory
	}
	if cfg.LookEvery == 0 {
		cfg.LookEvery = certmagic.DefaultRenewCheckInterval
	}
	if cfg.FirstRetry == 0 {
		cfg.FirstRetry = 2 * time.Minute
	}
	m := &Manager{cfg: cfg, names: make(map[string]*entry), disk: make(chan struct{}, mostReading), wake: make(chan struct{}, 1)}
	m.turns.init(mostAsking, mostAskingEach)
	m.ask = newAsker(cfg, &m.proofs)
	return m
}

// start makes what has goroutines.
func (m *Manager) start() {
	log := zap.New(&core{m.cfg.Log})
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return m.magic, nil },
		RenewCheckInterval: m.cfg.LookEvery,
		Logger:             log,
	})
	magic := certmagic.New(cache, certmagic.Config{
		Issuers: []certmagic.Issuer{issuer{m}},
		Storage: newStorage(m.cfg.Files),
		Logger:  log,
		OnEvent: m.event,
		// It would write and read a file before each order.
		DisableStorageCheck: true,
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cache, m.magic = cache, magic
}

// Want says for which hosts certificates are wanted, all of them, with who each one is for: of what is asked of the authority, nobody
// takes the place of others. Hosts are names in lower case or IP addresses. What is no longer wanted stays on disk until it expires.
func (m *Manager) Want(hosts map[string]string) {
	var gone []certmagic.SubjectIssuer
	m.mu.Lock()
	for host, owner := range hosts {
		e := m.names[host]
		if e == nil {
			e = &entry{host: host}
			m.names[host] = e
		}
		e.owner, e.wanted = owner, true
	}
	for host, e := range m.names {
		if _, still := hosts[host]; still || !e.wanted {
			continue
		}
		e.wanted, e.loaded = false, false // one that comes back waits as long as it would have otherwise
		if e.cancel != nil {
			e.cancel()
		}
		gone = append(gone, certmagic.SubjectIssuer{Subject: host})
	}
	cache := m.cache
	m.mu.Unlock()
	if cache != nil && len(gone) > 0 {
		cache.RemoveManaged(gone)
	}
	m.signal()
}

// Give takes certificates from files, all of them. They go before those that come by themselves.
func (m *Manager) Give(all []Given) {
	m.mu.Lock()
	m.given = slices.Clone(all)
	m.mu.Unlock()
	m.signal()
}

// Again asks at once for what has failed, within the limits of who it is for.
func (m *Manager) Again() {
	m.mu.Lock()
	for _, e := range m.names {
		if !e.loaded {
			e.next = time.Time{}
			if e.failed != nil && e.failed.final {
				again := *e.failed
				again.final = false
				e.failed = &again
			}
		}
	}
	m.mu.Unlock()
	m.signal()
}

func (m *Manager) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// forgetAfter is how long a host that is no longer wanted is remembered at least, and mostForgotten how many are.
const (
	forgetAfter   = time.Hour
	mostForgotten = 4096
)

// Run asks for what is wanted and renews what is there, until ctx ends. It is called once.
func (m *Manager) Run(ctx context.Context) {
	m.start()
	defer m.cache.Stop()
	defer m.ask.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	clean := time.NewTicker(24 * time.Hour)
	defer clean.Stop()
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-look.C:
		case <-clean.C:
			wg.Go(func() { m.clean(ctx) })
		}
		due, next := m.due(ctx, time.Now())
		for _, j := range due {
			wg.Go(func() { m.do(j) })
		}
		if next.IsZero() {
			look.Reset(time.Hour)
		} else {
			look.Reset(max(time.Until(next), 10*time.Millisecond))
		}
	}
}

// due returns the hosts whose turn it is to be read from the disk or to ask the authority, and when there are others.
func (m *Manager) due(ctx context.Context, now time.Time) (jobs []job, next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	forgotten := 0
	for host, e := range m.names {
		if !e.wanted {
			if forgotten++; !e.busy && (now.After(e.next.Add(forgetAfter)) || forgotten > mostForgotten) {
				delete(m.names, host)
			}
			continue
		}
		if e.busy || e.loaded || e.failed != nil && e.failed.final || m.givenFor(host) != nil || strings.HasPrefix(host, "*") { // of a wildcard none comes by itself
			continue
		}
		if e.missing && m.cfg.Ready != nil && !m.cfg.Ready(host) {
			continue
		}
		if !now.Before(e.next) && e.missing {
			if again, ok := m.turns.count(e.owner, now); !ok {
				e.next = again
			}
		}
		if now.Before(e.next) {
			if next.IsZero() || e.next.Before(next) {
				next = e.next
			}
			continue
		}
		e.busy = true
		own, cancel := context.WithCancel(ctx)
		e.cancel = cancel
		jobs = append(jobs, job{own, e, e.host, e.owner, e.missing, e.failed})
	}
	return jobs, next
}

// job is what is done for a host.
type job struct {
	ctx         context.Context
	entry       *entry
	host, owner string
	ask         bool     // the authority; otherwise the disk is read
	failed      *failure // the entry's when it began
}

func (m *Manager) do(j job) {
	missing, err := false, error(nil)
	if j.ask {
		err = m.obtain(j.ctx, j.host)
	} else {
		missing, err = m.read(j.ctx, j.host)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	defer j.entry.cancel()
	e := j.entry
	e.busy, e.missing = false, missing
	switch {
	case !e.wanted: // any more
		m.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: j.host}})
	case missing || j.ctx.Err() != nil:
	case err == nil:
		e.loaded, e.failures = true, 0
	default:
		e.missing = j.ask
		if e.failed == nil || e.failed == j.failed { // else it has been said
			e.failed = &failure{at: time.Now(), text: err.Error()}
			m.say(slog.LevelWarn, e.owner, "certificate not obtained", "host", j.host, "key", j.owner, "err", err)
		}
		e.next = time.Now().Add(retryAfter(m.cfg.FirstRetry, e.failures, e.failed.limited))
		e.failures++
	}
	m.signal()
}

// mostReading is how many certificates are read at once: their revocation is looked up too, where their authority has an OCSP server.
const mostReading = 32

// read takes the certificate of a host from the disk. It reports whether the authority is to be asked: there is none, or it is due.
func (m *Manager) read(ctx context.Context, host string) (missing bool, err error) {
	select {
	case m.disk <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-m.disk }()
	cert, err := m.load(ctx, host)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return err == nil && cert.NeedsRenewal(m.magic), err
}

// load takes the certificate of a host from the disk. The error is fs.ErrNotExist if there is none, or none that can be used.
//
// A certificate is three files, which are written one after the other. A crash between them leaves a key and a certificate that do not
// belong together. Then the last one is removed, and the certificate is as incomplete as one that was never written to its end: whoever
// asks the authority for another one replaces all three.
func (m *Manager) load(ctx context.Context, host string) (certmagic.Certificate, error) {
	cert, err := m.magic.CacheManagedCertificate(ctx, host)
	if err == nil || errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
		return cert, err
	}
	key, crt, meta := certmagic.StorageKeys.SitePrivateKey, certmagic.StorageKeys.SiteCert, certmagic.StorageKeys.SiteMeta
	for _, file := range []func(issuer, host string) string{key, crt, meta} {
		if _, err := m.cfg.Files.Read(file(m.ask.key, host)); err != nil {
			return cert, err // what cannot be read now may be whole
		}
	}
	if err := m.cfg.Files.Remove(meta(m.ask.key, host)); err != nil {
		return cert, fmt.Errorf("remove a certificate that cannot be used: %w", err)
	}
	m.mu.Lock()
	owner := m.names[host].owner // it is busy, so the entry is there
	m.mu.Unlock()
	m.say(slog.LevelWarn, owner, "certificate on the disk cannot be used, another one is asked for", "host", host, "key", owner, "err", err)
	return cert, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
}

// obtain asks the authority for a certificate, or for a newer one.
func (m *Manager) obtain(ctx context.Context, host string) error {
	old, err := m.load(ctx, host)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = m.magic.ObtainCertSync(ctx, host)
	case err == nil:
		if err = m.magic.RenewCertSync(ctx, host, false); err != nil && !old.Expired() {
			return nil // it still serves, and the cache's maintenance tries again
		}
	}
	if err != nil {
		return err
	}
	fresh, err := m.magic.CacheManagedCertificate(ctx, host)
	if err == nil && !old.Empty() && fresh.Hash() != old.Hash() {
		m.cache.Remove([]string{old.Hash()})
	}
	return err
}

// clean removes certificates from the disk that expired two weeks ago.
func (m *Manager) clean(ctx context.Context) {
	err := certmagic.CleanStorage(ctx, m.magic.Storage, certmagic.CleanStorageOptions{
		Logger: m.magic.Logger, OCSPStaples: true, ExpiredCerts: true, ExpiredCertGracePeriod: 14 * 24 * time.Hour,
	})
	if err != nil && ctx.Err() == nil {
		m.say(slog.LevelWarn, nil, "certificates that have expired could not be removed", "err", err)
	}
}

// event hears from certmagic what became of a certificate.
func (m *Manager) event(_ context.Context, event string, data map[string]any) error {
	if event != "cert_obtained" {
		return nil
	}
	host, _ := data["identifier"].(string)
	renewal, _ := data["renewal"].(bool)
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.names[host]
	if e == nil {
		return nil
	}
	e.failed, e.failures, e.renewOf, e.issued = nil, 0, "", false
	said := "certificate obtained"
	if renewal {
		said = "certificate renewed"
	}
	m.say(slog.LevelInfo, e.owner, said, "host", host, "key", e.owner, "authority", m.cfg.Directory)
	return nil
}

// GetCertificate is for tls.Config. It answers an authority's question about a name too.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{Protocol}) {
		if cert := m.proofs.certificate(hello.ServerName); cert != nil {
			return cert, nil
		}
		return nil, fmt.Errorf("no authority was asked for a certificate of %q", hello.ServerName)
	}
	host := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if host == "" {
		host = m.addressOf(hello.Conn)
	}
	m.mu.Lock()
	given, cache := m.givenFor(host), m.cache
	m.mu.Unlock()
	if given != nil {
		return &given.Certificate, nil
	}
	if cache != nil {
		if all := cache.AllMatchingCertificates(host); len(all) > 0 {
			cert, err := certmagic.DefaultCertificateSelector(hello, all)
			return &cert.Certificate, err
		}
	}
	return nil, fmt.Errorf("there is no certificate for %q yet", host)
}

// addressOf is the address that a client who names no host wants: the one it connected to or, behind a NAT, the only one there is.
func (m *Manager) addressOf(conn net.Conn) string {
	host := ""
	if conn != nil {
		if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
			host = a.AddrPort().Addr().Unmap().WithZone("").String()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.names[host]; e != nil && e.wanted {
		return host
	}
	only := ""
	for name, e := range m.names {
		if _, err := netip.ParseAddr(name); err == nil && e.wanted {
			if only != "" {
				return host
			}
			only = name
		}
	}
	if only == "" {
		return host
	}
	return only
}

// givenFor returns the certificate from files for a host: one with the very name, or else with a wildcard. mu is held.
func (m *Manager) givenFor(host string) *Given {
	_, rest, _ := strings.Cut(host, ".")
	for _, name := range []string{host, "*." + rest} {
		for i, g := range m.given {
			if slices.Contains(g.Names, name) {
				return &m.given[i]
			}
		}
	}
	return nil
}

// Page returns what an authority is to find at a path of port 80 of a host, if one was asked for a certificate of that host.
func (m *Manager) Page(host, path string) (string, bool) { return m.proofs.page(host, path) }

// Proves reports whether a client that offers nothing but Protocol is an authority which was asked for a certificate of that name.
func (m *Manager) Proves(name string) bool { return m.proofs.certificate(name) != nil }

// Status returns what is known of each certificate, by host.
func (m *Manager) Status() []status.Certificate {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []status.Certificate
	for _, host := range slices.Sorted(maps.Keys(m.names)) {
		e := m.names[host]
		if !e.wanted {
			continue
		}
		c := status.Certificate{Host: host, Key: e.owner, State: status.CertificatePending, From: m.cfg.Directory}
		if g := m.givenFor(host); g != nil {
			leaf := g.Certificate.Leaf
			c.State, c.From, c.NotAfter = status.CertificateValid, g.File, leaf.NotAfter
			switch now := time.Now(); {
			case now.After(leaf.NotAfter):
				c.State, c.Error = status.CertificateFailed, "it has expired"
				c.Hint = "put a newer one into " + g.File
			case now.Before(leaf.NotBefore):
				c.State, c.Error = status.CertificateFailed, "it is not valid before "+leaf.NotBefore.UTC().Format(time.DateTime)+" UTC: clients refuse it until then"
				c.Hint = "put one that is valid now into " + g.File + ", or set this machine's clock if it is wrong"
			}
			all = append(all, c)
			continue
		}
		if f := e.failed; f != nil {
			c.State, c.Error, c.Hint = status.CertificateFailed, f.text, f.hint
			if !e.loaded && !e.busy && !f.final {
				c.RetryAt = e.next
			}
		}
		if cert, ok := m.current(host); ok {
			c.NotAfter = cert.Leaf.NotAfter
			if !cert.Expired() {
				c.State = status.CertificateValid
			}
			c.RenewAt = m.renewal(e, cert)
		}
		all = append(all, c)
	}
	return all
}

// current is the certificate of a host that is in use. mu is held.
func (m *Manager) current(host string) (best certmagic.Certificate, ok bool) {
	if m.cache == nil {
		return best, false
	}
	for _, c := range m.cache.AllMatchingCertificates(host) {
		if c.Leaf != nil && (!ok || c.Leaf.NotAfter.After(best.Leaf.NotAfter)) {
			best, ok = c, true
		}
	}
	return best, ok
}

// say has a line written about whom a certificate is for.
func (m *Manager) say(level slog.Level, owner any, msg string, args ...any) {
	if m.cfg.Log != nil {
		m.cfg.Log.Say(level, owner, msg, args...)
	}
}
