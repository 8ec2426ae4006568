package web

import (
	"io"
	"net"
	"testing"
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
