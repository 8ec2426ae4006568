package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
			serveAdmin(ctx, a, fakePlace{listen: listen}, listening, log)
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
			serveAdmin(t.Context(), a, fakePlace{listen: func() (net.Listener, error) { return nil, state.ErrSucceeded }}, listening, log)
		}()
		<-done // a successor answers
	})
}

// fakePlace is an adminPlace of a test's own.
type fakePlace struct {
	listen func() (net.Listener, error)
	lost   func() bool
}

func (p fakePlace) ListenAdmin() (net.Listener, error) { return p.listen() }
func (p fakePlace) AdminLost() bool                    { return p.lost != nil && p.lost() }

// TestServeAdminAgain: an admin socket that somebody removed is opened again.
func TestServeAdminAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		a := &admin.Server{Status: func() status.Snapshot { return status.Snapshot{Role: "bridge"} }}
		var n memnet.Net
		var opened, lost int
		place := fakePlace{
			listen: func() (net.Listener, error) {
				opened++
				return n.Listen(fmt.Sprintf("192.0.2.1:%d", opened))
			},
			lost: func() bool {
				lost++
				return lost == 3
			},
		}
		listening, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			serveAdmin(ctx, a, place, listening, log)
		}()
		<-listening
		pause(ctx, 10*tendEvery)
		synctest.Wait()
		if opened != 2 || strings.Count(out.String(), "was removed by somebody") != 1 {
			t.Errorf("the admin socket was opened %d times, want 2; the log says %q", opened, out.String())
		}
		client := admin.NewClient(func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, "192.0.2.1:2") })
		defer client.Close()
		if s, err := client.Status(ctx); err != nil || s.Role != "bridge" {
			t.Errorf("Status over the second socket = %+v, %v", s, err)
		}
		cancel()
		<-done
	})
}
