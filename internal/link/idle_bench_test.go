package link

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"reverser/internal/auth"
	"reverser/internal/wire"
)

// memoryInUse is the memory that a process has in use for its heap and its goroutines' stacks.
func memoryInUse() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// attachBare attaches a connection and returns its socket: nothing else of the dialling end stays.
func attachBare(b *testing.B, addr string, cfg auth.ClientConfig, a wire.Attach, secret *[32]byte) net.Conn {
	sock, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	conn, err := auth.Client(context.Background(), sock, cfg)
	if err != nil {
		b.Fatal(err)
	}
	if a.Mode == wire.ModeNew {
		*secret = auth.SessionSecret(conn, a.Session)
	} else {
		a.WantInstance = conn.Peer
		a.MAC = auth.ResumeMAC(*secret, conn.Exporter, a.Session, a.Slot, 1, sha256.Sum256(nil))
	}
	if _, err := conn.Write(wire.AppendAttach(nil, 1, a)); err != nil {
		b.Fatal(err)
	}
	f, err := readFrame(conn, make([]byte, wire.HeaderLen+wire.MaxPayload))
	if err != nil || f.Type != wire.TypeAttached || f.Payload[0] != byte(wire.StatusOK) {
		b.Fatalf("%s %x, %v", f.Type, f.Payload, err)
	}
	return sock
}

// BenchmarkIdleLink: what the accepting end keeps for a link on which nothing moves, with its TLS and sockets on loopback. Of the
// dialling ends only the sockets are left.
func BenchmarkIdleLink(b *testing.B) {
	for _, bb := range []struct {
		name        string
		features    wire.Features
		connections int
	}{{"idle", Features, 1 + idleCarriers}, {"all carriers", 0, 1 + Carriers}} {
		b.Run(bb.name, func(b *testing.B) {
			const links = 200
			for b.Loop() {
				bytes, goroutines := idleLinks(b, links, bb.features, bb.connections)
				b.ReportMetric(float64(bytes)/links, "B/link")
				b.ReportMetric(float64(goroutines)/links, "goroutines/link")
			}
		})
	}
}

// idleLinks makes links and returns what the accepting end keeps of them: bytes and goroutines.
func idleLinks(b *testing.B, links int, features wire.Features, connections int) (bytes int64, goroutines int) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	secret := [32]byte{2}
	cfg := &auth.ServerConfig{Identity: testIdentity(), Instance: [16]byte{9}, Features: features, Lookup: func([16]byte) ([32]byte, bool) { return secret, true }}
	px := newRecorder()
	host := NewHost(HostConfig{
		Owner: px, Instance: cfg.Instance,
		Admit: func([16]byte, [32]byte, bool) error { return nil }, Draining: func() bool { return false },
	})
	tc := cfg.TLS()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				if conn, err := auth.Server(c, tc, cfg); err == nil {
					if serve, err := host.Attach(conn); err == nil {
						wg.Go(func() { serve() })
					}
				}
			})
		}
	})
	before, goroutinesBefore := memoryInUse(), runtime.NumGoroutine()
	var dialled []net.Conn
	for i := range links {
		cc := auth.ClientConfig{
			KeyID: [16]byte{byte(i), byte(i >> 8)}, Secret: secret, Pin: auth.Pin(testIdentity().Leaf.RawSubjectPublicKeyInfo),
			Instance: [16]byte{7}, Features: features,
		}
		var session [32]byte
		a := wire.Attach{Mode: wire.ModeNew, Window: floorWindow, MaxStreams: MaxStreams}
		rand.Read(a.Session[:])
		for slot := range connections {
			a.Slot = uint8(slot)
			dialled = append(dialled, attachBare(b, ln.Addr().String(), cc, a, &session))
			a.Mode = wire.ModeJoin
		}
	}
	time.Sleep(pingUsed + 500*time.Millisecond) // the links know by then that they are idle
	bytes, goroutines = memoryInUse()-before, runtime.NumGoroutine()-goroutinesBefore
	ln.Close()
	host.Close(errors.New("over"))
	for _, c := range dialled {
		c.Close()
	}
	wg.Wait()
	runtime.KeepAlive(dialled)
	return bytes, goroutines
}
