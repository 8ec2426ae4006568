package config

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// made is a certificate and its key, in PEM.
type made struct{ chain, key string }

func certificateFor(t *testing.T, until time.Time, names ...string) made {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotBefore: until.Add(-time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return made{encode("CERTIFICATE", der), encode("PRIVATE KEY", secret)}
}

func soon() time.Time { return time.Now().Add(time.Hour) }

const endingBridge = "token_file = \"t\"\n\n[[expose]]\npublic = %q\ntarget = 80\ncertificate = \"chain.pem\"\ncertificate_key = \"key.pem\"\n"

// endingFile writes a bridge's file with a service that has a certificate.
func endingFile(t *testing.T, public string, c made) (path string) {
	t.Helper()
	path = write(t, "bridge.toml", fmt.Sprintf(endingBridge, public))
	write(t, filepath.Join(filepath.Dir(path), "t"), testToken(1).Encode())
	write(t, filepath.Join(filepath.Dir(path), "chain.pem"), c.chain)
	write(t, filepath.Join(filepath.Dir(path), "key.pem"), c.key)
	return path
}

// TestCertificate: the files of a service are read, and belong to what is watched.
func TestCertificate(t *testing.T) {
	for public, names := range map[string][]string{
		"tls/app.example":   {"other.example", "APP.example"},
		"tls/a.app.example": {"*.app.example"},
		"tls/*.app.example": {"app.example", "*.app.example"},
		"tls/*":             {"app.example"},
	} {
		c := certificateFor(t, soon(), names...)
		path := endingFile(t, public, c)
		source := NewBridgeSource(BridgeArgs{Config: path})
		set, warnings, err := source.Load()
		if err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v, %v", public, err, warnings)
			continue
		}
		e := set.Bridge.Services[0]
		if got := set.Bridge.Certificates[e.Public]; got == nil || !slices.Equal(got.Leaf.DNSNames, names) || e.Options.ALPN != nil {
			t.Errorf("%s: certificate %+v, options %+v", public, got, e.Options)
		}
		dir := filepath.Dir(path)
		if !slices.Equal(source.file.others, []string{filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")}) {
			t.Errorf("%s: watched beside the file are %q", public, source.file.others)
		}
		changed := make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- source.Watch(ctx, func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			})
		}()
		next := certificateFor(t, soon().Add(time.Hour), names...)
		write(t, filepath.Join(dir, "key.pem"), next.key)
		write(t, filepath.Join(dir, "chain.pem"), next.chain)
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatalf("%s: the new certificate is not noticed", public)
		}
		cancel()
		<-done
		renewed, _, err := source.Load()
		if err != nil {
			t.Fatal(err)
		}
		said, err := set.Changes(renewed)
		if err != nil || len(said) != 1 || !strings.Contains(said[0], "service "+public+" has another certificate, valid until ") {
			t.Errorf("%s: the change is %q, %v", public, said, err)
		}
	}
}

// TestCertificateRefused: what cannot be used is refused with the line and the remedy.
func TestCertificateRefused(t *testing.T) {
	good, other := certificateFor(t, soon(), "app.example"), certificateFor(t, soon(), "app.example", "b.example")
	for _, c := range []struct {
		what  string
		spoil func(dir string) // nil: replace does
		old   string
		new   string // in the file
		words []string
	}{
		{what: "a key of another certificate", spoil: func(dir string) { write(t, dir+"/key.pem", other.key) }, words: []string{":7: certificate_key: the key in ", "is not that of the certificate in ", "made together"}},
		{what: "another name", old: "app.example", new: "c.example", words: []string{":6: certificate: the certificate is for app.example, and not for c.example", "change public"}},
		{what: "a wildcard", old: "app.example", new: "*.example", words: []string{":6: certificate: ", "and not for *.example"}},
		{what: "no certificate", spoil: func(dir string) { os.Remove(dir + "/chain.pem") }, words: []string{":6: certificate: read ", "chain.pem", "check the path"}},
		{what: "no key", spoil: func(dir string) { os.Remove(dir + "/key.pem") }, words: []string{":7: certificate_key: read ", "check the path"}},
		{what: "the key in place of the certificate", spoil: func(dir string) { write(t, dir+"/chain.pem", good.key) }, words: []string{":6: certificate: there is no certificate in ", "but a private key", "fullchain.pem"}},
		{what: "the certificate in place of the key", spoil: func(dir string) { write(t, dir+"/key.pem", good.chain) }, words: []string{":7: certificate_key: there is no key in ", "but a certificate", "privkey.pem"}},
		{what: "an empty file", spoil: func(dir string) { write(t, dir+"/chain.pem", "") }, words: []string{":6: certificate: there is no certificate in ", "no PEM at all"}},
		{what: "DER", spoil: func(dir string) { b, _ := pem.Decode([]byte(good.chain)); write(t, dir+"/chain.pem", string(b.Bytes)) }, words: []string{":6: certificate: ", "is not PEM", "openssl x509 -inform der"}},
		{what: "a damaged certificate", spoil: func(dir string) {
			write(t, dir+"/chain.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no")})))
		}, words: []string{":6: certificate: ", "cannot be used: "}},
		{what: "an encrypted key", spoil: func(dir string) {
			write(t, dir+"/key.pem", strings.ReplaceAll(good.key, "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
		}, words: []string{":7: certificate_key: the key in ", "is encrypted", "openssl pkey"}},
		{what: "a directory", spoil: func(dir string) { os.Remove(dir + "/chain.pem"); os.Mkdir(dir+"/chain.pem", 0o700) }, words: []string{":6: certificate: read "}},
		{what: "a certificate without a key", old: "certificate_key = \"key.pem\"\n", words: []string{":6: certificate: there is a certificate, and no key", "certificate_key ="}},
		{what: "a key without a certificate", old: "certificate = \"chain.pem\"\n", words: []string{":6: certificate_key: there is a key, and no certificate"}},
		{what: "another kind", old: "tls/app.example", new: "9000", words: []string{":6: certificate: this is for services of tls/, and tcp/9000 is none"}},
		{what: "a number", old: `"chain.pem"`, new: "7", words: []string{":6: certificate: the value is no text"}},
		{what: "an empty path", old: `"chain.pem"`, new: `""`, words: []string{":6: certificate: the value is empty"}},
		{what: "protocols that are no list", old: "target = 80", new: "target = 80\nalpn = \"h2\"", words: []string{":6: alpn: the value is no list", `alpn = ["h2", "http/1.1"]`}},
		{what: "a protocol twice", old: "target = 80", new: "target = 80\nalpn = [\"h2\", \"h2\"]", words: []string{`:6: alpn: "h2" is there twice`}},
		{what: "a protocol that is none", old: "target = 80", new: "target = 80\nalpn = [7]", words: []string{`:6: alpn: "7" is no protocol`}},
		{what: "the authority's protocol", old: "target = 80", new: "target = 80\nalpn = [\"acme-tls/1\"]", words: []string{`:6: alpn: "acme-tls/1" is a certificate authority's`}},
		{what: "protocols without a certificate", old: "certificate = \"chain.pem\"\ncertificate_key = \"key.pem\"\n", new: "alpn = [\"h2\"]\n", words: []string{":6: alpn: without a certificate"}},
		{what: "a key beside one that comes by itself", old: `"chain.pem"`, new: `"auto"`, words: []string{":7: certificate_key: a certificate that comes by itself brings its key"}},
		{what: "a key that comes by itself", old: `"key.pem"`, new: `"auto"`, words: []string{":7: certificate_key: this is no file"}},
		{what: "a wildcard that comes by itself", old: "tls/app.example\"\ntarget = 80\ncertificate = \"chain.pem\"\ncertificate_key = \"key.pem\"", new: "tls/*.example\"\ntarget = 80\ncertificate = \"auto\"", words: []string{":6: certificate: no certificate for *.example comes by itself", "a service for each name"}},
	} {
		path := endingFile(t, "tls/app.example", good)
		if c.spoil != nil {
			c.spoil(filepath.Dir(path))
		}
		text := fmt.Sprintf(endingBridge, "tls/app.example")
		if c.old != "" && !strings.Contains(text, c.old) {
			t.Fatalf("%s: no %q in the file", c.what, c.old)
		}
		write(t, path, strings.Replace(text, c.old, c.new, 1))
		_, _, err := Check(path)
		want(t, c.what, err, append(c.words, path)...)
		if _, _, err := NewBridgeSource(BridgeArgs{Config: path}).Load(); err == nil {
			t.Errorf("%s: taken at the start", c.what)
		}
	}
}

// TestCertificateOfOthers: a key that others can read, and a certificate that others can write, are refused.
func TestCertificateOfOthers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes: access/sddl_test.go has the rules of Windows")
	}
	path := endingFile(t, "tls/app.example", certificateFor(t, soon(), "app.example"))
	key, chain := filepath.Join(filepath.Dir(path), "key.pem"), filepath.Join(filepath.Dir(path), "chain.pem")
	os.Chmod(chain, 0o644)
	if _, _, err := Check(path); err != nil {
		t.Errorf("a certificate that others can read: %v", err)
	}
	os.Chmod(chain, 0o666)
	_, _, err := Check(path)
	want(t, "a certificate that others can write", err, path+":6: certificate: "+chain, "others on this machine can write it", "chmod")
	os.Chmod(chain, 0o644)
	os.Chmod(key, 0o644)
	_, _, err = Check(path)
	want(t, "a key that others can read", err, path+":7: certificate_key: "+key, "others on this machine can read it", "chmod 600")
}

// TestCertificateExpired: it is served all the same, and the log says so.
func TestCertificateExpired(t *testing.T) {
	for what, until := range map[string]time.Time{"has expired on ": time.Now().Add(-time.Minute), "is not valid before ": time.Now().Add(100 * time.Hour)} {
		set, warnings, err := NewBridgeSource(BridgeArgs{Config: endingFile(t, "tls/app.example", certificateFor(t, until, "app.example"))}).Load()
		if err != nil || len(set.Bridge.Certificates) != 1 {
			t.Errorf("%s: %v", what, err)
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0].String(), "bridge.toml:6: the certificate in ") || !strings.Contains(warnings[0].String(), what) {
			t.Errorf("%s: the warnings are %v", what, warnings)
		}
	}
}

// TestALPN: protocols are those of the file, in order; none is not the default.
func TestALPN(t *testing.T) {
	for value, want := range map[string][]string{`["h2", "http/1.1"]`: {"h2", "http/1.1"}, `[]`: {}} {
		path := endingFile(t, "tls/app.example", certificateFor(t, soon(), "app.example"))
		write(t, path, fmt.Sprintf(endingBridge, "tls/app.example")+"alpn = "+value+"\n")
		set, _, err := NewBridgeSource(BridgeArgs{Config: path}).Load()
		if err != nil {
			t.Fatal(err)
		}
		if got := set.Bridge.Services[0].Options.ALPN; got == nil || !slices.Equal(got, want) {
			t.Errorf("alpn = %s: %q", value, got)
		}
	}
}

// TestAutoCertificate: by the service's table, the file or the command line, for services of tls/ that have no other.
func TestAutoCertificate(t *testing.T) {
	c := certificateFor(t, soon(), "app.example")
	for what, x := range map[string]struct {
		file, expose, want string
		flag               bool
	}{
		"the table":        {file: fmt.Sprintf(endingBridge, "tls/app.example") + "[[expose]]\npublic = \"tls/b.example\"\ntarget = 1\ncertificate = \"auto\"\n", want: "chain.pem auto"},
		"the file":         {file: "auto_cert = true\n" + fmt.Sprintf(endingBridge, "tls/app.example"), expose: "tls/b.example=1", want: "chain.pem auto"},
		"the command line": {file: fmt.Sprintf(endingBridge, "tls/app.example"), flag: true, expose: "tls/b.example=1", want: "chain.pem auto"},
		"nothing":          {file: fmt.Sprintf(endingBridge, "tls/app.example"), expose: "tls/b.example=1", want: "chain.pem -"},
		"another kind":     {file: fmt.Sprintf(endingBridge, "tls/app.example"), flag: true, expose: "9000", want: "chain.pem -"},
		"protocols":        {file: "auto_cert = true\ntoken_file = \"t\"\n[[expose]]\npublic = \"tls/a.example\"\ntarget = 1\nalpn = [\"h2\"]\n", want: "auto"},
	} {
		path := endingFile(t, "tls/app.example", c)
		write(t, path, x.file)
		args := BridgeArgs{Config: path, AutoCert: x.flag}
		if x.expose != "" {
			args.Expose = []string{x.expose}
		}
		set, _, err := NewBridgeSource(args).Load()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		var got []string
		for _, e := range set.Bridge.Services {
			name := "-"
			if e.Options.Certificate != "" {
				name = filepath.Base(e.Options.Certificate)
			}
			got = append(got, name)
		}
		if got := strings.Join(got, " "); got != x.want {
			t.Errorf("%s: certificates %s, want %s", what, got, x.want)
		}
	}
	_, _, err := NewBridgeSource(BridgeArgs{Token: testToken(1).Encode(), AutoCert: true, Expose: []string{"tls/*.example=1"}}).Load()
	want(t, "a wildcard", err, "--auto-cert: no certificate for *.example comes by itself")
}
