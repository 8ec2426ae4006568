package grammar

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of what checking one password may cost: the hashes are the bridge's, and the proxy computes.
const (
	maxBcryptCost   = 13
	maxArgonTime    = 8
	maxArgonMemory  = 64 << 10 // KiB
	maxArgonThreads = 8
	maxUserName     = 64
)

// Hash is a password's hash, as basic_auth_file has it.
type Hash struct {
	Argon *Argon // nil: bcrypt
}

// Argon is a hash of argon2id.
type Argon struct {
	Memory, Time uint32
	Threads      uint8
	Salt, Sum    []byte
}

var errHash = errors.New("the hash is of no known kind: make it with bcrypt (htpasswd -B) or argon2id")

// ParseUser parses a line of basic_auth_file: a name and the hash of its password, as htpasswd -B writes them.
func ParseUser(s string) (name string, err error) {
	name, hash, ok := strings.Cut(s, ":")
	switch {
	case !ok:
		return "", errors.New("a line is NAME:HASH, as htpasswd -B writes it")
	case name == "" || len(name) > maxUserName:
		return "", fmt.Errorf("the name %.80q has not 1 to %d bytes", name, maxUserName)
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", fmt.Errorf("the name %q has a control character in it", name)
	}
	if _, err := ParseHash(hash); err != nil {
		return "", fmt.Errorf("user %q: %w", name, err)
	}
	return name, nil
}

// UnusableUser reports why nobody could log in with a line that ParseUser takes. A proxy takes it too: it comes from bridges of before that
// have other users beside it.
func UnusableUser(s string) error {
	name, hash, _ := strings.Cut(s, ":")
	if strings.HasPrefix(name, "\ufeff") { // two files were joined: at the beginning of one it does no harm
		return errors.New("the name begins with a byte order mark, which nobody types: write the line anew")
	}
	if h, err := ParseHash(hash); err != nil || h.Argon != nil {
		return err
	}
	sum := hash[strings.LastIndexByte(hash, '$')+1:]
	if i := strings.IndexFunc(sum, func(r rune) bool {
		return r != '.' && r != '/' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}); i >= 0 {
		r, _ := utf8.DecodeRuneInString(sum[i:])
		return fmt.Errorf("user %q: the hash has %q in it, which bcrypt does not write: nobody could log in", name, string(r))
	}
	return nil
}

// ParseHash parses a hash. It refuses those that cost the proxy too much.
func ParseHash(s string) (h Hash, err error) {
	part := strings.Split(s, "$")
	switch {
	case len(part) == 4 && part[0] == "" && (part[1] == "2a" || part[1] == "2b" || part[1] == "2y") && len(part[3]) == 53:
		cost, err := strconv.Atoi(part[2])
		if err != nil || len(part[2]) != 2 || cost < 4 {
			return h, errHash
		}
		if cost > maxBcryptCost {
			return h, fmt.Errorf("bcrypt with cost %d takes the proxy seconds for each password: %d is possible (htpasswd -B -C 10)", cost, maxBcryptCost)
		}
		return h, nil
	case len(part) == 6 && part[0] == "" && part[1] == "argon2id" && part[2] == "v=19":
		a := &Argon{}
		if _, err := fmt.Sscanf(part[3]+"$", "m=%d,t=%d,p=%d$", &a.Memory, &a.Time, &a.Threads); err != nil {
			return h, errHash
		}
		if a.Salt, err = base64.RawStdEncoding.DecodeString(part[4]); err != nil {
			return h, errHash
		}
		if a.Sum, err = base64.RawStdEncoding.DecodeString(part[5]); err != nil {
			return h, errHash
		}
		switch {
		case a.Time < 1 || a.Threads < 1 || a.Memory < 8*uint32(a.Threads) || len(a.Salt) < 8 || len(a.Salt) > 64 || len(a.Sum) < 16 || len(a.Sum) > 64:
			return h, errHash
		case a.Time > maxArgonTime || a.Memory > maxArgonMemory || a.Threads > maxArgonThreads:
			return h, fmt.Errorf("argon2id with m=%d, t=%d, p=%d costs the proxy too much for each password: m=%d, t=%d, p=%d are possible",
				a.Memory, a.Time, a.Threads, maxArgonMemory, maxArgonTime, maxArgonThreads)
		}
		return Hash{Argon: a}, nil
	case strings.HasPrefix(s, "$apr1$"), strings.HasPrefix(s, "$1$"), strings.HasPrefix(s, "{SHA}"):
		return h, errors.New("MD5 and SHA-1 are guessed quickly: make the hash with bcrypt (htpasswd -B)")
	}
	return h, errHash
}
