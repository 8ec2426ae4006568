package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"reverser/internal/access"
	"reverser/internal/grammar"
)

// Admin is where the API and the page are served besides the admin socket.
type Admin struct {
	Addr  string   // ":3011" or "127.0.0.1:3011"; "": nowhere
	Hosts []string // names by which it may be asked for, besides those of Addr and of the certificate
	Plain bool     // other machines may ask without TLS
	// The files of Certificate, which is read again with the settings; nil: there is no TLS.
	CertificateFile, KeyFile string
	Certificate              *tls.Certificate
}

// Loopback reports whether only this machine reaches the address.
func (a Admin) Loopback() bool { return isLoopback(a.Addr) }

// AdminArgs is what a command line, or a file, says about the admin address. "" is nothing.
type AdminArgs struct {
	Addr                     string
	Hosts                    []string
	Plain                    bool
	CertificateFile, KeyFile string

	certificate *tls.Certificate // of the files, if they are a file's
}

const adminHint = "write 127.0.0.1:3011, which only this machine reaches"

// ParseAdmin parses where the API and the page are to be.
func ParseAdmin(s string) (string, error) {
	if strings.HasPrefix(s, "unix:") || strings.ContainsAny(s, `/\`) {
		return "", fmt.Errorf("%q is no address of TCP: the admin socket in the state directory is there without it", s)
	}
	return grammar.ParseListen(s)
}

// errOpenAdmin says why an address is refused that other machines reach.
func errOpenAdmin(addr string) error {
	return fmt.Errorf("other machines may reach %s, and whoever listens on the way would read the token that opens everything", addr)
}

// admin reads what a file says about the admin address.
func (d *doc) admin() AdminArgs {
	a := AdminArgs{Plain: d.yesNo("admin_plain") == "true"}
	a.Addr = d.address("admin", ParseAdmin, adminHint)
	a.Hosts = d.addresses("admin_host", grammar.CanonicalHost, `give a host name, such as "reverser.example.com"`)
	if a.CertificateFile = d.text("admin_certificate"); a.CertificateFile != "" {
		a.CertificateFile = d.relative(a.CertificateFile)
	}
	if a.KeyFile = d.text("admin_certificate_key"); a.KeyFile != "" {
		a.KeyFile = d.relative(a.KeyFile)
	}
	switch {
	case a.CertificateFile != "" && a.KeyFile != "":
		d.adminCertificate(&a)
	case a.CertificateFile != "":
		d.fault("admin_certificate", errors.New("there is a certificate, and no key"), `say where its key is, admin_certificate_key = "privkey.pem"`)
	case a.KeyFile != "":
		d.fault("admin_certificate_key", errors.New("there is a key, and no certificate"), `say where the certificate is, admin_certificate = "fullchain.pem"`)
	case a.Addr != "" && !isLoopback(a.Addr) && !a.Plain && !d.failedAt("admin") && !d.failedAt("admin_plain"):
		d.fault("admin", errOpenAdmin(a.Addr), adminHint+`, or give admin_certificate and admin_certificate_key, or admin_plain = true where nobody listens`)
	}
	return a
}

func (d *doc) adminCertificate(a *AdminArgs) {
	d.others = append(d.others, a.CertificateFile, a.KeyFile)
	c, notes, err := d.readCertificate(a.CertificateFile, a.KeyFile, d.rules)
	if err != nil {
		key, hint := "admin_certificate", ""
		if e, ok := errors.AsType[*CertificateError](err); ok {
			hint = e.Hint
			if e.Key {
				key = "admin_certificate_key"
			}
		}
		d.fault(key, err, hint)
		return
	}
	a.certificate = c
	for _, note := range notes {
		d.warn(d.line("admin_certificate"), "%s", note)
	}
}

// join joins what the command line and the file say of the admin address.
func (args AdminArgs) join(file AdminArgs, rules access.Rules) (a Admin, err error) {
	if a.Addr = args.Addr; a.Addr != "" {
		if a.Addr, err = ParseAdmin(a.Addr); err != nil {
			return Admin{}, argError(adminHint, "--admin: %w", err)
		}
	} else {
		a.Addr = file.Addr
	}
	words := args.Hosts
	if len(words) == 0 {
		words = file.Hosts
	}
	for _, word := range words {
		host, err := grammar.CanonicalHost(word)
		if err != nil {
			return Admin{}, argError("give the name that stands in the address of the page", "--admin-host: %w", err)
		}
		a.Hosts = append(a.Hosts, host)
	}
	a.Plain = args.Plain || file.Plain
	a.CertificateFile, a.KeyFile, a.Certificate = file.CertificateFile, file.KeyFile, file.certificate
	if args.CertificateFile != "" || args.KeyFile != "" {
		if args.CertificateFile == "" || args.KeyFile == "" {
			return Admin{}, argError("give both, in PEM", "--admin-certificate and --admin-certificate-key go together, and one of them is missing")
		}
		a.CertificateFile, a.KeyFile = args.CertificateFile, args.KeyFile
		if a.Certificate, _, err = ReadCertificate(a.CertificateFile, a.KeyFile, rules); err != nil {
			hint := ""
			if e, ok := errors.AsType[*CertificateError](err); ok {
				hint = e.Hint
			}
			return Admin{}, argError(hint, "--admin-certificate: %w", err)
		}
	}
	switch {
	case a.Addr == "" && (len(a.Hosts) > 0 || a.CertificateFile != "" || a.Plain):
		return Admin{}, argError("give --admin 127.0.0.1:3011 too, or leave them out", "--admin-host, --admin-certificate and --admin-plain are about the address of --admin, and there is none")
	case a.Addr != "" && !a.Loopback() && a.Certificate == nil && !a.Plain:
		return Admin{}, argError(adminHint+", or give --admin-certificate and --admin-certificate-key, or --admin-plain where nobody listens", "--admin: %w", errOpenAdmin(a.Addr))
	}
	return a, nil
}

// override takes the origin of options that the command line gives.
func (args AdminArgs) override(origin map[string]Place) {
	override(origin, "admin", args.Addr)
	override(origin, "admin_host", strings.Join(args.Hosts, ","))
	if args.Plain {
		delete(origin, "admin_plain")
	}
	override(origin, "admin_certificate", args.CertificateFile)
	override(origin, "admin_certificate_key", args.KeyFile)
}

// openAdmin warns of an admin address whose token everybody on the way can read, and of a certificate that browsers refuse.
func openAdmin(set Settings) (all []Warning) {
	a := set.Admin
	place := func(option string) (at Place) {
		at, ok := set.Origin[option]
		if !ok {
			at.File = "--" + strings.ReplaceAll(option, "_", "-")
		}
		return at
	}
	if a.Addr != "" && !a.Loopback() && a.Certificate == nil {
		at := place("admin")
		all = append(all, Warning{at.File, at.Line, fmt.Sprintf("the page and the API at %s are without TLS: whoever listens on the way to them reads the token, and can then do everything", a.Addr)})
	}
	if _, ok := set.Origin["admin_certificate"]; a.Certificate != nil && !ok { // a file has said so already
		if note := Dated(a.Certificate.Leaf, time.Now()); note != "" {
			at := place("admin_certificate")
			all = append(all, Warning{at.File, at.Line, fmt.Sprintf("the certificate in %s %s", a.CertificateFile, note)})
		}
	}
	return all
}

// admin says what is different about the admin address. Where it is, and whether it has TLS, is read at the start only.
func (c *changes) admin(old, next Admin) {
	const none = "none"
	word := func(s string) string {
		if s == "" {
			return none
		}
		return s
	}
	c.fixed("admin", word(old.Addr), word(next.Addr))
	c.fixed("admin_plain", fmt.Sprint(old.Plain), fmt.Sprint(next.Plain))
	if (old.Certificate == nil) != (next.Certificate == nil) {
		c.fixed("admin_certificate", word(old.CertificateFile), word(next.CertificateFile))
	} else {
		c.value("admin_certificate", word(old.CertificateFile), word(next.CertificateFile))
		c.value("admin_certificate_key", word(old.KeyFile), word(next.KeyFile))
	}
	c.value("admin_host", word(strings.Join(old.Hosts, ", ")), word(strings.Join(next.Hosts, ", ")))
	if old.Certificate != nil && next.Certificate != nil && !slices.EqualFunc(old.Certificate.Certificate, next.Certificate.Certificate, slices.Equal) {
		c.say("the admin address has another certificate, valid until %s UTC", next.Certificate.Leaf.NotAfter.UTC().Format(time.DateTime))
	}
}

// overlaps refuses an admin address that stands in the way of a port of the proxy.
func (a Admin) overlaps(p Proxy) error {
	if a.Addr == "" {
		return nil
	}
	for _, port := range []struct{ flag, addr string }{{"--listen", p.Listen}, {"--transfer", p.Transfer}, {"--http", p.HTTP}, {"--https", p.HTTPS}} {
		if port.addr != "" && grammar.ListenOverlap(a.Addr, port.addr) {
			_, n, _ := net.SplitHostPort(a.Addr)
			return argError("give --admin a port of its own, such as 127.0.0.1:3011", "--admin %s (in a file: admin) has port %s, which is that of %s %s", a.Addr, n, port.flag, port.addr)
		}
	}
	return nil
}
