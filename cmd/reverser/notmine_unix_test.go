//go:build unix

package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNotMineOfKeys: the hint has the command that was given, for the user who may run it.
func TestNotMineOfKeys(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("nothing is forbidden to root")
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0); err != nil {
		t.Fatal(err)
	}
	c := newCLI(strings.NewReader(""), io.Discard, io.Discard)
	at := stateDir{path: filepath.Join(closed, "p")}
	for command, err := range map[string]error{
		"key list": c.keyList(t.Context(), at, false), "key rotate nas": c.keyRotate(t.Context(), at, "nas", false), "key remove nas": c.keyRemove(t.Context(), at, "nas"),
	} {
		ee, ok := errors.AsType[*exitError](err)
		if !ok || !strings.Contains(ee.hint, " reverser "+command+" --state "+at.path) {
			t.Errorf("%s: %+v, want a hint with the command", command, err)
		}
	}
}
