package web

import (
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"

	"reverser/internal/grammar"
)

// TestStoppedBeforeItBegan: a server that is stopped before it was started takes nobody, and ends.
func TestStoppedBeforeItBegan(t *testing.T) {
	var s Server
	s.Drain()
	s.Start()
	near, far := net.Pipe()
	s.Serve(near)
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection to a server that was stopped: %v; want it closed", err)
	}
	s.Close()
}

// TestStoppedUnderAnAnswer: an answer that a stop cuts short does not look complete, though it has no length; a client without a request has
// an orderly end.
func TestStoppedUnderAnAnswer(t *testing.T) {
	for range 5 {
		w := newWorld(t)
		w.site("a", w.target(func(rw http.ResponseWriter, r *http.Request) {
			io.WriteString(rw, "the first half ")
			rw.(http.Flusher).Flush()
			<-r.Context().Done()
		}), grammar.ProxyOptions{})
		idle, u := w.user(), w.user()
		idle.ask("GET / HTTP/1.1\r\nHost: none\r\n\r\n")
		io.WriteString(u, "GET / HTTP/1.0\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(u.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 15)); err != nil {
			t.Fatal(err)
		}
		w.s.Close()
		if rest, err := io.ReadAll(resp.Body); err == nil && runtime.GOOS != "windows" { // where a reader may be told that nothing more comes
			t.Errorf("the answer ends with %q, and looks complete", rest)
		}
		if rest, err := io.ReadAll(idle.r); err != nil || len(rest) > 0 {
			t.Errorf("a client without a request read %q, %v; want an end", rest, err)
		}
	}
}
