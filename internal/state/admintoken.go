package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

const adminTokenFile = "admin.token"

// leastToken is how long a secret must be that somebody else put into the file.
const leastToken = 32

// AdminToken is the secret that the API asks for at a TCP address, and the file that has it. It is made at the first call and kept: who
// removes the file has another one at the next start.
func (d *Dir) AdminToken() (token, file string, err error) {
	file = filepath.Join(d.path, adminTokenFile)
	b, err := d.readSecret(adminTokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		secret := make([]byte, 32)
		rand.Read(secret)
		b = []byte(hex.EncodeToString(secret) + "\n")
		err = d.edit(func() error { return d.write(adminTokenFile, b) })
	}
	if err != nil {
		return "", "", err
	}
	if token, err = parseAdminToken(file, b); err != nil {
		return "", "", err
	}
	return token, file, nil
}

func parseAdminToken(file string, b []byte) (string, error) {
	token := strings.TrimSpace(string(b))
	if len(token) < leastToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", &fault{fmt.Errorf("%s holds no token, which is a word of %d characters or more", file, leastToken), "remove the file, and the next start makes one"}
	}
	return token, nil
}
