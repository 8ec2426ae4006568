package record

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
	"weak"
)

var identity = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func clientConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, ServerName: "x", SessionTicketsDisabled: true}
}

func serverConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{identity()}, SessionTicketsDisabled: true}
}

// sockets returns the two ends of a TCP connection, which are closed with the test.
func sockets(t testing.TB) (a, b net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// both runs the two sides of something, of which neither may fail.
func both(t testing.TB, a, b func() error) {
	t.Helper()
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { err = a() })
	if err := b(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// pair returns two ends of this package.
func pair(t testing.TB) (client, server *Conn) {
	a, b := sockets(t)
	both(t, func() (err error) { client, err = Client(context.Background(), a, clientConfig()); return },
		func() (err error) { server, err = Server(context.Background(), b, serverConfig(), Steps{}); return })
	server.Trust()
	return client, server
}

// standardPeer returns one end of this package and one of crypto/tls.
func standardPeer(t testing.TB, server bool) (ours *Conn, theirs *tls.Conn) {
	a, b := sockets(t)
	if server {
		theirs = tls.Client(a, clientConfig())
		both(t, theirs.Handshake, func() (err error) { ours, err = Server(context.Background(), b, serverConfig(), Steps{}); return })
		ours.Trust()
	} else {
		theirs = tls.Server(b, serverConfig())
		both(t, theirs.Handshake, func() (err error) { ours, err = Client(context.Background(), a, clientConfig()); return })
	}
	return ours, theirs
}

// TestPeerIsCryptoTLS: what either side writes, in pieces of any size, arrives at the standard library's, and the other way.
func TestPeerIsCryptoTLS(t *testing.T) {
	for _, server := range []bool{false, true} {
		ours, theirs := standardPeer(t, server)
		for _, w := range []struct{ from, to net.Conn }{{ours, theirs}, {theirs, ours}} {
			want := make([]byte, 1<<20)
			rand.Read(want)
			got := make([]byte, len(want))
			both(t, func() error {
				for rest := want; len(rest) > 0; {
					n := min(mathrand.IntN(3*MaxPlaintext)+1, len(rest))
					if _, err := w.from.Write(rest[:n]); err != nil {
						return err
					}
					rest = rest[n:]
				}
				return nil
			}, func() error {
				for n := 0; n < len(got); {
					k, err := w.to.Read(got[n:min(n+mathrand.IntN(3*MaxPlaintext)+1, len(got))])
					if err != nil {
						return err
					}
					n += k
				}
				return nil
			})
			if !bytes.Equal(got, want) {
				t.Fatal("other bytes arrived")
			}
		}
		theirs.CloseWrite()
		if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("Read after close_notify = %d, %v; want 0, EOF", n, err)
		}
	}
}

// TestKeyUpdate: new keys in time, understood by crypto/tls, and on request.
func TestKeyUpdate(t *testing.T) {
	ours, theirs := standardPeer(t, true)
	ours.rekeyAfter = 1
	ours.Write([]byte("before"))
	if _, err := io.ReadFull(theirs, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		old := ours.write.secret
		both(t, func() error { _, err := ours.Write([]byte("after")); return err }, func() error {
			got := make([]byte, 5)
			if _, err := io.ReadFull(theirs, got); err != nil || string(got) != "after" {
				t.Errorf("Read = %q, %v", got, err)
			}
			return nil
		})
		if bytes.Equal(ours.write.secret, old) || ours.write.seq != 1 {
			t.Error("the keys are the old ones")
		}
	}
	a, b := pair(t)
	for _, conns := range [][2]*Conn{{a, b}, {b, a}} {
		from, to := conns[0], conns[1]
		out := from.write.seal(nil, []byte{keyUpdate, 0, 0, 1, 1, 0}[:5], typeHandshake)
		if err := from.write.next(); err != nil {
			t.Fatal(err)
		}
		from.Conn.Write(out)
		from.Write([]byte("x"))
		var one [1]byte
		if _, err := io.ReadFull(to, one[:]); err != nil {
			t.Fatal(err)
		}
		old := to.write.secret
		to.Write([]byte("y"))
		if _, err := io.ReadFull(from, one[:]); err != nil || one[0] != 'y' {
			t.Errorf("Read = %q, %v; want y", one, err)
		}
		if bytes.Equal(to.write.secret, old) {
			t.Error("a request for new keys was not answered")
		}
	}
}

// countingConn counts what is written.
type countingConn struct {
	net.Conn
	writes, bytes int
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes, c.bytes = c.writes+1, c.bytes+len(p)
	return c.Conn.Write(p)
}

// TestKeysAge: a sender changes its keys after two minutes, with what it has to send anyway, and not while it has nothing.
func TestKeysAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		wire := &countingConn{Conn: x}
		var a, b *Conn
		both(t, func() (err error) { a, err = Client(t.Context(), wire, clientConfig()); return },
			func() (err error) { b, err = Server(t.Context(), y, serverConfig(), Steps{}); return })
		defer x.Close()
		defer y.Close()
		*wire = countingConn{Conn: x}
		say := func() (changed bool) {
			t.Helper()
			old := a.write.secret
			both(t, func() error { _, err := a.Write([]byte("x")); return err }, func() error {
				_, err := io.ReadFull(b, make([]byte, 1))
				return err
			})
			if !bytes.Equal(a.write.secret, b.read.secret) {
				t.Fatal("the ends have different keys")
			}
			return !bytes.Equal(a.write.secret, old)
		}
		changes, says := 0, 0
		for begin := time.Now(); time.Since(begin) < time.Hour; time.Sleep(7 * time.Second) {
			says++
			if say() {
				changes++
			}
		}
		if most := int(time.Hour / rekeyEvery); changes > most || changes < most-2 {
			t.Errorf("%d changes in an hour, want about %d", changes, most)
		}
		if wire.writes != says || wire.bytes > says*(Overhead+1)+changes*(Overhead+5) {
			t.Errorf("%d writes of %d bytes for %d and %d changes", wire.writes, wire.bytes, says, changes)
		}
		before := wire.writes
		time.Sleep(24 * time.Hour)
		if wire.writes != before {
			t.Errorf("%d writes while there was nothing to say", wire.writes-before)
		}
		if !say() || say() {
			t.Error("behind a long silence the first record changes the keys, and the second does not")
		}
	})
}

// TestBatches: Records takes many records at once, Send keeps what the socket does not take, and nothing is lost or moved.
func TestBatches(t *testing.T) {
	a, b := pair(t)
	want := make([]byte, 8<<20)
	rand.Read(want)
	var left bool
	full := make(chan struct{}) // the socket is, or everything was written
	both(t, func() error {
		defer func() {
			if !left {
				close(full)
			}
		}()
		for rest := want; len(rest) > 0; {
			n := min(Batch, len(rest))
			p := append(make([]byte, 0, n+1), rest[:n]...)
			done, err := a.Send([][]byte{p}, false)
			for !done && err == nil {
				if !left {
					left = true
					close(full)
				}
				done, err = a.Send(nil, true)
			}
			if err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	}, func() error {
		<-full
		got := make([]byte, 0, len(want)+Batch)
		for len(got) < len(want) {
			if err := b.Wait(); err != nil {
				return err
			}
			n, err := b.Records(got[len(got):min(len(got)+Batch, cap(got))])
			if err != nil {
				return err
			}
			got = got[:len(got)+n]
		}
		if !bytes.Equal(got, want) {
			t.Error("other bytes arrived")
		}
		return nil
	})
	if !left {
		t.Error("the socket took everything at once: this tests nothing")
	}
	if a.out != nil {
		t.Error("an idle connection holds a buffer")
	}
}

// TestBadRecords: whatever is not a record of data ends the connection, and says why.
func TestBadRecords(t *testing.T) {
	p := make([]byte, Batch)
	for name, tc := range map[string]struct {
		send func(c *Conn, send func(contentType, []byte))
		want string
	}{
		"unknown type":      {func(_ *Conn, send func(contentType, []byte)) { send(99, []byte("x")) }, "unexpected"},
		"handshake message": {func(_ *Conn, send func(contentType, []byte)) { send(typeHandshake, []byte{4, 0, 0, 1, 0}) }, "unexpected"},
		"long key update":   {func(_ *Conn, send func(contentType, []byte)) { send(typeHandshake, []byte{keyUpdate, 0, 0, 2, 0, 0}) }, "unexpected"},
		"key update of 2":   {func(_ *Conn, send func(contentType, []byte)) { send(typeHandshake, []byte{keyUpdate, 0, 0, 1, 2}) }, "unexpected"},
		"alert":             {func(_ *Conn, send func(contentType, []byte)) { send(typeAlert, []byte{2, 20}) }, "bad record MAC"},
		"half an alert":     {func(_ *Conn, send func(contentType, []byte)) { send(typeAlert, []byte{2}) }, "unexpected"},
		"only padding":      {func(_ *Conn, send func(contentType, []byte)) { send(0, make([]byte, 9)) }, "content type"},
		"empty records for ever": {func(_ *Conn, send func(contentType, []byte)) {
			for range 20 {
				send(typeData, nil)
			}
		}, "without content"},
		"not TLS":     {func(c *Conn, _ func(contentType, []byte)) { c.Conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }, "no TLS record"},
		"plain alert": {func(c *Conn, _ func(contentType, []byte)) { c.Conn.Write([]byte{21, 3, 3, 0, 2, 2, 20}) }, "no TLS record"},
		"too long":    {func(c *Conn, _ func(contentType, []byte)) { c.Conn.Write([]byte{23, 3, 3, 0xff, 0xff}) }, "no TLS record"},
		"too short":   {func(c *Conn, _ func(contentType, []byte)) { c.Conn.Write([]byte{23, 3, 3, 0, 16}) }, "no TLS record"},
		"foreign": {func(c *Conn, _ func(contentType, []byte)) {
			c.Conn.Write(append([]byte{23, 3, 3, 0, 40}, make([]byte, 40)...))
		}, "authenticate"},
		"cut in a header": {func(c *Conn, _ func(contentType, []byte)) { c.Conn.Write([]byte{23, 3}); c.Conn.Close() }, "unexpected EOF"},
		"cut in a record": {func(c *Conn, _ func(contentType, []byte)) { c.Conn.Write([]byte{23, 3, 3, 0, 40, 1}); c.Conn.Close() }, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			tc.send(a, func(typ contentType, content []byte) {
				a.Conn.Write(a.write.seal(nil, append(bytes.Clone(content), 0)[:len(content)], typ))
			})
			n, err := b.Read(p)
			if n != 0 || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Read = %d, %v; want 0 and an error with %q", n, err, tc.want)
			}
		})
	}
}

// TestRecordsDoesNotWait: its caller may hold something that others wait for.
func TestRecordsDoesNotWait(t *testing.T) {
	a, b := pair(t)
	msg := append(make([]byte, 0, 6), keyUpdate, 0, 0, 1, 0)
	a.Conn.Write(a.write.seal(nil, msg, typeHandshake))
	if err := a.write.next(); err != nil {
		t.Fatal(err)
	}
	if err := b.Wait(); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Records(make([]byte, Batch)); n != 0 || err != nil {
		t.Errorf("Records of a key update = %d, %v; want nothing, at once", n, err)
	}
	a.Write([]byte("x"))
	if n, err := b.Read(make([]byte, 9)); n != 1 || err != nil {
		t.Errorf("Read = %d, %v; want 1", n, err)
	}
}

// TestDamage: a bit that flips anywhere in a record, header included, is noticed.
func TestDamage(t *testing.T) {
	for i := range headerLen + 1 + 16 + 4 {
		a, b := pair(t)
		rec := a.write.seal(nil, []byte("data\x00")[:4], typeData)
		rec[i] ^= 0x10
		a.Conn.Write(rec)
		a.Conn.Close()
		n, err := b.Read(make([]byte, 100))
		if i == 1 || i == 2 { // legacy_record_version: ignored, RFC 8446 section 5.1; it is authenticated as the constant it must be
			if n != 4 {
				t.Errorf("byte %d changed: Read = %d, %v; want 4 bytes", i, n, err)
			}
			continue
		}
		if n != 0 || err == nil {
			t.Errorf("byte %d changed: Read = %d, %v; want an error", i, n, err)
		}
	}
}

// TestVectors: the record protection of RFC 8448 section 3, where the client's application data is 50 bytes that count up.
func TestVectors(t *testing.T) {
	secret, _ := hex.DecodeString("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
	want, _ := hex.DecodeString("1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4")
	var h half
	if err := h.use(suites[tls.TLS_AES_128_GCM_SHA256], secret); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 51)
	for i := range p {
		p[i] = byte(i)
	}
	if got := h.seal(nil, p[:50], typeData); !bytes.Equal(got, want) {
		t.Errorf("record = %x\n  want %x", got, want)
	}
	if p[50] != 50 {
		t.Error("the byte behind the plaintext changed")
	}
}

// TestSuites: each cipher suite of TLS 1.3 that crypto/tls may choose, also after new keys.
func TestSuites(t *testing.T) {
	for id, s := range suites {
		secret := make([]byte, s.hash().Size())
		rand.Read(secret)
		var a, b half
		if err := errors.Join(a.use(s, secret), b.use(s, secret)); err != nil {
			t.Fatal(err)
		}
		for i := range 600 {
			if i == 300 {
				if err := errors.Join(a.next(), b.next()); err != nil {
					t.Fatal(err)
				}
			}
			p := make([]byte, i+1)
			rec := a.seal(nil, p[:i], typeData)
			got, typ, err := b.open(make([]byte, 0, len(rec)), rec[headerLen:])
			if err != nil || typ != typeData || len(got) != i {
				t.Fatalf("%s, record %d: %d bytes of type %d, %v", tls.CipherSuiteName(id), i, len(got), typ, err)
			}
		}
	}
}

// FuzzRecords: no content of a record, under valid keys, does more than end the connection.
func FuzzRecords(f *testing.F) {
	f.Add(byte(typeData), []byte("data"))
	f.Add(byte(typeHandshake), []byte{keyUpdate, 0, 0, 1, 1})
	f.Add(byte(typeHandshake), []byte{keyUpdate, 0, 0, 1, 0})
	f.Add(byte(typeAlert), []byte{1, 0})
	f.Add(byte(0), []byte{})
	f.Fuzz(func(t *testing.T, typ byte, content []byte) {
		if len(content) > MaxPlaintext {
			return
		}
		s := suites[tls.TLS_AES_128_GCM_SHA256]
		var w half
		var c Conn
		if err := errors.Join(w.use(s, make([]byte, 32)), c.read.use(s, make([]byte, 32)), c.write.use(s, make([]byte, 32))); err != nil {
			t.Fatal(err)
		}
		rec := w.seal(nil, append(bytes.Clone(content), 0)[:len(content)], typ)
		c.Conn = &oneShot{in: rec}
		n, err := c.Read(make([]byte, 1<<15))
		if n > len(content) {
			t.Fatalf("Read = %d, %v from %d bytes", n, err, len(content))
		}
	})
}

type oneShot struct {
	net.Conn
	in []byte
}

func (o *oneShot) Read(p []byte) (int, error) {
	n := copy(p, o.in)
	if o.in = o.in[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestSteadyStateAllocatesNothing: a record costs no memory at either end.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	a, b := pair(t)
	p := make([]byte, 1000, 1001)
	q := make([]byte, Batch)
	pieces := [][]byte{p}
	n := testing.AllocsPerRun(200, func() {
		if _, err := a.Send(pieces, true); err != nil {
			t.Fatal(err)
		}
		if err := b.Wait(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Records(q); err != nil {
			t.Fatal(err)
		}
	})
	if n > 0.5 {
		t.Errorf("%.1f allocations for a record", n)
	}
}

func BenchmarkBatch(b *testing.B) {
	s := suites[tls.TLS_AES_128_GCM_SHA256]
	var w, r half
	if err := errors.Join(w.use(s, make([]byte, 32)), r.use(s, make([]byte, 32))); err != nil {
		b.Fatal(err)
	}
	p, out, dst := make([]byte, MaxPlaintext+1), make([]byte, 0, 2*MaxPlaintext), make([]byte, 0, 2*MaxPlaintext)
	b.SetBytes(MaxPlaintext)
	b.ReportAllocs()
	for b.Loop() {
		rec := w.seal(out, p[:MaxPlaintext], typeData)
		if _, _, err := r.open(dst, rec[headerLen:]); err != nil {
			b.Fatal(err)
		}
	}
}

// TestReader holds Read to the rules of io.Reader, whatever the sizes of reads and records.
func TestReader(t *testing.T) {
	client, server := pair(t)
	want := make([]byte, 3*MaxPlaintext+77)
	rand.Read(want)
	both(t, func() error {
		for rest, n := want, 1; len(rest) > 0; n *= 3 {
			n = min(n, len(rest))
			if _, err := server.Write(rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
		}
		return server.Close()
	}, func() error { return iotest.TestReader(client, want) })
}

// TestDeadlines: a read that has nothing to read, and a write that nobody takes, end at their deadlines.
func TestDeadlines(t *testing.T) {
	client, _ := pair(t)
	var timeout net.Error
	client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := client.Read(make([]byte, 1)); n != 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("Read = %d, %v; want a timeout", n, err)
	}
	client.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	var err error
	for sent := 0; err == nil && sent < 1<<30; sent += 16 << 10 { // Wine can forget to end a large write
		_, err = client.Write(make([]byte, 16<<10))
	}
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("Write = %v, want a timeout", err)
	}
}

// TestStrangersCostLittle: the steps of a handshake are told in order, and a peer that is not proven yet holds little more memory than
// what it has sent, also of records that it never completes. Nothing that it has sent is lost when it is trusted.
func TestStrangersCostLittle(t *testing.T) {
	a, b := sockets(t)
	var steps []string
	var from, to *Conn
	both(t, func() (err error) { from, err = Client(context.Background(), a, clientConfig()); return },
		func() (err error) {
			to, err = Server(context.Background(), b, serverConfig(), Steps{
				Heard: func(hungUp func() bool) error {
					steps = append(steps, "heard")
					if hungUp() {
						t.Error("the peer is said to have hung up")
					}
					return nil
				},
				Waits: func() { steps = append(steps, "waits") },
			})
			return
		})
	steps = slices.Compact(steps)
	if want := []string{"waits", "heard", "waits"}; !slices.Equal(steps, want) {
		t.Errorf("the steps were %q, want %q", steps, want)
	}
	want := make([]byte, 3000)
	rand.Read(want)
	if _, err := from.Write(want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1000)
	if _, err := io.ReadFull(to, got[:500]); err != nil {
		t.Fatal(err)
	}
	held := cap(to.in)
	if to.room != nil || held > 8<<10 {
		t.Errorf("a stranger who sent 3 KB holds %d bytes, and a whole buffer: %t", held, to.room != nil)
	}
	to.Trust()
	got = slices.Concat(got[:500], make([]byte, 2500))
	if _, err := io.ReadFull(to, got[500:]); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was read before and behind Trust: %v, equal %t", err, bytes.Equal(got, want))
	}
	if _, err := from.Write(want); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was sent later: %v, equal %t", err, bytes.Equal(got, want))
	}
}

// TestStrangersAreBounded: a stranger may send no more than a handshake takes, in whatever records, and also in a record behind it. The
// handshake of an honest peer takes a quarter of it at most, and what is sent right behind it does not count.
func TestStrangersAreBounded(t *testing.T) {
	message := append([]byte{1, 0, 0xff, 0xf0}, make([]byte, 62<<10)...) // a ClientHello that does not end
	for _, size := range []int{1, 100, mostOfStranger / 2, mostOfStranger, MaxPlaintext} {
		var sent []byte
		for part := range slices.Chunk(message, size) {
			sent = append(append(sent, 22, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
		}
		a, b := net.Pipe()
		taken := make(chan int)
		go func() {
			n, _ := a.Write(sent)
			taken <- n
		}()
		_, err := Server(context.Background(), b, serverConfig(), Steps{})
		b.Close()
		n := <-taken
		if !errors.Is(err, ErrTooMuch) || n > 2*mostOfStranger {
			t.Errorf("in records of %d bytes: %v after %d bytes, want ErrTooMuch after about %d", size, err, n, mostOfStranger)
		}
		a.Close()
	}

	a, b := sockets(t)
	var honest counting
	cfg := clientConfig()
	cfg.ServerName = strings.Repeat(strings.Repeat("a", 62)+".", 4) + "b"
	honest.Conn = a
	tc := tls.Client(&honest, cfg)
	want := bytes.Repeat([]byte("behind it"), 4000)
	var to *Conn
	both(t, func() error {
		if err := tc.Handshake(); err != nil {
			return err
		}
		if honest.written > mostOfStranger/4 {
			t.Errorf("an honest handshake took %d bytes, a quarter of the limit is %d", honest.written, mostOfStranger/4)
		}
		for part := range slices.Chunk(want, 500) {
			if _, err := tc.Write(part); err != nil {
				return err
			}
		}
		return nil
	}, func() (err error) {
		if to, err = Server(context.Background(), b, serverConfig(), Steps{}); err != nil {
			return err
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(to, got[:500]); err != nil {
			return err
		}
		to.Trust()
		if _, err := io.ReadFull(to, got[500:]); err != nil || !bytes.Equal(got, want) {
			t.Errorf("what was sent behind the handshake: %v, equal %t", err, bytes.Equal(got, want))
		}
		return nil
	})

	a, b = sockets(t)
	cfg = clientConfig()
	cfg.DynamicRecordSizingDisabled = true
	tc = tls.Client(a, cfg)
	both(t, tc.Handshake, func() (err error) { to, err = Server(context.Background(), b, serverConfig(), Steps{}); return })
	if _, err := tc.Write(make([]byte, MaxPlaintext)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, to); !errors.Is(err, ErrTooMuch) {
		t.Errorf("a long record of a stranger: %v, want ErrTooMuch", err)
	}
}

// counting counts what is written.
type counting struct {
	net.Conn
	written int
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written += n
	return n, err
}

// TestHeardRefuses: nothing is computed for a peer that is refused.
func TestHeardRefuses(t *testing.T) {
	a, b := sockets(t)
	refusal := errors.New("not now")
	both(t, func() error {
		if _, err := Client(context.Background(), a, clientConfig()); err == nil {
			return errors.New("the client's handshake succeeded")
		}
		return nil
	}, func() error {
		_, err := Server(context.Background(), b, serverConfig(), Steps{Heard: func(func() bool) error { return refusal }})
		b.Close()
		if !errors.Is(err, refusal) {
			return fmt.Errorf("Server = %w, want %w", err, refusal)
		}
		return nil
	})
}

// TestReady: it takes what the socket has, whole record or not, and never waits.
func TestReady(t *testing.T) {
	a, b := sockets(t)
	slow := &byParts{Conn: a}
	var from, to *Conn
	both(t, func() (err error) { from, err = Client(context.Background(), slow, clientConfig()); return },
		func() (err error) { to, err = Server(context.Background(), b, serverConfig(), Steps{}); return })
	to.Trust()
	ready := func() bool {
		t.Helper()
		is, err := to.Ready()
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	if ready() {
		t.Error("a record is there before any was sent")
	}
	slow.hold = true
	if _, err := from.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	for len(to.in) < len(slow.first) { // until the part arrived
		if ready() {
			t.Fatal("half a record is one")
		}
	}
	slow.release()
	if err := to.Wait(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if !ready() {
		t.Error("the record that was waited for is not there")
	} else if n, err := to.Records(p); string(p[:n]) != "hello" || err != nil {
		t.Errorf("Records = %q, %v", p[:n], err)
	}
	if ready() {
		t.Error("the record is there twice")
	}
	a.Close()
	for {
		is, err := to.Ready()
		if is {
			t.Fatal("a record behind the end")
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("Ready at the end = %v, want EOF", err)
		}
	}
}

// byParts is a socket that holds the second half of each write back for a while.
type byParts struct {
	net.Conn
	hold        bool
	first, rest []byte
}

func (b *byParts) Write(p []byte) (int, error) {
	if !b.hold {
		return b.Conn.Write(p)
	}
	b.first, b.rest = bytes.Clone(p[:len(p)/2]), bytes.Clone(p[len(p)/2:])
	_, err := b.Conn.Write(b.first)
	return len(p), err
}

func (b *byParts) release() {
	b.hold = false
	b.Conn.Write(b.rest)
}

// interrupted is a socket that takes a few bytes of a write and then fails it, as one whose deadline passes does.
type interrupted struct {
	net.Conn
	takes int // -1: everything
}

func (i *interrupted) Write(p []byte) (int, error) {
	if i.takes < 0 {
		return i.Conn.Write(p)
	}
	n, _ := i.Conn.Write(p[:min(i.takes, len(p))])
	return n, os.ErrDeadlineExceeded
}

// TestSendGoesOnWhereAWriteStopped: what the socket did not take is sent by the next call, whether that brings more or not.
func TestSendGoesOnWhereAWriteStopped(t *testing.T) {
	a, b := sockets(t)
	slow := &interrupted{a, -1}
	var from, to *Conn
	both(t, func() (err error) { from, err = Client(context.Background(), slow, clientConfig()); return },
		func() (err error) { to, err = Server(context.Background(), b, serverConfig(), Steps{}); return })
	to.Trust()
	for _, takes := range []int{0, 1, headerLen, 30, 20_000} {
		want := make([]byte, 40_000)
		rand.Read(want)
		slow.takes = takes
		if done, err := from.Send([][]byte{append(bytes.Clone(want), 0)[:len(want)]}, true); done || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Send = %t, %v; want false and the deadline", done, err)
		}
		slow.takes = -1
		if done, err := from.Send(nil, true); !done || err != nil {
			t.Fatalf("Send of the rest = %t, %v; want true, nil", done, err)
		}
		got := make([]byte, len(want))
		to.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("with %d bytes taken at first: read %d bytes, %v; want %d equal ones", takes, n, err, len(want))
		}
	}
}

// TestAReadBufferIsGivenUp: what was read to its end refers to no buffer any more, however it was read. One that is held would
// cost each idle connection as much as a busy one.
func TestAReadBufferIsGivenUp(t *testing.T) {
	a, b := pair(t)
	for _, step := range []int{1, 7, 20, 100} {
		if _, err := a.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		var held []weak.Pointer[buffer]
		for n := 0; n < 100; {
			got, err := b.Read(make([]byte, min(step, 100-n)))
			if err != nil {
				t.Fatal(err)
			}
			n += got
			if b.room != nil {
				held = append(held, weak.Make(b.room))
			}
		}
		b.release()   // as the wait for the next record does
		for range 3 { // the pool forgets
			runtime.GC()
		}
		for _, w := range held {
			if w.Value() != nil {
				t.Errorf("read %d bytes at a time: the connection keeps a buffer", step)
				break
			}
		}
	}
}
