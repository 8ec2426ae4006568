package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/status"
	"reverser/internal/sys"
	"reverser/internal/traffic"
)

// Certificates is where the certificates of https/ names come from. A *certs.Manager is one.
type Certificates interface {
	// Want says for which hosts certificates are wanted, all of them, and whose each one is.
	Want(hosts map[string]string)
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Proves reports whether an authority was asked for a certificate of a server name, and asks about it now. Page is what it is to find
	// at a path of port 80.
	Proves(name string) bool
	Page(host, path string) (string, bool)
	Status() []status.Certificate
}

// acmeProtocol is what an authority offers that wants a proof, and nothing else (RFC 8737, section 3).
const acmeProtocol = "acme-tls/1"

// lookEvery is how often tendCertificates looks whether other names are served.
const lookEvery = 250 * time.Millisecond

// tendCertificates has certificates for the https/ names that bridges serve, and for no others: a stranger cannot have any asked for.
func (p *Proxy) tendCertificates() {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var seen *registry.View
	for {
		if view := p.registry.View(); view != seen {
			seen = view
			hosts, away := p.secureHosts(view), p.secureAway()
			p.names.away.Store(&away)
			for host, key := range away {
				if _, served := hosts[host]; !served {
					hosts[host] = key
				}
			}
			p.cfg.Certificates.Want(hosts)
			p.names.addresses.Store(addresses(hosts))
		}
		select {
		case <-look.C:
		case <-p.life.drain: // a successor asks from now on
			p.cfg.Certificates.Want(nil)
			return
		case <-p.life.ctx.Done():
			return
		}
	}
}

// secureHosts are the hosts of https/ names, with the names of their keys. Those with a wildcard have certificates from files.
func (p *Proxy) secureHosts(view *registry.View) map[string]string {
	hosts := make(map[string]string)
	for rt := range view.All {
		if pub := rt.Public; pub.Kind == grammar.KindHTTPS && pub.Host != "*" {
			hosts[pub.Host] = p.logName(rt.Key)
		}
	}
	return hosts
}

// secureAway are the hosts of https/ names whose bridges are away, as far as there are certificates for them. These stay in use: a client is
// to learn that it may come again. No other certificate is asked for.
func (p *Proxy) secureAway() map[string]string {
	hosts := make(map[string]string)
	for pub, key := range p.registry.AllAway() {
		if pub.Kind != grammar.KindHTTPS || pub.Host == "*" {
			continue
		}
		if _, err := p.cfg.Certificates.GetCertificate(&tls.ClientHelloInfo{ServerName: pub.Host, SupportedVersions: []uint16{tls.VersionTLS13}}); err == nil {
			hosts[pub.Host] = p.logName(key)
		}
	}
	return hosts
}

// addresses is how many of the hosts are IP addresses.
func addresses(hosts map[string]string) (n int32) {
	for host := range hosts {
		if _, err := netip.ParseAddr(host); err == nil {
			n++
		}
	}
	return n
}

// asksForProof reports whether a client is an authority that wants a proof of a name for which this proxy has asked it.
func (p *Proxy) asksForProof(hello *entrance.Hello) bool {
	return p.cfg.Certificates != nil && slices.Equal(hello.ALPN, []string{acmeProtocol}) && p.cfg.Certificates.Proves(hello.Name)
}

// prove answers an authority. The proof is in the handshake.
func (p *Proxy) prove(conn net.Conn, hello *entrance.Hello) {
	conn.SetDeadline(time.Now().Add(entrance.HelloTime))
	turned := p.inTurn(conn, hello)
	t := tls.Server(entrance.Again(turned, hello.Read), &tls.Config{GetCertificate: p.cfg.Certificates.GetCertificate, NextProtos: []string{acmeProtocol}})
	_ = t.Handshake() // the authority says what was wrong with it
	turned.over()
	_ = t.CloseWrite() // close_notify
	traffic.Close(conn)
}

// turned is a connection during its TLS handshake, which is computed in a turn. While it waits for the client it has none.
type turned struct {
	net.Conn
	handshake *traffic.Handshake // nil: it is over
	left      int                // bytes that may be read until then
}

// inTurn waits for a turn to compute a handshake whose first bytes are there. over ends the last turn.
func (p *Proxy) inTurn(conn net.Conn, hello *entrance.Hello) *turned {
	t := &turned{conn, p.names.handshakes.Handshake(), hello.MostBehind()}
	t.handshake.Heard()
	return t
}

// over is called when the handshake is, before others use the connection.
func (t *turned) over() {
	t.handshake.Waits()
	t.handshake = nil
}

// Read implements net.Conn. Who left while it was waited for takes no other turn.
func (t *turned) Read(b []byte) (int, error) {
	if t.handshake == nil {
		return t.Conn.Read(b)
	}
	if t.left == 0 {
		return 0, entrance.ErrTooMuch
	}
	n, err := t.do(t.Conn.Read, b[:min(len(b), t.left)])
	t.left -= n
	return n, err
}

// Write implements net.Conn.
func (t *turned) Write(b []byte) (int, error) { return t.do(t.Conn.Write, b) }

func (t *turned) do(move func([]byte) (int, error), b []byte) (n int, err error) {
	if t.handshake == nil {
		return move(b)
	}
	t.handshake.Waits()
	if n, err = move(b); err == nil {
		t.handshake.Heard()
	}
	return n, err
}

// NetConn is the connection below.
func (t *turned) NetConn() net.Conn { return t.Conn }

// CloseWrite ends the direction to the client.
func (t *turned) CloseWrite() error {
	if w, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// endsTLS reports whether the TLS of a client ends here: the most specific name that is served for its server name is a https/ one. A
// client that names none wants an address, which is no server name.
func (p *Proxy) endsTLS(hello *entrance.Hello) bool {
	if p.cfg.Certificates == nil {
		return false
	}
	view := p.registry.View()
	host, err := grammar.RequestHost(hello.Name)
	if hello.Name == "" {
		return p.names.addresses.Load() > 0 || view.Secure("*")
	}
	if err != nil {
		return false
	}
	ends, passed := tlsOf(view, host)
	return ends || !passed && p.endsAway(host)
}

// endsAway reports whether the TLS of a host that nobody serves ends here, because the bridge that did is away.
func (p *Proxy) endsAway(host string) bool {
	away := p.names.away.Load()
	if away == nil {
		return false
	}
	for name := range entrance.Names(grammar.KindTLS, host, "") {
		if _, ok := (*away)[name.Host]; ok {
			return true
		}
	}
	return false
}

// tlsOf tells from the most specific name that is served for a host whether its TLS ends here or is passed on. Neither: nobody serves it.
func tlsOf(view *registry.View, host string) (ends, passed bool) {
	for name := range entrance.Names(grammar.KindTLS, host, "") {
		switch {
		case view.Find(name) != nil:
			return false, true
		case view.Secure(name.Host):
			return true, false
		}
	}
	return false, false
}

// serveSecure ends the TLS of a client and hands the connection to the server for HTTP. Until a service lets it in, it has its place at
// the gate. It takes over the pass.
func (p *Proxy) serveSecure(conn net.Conn, hello *entrance.Hello, pass *pass) {
	if !p.port.descriptors.Take(sys.ForUsers) {
		pass.leave(false)
		traffic.Reset(conn)
		return
	}
	conn.SetDeadline(time.Now().Add(entrance.HelloTime))
	turned := p.inTurn(conn, hello)
	t := tls.Server(p.webClient(entrance.Again(turned, hello.Read), pass), p.names.tls)
	err := t.Handshake()
	turned.over()
	if err != nil {
		t.Close()
		if _, broken := errors.AsType[*net.OpError](err); !broken { // its connection, or it did not like the certificate
			p.names.gate.report(p.log, conn.RemoteAddr(), fmt.Errorf("TLS for %q: %w", hello.Name, err))
		}
		return
	}
	conn.SetDeadline(time.Time{})
	p.web.server.Serve(t)
}

// secureTLS is how the TLS of https/ names ends.
func (p *Proxy) secureTLS() *tls.Config {
	return &tls.Config{GetCertificate: p.cfg.Certificates.GetCertificate, NextProtos: []string{"h2", "http/1.1", "http/1.0"}, MinVersion: tls.VersionTLS12}
}

// covers reports whether the certificate that a client was shown is for a host too: browsers send requests for several hosts of one
// certificate through one connection of HTTP/2. They do so with a host whose TLS is passed on, too, which nobody may read here.
func (p *Proxy) covers(state *tls.ConnectionState, host string) bool {
	if _, passed := tlsOf(p.registry.View(), host); passed {
		return false
	}
	shown, err := grammar.RequestHost(state.ServerName)
	if err != nil { // it named none, and wants an address
		_, err := netip.ParseAddr(host)
		return err == nil
	}
	if shown == host {
		return true
	}
	cert, err := p.cfg.Certificates.GetCertificate(&tls.ClientHelloInfo{ServerName: shown, SupportedVersions: []uint16{state.Version}})
	if err != nil || cert.Leaf == nil {
		return false
	}
	return cert.Leaf.VerifyHostname(grammar.HostString(host)) == nil
}

// proof answers an authority that looks for a proof at port 80; nil: the request is none of that kind.
func (p *Proxy) proof(r *http.Request) http.HandlerFunc {
	if p.cfg.Certificates == nil || r.TLS != nil || r.Method != http.MethodGet {
		return nil
	}
	text, ok := p.cfg.Certificates.Page(r.Host, r.URL.Path)
	if !ok {
		return nil
	}
	return plain(text)
}

// plain answers with a text.
func plain(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, text)
	}
}

// toSecure sends a client that speaks plain HTTP where the host and path are served by TLS only; nil: they are not.
func (p *Proxy) toSecure(r *http.Request) http.HandlerFunc {
	host, err := grammar.RequestHost(r.Host)
	if err != nil || r.TLS != nil || p.names.ln == nil {
		return nil
	}
	if path := r.URL.EscapedPath(); p.find(grammar.KindHTTPS, host, path) == nil && !p.away(true, host, path) {
		return nil
	}
	host = grammar.HostString(host)
	// Who comes to the usual port finds the usual one of HTTPS, whatever is forwarded where. Others come to this machine's own ports.
	if _, port, err := net.SplitHostPort(r.Host); err == nil && port != "" {
		host = fmt.Sprintf("%s:%d", host, portOf(p.names.ln.Addr()))
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "https://"+host+r.URL.RequestURI())
		w.WriteHeader(http.StatusPermanentRedirect)
	}
}
