package proxy

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/status"
)

// TestTryNames: the proxy reaches the ports of names as a user does, and looks at the certificates there. Its bridge hears nothing of it, and
// it is no pair.
func TestTryNames(t *testing.T) {
	f := newFakeCertificates(t, "a.example", "none.example")
	f.states = []status.Certificate{{Host: "late.example", State: status.CertificatePending}, {Host: "a.example", State: status.CertificateValid}}
	nas := key(t, "nas", "http/*", "https/*", "tls/*")
	w := prepare(t, Config{HTTP: ":0", HTTPS: ":0", Certificates: f, Settings: Settings{Keys: []Key{nas}}})
	w.p.publicRoots = f.roots
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
	b := w.bridge(nas, how{instance: 1}, "http/*", "http/app.example", "https/a.example", "https/a.example/api", "https/d.example", "https/none.example", "https/late.example", "tls/pass.example")
	web := fmt.Sprintf("127.0.0.1:%d", portOf(w.p.web.ln.Addr()))
	names := fmt.Sprintf("127.0.0.1:%d", portOf(w.p.names.ln.Addr()))
	door := func(option, addr, state, text string) status.PortTry {
		return status.PortTry{Public: option, Addr: addr, State: state, Text: text}
	}
	leaf, err := x509.ParseCertificate(f.cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}

	result := w.p.TryPublic(t.Context(), "127.0.0.1")
	if want := []status.PortTry{door("--http", web, status.TryAnswered, ""), door("--https", names, status.TryAnswered, "")}; !slices.Equal(result.Doors, want) {
		t.Errorf("the ports: %+v, want %+v", result.Doors, want)
	}
	want := []status.CertificateTry{
		{Host: "a.example", Addr: names, State: status.TryAnswered, Until: leaf.NotAfter},
		{Host: "d.example", Addr: names, State: status.TryOther, Text: "it is for other names: a.example, none.example", Until: leaf.NotAfter},
		{Host: "none.example", Addr: names, State: status.TryFailed, Text: "no TLS: remote error: tls: internal error"},
	}
	if !slices.Equal(result.Certificates, want) || result.CertificatesLeft != 0 || len(result.Ports) != 0 {
		t.Errorf("found %+v, want the certificates %+v", result, want)
	}
	// Users may not know the authority.
	w.p.publicRoots = x509.NewCertPool()
	if c := w.p.TryPublic(t.Context(), "127.0.0.1").Certificates; len(c) != 3 || c[0].State != status.TryUnknown || !strings.Contains(c[0].Text, "does not know") {
		t.Errorf("of an unknown authority: %+v", c)
	}

	// What did not answer is told by its kind, and nobody else is asked for certificates.
	say := func(words string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				there.Read(make([]byte, 4096))
				io.WriteString(there, words)
			}()
			return here, nil
		}
	}
	fails := func(err error) func() (net.Conn, error) { return func() (net.Conn, error) { return nil, err } }
	for _, c := range []struct {
		web, names         func() (net.Conn, error)
		webIs, namesIs     string
		webText, namesText string
	}{
		{fails(&net.OpError{Op: "dial", Err: context.DeadlineExceeded}), fails(&net.OpError{Op: "dial", Err: errors.New("connection refused")}),
			status.TrySilent, status.TryFailed, "no answer within 1m0s", "connection refused"},
		{say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), say("HTTP/1.1 400 Bad Request\r\n\r\n"),
			status.TryOther, status.TryOther, "it gives another answer than this proxy", "it gives another answer than this proxy"},
		{say("SSH-2.0-x\r\n"), say(""),
			status.TryOther, status.TryOther, "it gives another answer than this proxy", "it closed the connection without an answer"},
	} {
		mu.Lock()
		outcome[web], outcome[names], dialled = c.web, c.names, nil
		mu.Unlock()
		got := w.p.TryPublic(t.Context(), "127.0.0.1")
		if want := []status.PortTry{door("--http", web, c.webIs, c.webText), door("--https", names, c.namesIs, c.namesText)}; !slices.Equal(got.Doors, want) {
			t.Errorf("the ports: %+v, want %+v", got.Doors, want)
		}
		if mu.Lock(); len(got.Certificates) > 0 || len(dialled) != 2 {
			t.Errorf("dialled %q, and found the certificates %+v; want none of somebody else", dialled, got.Certificates)
		}
		mu.Unlock()
	}
	mu.Lock()
	clear(outcome)
	dialled = nil
	mu.Unlock()
	// Without an address, or time, nothing is dialled.
	if d := w.p.TryPublic(t.Context(), "").Doors; len(d) != 2 || d[0].State != status.TryNone || d[1].State != status.TryNone {
		t.Errorf("without an address: %+v", d)
	}
	if len(dialled) > 0 {
		t.Errorf("dialled %q without an address", dialled)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := w.p.TryPublic(ctx, "127.0.0.1"); len(r.Doors) != 0 {
		t.Errorf("without time: %+v", r.Doors)
	}

	// The first of whom the bridge hears is a user, also of a path like those that the proxy asks itself for.
	target := b.target(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "target") })
	u := w.httpUser()
	if _, body := u.ask(get("app.example", triedPages+"00")); body != "target" {
		t.Errorf("a user of %s gets %q", triedPages, body)
	}
	if n := target.seen.Load(); n != 1 {
		t.Errorf("%d streams were opened, want one: a try reached the target", n)
	}
	eventually(t, "the user's pair is created, and no other", func() bool { return w.log.Count("pair created") == 1 })
}

// TestReachWebBound: whoever answers at the proxy's address may send a header without end, and little of it is read.
func TestReachWebBound(t *testing.T) {
	w := prepare(t, Config{})
	const most = 1 << 20
	sent := make(chan int, 1)
	w.p.dialPublic = func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			there.Read(make([]byte, 4096))
			n, _ := io.WriteString(there, "HTTP/1.1 200 OK\r\n"+strings.Repeat("A: "+strings.Repeat("a", 1000)+"\r\n", most/1000))
			sent <- n
		}()
		return here, nil
	}
	state, text := w.p.reachWeb(t.Context(), "203.0.113.5:80", "a.example")
	if state != status.TryOther || text != "it gives another answer than this proxy" {
		t.Errorf("reachWeb = %s, %q", state, text)
	}
	if n := <-sent; n > answerMost {
		t.Errorf("%d bytes were read, want %d at most", n, answerMost)
	}
}

// farConn is a connection whose other end seems to be at an address that is not this machine's.
type farConn struct{ net.Conn }

func (farConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(203, 0, 113, 5), Port: 443} }

// TestTryNamesBalanced: a proxy that wants a header of its own address gets one on the way that does not leave the machine. On another it
// does not take its own refusal for somebody else's.
func TestTryNamesBalanced(t *testing.T) {
	f := newFakeCertificates(t, "a.example")
	nas := key(t, "nas", "https/*")
	w := prepare(t, Config{HTTP: ":0", HTTPS: ":0", Certificates: f, Settings: Settings{Keys: []Key{nas}, ProxyProtocolFrom: balancersHere}})
	w.p.publicRoots = f.roots
	w.run()
	b := w.bridge(nas, how{instance: 1}, "https/a.example")
	b.settled()
	result := w.p.TryPublic(t.Context(), "127.0.0.1")
	if d := result.Doors; len(d) != 2 || d[0].State != status.TryAnswered || d[1].State != status.TryAnswered {
		t.Errorf("the ports: %+v, want both answered", d)
	}
	if c := result.Certificates; len(c) != 1 || c[0].State != status.TryAnswered {
		t.Errorf("the certificates: %+v, want one that is good", c)
	}
	if n := w.log.Count("without a header of the PROXY protocol"); n != 0 {
		t.Errorf("the log has %d lines about the proxy's own connections", n)
	}

	w.p.dialPublic = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return farConn{conn}, err
	}
	const text = "its own address 127.0.0.1 is one of proxy_protocol_from, of which it takes no connection without a header"
	want := []status.PortTry{{Public: "--http", State: status.TryNone, Text: text}, {Public: "--https", State: status.TryNone, Text: text}}
	if d := w.p.TryPublic(t.Context(), "127.0.0.1").Doors; !slices.Equal(d, want) {
		t.Errorf("the ports of another address: %+v, want %+v", d, want)
	}
}

// TestTryNamesElsewhere: a port that only this machine reaches is not dialled, and without names none is.
func TestTryNamesElsewhere(t *testing.T) {
	nas := key(t, "nas", "http/*", "tls/*", "tcp/1024-65535")
	w := prepare(t, Config{HTTP: "127.0.0.1:0", HTTPS: ":0", Settings: Settings{Keys: []Key{nas}}})
	w.p.dialPublic = func(context.Context, string, string) (net.Conn, error) {
		t.Error("something was dialled")
		return nil, net.ErrClosed
	}
	w.run()
	b := w.bridge(nas, how{instance: 1}, "http/app.example")
	b.settled()
	got := w.p.TryPublic(t.Context(), "203.0.113.5").Doors
	if want := []status.PortTry{{Public: "--http", State: status.TryNone, Text: "it is bound to an address that only this machine reaches"}}; !slices.Equal(got, want) {
		t.Errorf("found %+v, want %+v", got, want)
	}
}

// TestJudge: whether users take a certificate.
func TestJudge(t *testing.T) {
	f := newFakeCertificates(t, "a.example", "b.example", "c.example", "d.example", "203.0.113.7")
	leaf, err := x509.ParseCertificate(f.cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host  string
		at    time.Time
		state string
		text  string
	}{
		{"a.example", leaf.NotBefore.Add(time.Second), status.TryAnswered, ""},
		{"a.example", leaf.NotBefore.Add(-time.Second), status.TryOther, "it is not valid before "},
		{"a.example", leaf.NotAfter.Add(time.Second), status.TryOther, "it expired on "},
		{"x.example", leaf.NotBefore.Add(time.Second), status.TryOther, "it is for other names: a.example, b.example, c.example and "},
		{"2001:db8::1", leaf.NotBefore.Add(time.Second), status.TryOther, "it is for other names: "},
	} {
		p := &Proxy{cfg: Config{Now: func() time.Time { return c.at }}, publicRoots: f.roots}
		if state, text := p.judge(c.host, []*x509.Certificate{leaf}); state != c.state || !strings.HasPrefix(text, c.text) || (text == "") != (c.text == "") {
			t.Errorf("%s at %s: %s %q; want %s %q", c.host, c.at, state, text, c.state, c.text)
		}
	}
}

// TestJudgeUnverified: each error of the verification has its own words, since each has its own remedy.
func TestJudgeUnverified(t *testing.T) {
	issued := &x509.Certificate{RawSubject: []byte("a"), RawIssuer: []byte("R11"), Issuer: pkix.Name{CommonName: "R11"}}
	office := &x509.Certificate{RawSubject: []byte("a"), RawIssuer: []byte("a"), Issuer: pkix.Name{CommonName: "office"}}
	for _, c := range []struct {
		shown []*x509.Certificate
		err   error
		state string
		text  string
	}{
		{[]*x509.Certificate{issued}, nil, status.TryAnswered, ""},
		{[]*x509.Certificate{issued}, x509.UnknownAuthorityError{}, status.TryAlone, "its chain may lack the certificate of its issuer (R11), which this machine does not know"},
		{[]*x509.Certificate{issued, office}, x509.UnknownAuthorityError{}, status.TryUnknown, "it is of an authority that this machine does not know (R11)"},
		{[]*x509.Certificate{office}, x509.UnknownAuthorityError{}, status.TryUnknown, "it is of an authority that this machine does not know (office)"},
		{[]*x509.Certificate{issued}, x509.SystemRootsError{}, status.TryNone, "this machine has no list of authorities"},
		{[]*x509.Certificate{issued}, x509.CertificateInvalidError{Reason: x509.IncompatibleUsage}, status.TryOther, "it cannot be verified: certificate specifies an incompatible key usage"},
	} {
		if state, text := judged(c.shown, c.err); state != c.state || text != c.text {
			t.Errorf("%v of %d: %s %q; want %s %q", c.err, len(c.shown), state, text, c.state, c.text)
		}
	}
}
