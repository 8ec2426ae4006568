package relay

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"reverser/internal/link"
	"reverser/internal/sys"
	"reverser/internal/wire"
)

// secured is a tunnel at whose target end the user's TLS ends: the server has the plain text.
type secured struct {
	*tunnel
	tls  *tls.Conn // the user's
	said *tapped   // below it
}

// tapped is a user's connection that notes what it carries, and may send it in pieces.
type tapped struct {
	conn
	piece int // 0: as it comes
	sent  bytes.Buffer
	got   bytes.Buffer
}

func (c *tapped) Write(b []byte) (n int, err error) {
	c.sent.Write(b)
	for n < len(b) && err == nil {
		m := len(b) - n
		if c.piece > 0 {
			m = min(m, c.piece)
		}
		m, err = c.conn.Write(b[n : n+m])
		n += m
	}
	return n, err
}

func (c *tapped) Read(b []byte) (int, error) {
	n, err := c.conn.Read(b)
	c.got.Write(b[:n])
	return n, err
}

// serverTLS is what the bridge's end offers.
func serverTLS() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{identity()}} }

// userTLS trusts that.
func userTLS(version uint16) *tls.Config {
	return &tls.Config{MinVersion: version, MaxVersion: version, InsecureSkipVerify: true, VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
		if !bytes.Equal(raw[0], identity().Certificate[0]) {
			return errors.New("another certificate")
		}
		return nil
	}}
}

// secure makes such a tunnel. The user's side is tapped, and sends in pieces.
func (w *world) secure(l *link.Link, k sockets, version uint16, piece int) *secured {
	w.t.Helper()
	px, br := w.open(l)
	tu := &tunnel{}
	var accepted, dialled net.Conn
	tu.user, accepted = k.user(w.t)
	tu.server, dialled = k.server(w.t)
	tu.client = run(&tu.wg, w.pollerFor(k), New(Client, accepted, px, nil))
	s := &secured{tunnel: tu, said: &tapped{conn: tu.user, piece: piece}}
	s.tls = tls.Client(s.said, userTLS(version))
	done := make(chan *TLS, 1)
	go func() {
		t, err := Handshake(br, serverTLS(), func() {}, func() {})
		if err != nil {
			w.t.Errorf("the server's handshake: %v", err)
		}
		done <- t
	}()
	if err := s.tls.Handshake(); err != nil {
		w.t.Errorf("the user's handshake: %v", err)
	}
	tu.target = run(&tu.wg, w.pollerFor(k), NewTLS(Target, dialled, br, <-done))
	return s
}

// eachTLS runs a test for every kind of socket and version.
func eachTLS(t *testing.T, f func(t *testing.T, w *world, l *link.Link, k sockets, version uint16)) {
	for _, k := range []sockets{loopback, alone, inMemory} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(fmt.Sprintf("%s, %s", k.name, tls.VersionName(version)), func(t *testing.T) {
				w, l := newWorld(t)
				defer w.close()
				f(t, w, l, k, version)
			})
		}
	}
}

// TestTLSEnds: much moves both ways at once, and each direction ends by itself. The user's bytes come in pieces that fit no record.
func TestTLSEnds(t *testing.T) {
	eachTLS(t, func(t *testing.T, w *world, l *link.Link, k sockets, version uint16) {
		s := w.secure(l, k, version, 1777)
		up, down := noise(1, 1<<20), noise(2, 1<<20)
		errs := make(chan error, 2)
		go func() {
			_, err := s.tls.Write(up)
			if err == nil {
				err = s.tls.CloseWrite() // the TCP connection stays open
			}
			errs <- err
		}()
		go func() {
			_, err := s.server.Write(down)
			errs <- err
		}()
		got := make([]byte, len(down))
		s.tls.SetReadDeadline(time.Now().Add(limit))
		if _, err := io.ReadFull(s.tls, got); err != nil || !bytes.Equal(got, down) {
			t.Errorf("the user reads what the server did not say: %v", err)
		}
		if got, err := readAll(s.server); err != nil || !bytes.Equal(got, up) {
			t.Errorf("the server reads %d bytes, %v; want the %d of the user, then the end", len(got), err, len(up))
		}
		for range 2 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		eventually(t, "the pair is half-closed behind the user's close_notify", s.target.HalfClosed) // the server may know before the pair does
		talkOn := noise(3, 100)
		s.server.Write(talkOn)
		s.server.CloseWrite()
		if got, err := io.ReadAll(s.tls); err != nil || !bytes.Equal(got, talkOn) {
			t.Errorf("behind its own end the user reads %d bytes, %v; want %d, then the end", len(got), err, len(talkOn))
		}
		s.user.Close()
		s.wantReasons(t, ReasonEOF, ReasonEOF)
		if sent, received := s.target.Counts(); sent != uint64(len(up)) || received != uint64(len(down)+len(talkOn)) {
			t.Errorf("the pair counts %d and %d; want the plain bytes, %d and %d", sent, received, len(up), len(down)+len(talkOn))
		}
		for what, b := range map[string][]byte{"what the user sent": s.said.sent.Bytes(), "what the user got": s.said.got.Bytes()} {
			for len(b) > 0 { // nothing but TLS records
				if len(b) < 5 || b[0] < 20 || b[0] > 23 || b[1] != 3 {
					t.Fatalf("%s is no TLS record: % x", what, b[:min(len(b), 16)])
				}
				b = b[min(len(b), 5+(int(b[3])<<8|int(b[4]))):]
			}
		}
		s.close()
	})
}

// TestTLSServerFirst: the server ends first, the user goes on.
func TestTLSServerFirst(t *testing.T) {
	eachTLS(t, func(t *testing.T, w *world, l *link.Link, k sockets, version uint16) {
		s := w.secure(l, k, version, 0)
		s.server.Write([]byte("bye"))
		s.server.CloseWrite()
		s.tls.SetDeadline(time.Now().Add(limit))
		if got, err := io.ReadAll(s.tls); err != nil || string(got) != "bye" {
			t.Errorf("the user reads %q, %v; want \"bye\" and the end", got, err)
		}
		// crypto/tls in the user's place answers nothing by itself.
		if _, err := s.tls.Write([]byte("and more")); err != nil {
			t.Error(err)
		}
		s.tls.CloseWrite()
		if got, err := readAll(s.server); err != nil || string(got) != "and more" {
			t.Errorf("the server reads %q, %v; want \"and more\" and the end", got, err)
		}
		s.user.Close()
		s.wantReasons(t, ReasonEOF, ReasonEOF)
		s.close()
	})
}

// TestTLSTruncated: a FIN without close_notify is a reset, behind what came before it, and so is a reset.
func TestTLSTruncated(t *testing.T) {
	for what, end := range map[string]func(s *secured){
		"FIN":          func(s *secured) { s.user.CloseWrite() },
		"part, FIN":    func(s *secured) { s.user.Write([]byte{23, 3, 3, 0, 100, 1, 2, 3}); s.user.CloseWrite() },
		"RST":          func(s *secured) { s.user.SetLinger(0); s.user.Close() },
		"plain text":   func(s *secured) { s.user.Write([]byte("GET / HTTP/1.0\r\n\r\n")) },
		"wrong record": func(s *secured) { s.user.Write(append([]byte{23, 3, 3, 0, 100}, make([]byte, 100)...)) },
	} {
		t.Run(what, func(t *testing.T) {
			eachTLS(t, func(t *testing.T, w *world, l *link.Link, k sockets, version uint16) {
				if k.name == inMemory.name && what == "RST" {
					t.Skip("a network in memory loses what was sent before a reset")
				}
				s := w.secure(l, k, version, 0)
				s.tls.Write([]byte("half a req"))
				got := make([]byte, 10)
				s.server.SetReadDeadline(time.Now().Add(limit))
				if _, err := io.ReadFull(s.server, got); err != nil {
					t.Fatal(err)
				}
				end(s)
				if got, err := readAll(s.server); len(got) != 0 || !sys.Reset(err) {
					t.Errorf("the server reads %q, %v; want a reset", got, err)
				}
				<-s.target.over
				if s.target.reason != ReasonClientReset {
					t.Errorf("reason %q, want %q", s.target.reason, ReasonClientReset)
				}
				s.close()
			})
		})
	}
}

// TestTLSServerReset: the user gets what the server said before it reset, and no proper end.
func TestTLSServerReset(t *testing.T) {
	eachTLS(t, func(t *testing.T, w *world, l *link.Link, k sockets, version uint16) {
		if k.name == inMemory.name {
			t.Skip("a network in memory loses what was sent before a reset")
		}
		s := w.secure(l, k, version, 0)
		s.tls.Write([]byte("x"))
		io.ReadFull(s.server, make([]byte, 1))
		s.server.Write([]byte("half an answer"))
		s.tls.SetDeadline(time.Now().Add(limit))
		got := make([]byte, 14)
		if _, err := io.ReadFull(s.tls, got); err != nil {
			t.Fatal(err)
		}
		s.server.SetLinger(0)
		s.server.Close()
		if got, err := io.ReadAll(s.tls); len(got) != 0 || !sys.Reset(err) {
			t.Errorf("the user reads %q, %v; want a reset", got, err)
		}
		s.wantReasons(t, ReasonTargetReset, ReasonTargetReset)
		s.close()
	})
}

// TestTLSBackPressure: a server that does not read stops the user, and a user who does not read stops the server. Either goes on.
func TestTLSBackPressure(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	s := w.secure(l, loopback, tls.VersionTLS13, 0)
	for _, c := range []net.Conn{s.user, s.server, s.client.sock.conn, s.target.sock.conn} { // so that less than a busy machine moves in time is enough
		setBuffers(c, 64<<10)
	}
	big := noise(5, 8<<20)
	n := fill(t, s.server, big) // TLS of the user cannot go on behind a write that was cut short
	s.tls.SetDeadline(time.Now().Add(limit))
	rest := make(chan error, 1)
	go func() {
		_, err := s.server.Write(big[n:])
		s.server.CloseWrite()
		rest <- err
	}()
	if got, err := io.ReadAll(s.tls); err != nil || !bytes.Equal(got, big) {
		t.Errorf("the user reads %d bytes, %v; want %d", len(got), err, len(big))
	}
	if err := <-rest; err != nil {
		t.Error(err)
	}
	s.tls.SetDeadline(time.Now().Add(limit))
	sent := make(chan error, 1)
	go func() {
		_, err := s.tls.Write(big)
		s.tls.CloseWrite()
		sent <- err
	}()
	eventually(t, "the window is full", func() bool { _, in := s.target.Counts(); return in > 0 || s.target.inward.bytes.Load() > 0 })
	select {
	case err := <-sent:
		t.Fatalf("all %d bytes went to a server that does not read: %v", len(big), err)
	case <-time.After(200 * time.Millisecond):
	}
	if got, err := readAll(s.server); err != nil || !bytes.Equal(got, big) {
		t.Errorf("the server reads %d bytes, %v; want %d", len(got), err, len(big))
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	s.user.Close()
	s.wantReasons(t, ReasonEOF, ReasonEOF)
	s.close()
}

// TestTLSDeadServer: a server that dies while the user does not read is noticed, and the user gets what it had said.
func TestTLSDeadServer(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere a reset throws away what was not read")
	}
	w, l := newWorld(t)
	defer w.close()
	s := w.secure(l, loopback, tls.VersionTLS13, 0)
	big := noise(6, 64<<20)
	fill(t, s.server, big)
	s.server.SetLinger(0)
	s.server.Close()
	select {
	case <-s.target.over:
	case <-time.After(limit):
		t.Fatal("the pair goes on")
	}
	s.tls.SetDeadline(time.Now().Add(limit))
	got, err := io.ReadAll(s.tls)
	if !sys.Reset(err) || !bytes.HasPrefix(big, got) || len(got) == 0 {
		t.Errorf("the user reads %d bytes, %v; want the beginning of what the server said, then a reset", len(got), err)
	}
	s.close()
}

// TestTLSEndedFromHere: a pair that is ended resets both sides.
func TestTLSEndedFromHere(t *testing.T) {
	eachTLS(t, func(t *testing.T, w *world, l *link.Link, k sockets, version uint16) {
		s := w.secure(l, k, version, 0)
		s.target.End(ReasonDrain, wire.CodeDrain)
		s.tls.SetDeadline(time.Now().Add(limit))
		if _, err := io.ReadAll(s.tls); !sys.Reset(err) {
			t.Errorf("the user reads %v; want a reset", err)
		}
		if _, err := readAll(s.server); !sys.Reset(err) {
			t.Errorf("the server reads %v; want a reset", err)
		}
		s.wantReasons(t, ReasonDrain, ReasonDrain)
		s.close()
	})
}

// TestTLSHandshake: one that fails tells the user why, and none goes beyond its time.
func TestTLSHandshake(t *testing.T) {
	w, l := newWorld(t)
	defer w.close()
	for what, c := range map[string]struct {
		user *tls.Config
		say  string // in place of TLS
		want string // of the user
	}{
		"old version": {user: &tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true}, want: "remote error: tls: protocol version not supported"},
		"other ALPN":  {user: &tls.Config{NextProtos: []string{"mqtt"}, InsecureSkipVerify: true}, want: "remote error: tls: no application protocol"},
		"silent":      {},
		"plain text":  {say: "GET / HTTP/1.1\r\n\r\n"},
	} {
		px, br := w.open(l)
		br.SetDeadline(time.Now().Add(limit))
		if silent := c.user == nil && c.say == ""; silent {
			br.SetDeadline(time.Now().Add(time.Second))
		}
		px.SetDeadline(time.Now().Add(limit))
		said := make(chan error, 1)
		go func() {
			if c.user == nil {
				_, err := px.Write([]byte(c.say))
				said <- err
				return
			}
			said <- tls.Client(px, c.user).Handshake()
		}()
		cfg := serverTLS()
		cfg.NextProtos = []string{"http/1.1"}
		waits, heard := 0, 0
		_, err := Handshake(br, cfg, func() { waits++ }, func() { heard++ })
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		if c.user == nil && c.say == "" && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, want the end of its time", what, err)
		}
		if waits == 0 || waits != heard {
			t.Errorf("%s: waited %d times, went on %d times", what, waits, heard)
		}
		br.Close()
		if err := <-said; c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s: the user's error is %v, want %s", what, err, c.want)
		}
		px.Close()
	}
}
