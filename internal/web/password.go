package web

import (
	"crypto/subtle"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"reverser/internal/grammar"
)

// matches reports whether a hash, which grammar.ParseUser has taken, is that of a password.
func matches(hash, password string) bool {
	p, err := grammar.ParseHash(hash)
	if err != nil {
		return false
	}
	if p.Argon == nil {
		b := []byte(password)
		if len(b) > 72 { // bcrypt looks at no more, and Go's refuses more
			b = b[:72]
		}
		return bcrypt.CompareHashAndPassword([]byte(hash), b) == nil
	}
	a := p.Argon
	got := argon2.IDKey([]byte(password), a.Salt, a.Time, a.Memory, a.Threads, uint32(len(a.Sum)))
	return subtle.ConstantTimeCompare(got, a.Sum) == 1
}
