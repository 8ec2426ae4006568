package bridge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/proxyproto"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// TestProxyProtocol: the target hears whose connection it is before anything else, also of a user who never says anything, and what the
// user and the target say and count is theirs alone.
func TestProxyProtocol(t *testing.T) {
	dir, err := os.MkdirTemp("", "rv") // short: a socket's path has a limit
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	tcp := serve(t, "tcp", "127.0.0.1:0")
	srvs, services := []*server{tcp, tcp}, []Service{
		{Public: public(t, "9001"), Target: tcp.target(), Options: grammar.Options{ProxyProtocol: 1}},
		{Public: public(t, "9002"), Target: tcp.target(), Options: grammar.Options{ProxyProtocol: 2}},
	}
	if runtime.GOOS != "windows" {
		unix := serve(t, "unix", dir+"/s")
		srvs, services = append(srvs, unix), append(services, Service{Public: public(t, "9003"), Target: unix.target(), Options: grammar.Options{ProxyProtocol: 2}})
	}
	p := listen(t, "127.0.0.1:0", false)
	b := start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: services}})
	p.ready()
	p.mu.Lock()
	l := p.link
	p.mu.Unlock()
	for i, svc := range services {
		for j, h := range []proxyproto.Header{
			{Client: netip.MustParseAddrPort("192.0.2.7:1234"), Local: netip.MustParseAddrPort("198.51.100.2:9001")},
			{Client: netip.MustParseAddrPort("[2001:db8::7]:1234"), Local: netip.MustParseAddrPort("[2001:db8::2]:9001")},
			{},
		} {
			s, err := l.Open(wire.Open{Service: uint32(i + 1), Client: h.Client, Local: h.Local})
			if err != nil {
				t.Fatal(err)
			}
			s.SetDeadline(time.Now().Add(limit))
			c := srvs[i].accept()
			want := proxyproto.Append(nil, svc.Options.ProxyProtocol, h)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != string(want) {
				t.Fatalf("%s: the target reads %q, %v before the user says anything; want %q", svc.Public, got, err, want)
			}
			if j == 0 {
				s.Write([]byte("hello"))
			}
			s.CloseWrite()
			if rest, err := io.ReadAll(c); len(rest) != 5*(1-min(j, 1)) || err != nil {
				t.Errorf("%s: behind it %q, %v", svc.Public, rest, err)
			}
			c.Write([]byte("answers"))
			c.Close()
			if got, err := io.ReadAll(s); string(got) != "answers" || err != nil {
				t.Errorf("%s: the user reads %q, %v", svc.Public, got, err)
			}
		}
		// A user who resets the connection resets it behind the header and what was said, and a target that does so resets the user.
		for _, byUser := range []bool{true, false} {
			s, err := l.Open(wire.Open{Service: uint32(i + 1), Client: netip.MustParseAddrPort("192.0.2.7:1"), Local: netip.MustParseAddrPort("198.51.100.2:9001")})
			if err != nil {
				t.Fatal(err)
			}
			s.SetDeadline(time.Now().Add(limit))
			s.Write([]byte("last words"))
			c := srvs[i].accept()
			want := string(proxyproto.Append(nil, svc.Options.ProxyProtocol, proxyproto.Header{Client: s.Open().Client, Local: s.Open().Local})) + "last words"
			if byUser {
				s.Reset(wire.CodeReset)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Errorf("%s: the target reads %q, %v; want %q", svc.Public, got, err, want)
			}
			tcp, isTCP := c.(*net.TCPConn)
			switch {
			case byUser && isTCP:
				if n, err := c.Read(got); n != 0 || !sys.Reset(err) {
					t.Errorf("%s: behind it %d bytes, %v; want a reset", svc.Public, n, err)
				}
			case isTCP:
				tcp.SetLinger(0)
				c.Close()
				wantCode(t, s, wire.CodeReset)
			}
			c.Close()
		}
		eventually(t, "the header is not counted", func() bool {
			return b.log.Count("pair released service="+svc.Public.String()+" client=192.0.2.7:1234", "sent=5 received=7", "reason=eof") == 1
		})
	}
}

// TestTransparentIsRefused: what this machine cannot do is refused at the start and by a change, which changes nothing.
func TestTransparentIsRefused(t *testing.T) {
	why := errors.New("not here")
	checkTransparent = func() error { return why }
	defer func() { checkTransparent = sys.CheckTransparent }()
	services := []Service{{Public: public(t, "9000"), Target: grammar.Target{Network: "tcp", Address: "127.0.0.1:9"}}}
	b, err := New(Config{Token: tokenFor("127.0.0.1:9"), Settings: Settings{Services: services}})
	if err != nil {
		t.Fatal(err)
	}
	services = []Service{services[0]}
	services[0].Options.Transparent = true
	want := fmt.Sprintf("tcp/9000: transparent = true: %v", why)
	if _, err := New(Config{Token: tokenFor("127.0.0.1:9"), Settings: Settings{Services: services}}); err == nil || err.Error() != want {
		t.Errorf("New: %v, want %q", err, want)
	}
	if _, err := b.Apply(t.Context(), Settings{Services: services}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Apply: %v, want %q", err, want)
	}
	if b.services.Find(services[0].Public).Options.Transparent {
		t.Error("a change that was refused is in force")
	}
}

// TestProxyProtocolBehindTLS: where the bridge ends the user's TLS, the header comes before the first plain byte.
func TestProxyProtocolBehindTLS(t *testing.T) {
	srv := serve(t, "tcp", "127.0.0.1:0")
	p := listen(t, "127.0.0.1:0", false)
	svc := tlsService(t, srv.target())
	svc.Options.ProxyProtocol = 2
	start(t, Config{Token: tokenFor(p.addr()), Settings: Settings{Services: []Service{svc}}})
	p.ready()
	u := tls.Client(p.from("192.0.2.7:1234"), userTLS("http/1.1"))
	if _, err := u.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	c := srv.accept()
	want := string(proxyproto.Append(nil, 2, proxyproto.Header{Client: netip.MustParseAddrPort("192.0.2.7:1234")})) + "hello"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Errorf("the target reads %q, %v; want %q", got, err, want)
	}
	u.Close()
	c.Close()
}
