package proxy

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"reverser/internal/auth"
	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/status"
	"reverser/internal/traffic"
)

// triedPages is the beginning of the paths that this proxy asks itself for. Only a path with a nonce that it has just made is answered here:
// all others below are the targets'.
const triedPages = "/.well-known/reverser/"

// answerMost bounds what is read of an answer: anybody may be at the address that is dialled.
const answerMost = 64 << 10

// tryNames tries the ports that the named services share, and the certificates that https/ hosts show there. What answers is this
// proxy itself: at the port for HTTP a page that only it knows, at the port of names the identity of its link, which shares that port. For a
// certificate there is a TLS handshake, and no request. So no target hears of any of it, and it is no pair.
func (p *Proxy) tryNames(ctx context.Context, names []grammar.Public, result *status.PublicTry) {
	var web, secure []string // hosts
	for _, n := range names {
		switch n.Kind {
		case grammar.KindHTTP:
			web = append(web, n.Host)
		case grammar.KindHTTPS: // the port for HTTP leads there
			web, secure = append(web, n.Host), append(secure, n.Host)
		case grammar.KindTLS:
			secure = append(secure, n.Host)
		}
	}
	var atWeb, atNames status.PortTry
	var trying sync.WaitGroup
	if p.web.ln != nil && len(web) > 0 {
		trying.Go(func() {
			atWeb = p.tryDoor(ctx, "--http", p.cfg.HTTP, p.web.ln, result.Host, func(addr string) (state, text string) {
				return p.reachWeb(ctx, addr, cmp.Or(oneHost(web), result.Host))
			})
		})
	}
	if p.names.ln != nil && len(secure) > 0 {
		atNames = p.tryDoor(ctx, "--https", p.cfg.HTTPS, p.names.ln, result.Host, func(addr string) (state, text string) {
			return p.reachNames(ctx, addr, oneHost(secure))
		})
		if atNames.State == status.TryAnswered && p.cfg.Certificates != nil { // nobody else is asked for certificates
			p.tryCertificates(ctx, names, atNames.Addr, result)
		}
	}
	trying.Wait()
	for _, t := range []status.PortTry{atWeb, atNames} {
		if t.State != "" {
			result.Doors = append(result.Doors, t)
		}
	}
}

// oneHost returns the first of the hosts that is a name. Who stands in front of the proxy may go by it. "": there is none.
func oneHost(hosts []string) string {
	for _, host := range hosts {
		if _, err := netip.ParseAddr(host); err != nil && !strings.Contains(host, "*") {
			return host
		}
	}
	return ""
}

// tryDoor tries a port that names share. It was opened at cfg.
func (p *Proxy) tryDoor(ctx context.Context, option, cfg string, ln net.Listener, host string, reach func(addr string) (state, text string)) status.PortTry {
	t := status.PortTry{Public: option}
	bind, _, _ := net.SplitHostPort(cfg)
	if a, ok := ln.Addr().(*net.TCPAddr); ok && bind != "" {
		bind = a.AddrPort().Addr().Unmap().WithZone("").String()
	}
	where, why := p.whereTried(bind, host)
	if why != "" {
		t.State, t.Text = status.TryNone, why
		return t
	}
	t.Addr = net.JoinHostPort(where, strconv.Itoa(int(portOf(ln.Addr()))))
	if t.State, t.Text = reach(t.Addr); t.State == status.TryNone {
		t.Addr = ""
	}
	return t
}

// converseNamed is converse for a port that names share. Where this machine's own address is one of proxy_protocol_from, the proxy wants a
// header of it. It gets one where the connection does not leave the machine. On the way to another address there may be a balancer, for
// which the header would be the user's: there is none then, and who hangs up without an answer may be this proxy.
func (p *Proxy) converseNamed(ctx context.Context, addr string, ask func(net.Conn) (answered bool, n int, err error)) (state, text string) {
	var refusable netip.Addr
	n := 0
	state, text = p.converse(ctx, addr, func(conn net.Conn) (answered bool, _ int, err error) {
		if local := traffic.AddrPort(conn.LocalAddr()).Addr(); p.balancers.has(local) {
			if local == traffic.AddrPort(conn.RemoteAddr()).Addr() {
				if _, err := conn.Write(entrance.HeaderOfNobody()); err != nil {
					return false, 0, err
				}
			} else {
				refusable = local
			}
		}
		answered, n, err = ask(conn)
		return answered, n, err
	})
	if state == status.TryOther && n == 0 && refusable.IsValid() {
		return status.TryNone, fmt.Sprintf("its own address %s is one of proxy_protocol_from, of which it takes no connection without a header", refusable)
	}
	return state, text
}

// reachWeb says whether the port for HTTP of this proxy answers at addr.
func (p *Proxy) reachWeb(ctx context.Context, addr, host string) (state, text string) {
	var nonce [16]byte
	rand.Read(nonce[:])
	question, answer := link.ProbeQuestion(nonce), link.ProbeAnswer(nonce)
	path, want := triedPages+hex.EncodeToString(question[:]), hex.EncodeToString(answer[:])
	p.web.tried.Store(path, want)
	defer p.web.tried.Delete(path)
	return p.converseNamed(ctx, addr, func(conn net.Conn) (answered bool, n int, err error) {
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: reverser\r\nConnection: close\r\n\r\n", path, grammar.HostString(host)); err != nil {
			return false, 0, err
		}
		heard := &heard{Reader: io.LimitReader(conn, answerMost)}
		resp, err := http.ReadResponse(bufio.NewReader(heard), nil)
		if err != nil {
			return false, heard.n, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, int64(len(want))+1))
		return err == nil && string(body) == want, heard.n, err
	})
}

// heard counts what was read.
type heard struct {
	io.Reader
	n int
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.Reader.Read(b)
	h.n += n
	return n, err
}

// answersItself answers what reachWeb asks; nil: it is none of that.
func (p *Proxy) answersItself(r *http.Request) http.HandlerFunc {
	if !strings.HasPrefix(r.URL.Path, triedPages) {
		return nil
	}
	answer, ok := p.web.tried.Load(r.URL.Path)
	if !ok {
		return nil
	}
	return plain(answer.(string))
}

// reachNames says whether the port of names of this proxy answers at addr. It hangs up before it would have to prove a key.
func (p *Proxy) reachNames(ctx context.Context, addr, name string) (state, text string) {
	return p.converseNamed(ctx, addr, func(conn net.Conn) (answered bool, n int, err error) {
		heard := &heardConn{Conn: conn, heard: heard{Reader: conn}}
		c := tls.Client(heard, &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{auth.ALPN}, ServerName: name, InsecureSkipVerify: true, // it is compared below
		})
		if err := c.HandshakeContext(ctx); err != nil {
			return false, heard.n, err
		}
		defer c.Close()
		state := c.ConnectionState()
		return state.NegotiatedProtocol == auth.ALPN && bytes.Equal(state.PeerCertificates[0].Raw, p.cfg.Identity.Certificate[0]), heard.n, nil
	})
}

// heardConn is a connection of which what was read is counted.
type heardConn struct {
	net.Conn
	heard
}

func (h *heardConn) Read(b []byte) (int, error) { return h.heard.Read(b) }

// tryCertificates looks at the certificates that are shown for the hosts of https/ names. Those that are not there yet, or have expired, are
// left out: `doctor` tells of them by themselves.
func (p *Proxy) tryCertificates(ctx context.Context, names []grammar.Public, addr string, result *status.PublicTry) {
	missing := make(map[string]bool)
	for _, c := range p.cfg.Certificates.Status() {
		missing[c.Host] = c.State != status.CertificateValid
	}
	var hosts []string
	for _, n := range names {
		if n.Kind == grammar.KindHTTPS && !strings.Contains(n.Host, "*") && !missing[n.Host] {
			hosts = append(hosts, n.Host)
		}
	}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts) // they may have several paths
	chosen := sample(hosts, triedMost)
	result.CertificatesLeft = len(hosts) - len(chosen)
	tries := make([]status.CertificateTry, len(chosen))
	tryEach(ctx, len(chosen), func(i int) { tries[i] = p.tryCertificate(ctx, chosen[i], addr) })
	for _, t := range tries {
		if t.State == "" { // there was no time left
			result.CertificatesLeft++
			continue
		}
		result.Certificates = append(result.Certificates, t)
	}
}

// tryCertificate says which certificate is shown for a host, and whether users take it.
func (p *Proxy) tryCertificate(ctx context.Context, host, addr string) status.CertificateTry {
	t := status.CertificateTry{Host: host, Addr: addr}
	var shown []*x509.Certificate
	var handshake error
	t.State, t.Text = p.converseNamed(ctx, addr, func(conn net.Conn) (answered bool, n int, err error) {
		c := tls.Client(conn, &tls.Config{NextProtos: []string{"h2", "http/1.1"}, ServerName: host, InsecureSkipVerify: true}) // it is looked at below
		if handshake = c.HandshakeContext(ctx); handshake != nil {
			return false, 0, handshake
		}
		defer c.Close()
		shown = c.ConnectionState().PeerCertificates
		return true, 0, nil
	})
	switch {
	case handshake != nil && t.State != "":
		t.State, t.Text = status.TryFailed, "no TLS: "+handshake.Error()
	case shown != nil:
		t.Until = shown[0].NotAfter
		t.State, t.Text = p.judge(host, shown)
	}
	return t
}

// judge says whether users take the certificates that are shown for a host.
func (p *Proxy) judge(host string, shown []*x509.Certificate) (state, text string) {
	leaf, now := shown[0], p.cfg.Now()
	switch {
	case now.Before(leaf.NotBefore):
		return status.TryOther, "it is not valid before " + leaf.NotBefore.UTC().Format(time.DateTime+" UTC")
	case now.After(leaf.NotAfter):
		return status.TryOther, "it expired on " + leaf.NotAfter.UTC().Format(time.DateTime+" UTC")
	case leaf.VerifyHostname(grammar.HostString(host)) != nil:
		return status.TryOther, "it is for other names: " + namesIn(leaf)
	}
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: p.publicRoots, Intermediates: between, CurrentTime: now})
	return judged(shown, err)
}

// judged says what it means that certificates which are for a host, and valid now, were verified with err.
func judged(shown []*x509.Certificate, err error) (state, text string) {
	leaf := shown[0]
	issuer := cmp.Or(leaf.Issuer.CommonName, leaf.Issuer.String())
	if err == nil {
		return status.TryAnswered, ""
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if len(shown) == 1 && !bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
			return status.TryAlone, fmt.Sprintf("its chain may lack the certificate of its issuer (%s), which this machine does not know", issuer)
		}
		return status.TryUnknown, fmt.Sprintf("it is of an authority that this machine does not know (%s)", issuer)
	}
	if _, ok := errors.AsType[x509.SystemRootsError](err); ok {
		return status.TryNone, "this machine has no list of authorities"
	}
	return status.TryOther, "it cannot be verified: " + strings.TrimPrefix(err.Error(), "x509: ")
}

// namesIn are some of the names that a certificate is for.
func namesIn(cert *x509.Certificate) string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	const most = 3
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
