package state

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path/filepath"
	"time"
)

// Identity is the proxy's own key and its self-signed certificate, made at the
// first call and kept. Tokens carry its [Pin], so losing the file means new
// tokens for every bridge: created says when that happened.
func (d *Dir) Identity() (cert tls.Certificate, created bool, err error) {
	full := filepath.Join(d.path, identityFile)
	b, err := d.readSecret(identityFile)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = newIdentity(); err != nil {
			return tls.Certificate{}, false, fmt.Errorf("make the identity %s: %w", full, err)
		}
		if err := d.edit(func() error { return d.write(identityFile, b) }); err != nil {
			return tls.Certificate{}, false, err
		}
		created = true
	} else if err != nil {
		return tls.Certificate{}, false, err
	}
	cert, err = tls.X509KeyPair(b, b)
	if err != nil {
		return tls.Certificate{}, false, noIdentity(full, err)
	}
	d.mu.Lock()
	d.identity = b
	d.mu.Unlock()
	return cert, created, nil
}

// ErrIdentity is what errors.Is finds when the file of the identity holds none.
var ErrIdentity = errors.New("it holds no identity")

// noIdentity says what to do about a file that no proxy wrote, or not to its end.
func noIdentity(full string, err error) error {
	return &fault{fmt.Errorf("read %s: %w: %w", full, ErrIdentity, err),
		"restore it from a backup, such as one of `reverser state export`; removing it makes a new identity, and every token must then be replaced"}
}

// Pin is the SHA-256 of the certificate's SubjectPublicKeyInfo: what a token
// carries to know the proxy by.
func Pin(cert tls.Certificate) [32]byte {
	leaf := cert.Leaf
	if leaf == nil {
		if len(cert.Certificate) == 0 {
			return [32]byte{}
		}
		var err error
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return [32]byte{}
		}
	}
	return sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
}

func newIdentity() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	// Nobody checks the dates: the pin is the proof. They are wide so that a
	// machine with a dead clock battery cannot make a difference either.
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "reverser"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), nil
}
