//go:build unix

package state_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reverser/internal/state"
)

func TestAdminSocketIsPrivate(t *testing.T) {
	for _, deep := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "s")
		if deep {
			path = filepath.Join(path, strings.Repeat("d", 100))
		}
		d := open(t, path)
		if _, err := d.ListenAdmin(); err != nil {
			t.Fatal(err)
		}
		sock, err := state.AdminSocket(path)
		if err != nil {
			t.Fatal(err)
		}
		if inside := filepath.Dir(sock) == path; inside == deep {
			t.Errorf("deep %t: socket at %s", deep, sock)
		}
		info, err := os.Stat(sock)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("mode of %s = %04o, want 0600", sock, mode)
		}
		c, err := state.DialAdmin(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		d.Close()
		if _, err := os.Stat(sock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind", sock)
		}
	}
}
