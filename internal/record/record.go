// Package record is the record layer of the link's TLS 1.3 connections (RFC 8446 section 5). crypto/tls makes the handshake;
// from there on this package protects the bytes, under the keys of that handshake. Any other TLS 1.3 program may be the peer.
//
// crypto/tls can do the same, but it copies each byte twice more at either end, allocates for every record that it reads, makes a
// system call for every record that it writes, and cannot write what the socket takes without waiting. This package gets the keys
// from crypto/tls through tls.Config.KeyLogWriter; they do not leave the process.
//
// It starts no goroutine. One goroutine may read while others write.
package record

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// Sizes of a record (RFC 8446 sections 5.1 and 5.2).
const (
	MaxPlaintext  = 1 << 14
	headerLen     = 5
	maxCiphertext = MaxPlaintext + 256
)

// Overhead is what one record adds to its plaintext: header, content type and authentication tag.
const Overhead = headerLen + 1 + 16

// contentType is the type inside a record (RFC 8446 section 5.1).
type contentType = byte

const (
	typeAlert     contentType = 21
	typeHandshake contentType = 22
	typeData      contentType = 23
)

// rekeyAfter is how many records are sent under one key. AES-GCM is good for 2^24.5 full ones (RFC 8446 section 5.5). rekeyEvery is for how
// long: whoever takes the memory of a process cannot read what crossed before. The next record after it changes the key, so that a
// connection that sends nothing does not wake up for it.
const (
	rekeyAfter = 1 << 23
	rekeyEvery = 2 * time.Minute
)

// half is one direction's protection.
type half struct {
	suite  *suite
	secret []byte
	aead   cipher.AEAD
	iv     [12]byte
	seq    uint64

	// Scratch in memory that outlives a call: through an interface it would be allocated anew for each record.
	nonce  [12]byte
	header [headerLen]byte
}

type suite struct {
	keyLen int
	hash   func() hash.Hash
	aead   func(key []byte) (cipher.AEAD, error)
}

var suites = map[uint16]*suite{
	tls.TLS_AES_128_GCM_SHA256:       {16, sha256.New, newGCM},
	tls.TLS_AES_256_GCM_SHA384:       {32, sha512.New384, newGCM},
	tls.TLS_CHACHA20_POLY1305_SHA256: {32, sha256.New, chacha20poly1305.New},
}

func newGCM(key []byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// use takes the traffic secret and what follows from it (RFC 8446 section 7.3).
func (h *half) use(s *suite, secret []byte) error {
	key, err := expand(s, secret, "key", s.keyLen)
	if err != nil {
		return err
	}
	iv, err := expand(s, secret, "iv", len(h.iv))
	if err != nil {
		return err
	}
	if h.aead, err = s.aead(key); err != nil {
		return err
	}
	h.suite, h.secret, h.iv, h.seq = s, secret, [12]byte(iv), 0
	return nil
}

// next replaces the keys by their successors (RFC 8446 section 7.2).
func (h *half) next() error {
	secret, err := expand(h.suite, h.secret, "traffic upd", h.suite.hash().Size())
	if err != nil {
		return err
	}
	return h.use(h.suite, secret)
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
func expand(s *suite, secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(append(append(info, byte(len(label))), label...), 0)
	return hkdf.Expand(s.hash, secret, string(info), n)
}

func (h *half) step() []byte {
	h.nonce = h.iv
	for i := range 8 {
		h.nonce[11-i] ^= byte(h.seq >> (8 * i))
	}
	h.seq++
	return h.nonce[:]
}

func (h *half) head(n int) []byte {
	h.header = [headerLen]byte{typeData, 3, 3, byte(n >> 8), byte(n)} // legacy_record_version is TLS 1.2's
	return h.header[:]
}

// seal appends a record with the plaintext p, which has room for one byte behind it. The byte is restored.
func (h *half) seal(out, p []byte, t contentType) []byte {
	inner := p[:len(p)+1]
	kept := inner[len(p)]
	inner[len(p)] = t
	head := h.head(len(inner) + h.aead.Overhead())
	out = h.aead.Seal(append(out, head...), h.step(), inner, head)
	inner[len(p)] = kept
	return out
}

// errRecord is what a record that is not the peer's gets: it was damaged on the way, or somebody else made it.
var errRecord = errors.New("TLS record does not authenticate")

// open decrypts the record's fragment into dst, which has room for it, and returns what is inside.
func (h *half) open(dst, fragment []byte) ([]byte, contentType, error) {
	inner, err := h.aead.Open(dst[:0], h.step(), fragment, h.head(len(fragment)))
	if err != nil {
		return nil, 0, errRecord
	}
	for n := len(inner); n > 0; n-- {
		if inner[n-1] != 0 { // behind it is padding
			return inner[:n-1], inner[n-1], nil
		}
	}
	return nil, 0, errors.New("TLS record without a content type")
}

// keyLog collects the secrets of one handshake, in the format of NSS key logs.
type keyLog struct{ client, server []byte }

func (k *keyLog) Write(line []byte) (int, error) {
	f := bytes.Fields(line)
	if len(f) != 3 {
		return len(line), nil
	}
	secret := make([]byte, hex.DecodedLen(len(f[2])))
	if _, err := hex.Decode(secret, f[2]); err != nil {
		return 0, fmt.Errorf("key log: %w", err)
	}
	switch string(f[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		k.client = secret
	case "SERVER_TRAFFIC_SECRET_0":
		k.server = secret
	}
	return len(line), nil
}
