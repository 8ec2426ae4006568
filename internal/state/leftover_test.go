package state_test

import (
	"os"
	"path/filepath"
	"testing"

	"reverser/internal/state"
)

// TestLeftovers: what a process that was killed had not put in its place yet goes with the next one that takes the directory, and nothing else.
func TestLeftovers(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	if _, err := d.AddKey("nas", nil, state.Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := d.TLS().Write(t.Context(), "certificates/a.key", []byte("a key")); err != nil {
		t.Fatal(err)
	}
	put := func(name string) string {
		full := filepath.Join(path, name)
		if err := os.WriteFile(full, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		return full
	}
	ours := []string{
		put(".keys.json.0123456789ab"), put(".identity.pem.0123456789ab"), put(".admin.token.0123456789ab"), put(".probe.0123456789ab"),
		put("tls/certificates/.a.key.0123456789ab"),
	}
	others := []string{
		put(".keys.json.bak"), put(".keys.json.0123456789abc"), put(".keys.json.ABCDEF012345"), put(".notes.0123456789ab"), put("keys.json.0123456789ab"), put("0123456789ab"),
		put(".0123456789ab"), put("tls/certificates/a.crt"), filepath.Join(path, "keys.json"), filepath.Join(path, "tls/certificates/a.key"),
		filepath.Join(path, ".known.0123456789ab", "x"),
	}
	if err := os.MkdirAll(others[len(others)-1], 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(path); err == nil {
		t.Fatal("two processes have the directory")
	}
	for _, name := range ours {
		if _, err := os.Lstat(name); err != nil {
			t.Errorf("whoever does not get the directory removes a file: %v", err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	for _, name := range ours {
		if _, err := os.Lstat(name); !os.IsNotExist(err) {
			t.Errorf("%s stays: %v", name, err)
		}
	}
	for _, name := range others {
		if _, err := os.Lstat(name); err != nil {
			t.Error(err)
		}
	}
}
