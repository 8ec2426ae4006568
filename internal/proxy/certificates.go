package proxy

import (
	"crypto/tls"
	"net"
	"slices"
	"time"

	"reverser/internal/entrance"
	"reverser/internal/grammar"
	"reverser/internal/registry"
	"reverser/internal/status"
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
			p.cfg.Certificates.Want(p.secureHosts(view))
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

// secureHosts are the hosts of https/ names, with the names of their keys. For one with a wildcard no certificate comes by itself.
func (p *Proxy) secureHosts(view *registry.View) map[string]string {
	hosts := make(map[string]string)
	for rt := range view.All {
		if pub := rt.Public; pub.Kind == grammar.KindHTTPS && pub.Host[0] != '*' {
			hosts[pub.Host] = p.logName(rt.Key)
		}
	}
	return hosts
}

// asksForProof reports whether a client is an authority that wants a proof of a name for which this proxy has asked it.
func (p *Proxy) asksForProof(hello *entrance.Hello) bool {
	return p.cfg.Certificates != nil && slices.Equal(hello.ALPN, []string{acmeProtocol}) && p.cfg.Certificates.Proves(hello.Name)
}

// prove answers an authority. The proof is in the handshake.
func (p *Proxy) prove(conn net.Conn, hello *entrance.Hello) {
	conn.SetDeadline(time.Now().Add(entrance.HelloTime))
	t := tls.Server(entrance.Again(conn, hello.Read), &tls.Config{GetCertificate: p.cfg.Certificates.GetCertificate, NextProtos: []string{acmeProtocol}})
	_ = t.Handshake() // the authority says what was wrong with it
	t.Close()
}
