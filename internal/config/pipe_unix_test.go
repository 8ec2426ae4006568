//go:build unix

package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"reverser/internal/access"
)

// pipeAt puts a named pipe that nobody writes in the place of a file. Whoever opens it to read waits, unless they say that they do not.
func pipeAt(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// fileAt puts a regular file back.
func fileAt(t *testing.T, path, text string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, path, text)
}

// TestPipeAtReload: a file of the settings that has become a pipe is refused, and nobody waits for its writer. When the file is there
// again, it is read as before.
func TestPipeAtReload(t *testing.T) {
	made := certificateFor(t, soon(), "app.example.com")
	chain, key := made.chain, made.key
	for _, c := range []struct {
		name   string
		source func(dir string) Source
		file   string // of dir
	}{
		{"the proxy's file", func(dir string) Source {
			return NewProxySource(ProxyArgs{Config: write(t, filepath.Join(dir, "c.toml"), "listen = 4000\n")})
		}, "c.toml"},
		{"the bridge's file", func(dir string) Source {
			write(t, filepath.Join(dir, "token"), testToken(1).Encode())
			return NewBridgeSource(BridgeArgs{Config: write(t, filepath.Join(dir, "c.toml"), "token_file = \"token\"\nproxy = \"127.0.0.1\"\n[[expose]]\npublic = 9000\ntarget = 9000\n")})
		}, "c.toml"},
		{"token_file", func(dir string) Source {
			write(t, filepath.Join(dir, "token"), testToken(1).Encode())
			return NewBridgeSource(BridgeArgs{Config: write(t, filepath.Join(dir, "c.toml"), "token_file = \"token\"\nproxy = \"127.0.0.1\"\n[[expose]]\npublic = 9000\ntarget = 9000\n")})
		}, "token"},
		{"secret_file", func(dir string) Source {
			write(t, filepath.Join(dir, "secret"), testToken(1).Encode())
			return NewProxySource(ProxyArgs{Config: write(t, filepath.Join(dir, "c.toml"), "[[key]]\nname = \"a\"\nsecret_file = \"secret\"\nallow = [9000]\n")})
		}, "secret"},
		{"via_file", func(dir string) Source {
			write(t, filepath.Join(dir, "via"), "http://127.0.0.1:3128")
			return NewBridgeSource(BridgeArgs{Token: testToken(1).Encode(), Config: write(t, filepath.Join(dir, "c.toml"), "via_file = \"via\"\nproxy = \"127.0.0.1\"\n[[expose]]\npublic = 9000\ntarget = 9000\n")})
		}, "via"},
		{"basic_auth_file", func(dir string) Source {
			write(t, filepath.Join(dir, "users"), "ann:$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/2luA2/mHZFe\n")
			return NewBridgeSource(BridgeArgs{Token: testToken(1).Encode(), Config: write(t, filepath.Join(dir, "c.toml"), "proxy = \"127.0.0.1\"\n[[expose]]\npublic = \"http/app.example.com\"\ntarget = 9000\nbasic_auth_file = \"users\"\n")})
		}, "users"},
		{"the certificate of a service", func(dir string) Source {
			write(t, filepath.Join(dir, "chain"), chain)
			write(t, filepath.Join(dir, "key"), key)
			return NewBridgeSource(BridgeArgs{Token: testToken(1).Encode(), Config: write(t, filepath.Join(dir, "c.toml"), "proxy = \"127.0.0.1\"\n[[expose]]\npublic = \"tls/app.example.com\"\ntarget = 9000\ncertificate = \"chain\"\ncertificate_key = \"key\"\n")})
		}, "key"},
		{"a [[certificate]]", func(dir string) Source {
			write(t, filepath.Join(dir, "chain"), chain)
			write(t, filepath.Join(dir, "key"), key)
			return NewProxySource(ProxyArgs{Config: write(t, filepath.Join(dir, "c.toml"), "https = 4443\n[[certificate]]\nchain = \"chain\"\nkey = \"key\"\n")})
		}, "chain"},
		{"--admin-certificate", func(dir string) Source {
			args := ProxyArgs{}
			args.Admin.Addr = "192.0.2.1:3011"
			args.Admin.CertificateFile = write(t, filepath.Join(dir, "chain"), chain)
			args.Admin.KeyFile = write(t, filepath.Join(dir, "key"), key)
			return NewProxySource(args)
		}, "chain"},
		{"--acme-root", func(dir string) Source {
			args := ProxyArgs{}
			args.ACMERoot = write(t, filepath.Join(dir, "root"), chain)
			return NewProxySource(args)
		}, "root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := c.source(dir)
			loaded(t, s)
			path := filepath.Join(dir, c.file)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				pipeAt(t, path)
				_, _, err := s.Load()
				want(t, "a pipe", err, path, "no regular file", "restart")
				fileAt(t, path, string(text))
				loaded(t, s)
			}
		})
	}
}

// TestPipeIsLeftAlone: whoever watches a named pipe, which is read once, neither waits for its writer nor takes the place of its reader.
func TestPipeIsLeftAlone(t *testing.T) {
	path := write(t, "c", "")
	pipeAt(t, path)
	if l := lookAt(path); !strings.Contains(l.err, "no regular file") {
		t.Errorf("lookAt = %+v", l)
	}
	if f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
		f.Close()
		t.Error("the pipe has a reader")
	}
	if _, err := (access.Rules{Regular: true}).Open(path); err == nil {
		t.Error("a pipe is opened where a regular file is wanted")
	}
}

// TestPipeAtStart: the first time, a pipe is read for as long as somebody writes.
func TestPipeAtStart(t *testing.T) {
	path := write(t, "c.toml", "")
	pipeAt(t, path)
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(path, []byte("listen = 4000\n"), 0) }()
	s := NewProxySource(ProxyArgs{Config: path})
	if set := loaded(t, s); set.Proxy.Listen != ":4000" {
		t.Errorf("Load = %+v", set)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	_, _, err := s.Load()
	want(t, "the pipe, again", err, path, "no regular file", "restart")
	fileAt(t, path, "listen = 4001\n")
	if set := loaded(t, s); set.Proxy.Listen != ":4001" {
		t.Errorf("Load of the file in the place of the pipe = %+v", set)
	}
}
