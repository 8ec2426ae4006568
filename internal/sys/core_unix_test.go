//go:build unix

package sys

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNoCoreDumps is its own child: what NoCoreDumps does cannot be undone.
func TestNoCoreDumps(t *testing.T) {
	const child = "REVERSER_TEST_NO_CORE_DUMPS"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNoCoreDumps$")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "limit {0 0}") {
			t.Errorf("the child says %v:\n%s", err, out)
		}
		return
	}
	if err := NoCoreDumps(); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	fmt.Println("limit", limit)
	if dumps := dumpable(t); dumps {
		t.Error("a dump may be piped to a program")
	}
}
