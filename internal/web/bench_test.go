package web

import (
	"bytes"
	"context"
	"io"
	"net"
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

// BenchmarkRequest is what a small request of a client that is there already costs this package and net/http: a simple one, over loopback, and
// one that is net/http's.
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
	defer site.Close()
	defer s.Close()
	for name, request := range map[string]string{
		"simple":   "GET / HTTP/1.1\r\nHost: app.example\r\n\r\n",
		"net-http": "OPTIONS / HTTP/1.1\r\nHost: app.example\r\n\r\n",
	} {
		b.Run(name, func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer ln.Close()
			go func() {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				s.Serve(s.NewClient(conn, nil, nil))
			}()
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			answer := make([]byte, 1024)
			b.ReportAllocs()
			for b.Loop() {
				io.WriteString(conn, request)
				if n, err := conn.Read(answer); err != nil || !bytes.HasSuffix(answer[:n], []byte("hello world\n")) {
					b.Fatalf("%q, %v", answer[:n], err)
				}
			}
		})
	}
}

// withAddress is a connection from an address.
type withAddress struct{ net.Conn }

func (withAddress) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }
