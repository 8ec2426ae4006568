//go:build unix

package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reverser/internal/admin"
	"reverser/internal/state"
)

// TestKeyCommands: the commands of hints have all that was given, so that a shell takes it as it was.
func TestKeyCommands(t *testing.T) {
	allow, none, never := []string{"tcp/9000", "http/*.example.com"}, 0, "never"
	for _, c := range []struct{ got, want string }{
		{addCommand(admin.NewKey{Name: "nas", Allow: allow}), "key add nas --allow tcp/9000 --allow 'http/*.example.com'"},
		{addCommand(admin.NewKey{Name: "nas", Allow: allow[:1], Limits: state.Limits{MaxServices: 2, MaxConnections: 3}, Expires: "30d"}),
			"key add nas --allow tcp/9000 --max-services 2 --max-connections 3 --expires 30d"},
		{editCommand("nas", admin.KeyEdit{MaxServices: &none, Expires: &never}), "key edit nas --max-services 0 --expires never"},
		{editCommand("it's; rm", admin.KeyEdit{}), `key edit 'it'\''s; rm'`},
	} {
		if c.got != c.want {
			t.Errorf("%s; want %s", c.got, c.want)
		}
	}
}

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
		"key add nas --allow tcp/9000": c.keyAdd(t.Context(), at, admin.NewKey{Name: "nas", Allow: []string{"tcp/9000"}}, false),
		"key list":                     c.keyList(t.Context(), at, false), "key rotate nas": c.keyRotate(t.Context(), at, "nas", false), "key remove nas": c.keyRemove(t.Context(), at, "nas"),
	} {
		ee, ok := errors.AsType[*exitError](err)
		if !ok || !strings.Contains(ee.hint, " reverser "+command+" --state "+at.path) {
			t.Errorf("%s: %+v, want a hint with the command", command, err)
		}
	}
}
