package sys

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dumpable reports whether this process may be dumped or traced.
func dumpable(t *testing.T) bool {
	t.Helper()
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok && strings.Fields(rest)[0] != "0" {
			return true
		}
	}
	n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n != 0
}
