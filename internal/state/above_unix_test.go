//go:build unix

package state

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestDirectoriesAbove: a new state directory is its owner's alone. What root has to make above it is passable for others, whose
// state directories may be there too; what another user makes is not.
func TestDirectoriesAbove(t *testing.T) {
	before := syscall.Umask(0o022)
	defer syscall.Umask(before)
	base := t.TempDir()
	d, err := Open(filepath.Join(base, "lib", "reverser", "proxy"))
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	above := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		above = 0o755
	}
	for path, want := range map[string]os.FileMode{"lib": above, "lib/reverser": above, "lib/reverser/proxy": 0o700} {
		info, err := os.Stat(filepath.Join(base, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %o", path, info.Mode().Perm(), err, want)
		}
	}
}
