package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"reverser/internal/link"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// TestTryPublic: the proxy reaches its own ports as a user does. Its bridge hears nothing of it, and it is no pair.
func TestTryPublic(t *testing.T) {
	k := key(t, "nas", "tcp/1024-65535")
	w := prepare(t, Config{Settings: Settings{Keys: []Key{k}}})
	w.p.localAddrs = func() []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4")}
	}
	var mu sync.Mutex
	var dialled []string
	outcome := make(map[string]func() (net.Conn, error)) // of dials that are not let through
	w.p.dialPublic = func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		dialled = append(dialled, addr)
		play := outcome[addr]
		mu.Unlock()
		if play != nil {
			return play()
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	w.run()
	addr, _ := free(t)
	_, far := free(t)
	public := "tcp/" + addr[strings.LastIndex(addr, ":")+1:]
	b := w.bridge(k, how{instance: 1, silent: true}, public, far)
	result := w.p.TryPublic(t.Context(), "127.0.0.1")
	want := []status.PortTry{
		{Public: public, Addr: addr, State: status.TryAnswered},
		{Public: far, State: status.TryNone, Text: "it is bound to an address that only this machine reaches"},
	}
	for _, p := range want {
		if !slices.Contains(result.Ports, p) {
			t.Errorf("%+v has no %+v", result.Ports, p)
		}
	}
	if len(result.Ports) != 2 || result.Left != 0 {
		t.Errorf("TryPublic = %+v, want two ports", result)
	}
	// What did not answer is told by its kind.
	say := func(words string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				io.ReadFull(there, make([]byte, 16))
				io.WriteString(there, words)
			}()
			return here, nil
		}
	}
	fails := func(err error) func() (net.Conn, error) { return func() (net.Conn, error) { return nil, err } }
	for _, c := range []struct {
		play  func() (net.Conn, error)
		state string
		text  string
	}{
		{fails(&net.OpError{Op: "dial", Err: context.DeadlineExceeded}), status.TrySilent, "no answer within 1m0s"},
		{fails(&net.OpError{Op: "dial", Err: errors.New("connection refused")}), status.TryFailed, "connection refused"},
		{say("HTTP/1.1 400 Bad Request\r\n"), status.TryOther, "it gives another answer than this proxy"},
		{say(""), status.TryOther, "it closed the connection without an answer"},
	} {
		mu.Lock()
		outcome[addr] = c.play
		mu.Unlock()
		got := w.p.TryPublic(t.Context(), "127.0.0.1").Ports
		if p := (status.PortTry{Public: public, Addr: addr, State: c.state, Text: c.text}); !slices.Contains(got, p) {
			t.Errorf("found %+v, want %+v", got, p)
		}
	}
	// Without an address nothing is dialled.
	mu.Lock()
	dialled = nil
	mu.Unlock()
	for _, p := range w.p.TryPublic(t.Context(), "").Ports {
		if p.State != status.TryNone || p.Public == public && p.Text != "no address is known under which others reach this proxy" {
			t.Errorf("without an address: %+v", p)
		}
	}
	// An end is an end.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := w.p.TryPublic(ctx, ""); len(r.Ports)+r.Left != 2 {
		t.Errorf("without time: %+v, want two ports, tried or left", r)
	}
	if len(dialled) > 0 {
		t.Errorf("dialled %v, without an address to dial", dialled)
	}
	// A user is served afterwards, and is the first whom the bridge hears of. What the bridge proved counts as its own.
	nonce := b.claim(0).Nonce
	if got, err := show(addr, nonce); err != nil || got != link.ProbeAnswer(nonce) {
		t.Errorf("the bridge's probe: %x, %v", got, err)
	}
	mu.Lock()
	clear(outcome)
	mu.Unlock()
	if got := w.p.TryPublic(t.Context(), "127.0.0.1").Ports; !slices.Contains(got, status.PortTry{Public: public, Addr: addr, State: status.TryAnswered, Bridge: true}) {
		t.Errorf("behind the bridge's probe: %+v", got)
	}
	u := w.user(addr)
	u.Write([]byte("hello"))
	if s := b.stream(); s.Open().Client.String() != u.LocalAddr().String() {
		t.Errorf("the first stream is %s's, want %s's: a try reached the target", s.Open().Client, u.LocalAddr())
	}
	eventually(t, "the user's pair is created, and no other", func() bool { return w.log.Count("pair created") == 1 })
}

// TestTryPublicOfBind: ports that --bind opens are tried at that address.
func TestTryPublicOfBind(t *testing.T) {
	addr, _ := free(t)
	nas := key(t, "nas", "tcp/1024-65535")
	w := start(t, Config{Bind: "127.0.0.1", Settings: Settings{Keys: []Key{nas}}})
	b := w.bridge(nas, how{instance: 1, silent: true}, "tcp/"+addr[strings.LastIndex(addr, ":")+1:])
	b.wantClaim(0, wire.ClaimUp)
	got := w.p.TryPublic(t.Context(), "203.0.113.5").Ports
	if len(got) != 1 || got[0].State != status.TryNone || got[0].Addr != "" {
		t.Errorf("TryPublic = %+v, want nothing dialled: only this machine reaches the port", got)
	}
}

// TestWhereTried: only the operator's host and addresses of this machine are dialled, whatever a bridge asks for.
func TestWhereTried(t *testing.T) {
	p := &Proxy{localAddrs: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} }}
	for _, c := range []struct{ bind, host, where, why string }{
		{"", "203.0.113.5", "203.0.113.5", ""},
		{"", "tunnel.example", "tunnel.example", ""},
		{"", "", "", "no address is known"},
		{"0.0.0.0", "203.0.113.5", "203.0.113.5", ""},
		{"0.0.0.0", "2001:db8::1", "", "another family"},
		{"::", "203.0.113.5", "", "another family"},
		{"192.0.2.1", "203.0.113.5", "192.0.2.1", ""},
		{"192.0.2.1", "", "192.0.2.1", ""},
		{"198.51.100.1", "203.0.113.5", "", "none of this machine's"}, // a socket may have it where the system allows any
		{"127.0.0.1", "203.0.113.5", "", "only this machine reaches"},
		{"evil.example", "203.0.113.5", "", "not known"},
	} {
		where, why := p.whereTried(c.bind, c.host)
		if where != c.where || !strings.Contains(why, c.why) || (why == "") != (c.why == "") {
			t.Errorf("whereTried(%q, %q) = %q, %q; want %q, %q", c.bind, c.host, where, why, c.where, c.why)
		}
	}
}

// TestSample: of many some from everywhere are taken.
func TestSample(t *testing.T) {
	all := make([]int, 1000)
	for i := range all {
		all[i] = i
	}
	if got := sample(all, 4); !slices.Equal(got, []int{0, 250, 500, 750}) {
		t.Errorf("sample = %v", got)
	}
	if got := sample(all[:3], 4); !slices.Equal(got, all[:3]) {
		t.Errorf("sample of few = %v", got)
	}
}
