package proxy

import (
	"crypto/tls"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"reverser/internal/auth"
)

// wantAtBirth checks what the kernel does of its own accord with the one connection that is at a gate.
func wantAtBirth(t *testing.T, what string, g *gate, reset, keepAlive bool) {
	t.Helper()
	var conn net.Conn
	eventually(t, "one connection is at the gate", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		for p := range g.inside {
			conn = p.conn
		}
		return len(g.inside) == 1
	})
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		l, err := unix.GetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER)
		if err != nil || (l.Onoff == 1 && l.Linger == 0) != reset {
			t.Errorf("%s: SO_LINGER is %+v, %v; want a reset at its end: %v", what, l, err, reset)
		}
		if on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || (on == 1) != keepAlive {
			t.Errorf("%s: SO_KEEPALIVE is %d, %v; want it: %v", what, on, err, keepAlive)
		}
	})
}

// TestBirthAtTheSharedPorts: the kernel resets users' connections when this process dies. A connection of the link is at the port of names
// what it is at its own.
func TestBirthAtTheSharedPorts(t *testing.T) {
	for what, cfg := range map[string]Config{"ports of their own": {HTTPS: "127.0.0.1:0"}, "one port with the link": {Listen: oneAddr(t)}} {
		t.Run(what, func(t *testing.T) {
			if cfg.HTTPS == "" {
				cfg.HTTPS = cfg.Listen
			}
			cfg.HTTP, cfg.Keys = "127.0.0.1:0", []Key{key(t, "nas", "http/*")}
			w := start(t, cfg)
			w.user(w.p.web.ln.Addr().String())
			wantAtBirth(t, "at the port for HTTP", w.p.web.gate, true, true)
			w.user(w.p.names.ln.Addr().String())
			wantAtBirth(t, "at the port of names", w.p.names.gate, true, true)
			link := tls.Client(w.user(w.p.names.ln.Addr().String()), &tls.Config{NextProtos: []string{auth.ALPN}, InsecureSkipVerify: true})
			if err := link.Handshake(); err != nil {
				t.Fatal(err)
			}
			wantAtBirth(t, "the link at the port of names", w.p.port.gate, false, false)
		})
	}
}

// TestBirthAtTheLinkPort: nothing of that is so at the link port.
func TestBirthAtTheLinkPort(t *testing.T) {
	w := start(t, Config{HTTPS: "127.0.0.1:0", HTTP: "127.0.0.1:0", Settings: Settings{Keys: []Key{key(t, "nas", "http/*")}}})
	w.user(w.p.Addr().String())
	wantAtBirth(t, "at the link port", w.p.port.gate, false, false)
}
