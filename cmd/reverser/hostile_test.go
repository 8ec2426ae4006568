package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"reverser"
	"reverser/internal/admin"
	"reverser/internal/auth"
	"reverser/internal/bridge"
	"reverser/internal/escape"
	"reverser/internal/grammar"
	"reverser/internal/link"
	"reverser/internal/proxy"
	"reverser/internal/state"
	"reverser/internal/status"
	"reverser/internal/wire"
)

// evil is a text that would take over a terminal or forge a line of a log; word says whose it is.
func evil(word string) string {
	return word + " \x1b[31m\x1b]52;c;ZXZpbA==\x07 \\x1b[31m\r\nINF forged key=value \u009b31m\u202e\u2066\x7f\x00"
}

// wantHarmless checks that nothing but the colours of tint would change a terminal's state.
func wantHarmless(t *testing.T, what, out string) {
	t.Helper()
	if !utf8.ValidString(out) {
		t.Errorf("%s: %q is no UTF-8", what, out)
	}
	for line := range strings.Lines(out) {
		rest := ownColours.ReplaceAllString(strings.TrimSuffix(line, "\n"), "")
		if i := strings.IndexFunc(rest, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%s has a character that is obeyed, not printed, at %d of %q", what, i, rest)
		}
		if strings.HasPrefix(line, "INF forged") {
			t.Errorf("%s has a forged line: %q", what, line)
		}
		if len(line) > 6*escape.Most {
			t.Errorf("%s has a line of %d bytes", what, len(line))
		}
	}
}

var ownColours = regexp.MustCompile("\x1b\\[(0|2|22|91|92|93)m") // evil uses another one

// logs is a log in every form at once.
type logs struct {
	colour, plain, json syncBuffer
	*slog.Logger
}

func newLogs(t *testing.T) *logs {
	l := &logs{}
	jsonHandler, err := newHandler(&l.json, &l.json, logJSON, slog.LevelDebug)
	if err != nil {
		t.Fatal(err)
	}
	l.Logger = slog.New(fanOut{
		newTextHandler(&l.colour, slog.LevelDebug, time.TimeOnly, true), newTextHandler(&l.plain, slog.LevelDebug, time.TimeOnly, false), jsonHandler,
	})
	return l
}

func (l *logs) wantHarmless(t *testing.T, whose string) {
	t.Helper()
	wantHarmless(t, whose+" colour log", l.colour.String())
	wantHarmless(t, whose+" text log", l.plain.String())
	wantHarmless(t, whose+" JSON log", l.json.String())
	for line := range strings.Lines(l.json.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("%s JSON log has the line %q", whose, line)
		}
	}
}

// heard waits until a word is in the log.
func (l *logs) heard(t *testing.T, word string) {
	t.Helper()
	for late := time.Now().Add(time.Minute); !strings.Contains(l.json.String(), word); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("the log does not quote %s:\n%s", word, l.json.String())
		}
	}
}

type fanOut []slog.Handler

func (f fanOut) Enabled(context.Context, slog.Level) bool { return true }
func (f fanOut) Handle(ctx context.Context, r slog.Record) (err error) {
	for _, h := range f {
		err = errors.Join(err, h.Handle(ctx, r.Clone()))
	}
	return err
}
func (f fanOut) WithAttrs(attrs []slog.Attr) slog.Handler {
	return f.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}
func (f fanOut) WithGroup(name string) slog.Handler {
	return f.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}
func (f fanOut) each(do func(slog.Handler) slog.Handler) slog.Handler {
	var all fanOut
	for _, h := range f {
		all = append(all, do(h))
	}
	return all
}

// TestEveryFormOfALogIsHarmless: whatever place of a record the text is in.
func TestEveryFormOfALogIsHarmless(t *testing.T) {
	l := newLogs(t)
	text := evil("word")
	l.With("with", text, "errwith", errors.New(text)).WithGroup(text).Info(text, "text", text, "err", fmt.Errorf("dial: %w", errors.New(text)),
		"bytes", []byte(text), "list", []string{text}, text, "as a key", "addr", &net.UnixAddr{Name: text}, "plain", "ok", "empty", "",
		"long", strings.Repeat("\x1b[31m", 60_000), slog.Group("group", "a", text))
	l.wantHarmless(t, "the")
	for _, form := range []string{l.colour.String(), l.plain.String()} {
		if n := strings.Count(form, "forged"); n < 10 || strings.Count(form, "\n") != 1 {
			t.Errorf("the text stands %d times in %d lines, want all of it on one: %s", n, strings.Count(form, "\n"), form)
		}
		if !strings.Contains(form, "(300000 bytes)") {
			t.Error("what was too long is not said")
		}
	}
}

// owner is the end of a link that a test plays.
type owner struct {
	attached chan *link.Link
	message  func(l *link.Link, f wire.Frame) error
	angry    atomic.Bool // the next message is answered with ERR
}

func (o *owner) Opened(s *link.Stream)               { s.Reset(wire.CodeUnreachable) }
func (o *owner) Detached(*link.Link, int, error)     {}
func (o *owner) GoingAway(*link.Link, time.Duration) {}
func (o *owner) Ended(*link.Link, error)             {}
func (o *owner) Message(l *link.Link, f wire.Frame) error {
	if o.angry.Load() {
		return link.Violation(wire.ErrFormat, "%s", evil("errword"))
	}
	return o.message(l, f)
}
func (o *owner) Attached(l *link.Link, slot int) {
	if slot == 0 {
		select {
		case o.attached <- l:
		default:
		}
	}
}

func testIdentity(t *testing.T) (cert tls.Certificate, pin [32]byte) {
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if cert, _, err = dir.Identity(); err != nil {
		t.Fatal(err)
	}
	return cert, state.Pin(cert)
}

// showStatus prints what a process says of itself in every form, as the commands do.
func showStatus(t *testing.T, whose string, s status.Snapshot, words ...string) {
	t.Helper()
	var table, asJSON bytes.Buffer
	if err := printStatus(escape.NewWriter(&table), s, time.Now(), 0); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(escape.NewWriter(&asJSON)).Encode(s); err != nil {
		t.Fatal(err)
	}
	wantHarmless(t, whose+" status", table.String())
	wantHarmless(t, whose+" status in JSON", asJSON.String())
	for _, word := range words {
		if !strings.Contains(table.String(), word) {
			t.Errorf("%s status does not have %s:\n%s", whose, word, table.String())
		}
	}
}

// TestHostileBridge: what strangers and a false bridge say to a proxy.
func TestHostileBridge(t *testing.T) {
	l := newLogs(t)
	cert, pin := testIdentity(t)
	allow, err := grammar.ParseAllow("tcp/1024-65535")
	if err != nil {
		t.Fatal(err)
	}
	key := proxy.Key{Name: "nas", ID: [16]byte{1}, Secret: [32]byte{2}, Allow: grammar.Policy{allow}}
	p := proxy.New(proxy.Config{Listen: "127.0.0.1:0", Identity: cert, Log: l.Logger, Settings: proxy.Settings{Keys: []proxy.Key{key}}})
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { p.Run(ctx) })

	// A stranger's names of protocols and server, and what is no TLS at all.
	for _, word := range []string{"alpnword", "alpnlong"} {
		protos := []string{evil(word)}
		for range 200 {
			protos = append(protos, evil(strings.Repeat("x", 150)))
		}
		if word == "alpnword" {
			protos = protos[:1]
		}
		if c, err := tls.Dial("tcp", p.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: protos}); err == nil {
			c.Close()
			t.Fatal("a stranger's TLS was taken")
		}
		l.heard(t, "alpnword") // the next one is told a minute later, or not
	}
	if c, err := net.Dial("tcp", p.Addr().String()); err != nil {
		t.Fatal(err)
	} else {
		io.WriteString(c, evil("plain"))
		io.Copy(io.Discard, c)
		c.Close()
	}

	// A false bridge, with the right key: its name, what it claims, its target, and its last words.
	o := &owner{attached: make(chan *link.Link, 1), message: func(*link.Link, wire.Frame) error { return nil }}
	d := link.NewDialer(link.DialerConfig{
		Owner: o, Name: evil("nameword"), Failed: func(int, error, time.Duration) {},
		Auth: auth.ClientConfig{KeyID: key.ID, Secret: key.Secret, Pin: pin, Instance: [16]byte{7}},
		Dial: link.Direct(func(ctx context.Context, _ bool, _ uint16) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "tcp", p.Addr().String())
		}),
	})
	dialling, hangUp := context.WithCancel(ctx)
	defer hangUp()
	running.Go(func() { d.Run(dialling) })
	fl := <-o.attached
	for i, c := range []wire.Claim{
		{Public: "tcp/127.0.0.1:1", Target: evil("targetword")}, {Public: evil("publicword"), Target: "x"}, {Public: "tcp/\x1b[31m:9000", Target: "x"},
	} {
		fl.Say(uint64(i+1), wire.AppendClaim(nil, uint32(i+1), c))
	}
	l.heard(t, "publicword")
	showStatus(t, "the proxy's", p.Status(), "nameword", "targetword")
	o.angry.Store(true)
	fl.Say(4, wire.AppendClaim(nil, 4, wire.Claim{Public: "tcp/127.0.0.1:2", Target: "x"}))
	l.heard(t, "errword")
	hangUp()
	l.wantHarmless(t, "the proxy's")
}

// falseProxy starts a proxy that answers the claims with the ids 1 to 3 with DENIED, RETRYING and UP, and evil texts. It runs until the end
// of the test.
func falseProxy(t *testing.T) (*owner, grammar.Token) {
	cert, pin := testIdentity(t)
	keyID, secret := [16]byte{1}, [32]byte{2}
	o := &owner{attached: make(chan *link.Link, 1)}
	o.message = func(fl *link.Link, f wire.Frame) error {
		if f.Type != wire.TypeClaim {
			return nil
		}
		id, _, err := wire.ParseClaim(f)
		if err != nil {
			return err
		}
		status := []wire.ClaimStatus{wire.ClaimDenied, wire.ClaimRetrying, wire.ClaimUp}[id-1]
		fl.Say(uint64(id), wire.AppendClaimed(nil, id, wire.Claimed{Status: status, Public: evil("publicword"), Text: evil(fmt.Sprintf("textword%d", id))}))
		return nil
	}
	sc := &auth.ServerConfig{Identity: cert, Instance: [16]byte{9}, Lookup: func([16]byte) ([32]byte, bool) { return secret, true }}
	host := link.NewHost(link.HostConfig{
		Owner: o, Instance: sc.Instance,
		Admit: func([16]byte, [32]byte, bool) error { return nil }, Draining: func() bool { return false },
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		host.Close(net.ErrClosed)
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				if ac, err := auth.Server(c, sc.TLS(), sc); err == nil {
					host.Serve(ac)
				}
			})
		}
	})
	return o, grammar.Token{Addrs: []string{ln.Addr().String()}, KeyID: keyID, Secret: secret, Pin: pin}
}

// TestHostileProxy: what a false proxy says to a bridge.
func TestHostileProxy(t *testing.T) {
	l := newLogs(t)
	o, token := falseProxy(t)
	var services []bridge.Service
	for _, s := range []string{"9000", "9001", "offered"} {
		public, err := grammar.ParsePublic(s)
		if err != nil {
			t.Fatal(err)
		}
		services = append(services, bridge.Service{Public: public, Handle: func(c net.Conn) { c.Close() }})
	}
	b, err := bridge.New(bridge.Config{
		Token: token, Settings: bridge.Settings{Services: services}, Log: l.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { b.Run(ctx) })
	fl := <-o.attached
	l.heard(t, "textword1")
	l.heard(t, "textword2")
	showStatus(t, "the bridge's", b.Status(), "textword1", "textword2")
	fl.Say(1<<40, wire.AppendGoAway(nil, wire.GoAway{DrainMillis: 60_000, Text: evil("goawayword")}))
	l.heard(t, "proxy is stopping")
	fl = <-o.attached // the bridge begins another session
	o.angry.Store(true)
	fl.Kill(net.ErrClosed) // it claims again
	l.heard(t, "errword")
	l.wantHarmless(t, "the bridge's")
}

// TestHostileProxyOfAProgram: what a false proxy says comes back in the errors of the library, which programs print.
func TestHostileProxyOfAProgram(t *testing.T) {
	_, token := falseProxy(t)
	c := &reverser.Client{Token: token.Encode()}
	defer c.Close()
	_, err := c.Listen(t.Context(), "9000")
	if !errors.Is(err, reverser.ErrDenied) || !strings.Contains(err.Error(), "textword1") {
		t.Fatalf("Listen = %v, want %v with what the proxy said", err, reverser.ErrDenied)
	}
	wantHarmless(t, "the error", err.Error())
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err = c.Listen(ctx, "9001"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Listen = %v, want %v", err, context.DeadlineExceeded)
	}
	wantHarmless(t, "the error", err.Error())
}

// TestHostileRequest: the path and body of a request to the admin socket come back in an answer.
func TestHostileRequest(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLogs(t)
	ctx, stop := context.WithCancel(t.Context())
	s := &admin.Server{Status: func() status.Snapshot { return status.Snapshot{Role: evil("role")} }, Log: l.Logger}
	var running sync.WaitGroup
	running.Go(func() { s.Serve(ctx, ln) })
	defer running.Wait()
	defer stop()
	for _, path := range []string{"/nowhere%1b%5b31m%0d%0aINF%20forged%c2%9b31m%e2%80%ae", "/api/v1/status"} {
		resp, err := http.Get("http://" + ln.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), "forged") {
			t.Fatalf("the answer to %s is %q, %v; want it to quote the text", path, body, err)
		}
		wantHarmless(t, "the answer", string(body))
	}
	if c, err := net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	} else {
		io.WriteString(c, "GET /\x1b[31m HTTP/1.1\r\n"+evil("header")+"\r\n\r\n")
		io.Copy(io.Discard, c)
		c.Close()
	}
	l.wantHarmless(t, "the admin server's")
}

// TestHostileError: the error with which a command ends may quote a peer.
func TestHostileError(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"check", evil("file")}, nil, &out, &errs); code == exitOK || !strings.Contains(errs.String(), "forged") {
		t.Errorf("check of a file with an evil name = %d, %q; want it quoted", code, errs.String())
	}
	// The line break is of the text: an error of ours has some, too.
	wantHarmless(t, "stderr", strings.ReplaceAll(errs.String(), "\nINF forged", " "))
	wantHarmless(t, "stdout", out.String())
}
