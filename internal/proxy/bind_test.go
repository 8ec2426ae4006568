package proxy

import (
	"errors"
	"net"
	"strings"
	"testing"

	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// TestBind: a port without an address of its own is open at the proxy's alone, under its name as ever. A bridge whose link comes to that
// address proves it.
func TestBind(t *testing.T) {
	addr, _ := free(t)
	_, port, _ := net.SplitHostPort(addr)
	k := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Bind: "127.0.0.1", Settings: Settings{Keys: []Key{k}}})
	b := w.bridge(k, how{instance: 1, silent: true}, "tcp/"+port)
	b.wantClaim(0, wire.ClaimUp)
	nonce := b.claim(0).Nonce
	if nonce == [16]byte{} {
		t.Fatal("no probe is asked for, where the link comes to the very address")
	}
	if got, err := show(addr, nonce); err != nil || got != link.ProbeAnswer(nonce) {
		t.Errorf("answer %x, %v; want %x, EOF", got, err, link.ProbeAnswer(nonce))
	}
	if s := w.p.Status().Services[0].Public; s != "tcp/"+port {
		t.Errorf("status names the service %s, want tcp/%s", s, port)
	}
	if l, err := net.Listen("tcp6", "[::1]:"+port); err == nil {
		l.Close()
	} else if sys.PortTaken(err) {
		t.Errorf("port %s of another address: %v", port, err)
	}
}

// TestBindElsewhere: where the link comes to another address than public ports have, no probe is asked for: it would blame a firewall.
func TestBindElsewhere(t *testing.T) {
	const elsewhere = "127.0.0.2"
	if l, err := net.Listen("tcp4", elsewhere+":0"); err != nil {
		t.Skipf("this machine has no second address of loopback: %v", err)
	} else {
		l.Close()
	}
	addr, own := free(t)
	_, port, _ := net.SplitHostPort(addr)
	nas, other := key(t, "nas", "tcp/1024-65535"), key(t, "other", "tcp/1024-65535")
	w := start(t, Config{Bind: elsewhere, Settings: Settings{Keys: []Key{nas, other}}})
	b := w.bridge(nas, how{instance: 1}, "tcp/"+port)
	b.wantClaim(0, wire.ClaimUp)
	if nonce := b.claim(0).Nonce; nonce != [16]byte{} {
		t.Errorf("a probe is asked for, which would go to 127.0.0.1:%s", port)
	}
	w.user(net.JoinHostPort(elsewhere, port)).Write([]byte("x"))
	if local := b.stream().Open().Local.String(); local != net.JoinHostPort(elsewhere, port) {
		t.Errorf("the user came to %s, want %s:%s", local, elsewhere, port)
	}
	if c, err := net.Dial("tcp", addr); !sys.Refused(err) {
		t.Errorf("%s answers, too: %v, %v", addr, c, err)
	}
	// The same port of another address is another service.
	b = w.bridge(other, how{instance: 2}, own)
	b.wantClaim(0, wire.ClaimUp)
	if b.claim(0).Nonce == [16]byte{} {
		t.Errorf("no probe of %s is asked for", own)
	}
}

// TestBindForeign: an address that is not this machine's is told before a bridge asks for a port.
func TestBindForeign(t *testing.T) {
	p := New(Config{Listen: "127.0.0.1:0", Bind: "192.0.2.7", Identity: identity()})
	err := p.Listen()
	be, ok := errors.AsType[*BindError](err)
	if !ok || be.Bind != "192.0.2.7" || !sys.NoRoute(err) || !strings.Contains(err.Error(), "open public ports at 192.0.2.7: ") {
		t.Errorf("Listen = %v, want that the address is not there", err)
	}
}
