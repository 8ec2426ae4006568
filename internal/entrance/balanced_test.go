package entrance

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"reverser/internal/link"
	"reverser/internal/proxyproto"
	"reverser/internal/sys"
)

// connection returns both ends of a TCP connection.
func connection(t *testing.T) (far, near *net.TCPConn) {
	t.Helper()
	ln, err := sys.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

var someone = proxyproto.Header{Client: netip.MustParseAddrPort("192.0.2.1:12345"), Local: netip.MustParseAddrPort("198.51.100.2:443")}

// TestReadHeader: the connection has the addresses of its header, and is the same TCP connection in everything else.
func TestReadHeader(t *testing.T) {
	for version := 1; version <= 2; version++ {
		far, near := connection(t)
		far.Write(append(proxyproto.Append(nil, version, someone), "PROXY and more"...))
		far.CloseWrite()
		user, _, err := ReadHeader(near)
		if err != nil {
			t.Fatal(err)
		}
		if user.RemoteAddr().String() != "192.0.2.1:12345" || user.LocalAddr().String() != "198.51.100.2:443" || Client(user) != someone.Client {
			t.Errorf("version %d: the addresses are %v, %v, %v", version, user.RemoteAddr(), user.LocalAddr(), Client(user))
		}
		if rest, err := io.ReadAll(user); string(rest) != "PROXY and more" || err != nil {
			t.Errorf("version %d: behind the header comes %q, %v", version, rest, err)
		}
		if _, over := Checked(user, time.Minute); over {
			t.Error("a user who is finished is taken for a check")
		}
		for what, is := range map[string]bool{
			"syscall.Conn": is[syscall.Conn](user), "SetLinger": is[interface{ SetLinger(int) error }](user), "CloseWrite": is[interface{ CloseWrite() error }](user),
		} {
			if !is {
				t.Errorf("the connection has no %s", what)
			}
		}
	}
	_, near := connection(t)
	if want := near.RemoteAddr().(*net.TCPAddr).AddrPort(); Client(near) != want {
		t.Errorf("without a header the client is %v, want %v", Client(near), want)
	}
}

func is[T any](v any) bool {
	_, ok := v.(T)
	return ok
}

// TestReadHeaderOfNobody: a balancer's own connection has its own addresses, and no client.
func TestReadHeaderOfNobody(t *testing.T) {
	for i := range 3 {
		far, near := connection(t)
		header := proxyproto.Append(nil, 1+i%2, proxyproto.Header{})
		if i == 2 { // the sender names itself
			header = proxyproto.Append(nil, 1, proxyproto.Header{Client: near.RemoteAddr().(*net.TCPAddr).AddrPort(), Local: near.LocalAddr().(*net.TCPAddr).AddrPort()})
		}
		far.Write(header)
		own, _, err := ReadHeader(near)
		if err != nil {
			t.Fatal(err)
		}
		ofNobody(t, far, own)
	}
}

func ofNobody(t *testing.T, far *net.TCPConn, own net.Conn) {
	if own.RemoteAddr().String() != far.LocalAddr().String() || own.LocalAddr().String() != far.RemoteAddr().String() || Client(own).IsValid() || Client(Again(own, nil)).IsValid() {
		t.Errorf("the addresses are %v, %v, %v", own.RemoteAddr(), own.LocalAddr(), Client(own))
	}
	far.Write([]byte("PING"))
	if read, over := Checked(own, time.Minute); string(read) != "PING" || over {
		t.Errorf("Checked = %q, %v; want what it said", read, over)
	}
	if read, over := Checked(own, 20*time.Millisecond); len(read) != 0 || over {
		t.Errorf("Checked of one that waits = %q, %v", read, over)
	}
	if far.SetLinger(0) != nil || far.Close() != nil {
		t.Fatal("cannot reset")
	}
	if _, over := Checked(own, time.Minute); !over {
		t.Error("a check that was reset is not over")
	}
}

func TestReadHeaderRefuses(t *testing.T) {
	far, near := connection(t)
	if _, read, err := readHeaderIn(near, 20*time.Millisecond); !errors.Is(err, ErrNoHeader) || !strings.Contains(err.Error(), "within 20ms") || len(read) != 0 {
		t.Errorf("of one that says nothing: %q, %v", read, err)
	}
	for within := 20 * time.Millisecond; ; within *= 4 { // on a busy machine the time may be over before all is read
		far.Write([]byte("PROXY TCP4 "))
		_, read, err := readHeaderIn(near, within)
		if errors.Is(err, ErrNoHeader) && string(read) == "PROXY TCP4 " {
			break
		}
		if !errors.Is(err, ErrNoHeader) || within > time.Minute {
			t.Fatalf("of one that stops in its midst: %q, %v", read, err)
		}
		far, near = connection(t)
	}
	far.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if _, read, err := ReadHeader(near); !errors.Is(err, ErrNoHeader) || !strings.HasPrefix("GET / HTTP/1.1\r\n\r\n", string(read)) {
		t.Errorf("of one that speaks HTTP: %q, %v", read, err)
	}
	far, near = connection(t)
	far.Close()
	if _, _, err := ReadHeader(near); err == nil || errors.Is(err, ErrNoHeader) {
		t.Errorf("of one that has gone: %v", err)
	}
}

// TestAnswerBegun: a bridge that shows its nonce where a header is required is answered, and nobody else is.
func TestAnswerBegun(t *testing.T) {
	var p Probes
	nonce := p.Expect(false)
	far, near := connection(t)
	far.Write([]byte("nothing of the sort"))
	_, read, err := ReadHeader(near)
	if p.AnswerBegun(near, read) || !errors.Is(err, ErrNoHeader) {
		t.Errorf("%q passes for a probe, %v", read, err)
	}
	far, near = connection(t)
	question := link.ProbeQuestion(nonce)
	far.Write(question[:])
	if _, read, err = ReadHeader(near); !errors.Is(err, ErrNoHeader) {
		t.Fatal(err)
	}
	done := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(far)
		far.Close()
		done <- b
	}()
	if !p.AnswerBegun(near, read) {
		t.Error("a probe is not answered")
	}
	if got, want := <-done, link.ProbeAnswer(nonce); string(got) != string(want[:]) {
		t.Errorf("the answer is %x", got)
	}
	if p.AnswerBegun(near, read) {
		t.Error("a nonce is answered twice")
	}
}

// FuzzReadHeader: whatever comes, and however it is cut, no byte behind a header is read.
func FuzzReadHeader(f *testing.F) {
	for version := 1; version <= 2; version++ {
		f.Add(proxyproto.Append(nil, version, someone), uint8(1))
		f.Add(proxyproto.Append(nil, version, proxyproto.Header{}), uint8(7))
	}
	f.Add([]byte("PROXY TCP4 192.0.2.1"), uint8(3))
	f.Fuzz(func(t *testing.T, sent []byte, size uint8) {
		const behind = "what the user says"
		r := &pieces{[]byte(string(sent) + behind), int(size)%64 + 1}
		h, read, err := readHeader(r)
		if got := string(read) + string(r.left); got != string(sent)+behind {
			t.Fatalf("of %q, %q was read and %q is left", sent, read, r.left)
		}
		whole, more, again := proxyproto.Parse(read)
		if err == nil && (whole != h || more != 0 || again != nil) {
			t.Fatalf("%q was read as %v, and is %v, %d more, %v", read, h, whole, more, again)
		}
		if err != nil && !errors.Is(err, ErrNoHeader) && err != io.EOF {
			t.Fatal(err)
		}
	})
}

// pieces gives what is left in pieces.
type pieces struct {
	left []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.left)
	p.left = p.left[n:]
	return n, nil
}
