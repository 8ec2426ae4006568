package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"reverser/internal/access"
	"reverser/internal/grammar"
)

// bridgeFile is what a file says to a bridge. What it does not say is empty. Of Token and TokenFile at most one is set.
type bridgeFile struct {
	CommonArgs
	Token, TokenFile string
	Proxies          []string // host:port
	ProxyTransfer    string   // host:port
	SNI              string
	Via, ViaFile     string // at most one is set
	Keepalive        string
	AutoCert         string   // "true" or "false"
	Sources          []string // IP addresses
	// NoProxy is set where the file has a placeholder for the proxy's address: wrong, unless a flag gives one. Proxies and
	// ProxyTransfer are empty then.
	NoProxy error
	// TransferPort is the port alone of the XML's ProxyTransfer, for when a flag names another host; 0: none.
	TransferPort uint16
	Expose       []grammar.Expose
	exposed      []Place                             // where each of Expose is, its PUBLIC
	Certificates map[grammar.Public]*tls.Certificate // from the files that services name
	origin       map[string]Place
	others       []string // files that it names and that settings are read from; also with an error
}

// loadBridge reads the configuration of a bridge.
func loadBridge(path string, rules access.Rules) (*bridgeFile, []Warning, error) {
	d, err := open(path, rules)
	if err != nil {
		return &bridgeFile{}, nil, err
	}
	if d.broken {
		return &bridgeFile{others: d.others}, d.warnings, d.err()
	}
	if role := d.role(); role == RoleProxy {
		return &bridgeFile{others: d.others}, d.warnings, d.wrongRole(RoleProxy, RoleBridge)
	}
	b := d.bridge()
	if err := d.err(); err != nil {
		return &bridgeFile{others: d.others}, d.warnings, err
	}
	b.others = d.others
	return b, d.warnings, nil
}

func (d *doc) bridge() *bridgeFile {
	b := &bridgeFile{origin: d.origin, others: d.others, Certificates: make(map[grammar.Public]*tls.Certificate)}
	if d.xml {
		d.xmlBridge(b)
		return b
	}
	if b.Token = strings.TrimSpace(d.text("token")); b.Token != "" {
		if _, err := grammar.ParseToken(b.Token); err != nil {
			d.fault("token", err, "")
		}
		notes, fault := d.private()
		if fault != nil {
			d.fault("token", errors.New(fault.Text), fault.Hint+", or put the token into a file of its own and name it in token_file")
		}
		for _, note := range notes {
			d.warn(d.line("token"), "%s", note)
		}
	}
	if b.TokenFile = d.text("token_file"); b.TokenFile != "" {
		if b.TokenFile != "-" {
			b.TokenFile = d.relative(b.TokenFile)
		}
		if b.Token != "" {
			d.fault("token_file", fmt.Errorf("token on line %d gives a token already", d.line("token")), "keep one of the two")
		}
	}
	b.Proxies = d.addresses("proxy", func(s string) (string, error) { return grammar.ParseHost(s, defaultPort) },
		`give the proxy's address, "server.example.com" or "server.example.com:3010", or a list of them`)
	b.ProxyTransfer = d.address("proxy_transfer", grammar.ParseHostPort, `give host and port, such as "server.example.com:3020"`)
	b.SNI = d.sni()
	d.via(b)
	b.Keepalive = d.checked("keepalive", func(s string) error { _, err := ParseKeepalive(s); return err }, "")
	b.AutoCert = d.yesNo("auto_cert")
	b.Sources = d.addresses("source", func(s string) (string, error) {
		ip, err := ParseSource(s)
		return ip.String(), err
	}, "")
	b.CommonArgs = d.common()

	var exposes grammar.ExposeSet
	for i, t := range d.tables("expose", exposeKeys()...) {
		at := func(k string) string { return fmt.Sprintf("expose[%d].%s", i, k) }
		public, target := d.inner(t, at("public"), "public"), d.inner(t, at("target"), "target")
		if _, ok := t["public"]; !ok {
			d.missing(at("public"), "public", `say where users reach the service, such as public = "tcp/9000"`)
			continue
		}
		if _, ok := t["target"]; ok && target == "" && !d.failedAt(at("target")) {
			d.fail(&Error{Line: d.line(at("target")), Key: "target", Text: "target is empty", Hint: "give a port (9904), host:port, or unix:/path"})
		}
		if d.failedAt(at("public")) || d.failedAt(at("target")) || d.failedAt(at("targets")) {
			continue
		}
		e, err := grammar.NewExpose(public, target)
		if err != nil {
			// The grammar's errors name the half themselves; the key is for the line.
			key := "public"
			if _, perr := grammar.ParsePublic(public); perr == nil && strings.HasPrefix(err.Error(), "target") {
				key = "target"
			}
			d.fail(&Error{Line: d.line(at(key)), Text: err.Error(), Err: err})
			continue
		}
		if err := exposes.Add(e); err != nil {
			d.fail(&Error{Line: d.line(at("public")), Text: err.Error(), Err: err})
			continue
		}
		d.exposeOptions(t, at, &e)
		if c := d.certificate(at, &e); c != nil {
			b.Certificates[e.Public] = c
		}
		b.Expose = append(b.Expose, e)
		b.exposed = append(b.exposed, Place{d.file, d.line(at("public")), "public"})
	}
	b.others = d.others
	return b
}
