package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"reverser/internal/access"
	"reverser/internal/grammar"
)

// CertificateError says what is wrong with a certificate or its key.
type CertificateError struct {
	Key        bool // it is the key's file
	Text, Hint string
	Err        error // the cause; nil: there is no other
}

func (e *CertificateError) Error() string { return e.Text }
func (e *CertificateError) Unwrap() error { return e.Err }

// ReadCertificate reads a certificate, with those of the authorities behind it, and its key, from two files in PEM. The notes are for the
// log.
func ReadCertificate(chainFile, keyFile string, rules access.Rules) (c *tls.Certificate, notes []string, err error) {
	chain, more, err := readPEM(chainFile, false, rules)
	if err != nil {
		return nil, nil, err
	}
	notes = append(notes, more...)
	key, more, err := readPEM(keyFile, true, rules)
	if err != nil {
		return nil, nil, err
	}
	notes = append(notes, more...)
	if err := checkPEM(chainFile, chain, "CERTIFICATE", false); err != nil {
		return nil, nil, err
	}
	if err := checkPEM(keyFile, key, "PRIVATE KEY", true); err != nil {
		return nil, nil, err
	}
	pair, err := tls.X509KeyPair(chain, key)
	switch {
	case err != nil && strings.Contains(err.Error(), "does not match"):
		return nil, nil, &CertificateError{Key: true, Text: fmt.Sprintf("the key in %s is not that of the certificate in %s", keyFile, chainFile), Err: err,
			Hint: "give the two files that were made together, the server's own certificate first in its file"}
	case err != nil:
		return nil, nil, &CertificateError{Text: fmt.Sprintf("the certificate in %s and the key in %s cannot be used: %s", chainFile, keyFile, strings.TrimPrefix(err.Error(), "tls: ")), Err: err,
			Hint: "give both in PEM, as certbot and openssl write them"}
	}
	if note := Dated(pair.Leaf, time.Now()); note != "" {
		notes = append(notes, fmt.Sprintf("the certificate in %s %s", chainFile, note))
	}
	return &pair, notes, nil
}

// Dated is what is wrong with a certificate's time; "": nothing. A server goes on with one that has expired: its users are told, and some of
// them can do something about it.
func Dated(leaf *x509.Certificate, now time.Time) string {
	switch {
	case now.After(leaf.NotAfter):
		return "has expired on " + leaf.NotAfter.Format(time.DateTime) + " UTC: clients refuse it, get a new one"
	case now.Before(leaf.NotBefore):
		return "is not valid before " + leaf.NotBefore.Format(time.DateTime) + " UTC: clients refuse it until then; is this machine's clock right?"
	}
	return ""
}

// readPEM reads one of the files. One with a key must be private.
func readPEM(path string, secret bool, rules access.Rules) ([]byte, []string, error) {
	text, file, err := readText(path, rules)
	switch {
	case errors.Is(err, errEncoding):
		return nil, nil, &CertificateError{Key: secret, Text: path + " is not PEM, which is text", Hint: "convert it: openssl x509 -inform der (a certificate), openssl pkcs12 -nodes (a .pfx or .p12)", Err: err}
	case err != nil:
		return nil, nil, &CertificateError{Key: secret, Text: fmt.Sprintf("read %s: %v", path, trimPath(err)), Hint: hintFor(err), Err: err}
	}
	checks := []func() ([]string, *access.Fault){file.Unwritable}
	if secret {
		checks = []func() ([]string, *access.Fault){file.Private, file.Owned}
	}
	var notes []string
	for _, check := range checks {
		more, fault := check()
		if fault != nil {
			return nil, nil, &CertificateError{Key: secret, Text: path + ": " + fault.Text, Hint: fault.Hint, Err: fault}
		}
		for _, note := range more {
			notes = append(notes, path+": "+note)
		}
	}
	return []byte(text), notes, nil
}

// checkPEM looks whether there is something of a kind in a file, and nothing that tells of a mistake.
func checkPEM(path string, text []byte, kind string, secret bool) error {
	var kinds []string
	for rest := bytes.TrimSpace(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if strings.Contains(b.Type, "ENCRYPTED") || b.Headers["DEK-Info"] != "" {
			return &CertificateError{Key: secret, Text: "the key in " + path + " is encrypted with a passphrase, and nobody is there to type it", Hint: "write it without one: openssl pkey -in FILE -out NEW_FILE, and chmod 600"}
		}
		if strings.HasSuffix(b.Type, kind) {
			return nil
		}
		kinds = append(kinds, b.Type)
	}
	what, other := "certificate", "the file with BEGIN CERTIFICATE, such as fullchain.pem"
	if secret {
		what, other = "key", "the file with BEGIN PRIVATE KEY, such as privkey.pem"
	}
	found := "no PEM at all"
	if len(kinds) > 0 {
		found = "a " + strings.ToLower(kinds[0])
	}
	return &CertificateError{Key: secret, Text: fmt.Sprintf("there is no %s in %s, but %s", what, path, found), Hint: "give " + other}
}

// checkNames looks whether a certificate is for all that a service is for: a host, the hosts of *.REST, or all.
func checkNames(leaf *x509.Certificate, public grammar.Public) error {
	ok := true
	switch {
	case public.Host == "*":
	case strings.HasPrefix(public.Host, "*."):
		ok = slices.ContainsFunc(leaf.DNSNames, func(name string) bool { return strings.EqualFold(name, public.Host) })
	default:
		ok = leaf.VerifyHostname(public.Host) == nil
	}
	if ok {
		return nil
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for_ := "no name at all"
	if n := len(names); n > 5 {
		for_ = fmt.Sprintf("%s and %d more", strings.Join(names[:5], ", "), n-5)
	} else if n > 0 {
		for_ = strings.Join(names, ", ")
	}
	return fmt.Errorf("the certificate is for %s, and not for %s", for_, public.Host)
}

// comesByItself refuses a service for whose names no certificate comes by itself.
func comesByItself(public grammar.Public) error {
	if !strings.HasPrefix(public.Host, "*") {
		return nil
	}
	return fmt.Errorf("no certificate for %s comes by itself: an authority gives one for a wildcard to whoever can change its DNS only", public.Host)
}

const wildcardHint = "give the paths of one and of its key, or a service for each name"

// autoCertificates has certificates come by themselves for services of tls/ that have none.
func autoCertificates(services []grammar.Expose) error {
	for i := range services {
		e := &services[i]
		if e.Public.Kind != grammar.KindTLS || e.Options.Certificate != "" {
			continue
		}
		if err := comesByItself(e.Public); err != nil {
			return argError(wildcardHint+`, or leave --auto-cert out and write certificate = "auto" where it is wanted`, "--auto-cert: %w", err)
		}
		e.Options.Certificate = grammar.AutoCertificate
	}
	return nil
}

// tlsOptions are those of a service whose TLS the bridge ends.
var tlsOptions = []exposeOption{
	{"certificate", []grammar.Kind{grammar.KindTLS}, func(d *doc, v any, e *grammar.Expose) (string, error) {
		return pathOption(d, v, &e.Options.Certificate)
	}},
	{"certificate_key", []grammar.Kind{grammar.KindTLS}, func(d *doc, v any, e *grammar.Expose) (string, error) {
		if v == grammar.AutoCertificate {
			return `a certificate that comes by itself brings its key: leave it out, with certificate = "auto"`, errors.New("this is no file")
		}
		return pathOption(d, v, &e.Options.CertificateKey)
	}},
	{"alpn", []grammar.Kind{grammar.KindTLS}, readALPN},
}

func pathOption(d *doc, v any, to *string) (hint string, err error) {
	s, ok := v.(string)
	switch {
	case !ok:
		return `write the path of a file in PEM, in quotes`, errors.New("the value is no text")
	case strings.TrimSpace(s) == "":
		return "give the path of a file in PEM, or leave the key out", errors.New("the value is empty")
	}
	if _, err := scalar(v); err != nil {
		return "", err
	}
	if *to = s; s != grammar.AutoCertificate {
		*to = d.relative(s)
	}
	return "", nil
}

// readALPN reads the protocols that the target speaks.
func readALPN(_ *doc, v any, e *grammar.Expose) (hint string, err error) {
	const say = `write a list, alpn = ["h2", "http/1.1"], the best first; alpn = [] leaves it to the client`
	list, ok := v.([]any)
	if !ok {
		return say, errors.New("the value is no list")
	}
	if len(list) > 16 {
		return say, fmt.Errorf("there are %d protocols, and 16 at most", len(list))
	}
	protocols := []string{}
	for _, v := range list {
		s, ok := v.(string)
		switch {
		case !ok || s == "" || len(s) > 255:
			return say, fmt.Errorf("%.40q is no protocol", fmt.Sprint(v))
		case slices.Contains(protocols, s):
			return "", fmt.Errorf("%.40q is there twice", s)
		case s == "acme-tls/1":
			return "leave it out", fmt.Errorf("%q is a certificate authority's", s)
		}
		protocols = append(protocols, s)
	}
	e.Options.ALPN = protocols
	return "", nil
}

// certificate reads the certificate of a service, if it is to have one. It returns nil if it has none, or with an error.
func (d *doc) certificate(at func(string) string, e *grammar.Expose) *tls.Certificate {
	o := &e.Options
	fail := func(key, text, hint string, err error) {
		d.fail(&Error{Line: d.line(at(key)), Key: key, Text: text, Hint: hint, Err: err})
	}
	switch {
	case d.failedAt(at("certificate")) || d.failedAt(at("certificate_key")):
		return nil
	case o.Certificate == "" && o.CertificateKey != "":
		fail("certificate_key", "there is a key, and no certificate", `say where the certificate is, certificate = "fullchain.pem"`, nil)
		return nil
	case o.Certificate == "" && o.ALPN != nil && d.options["auto_cert"] != true:
		fail("alpn", "without a certificate the bridge does not end TLS, and the target agrees on protocols by itself", `leave it out, or give certificate = "auto", or the paths of one and of its key`, nil)
		return nil
	case o.Certificate == "":
		return nil
	case o.Certificate == grammar.AutoCertificate && o.CertificateKey != "":
		fail("certificate_key", "a certificate that comes by itself brings its key", `leave it out, or give the path of a certificate`, nil)
		return nil
	case o.Certificate == grammar.AutoCertificate:
		if err := comesByItself(e.Public); err != nil {
			fail("certificate", err.Error(), wildcardHint, nil)
		}
		return nil
	case o.CertificateKey == "":
		fail("certificate", "there is a certificate, and no key", `say where its key is, certificate_key = "privkey.pem"`, nil)
		return nil
	}
	for _, file := range []string{o.Certificate, o.CertificateKey} {
		if !slices.Contains(d.others, file) {
			d.others = append(d.others, file)
		}
	}
	c, notes, err := d.readCertificate(o.Certificate, o.CertificateKey, d.rules)
	if err != nil {
		key, hint := "certificate", ""
		if e, ok := errors.AsType[*CertificateError](err); ok {
			hint = e.Hint
			if e.Key {
				key = "certificate_key"
			}
		}
		fail(key, err.Error(), hint, err)
		return nil
	}
	for _, note := range notes {
		d.warn(d.line(at("certificate")), "%s", note)
	}
	if err := checkNames(c.Leaf, e.Public); err != nil {
		fail("certificate", err.Error(), "give that of the name which users ask for, or change public", err)
		return nil
	}
	return c
}

// Given is one [[certificate]] of a proxy's file.
type Given struct {
	Chain, Key  string // files
	Certificate *tls.Certificate
	Names       []string // that it is for, in lower case; with wildcards
	Table       Place    // of the file that has it
}

// given reads the certificates that a proxy's file names.
func (d *doc) given() (all []Given) {
	for i, t := range d.tables("certificate", "chain", "key") {
		at := func(k string) string { return fmt.Sprintf("certificate[%d].%s", i, k) }
		g := Given{Chain: d.inner(t, at("chain"), "chain"), Key: d.inner(t, at("key"), "key"), Table: Place{d.file, d.line(fmt.Sprintf("certificate[%d]", i)), "certificate"}}
		if g.Chain == "" {
			d.missing(at("chain"), "chain", "name the file with the certificate, in PEM, such as fullchain.pem")
		}
		if g.Key == "" {
			d.missing(at("key"), "key", "name the file with the certificate's key, in PEM, such as privkey.pem")
		}
		if g.Chain == "" || g.Key == "" {
			continue
		}
		g.Chain, g.Key = d.relative(g.Chain), d.relative(g.Key)
		d.others = append(d.others, g.Chain, g.Key)
		pair, notes, err := d.readCertificate(g.Chain, g.Key, d.rules)
		for _, note := range notes {
			d.warn(d.line(at("chain")), "%s", note)
		}
		if err == nil {
			g.Certificate, g.Names = pair, namesOf(pair.Leaf)
			if len(g.Names) == 0 {
				err = &CertificateError{Text: fmt.Sprintf("the certificate in %s is for no name: it has neither a DNS name nor an IP address (subjectAltName)", g.Chain), Hint: "give one that was made for the names of services"}
			}
		}
		if err != nil {
			key, hint := "chain", ""
			if fault, ok := errors.AsType[*CertificateError](err); ok {
				hint = fault.Hint
				if fault.Key {
					key = "key"
				}
			}
			d.fail(&Error{Line: d.line(at(key)), Key: key, Text: err.Error(), Hint: hint, Err: err})
			continue
		}
		for _, other := range all {
			for _, name := range g.Names {
				if slices.Contains(other.Names, name) {
					d.fail(&Error{Line: d.line(at("chain")), Key: "chain", Text: fmt.Sprintf("the certificates in %s and %s are both for %s", other.Chain, g.Chain, name), Hint: "keep one of the two"})
					break
				}
			}
		}
		all = append(all, g)
	}
	return all
}

// unusedCertificates warns of certificates that nobody gets to see.
func unusedCertificates(https string, given []Given) (all []Warning) {
	if https != "" {
		return nil
	}
	for _, g := range given {
		all = append(all, Warning{g.Table.File, g.Table.Line, "this [[certificate]] is not used: the proxy has no port for TLS without https = \":443\" or --https"})
	}
	return all
}

// namesOf are the names that a certificate is for.
func namesOf(leaf *x509.Certificate) (names []string) {
	for _, name := range leaf.DNSNames {
		names = append(names, strings.ToLower(strings.TrimSuffix(name, ".")))
	}
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
