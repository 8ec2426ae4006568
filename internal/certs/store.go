package certs

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap/zapcore"

	"reverser/internal/lines"
)

// storage is how certmagic sees the files. One process at a time has a state directory, so locks are this process's own.
type storage struct {
	Files

	mu    sync.Mutex
	locks map[string]chan struct{} // guarded by mu; each is closed when it is given back
}

func newStorage(f Files) *storage { return &storage{Files: f, locks: make(map[string]chan struct{})} }

// Lock implements certmagic.Locker.
func (s *storage) Lock(ctx context.Context, name string) error {
	for {
		s.mu.Lock()
		held := s.locks[name]
		if held == nil {
			s.locks[name] = make(chan struct{})
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Unlock implements certmagic.Locker.
func (s *storage) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held := s.locks[name]; held != nil {
		close(held)
		delete(s.locks, name)
	}
	return nil
}

// Store implements certmagic.Storage, as all below.
func (s *storage) Store(ctx context.Context, name string, data []byte) error {
	return s.Write(ctx, name, data)
}

func (s *storage) Load(_ context.Context, name string) ([]byte, error) { return s.Read(name) }

func (s *storage) Delete(_ context.Context, name string) error { return s.Remove(name) }

func (s *storage) Exists(_ context.Context, name string) bool {
	_, err := s.Files.Stat(name)
	return err == nil
}

func (s *storage) List(_ context.Context, name string, all bool) ([]string, error) {
	return s.Files.List(name, all)
}

func (s *storage) Stat(_ context.Context, name string) (certmagic.KeyInfo, error) {
	info, err := s.Files.Stat(name)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	return certmagic.KeyInfo{Key: name, Modified: info.ModTime(), Size: info.Size(), IsTerminal: info.Mode().IsRegular()}, nil
}

// core takes what certmagic logs: warnings and errors, those apart that say again what issuer.Issue has said.
type core struct{ log *lines.Log }

var saidBefore = []string{"could not get certificate from issuer", "will retry", "job failed"}

func (c *core) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

func (c *core) With([]zapcore.Field) zapcore.Core { return c }

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.log == nil || !c.Enabled(e.Level) || slices.Contains(saidBefore, e.Message) {
		return ce
	}
	return ce.AddCore(e, c)
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	var args []any
	for _, f := range fields {
		if v, ok := enc.Fields[f.Key]; ok {
			args = append(args, f.Key, v)
		}
	}
	c.log.Say(slog.LevelWarn, nil, "certificates: "+e.Message, args...)
	return nil
}

func (c *core) Sync() error { return nil }
