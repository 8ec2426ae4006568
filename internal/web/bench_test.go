package web

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"reverser/internal/grammar"
)

// canned is a target that answers each request, which is one write, at once.
type canned struct {
	net.Conn
	answers chan struct{}
	answer  string
}

func (c *canned) Write(b []byte) (int, error) {
	c.answers <- struct{}{}
	return len(b), nil
}

func (c *canned) Read(b []byte) (int, error) {
	<-c.answers
	return copy(b, c.answer), nil
}

func (c *canned) Close() error { return nil }

// BenchmarkRequest is what a small request of a client that is there already costs this package and net/http, without any network.
func BenchmarkRequest(b *testing.B) {
	options := &grammar.ProxyOptions{}
	site := &Site{Name: "http/a", Options: func() *grammar.ProxyOptions { return options }}
	site.Enter = func(*Visit) (func(error), func(uint64, uint64), error) {
		return func(error) {}, func(uint64, uint64) {}, nil
	}
	site.Dial = func(context.Context, Call, func()) (*Upstream, error) {
		const answer = "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sun, 29 Nov 2026 12:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 12\r\nConnection: keep-alive\r\n\r\nhello world\n"
		return &Upstream{Conn: &canned{answers: make(chan struct{}, 1), answer: answer}}, nil
	}
	var s Server
	s.Find = func(bool, string, string) *Site { return site }
	s.Start()
	near, far := net.Pipe()
	s.Serve(s.NewClient(withAddress{near}, nil, nil))
	r := bufio.NewReader(far)
	b.ReportAllocs()
	for b.Loop() {
		io.WriteString(far, "GET / HTTP/1.1\r\nHost: app.example\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
	}
	far.Close()
	s.Close()
	site.Close()
}

// withAddress is a connection from an address.
type withAddress struct{ net.Conn }

func (withAddress) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }
