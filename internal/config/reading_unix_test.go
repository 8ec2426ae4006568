//go:build unix

package config

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestReading: a source says which file it reads while that does not answer, and that it reads none when it is through.
func TestReading(t *testing.T) {
	type reading interface {
		Source
		Reading() string
	}
	for name, source := range map[string]func(dir string) reading{
		"secret": func(dir string) reading {
			return NewProxySource(ProxyArgs{Config: write(t, filepath.Join(dir, "c.toml"), "[[key]]\nname = \"a\"\nsecret_file = \"secret\"\nallow = [9000]\n")})
		},
		"token": func(dir string) reading {
			return NewBridgeSource(BridgeArgs{Config: write(t, filepath.Join(dir, "c.toml"), "token_file = \"token\"\nproxy = \"127.0.0.1\"\n[[expose]]\npublic = 9000\ntarget = 9000\n")})
		},
	} {
		dir := t.TempDir()
		path := write(t, filepath.Join(dir, name), "")
		pipeAt(t, path)
		s := source(dir)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := s.Load(); err != nil {
				t.Errorf("%s: Load = %v", name, err)
			}
		})
		w, err := os.OpenFile(path, os.O_WRONLY, 0) // returns when Load has opened it to read
		if err != nil {
			t.Fatal(err)
		}
		if at := s.Reading(); at != path {
			t.Errorf("%s: Reading = %q; want %q", name, at, path)
		}
		if _, err := w.WriteString(testToken(1).Encode()); err != nil {
			t.Error(err)
		}
		w.Close()
		wg.Wait()
		if at := s.Reading(); at != "" {
			t.Errorf("%s: Reading = %q when Load is through", name, at)
		}
	}
}
