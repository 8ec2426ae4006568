//go:build unix

package state_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPipeInTheDirectory: a file that has become a named pipe while a process holds the directory is refused, and nobody waits for whoever
// writes it.
func TestPipeInTheDirectory(t *testing.T) {
	for _, name := range []string{"keys.json", "identity.pem", "admin.token", "offered", "address", "known", "known.users"} {
		t.Run(name, func(t *testing.T) {
			d := open(t, filepath.Join(t.TempDir(), "s"))
			if _, _, err := d.Identity(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(d.Path(), name)
			os.Remove(path)
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			all := map[string]error{}
			_, all["keys.json"] = d.Keys()
			_, _, all["identity.pem"] = d.Identity()
			_, _, all["admin.token"] = d.AdminToken()
			_, all["known"] = d.Known()
			_, all["known.users"] = d.KnownUsers()
			d.Reach()
			d.Tend()
			if err, ok := all[name]; ok && (err == nil || !strings.Contains(err.Error(), "no regular file")) {
				t.Errorf("%s is a pipe, and reading it = %v", name, err)
			}
		})
	}
}
