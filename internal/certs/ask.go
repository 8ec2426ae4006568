package certs

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// shortLived is the profile of certificates for IP addresses: Let's Encrypt issues them for six days only.
const shortLived = "shortlived"

// answerWithin is how long an authority has to answer a request, and decideWithin to decide about a proof.
const (
	answerWithin = 30 * time.Second
	decideWithin = 2 * time.Minute
)

// asker asks the authority.
type asker struct {
	client *acmez.Client
	http   *http.Client
	files  Files
	email  string
	key    string // a name for the authority that can be a file's

	mu      sync.Mutex    // held while an account is looked for or made
	account *acme.Account // guarded by mu; nil: not known yet
}

func newAsker(cfg Config, p *proofs) *asker {
	transport := &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		DialContext:       (&net.Dialer{Timeout: answerWithin}).DialContext,
		TLSClientConfig:   &tls.Config{RootCAs: cfg.Roots},
		ForceAttemptHTTP2: true,
		IdleConnTimeout:   time.Minute,
	}
	if cfg.Dial != nil {
		transport.Proxy, transport.DialContext = nil, cfg.Dial
	}
	client := &http.Client{Timeout: answerWithin, Transport: transport}
	a := &asker{http: client, files: cfg.Files, email: cfg.Email, key: keyOf(cfg.Directory)}
	a.client = &acmez.Client{
		Client: &acme.Client{
			Directory: cfg.Directory, HTTPClient: client, UserAgent: "reverser", PollTimeout: decideWithin,
		},
		ChallengeSolvers: make(map[string]acmez.Solver),
	}
	if cfg.HTTP {
		a.client.ChallengeSolvers[acme.ChallengeTypeHTTP01] = pageSolver{p}
	}
	if cfg.TLS {
		a.client.ChallengeSolvers[acme.ChallengeTypeTLSALPN01] = certSolver{p}
	}
	return a
}

func (a *asker) close() { a.http.CloseIdleConnections() }

// keyOf makes a name of an authority's URL.
func keyOf(directory string) string {
	u, err := url.Parse(directory)
	if err != nil {
		return certmagic.StorageKeys.Safe(directory)
	}
	return certmagic.StorageKeys.Safe(strings.Trim(strings.ReplaceAll(u.Host+u.Path, "/", "-"), "-"))
}

// order asks for a certificate. The authority is told which one it replaces, if one is there.
func (a *asker) order(ctx context.Context, csr *x509.CertificateRequest, replaces *x509.Certificate) (*certmagic.IssuedCertificate, error) {
	dir, err := a.client.GetDirectory(ctx)
	if err != nil {
		return nil, &directoryError{err}
	}
	account, err := a.accountOf(ctx)
	if err != nil {
		return nil, err
	}
	params, err := acmez.OrderParametersFromCSR(*account, csr)
	if err != nil {
		return nil, err
	}
	params.Replaces = replaces
	if len(csr.IPAddresses) > 0 && dir.Meta != nil && dir.Meta.Profiles[shortLived] != "" {
		params.Profile = shortLived
	}
	chains, err := a.client.ObtainCertificate(ctx, params)
	problem, said := errors.AsType[acme.Problem](err)
	switch {
	case err == nil && len(chains) == 0:
		return nil, errors.New("the authority sent no certificate")
	case err == nil:
		return &certmagic.IssuedCertificate{Certificate: chains[0].ChainPEM, Metadata: chains[0]}, nil
	case said && problem.Type == acme.ProblemTypeAccountDoesNotExist: // it was set up anew
		a.forget(account)
	case said && replaces != nil && problem.Resource == nil && problem.Type != acme.ProblemTypeRateLimited:
		// It may not know that certificate, or know it as another account's.
		return a.order(ctx, csr, nil)
	}
	return nil, err
}

// directoryError says that there is no authority where one should be.
type directoryError struct{ err error }

func (e *directoryError) Error() string { return e.err.Error() }
func (e *directoryError) Unwrap() error { return e.err }

// stored is an account as it is kept.
type stored struct {
	Account acme.Account `json:"account"`
	Key     string       `json:"key"` // PEM
}

func (a *asker) accountFile() string { return path.Join("acme", a.key, "account.json") }

// accountOf returns this machine's account at the authority. The first call makes one, if none is kept.
func (a *asker) accountOf(ctx context.Context) (*acme.Account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.account != nil {
		return a.account, nil
	}
	contact := []string{}
	if a.email != "" {
		contact = append(contact, "mailto:"+a.email)
	}
	account, err := a.readAccount()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		var key crypto.Signer
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
		account, err = a.client.NewAccount(ctx, acme.Account{Contact: contact, TermsOfServiceAgreed: true, PrivateKey: key})
	case err != nil:
		return nil, fmt.Errorf("read the account at the authority: %w", err)
	case a.email != "" && (len(account.Contact) != 1 || account.Contact[0] != contact[0]):
		account.Contact = contact
		account, err = a.client.UpdateAccount(ctx, account)
		if problem, said := errors.AsType[acme.Problem](err); said && problem.Type == acme.ProblemTypeAccountDoesNotExist {
			a.files.Remove(a.accountFile())
		}
	default:
		a.account = &account
		return a.account, nil
	}
	if err != nil {
		return nil, fmt.Errorf("register an account: %w", err)
	}
	if a.email != "" {
		account.Contact = contact // as it is compared with next time, however the authority writes it
	}
	if err := a.writeAccount(ctx, account); err != nil {
		return nil, fmt.Errorf("store the account at the authority: %w", err)
	}
	a.account = &account
	return a.account, nil
}

func (a *asker) readAccount() (acme.Account, error) {
	b, err := a.files.Read(a.accountFile())
	if err != nil {
		return acme.Account{}, err
	}
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return acme.Account{}, err
	}
	s.Account.PrivateKey, err = certmagic.PEMDecodePrivateKey([]byte(s.Key))
	return s.Account, err
}

func (a *asker) writeAccount(ctx context.Context, account acme.Account) error {
	key, err := certmagic.PEMEncodePrivateKey(account.PrivateKey)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(stored{account, string(key)}, "", "  ")
	if err != nil {
		return err
	}
	return a.files.Write(ctx, a.accountFile(), b)
}

// forget drops an account that the authority does not know any more.
func (a *asker) forget(account *acme.Account) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.account == account {
		a.account = nil
		a.files.Remove(a.accountFile())
	}
}

// issuer is the authority as certmagic sees it.
type issuer struct{ m *Manager }

// IssuerKey implements certmagic.Issuer.
func (i issuer) IssuerKey() string { return i.m.ask.key }

// GetRenewalInfo implements certmagic.RenewalInfoGetter: the authority says when it wants a certificate to be renewed.
func (i issuer) GetRenewalInfo(ctx context.Context, cert certmagic.Certificate) (acme.RenewalInfo, error) {
	info, err := i.m.ask.client.GetRenewalInfo(ctx, cert.Leaf)
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	for _, name := range cert.Names {
		if e := i.m.names[name]; e != nil {
			e.renewOf = ""
		}
	}
	return info, err
}

// Issue implements certmagic.Issuer.
func (i issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	m, host := i.m, hostOf(csr)
	m.mu.Lock()
	e := m.names[host]
	if e == nil || !e.wanted {
		m.mu.Unlock()
		return nil, certmagic.ErrNoRetry{Err: errors.New("it is no longer wanted")}
	}
	owner, issued := e.owner, e.issued
	var replaces *x509.Certificate
	if cert, ok := m.current(host); ok {
		replaces = cert.Leaf
	}
	m.mu.Unlock()

	if issued {
		// What it issued could not be stored, and it issues only so many of a name: five in a week, says Let's Encrypt.
		if err := m.ask.tryStore(ctx); err != nil {
			return nil, m.unstored(host, fmt.Errorf("store a certificate: %w", err))
		}
	}
	give, err := m.turns.take(ctx, owner)
	if err != nil {
		return nil, err
	}
	defer give()
	cert, err := m.ask.order(ctx, csr, replaces)
	if err == nil {
		m.mu.Lock()
		e.issued = true
		m.mu.Unlock()
	}
	if err == nil || ctx.Err() != nil {
		return cert, err
	}
	f := m.explain(ctx, host, err)
	m.mu.Lock()
	e.failed = f
	m.mu.Unlock()
	m.say(slog.LevelWarn, owner, "certificate not obtained", "host", host, "key", owner, "authority", m.cfg.Directory, "err", f.text, "hint", f.hint)
	return nil, err
}

// unstored notes that nothing can be stored. A renewal, which certmagic tries by itself, is told by nothing else.
func (m *Manager) unstored(host string, err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.names[host]
	if e == nil {
		return err
	}
	e.failed = &failure{at: time.Now(), text: err.Error()}
	m.say(slog.LevelWarn, e.owner, "certificate not obtained", "host", host, "key", e.owner, "err", err)
	return err
}

// tryStore reports why what the authority issues could not be stored now.
func (a *asker) tryStore(ctx context.Context) error {
	name := path.Join("acme", a.key, "room")
	defer a.files.Remove(name)
	return a.files.Write(ctx, name, make([]byte, 16<<10)) // more than a certificate and its key
}

// hostOf is the one name of a request.
func hostOf(csr *x509.CertificateRequest) string {
	for _, ip := range csr.IPAddresses {
		return ip.String()
	}
	for _, name := range csr.DNSNames {
		return name
	}
	return ""
}

// renewal is when the certificate of a host is renewed: when the authority says or, where it says nothing, when a third of its time is
// left. m.mu is held.
func (m *Manager) renewal(e *entry, cert certmagic.Certificate) time.Time {
	if e.renewOf == cert.Hash() {
		return e.renewAt
	}
	lifetime := cert.Lifetime()
	e.renewOf, e.renewAt = cert.Hash(), cert.Leaf.NotAfter.Add(-time.Duration(float64(lifetime)*certmagic.DefaultRenewalWindowRatio))
	b, err := m.cfg.Files.Read(certmagic.StorageKeys.SiteMeta(m.ask.key, e.host))
	if err != nil {
		return e.renewAt
	}
	var resource certmagic.CertificateResource
	var meta acme.Certificate
	if json.Unmarshal(b, &resource) == nil && json.Unmarshal(resource.IssuerData, &meta) == nil && meta.RenewalInfo != nil &&
		!meta.RenewalInfo.SelectedTime.IsZero() {
		e.renewAt = meta.RenewalInfo.SelectedTime
	}
	return e.renewAt
}
