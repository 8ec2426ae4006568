package entrance

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// helloOf is what a client of crypto/tls sends first.
func helloOf(t *testing.T, cfg *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		tls.Client(a, cfg).Handshake() // ends with the pipe
		a.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// inRecords divides a handshake message of one record into records of at most n bytes.
func inRecords(hello []byte, n int) (all []byte) {
	for part := range slices.Chunk(hello[5:], n) {
		all = append(all, 22, 3, 1, byte(len(part)>>8), byte(len(part)))
		all = append(all, part...)
	}
	return all
}

func readHello(t *testing.T, sent []byte, behind string) (*Hello, error, string) {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		client.Write(append(slices.Clone(sent), behind...))
		client.Close()
	}()
	h, err := new(Hellos).Read(server)
	var rest []byte
	if err == nil {
		rest, _ = io.ReadAll(server)
	}
	server.Close()
	<-done
	return h, err, string(rest)
}

// TestReadHello: the name is found however the hello is divided, and no byte is lost: what was read and what follows are what was sent.
func TestReadHello(t *testing.T) {
	plain := helloOf(t, &tls.Config{ServerName: "App.Example.COM", NextProtos: []string{"h2", "http/1.1"}})
	for what, sent := range map[string][]byte{
		"one record": plain, "records of 100 bytes": inRecords(plain, 100), "records of 1 byte": inRecords(plain, 1),
	} {
		h, err, rest := readHello(t, sent, "and more")
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if !strings.EqualFold(h.Name, "app.example.com") || !slices.Equal(h.ALPN, []string{"h2", "http/1.1"}) {
			t.Errorf("%s: name %q, ALPN %q", what, h.Name, h.ALPN)
		}
		if got := string(h.Read) + rest; got != string(sent)+"and more" {
			t.Errorf("%s: %d bytes are there of %d", what, len(got), len(sent)+8)
		}
	}
	if h, err, _ := readHello(t, helloOf(t, &tls.Config{InsecureSkipVerify: true}), ""); err != nil || h.Name != "" {
		t.Errorf("without a name: %+v, %v", h, err)
	}
	long := helloOf(t, &tls.Config{ServerName: "a.example", NextProtos: slices.Repeat([]string{strings.Repeat("p", 250)}, 50)})
	if h, err, _ := readHello(t, long, ""); err != nil || h.Name != "a.example" || len(h.Read) != len(long) {
		t.Errorf("a hello of %d bytes: %v", len(long), err)
	}
}

// TestReadHelloRefuses: what is no hello is told from a connection that failed, and ends in bounded memory.
func TestReadHelloRefuses(t *testing.T) {
	hello := helloOf(t, &tls.Config{ServerName: "a.example"})
	endless := bytes.Repeat([]byte{22, 3, 1, 0, 1, 1}, mostHello) // a message that grows a byte a record
	for what, sent := range map[string][]byte{
		"HTTP":               []byte("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"),
		"zeros":              make([]byte, 600),
		"an alert":           {21, 3, 3, 0, 2, 2, 40},
		"application data":   {23, 3, 3, 0, 2, 2, 40},
		"a ServerHello":      append([]byte{22, 3, 3, 0, 4, 2, 0, 0, 0}, hello...),
		"a record too long":  append([]byte{22, 3, 1, 0xff, 0xff}, make([]byte, 70_000)...),
		"a message too long": {22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff},
		"no end":             endless,

		"a message longer than here": {22, 3, 1, 0, 4, 1, 0, 0xff, 0xf0},
		"a name of wrong bytes":      bytes.Replace(hello, []byte("a.example"), []byte("a.exampl."), 1),
	} {
		_, err, _ := readHello(t, sent, "")
		if !errors.Is(err, ErrNoHello) {
			t.Errorf("%s: %v, want ErrNoHello", what, err)
		}
		if what == "a message longer than here" && !strings.Contains(err.Error(), "in the first 16 KiB") {
			t.Errorf("%s is told as %v", what, err)
		}
	}
	for cut := range hello {
		if _, err, _ := readHello(t, hello[:cut], ""); err == nil || errors.Is(err, ErrNoHello) {
			t.Fatalf("cut off after %d of %d bytes: %v, want the connection's error", cut, len(hello), err)
		}
	}
}

// TestLongHellos: a client holds no more than it is given for a hello that does not end, and all of those that are long together no more than
// theirs. Who finds it taken is refused. Short ones come in, and long ones when others are done.
func TestLongHellos(t *testing.T) {
	var hs Hellos
	var crowded []error // hs.Read ends before it is read
	hs.Crowded = func(why error) { crowded = append(crowded, why) }
	// One address may have half of the rest.
	rest := hs.pool()
	for other := netip.MustParseAddr("192.0.2.1"); rest.Taken().Used < mostLong-4*mostHello; {
		if !rest.Take(other, mostHello) {
			other = other.Next()
		}
	}
	before := rest.Taken().Used
	short := helloOf(t, &tls.Config{ServerName: "a.example"})
	long := helloOf(t, &tls.Config{ServerName: "a.example", NextProtos: slices.Repeat([]string{strings.Repeat("p", 250)}, 50)})
	read := func(sent []byte) (net.Conn, <-chan error, **Hello) {
		client, server := net.Pipe()
		t.Cleanup(func() { client.Close(); server.Close() })
		done, got := make(chan error, 1), new(*Hello)
		go func() {
			var err error
			*got, err = hs.Read(server)
			server.Close()
			done <- err
		}()
		client.Write(sent)
		return client, done, got
	}
	half, halfDone, _ := read(long[:len(long)-1])
	if n := hs.Taken().Used - before; n != mostHello {
		t.Errorf("half a long hello took %d bytes", n)
	}
	_, done, whole := read(long)
	if err := <-done; err != nil || cap((*whole).Read) > mostHello {
		t.Fatalf("a long hello: %v", err)
	}
	_, done, _ = read(long)
	if err := <-done; !errors.Is(err, ErrNoRoom) {
		t.Errorf("a long hello when all is taken: %v, want ErrNoRoom", err)
	}
	if used := hs.Taken().Used - before; used != 2*mostHello || len(crowded) != 1 || crowded[0] != ErrNoRoom {
		t.Errorf("%d bytes are taken, and it was told %v", used, crowded)
	}
	_, done, _ = read(short)
	if err := <-done; err != nil {
		t.Errorf("a short hello when all is taken: %v", err)
	}
	half.Close()
	if err := <-halfDone; err == nil {
		t.Error("half a hello is one")
	}
	_, done, third := read(long)
	if err := <-done; err != nil {
		t.Errorf("a long hello when another one has gone: %v", err)
	}
	for _, h := range []*Hello{*whole, *third} {
		h.Done()
		h.Done()
	}
	if n := hs.Taken().Used - before; n != 0 {
		t.Errorf("%d bytes are taken when all are done", n)
	}
}

// TestReadHelloDeadline: a client that is slow, a byte now and then, has as long as one that is silent.
func TestReadHelloDeadline(t *testing.T) {
	hello := helloOf(t, &tls.Config{ServerName: "a.example"})
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer server.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range hello {
				if _, err := client.Write(hello[i : i+1]); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		begin := time.Now()
		_, err := new(Hellos).Read(server)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != HelloTime {
			t.Errorf("%v after %s, want the deadline after %s", err, time.Since(begin), HelloTime)
		}
		client.Close()
		<-done
	})
}

// FuzzReadHello: no input makes a panic, and what was read is a part of what was sent.
func FuzzReadHello(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		if h, err, _ := readHello(t, sent, ""); err == nil && !bytes.HasPrefix(sent, h.Read) {
			t.Errorf("%d bytes were read that were not sent", len(h.Read))
		}
	})
}
