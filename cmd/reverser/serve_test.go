package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"reverser/internal/admin"
	"reverser/internal/memnet"
	"reverser/internal/state"
	"reverser/internal/status"
)

// TestServeWithoutAdminSocket: a process whose admin socket cannot be opened says so once and serves, and opens it when it can.
func TestServeWithoutAdminSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		a := &admin.Server{Status: func() status.Snapshot { return status.Snapshot{Role: "bridge"} }}
		var n memnet.Net
		l, err := n.Listen("192.0.2.1:1")
		if err != nil {
			t.Fatal(err)
		}
		tries := 0
		listen := func() (net.Listener, error) {
			if tries++; tries < 3 {
				return nil, errors.New("no such thing here")
			}
			return l, nil
		}
		listening, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			serveAdmin(ctx, a, listen, listening, log)
		}()
		<-listening // though it could not be opened
		synctest.Wait()
		if n := strings.Count(out.String(), "no such thing here"); n != 1 {
			t.Errorf("the log says %q", out.String())
		}
		pause(ctx, 3*adminRetry)
		synctest.Wait()
		if tries != 3 {
			t.Errorf("%d tries in %v, want 2 that fail and 1", tries, 3*adminRetry)
		}
		if n := strings.Count(out.String(), "no such thing here"); n != 1 {
			t.Errorf("the log says %q", out.String())
		}
		cancel()
		<-done

		tries = 0
		listening, done = make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			serveAdmin(t.Context(), a, func() (net.Listener, error) { return nil, state.ErrSucceeded }, listening, log)
		}()
		<-done // a successor answers
	})
}
