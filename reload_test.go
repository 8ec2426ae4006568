package reverser_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"reverser/internal/bridge"
	"reverser/internal/grammar"
)

// TestReloadUnderLoad changes a bridge's services again and again while users are there and more come: none of them notices.
func TestReloadUnderLoad(t *testing.T) {
	const (
		reloads   = 200
		connected = 100
		comers    = 4 // who connect, one time after the other
	)
	tok, err := grammar.ParseToken(startProxy(t, "tcp/1024-65535"))
	if err != nil {
		t.Fatal(err)
	}
	var servers sync.WaitGroup
	defer servers.Wait()
	var targets [2]string
	for i := range targets {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		targets[i] = ln.Addr().String()
		servers.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				servers.Go(func() {
					defer c.Close()
					io.Copy(c, c)
				})
			}
		})
	}
	stays, goes := freeAddr(t), freeAddr(t)
	service := func(public, target string) bridge.Service {
		e, err := grammar.NewExpose("tcp/"+public, target)
		if err != nil {
			t.Fatal(err)
		}
		return bridge.Service{Public: e.Public, Target: e.Target}
	}
	settings := func(n int) (s bridge.Settings) {
		s.Drain = time.Hour // the users stay until the end, however slow the machine is
		s.Services = append(s.Services, service(stays, targets[n%2]))
		if n%3 != 1 {
			s.Services = append(s.Services, service(goes, targets[0]))
		}
		return s
	}
	b, err := bridge.New(bridge.Config{Token: tok, Settings: settings(0)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { b.Run(ctx) })
	defer running.Wait()
	defer cancel()
	for _, s := range settings(0).Services {
		if st, err := b.Await(ctx, s.Public); err != nil || st.State != "up" {
			t.Fatalf("%s is %+v, %v", s.Public, st, err)
		}
	}

	say := func(c net.Conn, text string) error {
		c.SetDeadline(time.Now().Add(limit))
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			return fmt.Errorf("read %q, %w, want %q", got, err, text)
		}
		return nil
	}
	var done atomic.Bool
	var users sync.WaitGroup
	var came, spoke atomic.Int64
	for i := range connected { // of both services: a connection outlives its service
		c, err := net.Dial("tcp", []string{stays, goes}[i%2])
		if err != nil {
			t.Fatal(err)
		}
		if err := say(c, "hello"); err != nil { // else the removal may come before the bridge knows of the user
			t.Fatal(err)
		}
		users.Go(func() {
			defer c.Close()
			for n := 0; !done.Load() || n == 0; n++ {
				if err := say(c, fmt.Sprintf("user %d, word %d", i, n)); err != nil {
					t.Errorf("user %d: %v", i, err)
					return
				}
				spoke.Add(1)
			}
		})
	}
	for range comers {
		users.Go(func() {
			for !done.Load() {
				c, err := net.Dial("tcp", stays)
				if err != nil {
					t.Errorf("a newcomer: %v", err)
					return
				}
				if err := say(c, "hello"); err != nil {
					t.Errorf("a newcomer: %v", err)
				}
				c.Close()
				came.Add(1)
			}
		})
	}
	for n := 1; n <= reloads; n++ {
		if n%50 == 0 {
			bad := settings(n)
			bad.Services = append(bad.Services, bad.Services[0])
			if _, err := b.Apply(ctx, bad); err == nil {
				t.Error("a bad change was made")
			}
		}
		a, err := b.Apply(ctx, settings(n))
		if err != nil {
			t.Fatal(err)
		}
		confirmed, stop := context.WithTimeoutCause(ctx, limit, errors.New("too late"))
		if left := a.Wait(confirmed); left != nil {
			t.Errorf("reload %d is not confirmed: %q", n, left)
		}
		stop()
	}
	done.Store(true)
	users.Wait()
	t.Logf("%d newcomers and %d words of users who were there, through %d reloads", came.Load(), spoke.Load(), reloads)
}
