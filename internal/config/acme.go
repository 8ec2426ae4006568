package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"reverser/internal/access"
)

// ACME says which authority certificates come from that come by themselves.
type ACME struct {
	Email     string         // "": none
	Directory string         // URL; "": the default one
	Root      string         // the file that Roots are of; "": none
	Roots     *x509.CertPool // that the authority's own certificate is checked with; nil: the system's
}

// acme joins what args and the file say of the authority.
func (args CommonArgs) acme(file CommonArgs, rules access.Rules) (a ACME, err error) {
	if a.Email = args.ACMEEmail; a.Email == "" {
		a.Email = file.ACMEEmail
	}
	if a.Email != "" {
		if err := checkEmail(a.Email); err != nil {
			return ACME{}, argError("give an address, admin@example.com, or leave it out", "--acme-email: %w", err)
		}
	}
	if a.Directory = args.ACMEDirectory; a.Directory == "" {
		a.Directory = file.ACMEDirectory
	}
	if a.Directory != "" {
		if err := checkDirectory(a.Directory); err != nil {
			return ACME{}, argError("give the URL of the authority's directory, https://HOST/PATH, or leave it out", "--acme-directory: %w", err)
		}
	}
	if a.Root = args.ACMERoot; a.Root == "" {
		a.Root = file.ACMERoot
	}
	if a.Root != "" {
		if a.Roots, _, err = readRoots(a.Root, readOther, rules); err != nil {
			return ACME{}, argError("", "--acme-root: %w", err)
		}
	}
	return a, nil
}

// checkEmail refuses what no authority takes. Whether the address exists is for the authority to find out.
func checkEmail(s string) error {
	name, domain, ok := strings.Cut(s, "@")
	if !ok || name == "" || !strings.Contains(domain, ".") || strings.ContainsAny(s, " \t,;<>\"'()") || strings.Contains(domain, "@") || len(s) > 254 {
		return fmt.Errorf("%q is no email address", s)
	}
	return nil
}

// checkDirectory refuses what cannot be the URL of an authority. Plain HTTP is for one on this machine.
func checkDirectory(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return fmt.Errorf("%q is no URL", s)
	case u.User != nil:
		return errors.New("the URL has a user in it, which no authority asks for")
	case u.Scheme == "https":
		return nil
	case u.Scheme != "http":
		return fmt.Errorf("%q does not begin with https://", s)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q begins with http://, and who listens on the way could read and change what the authority says: it must be https://", s)
	}
	return nil
}

// acmeRoot looks whether a file has a root certificate.
func (d *doc) acmeRoot(path string) (notes []string, err error) {
	d.others = append(d.others, path)
	_, notes, err = readRoots(path, d.readOther, d.rules)
	return notes, err
}

// readRoots reads certificates of authorities from a file in PEM.
func readRoots(path string, read func(string, access.Rules) (string, []string, error), rules access.Rules) (*x509.CertPool, []string, error) {
	text, notes, err := read(path, rules)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, trimPath(err))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(text)) {
		return nil, nil, fmt.Errorf("%s has no certificate in PEM (BEGIN CERTIFICATE)", path)
	}
	return roots, notes, nil
}
