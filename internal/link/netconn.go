package link

import (
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"reverser/internal/wire"
)

// What makes a net.Conn of a Stream that no relay has.

// Read implements net.Conn for a stream without a Receiver.
func (s *Stream) Read(p []byte) (int, error) {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, s.opError("read", net.ErrClosed)
		case s.rdl.passed():
			return 0, s.opError("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case s.frozen:
			s.change.Wait()
			continue
		}
		if c := s.recv.q.head; c != nil {
			n := copy(p, c.data()[s.recv.pos:c.n])
			s.consumedLocked(n)
			return n, nil
		}
		switch {
		case s.dead, s.recv.reset(), s.send.reset():
			return 0, s.opError("read", ErrReset)
		case s.recv.end == wire.FIN:
			return 0, io.EOF
		}
		s.change.Wait()
	}
}

// Quiet reports whether Read would wait: nothing has arrived, and the stream has not ended.
func (s *Stream) Quiet() bool {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	return s.recv.q.head == nil && s.recv.end == 0 && !s.closed && !s.dead && !s.send.reset()
}

// Write implements net.Conn.
func (s *Stream) Write(p []byte) (n int, err error) {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if len(p) == 0 { // needs no credit
		if err := s.sendError(); err != nil {
			return 0, s.opError("write", err)
		}
		return 0, nil
	}
	for s.writing {
		if err := s.sendError(); err != nil {
			return 0, s.opError("write", err)
		}
		s.change.Wait()
	}
	s.writing = true
	defer func() {
		s.writing = false
		s.change.Broadcast()
	}()
	for {
		room, err := s.roomLocked(true)
		if err != nil {
			return n, s.opError("write", err)
		}
		k := min(room, len(p)-n)
		if k > 0 && !s.send.dropped && !s.forgotten {
			s.send.q.write(p[n : n+k])
			s.slot.core.touch(&s.streamCore)
			s.slot.wake()
		}
		if n += k; n == len(p) {
			return n, nil
		}
	}
}

// Close ends the stream as a socket's close does: FIN when everything that arrived was read, RST otherwise; what arrives
// later is answered with RST.
func (s *Stream) Close() error {
	s.slot.mu.Lock()
	if s.closed {
		s.slot.mu.Unlock()
		return nil
	}
	s.streamCore.close()
	kind := wire.FIN
	if s.recv.q.head != nil && !s.recv.discard {
		kind = wire.RST
	}
	s.slot.mu.Unlock()
	s.end(kind, wire.CodeAborted)
	if kind == wire.FIN {
		s.Discard()
	}
	return nil
}

func (s *Stream) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "stream", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}

// LocalAddr is the public address that the user reached.
func (s *Stream) LocalAddr() net.Addr { return addr(s.open.Local) }

// RemoteAddr is the user's address.
func (s *Stream) RemoteAddr() net.Addr { return addr(s.open.Client) }

func addr(a netip.AddrPort) net.Addr {
	if !a.IsValid() {
		return &net.TCPAddr{}
	}
	return net.TCPAddrFromAddrPort(a)
}

// deadline is one direction's deadline. A nil one never passes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return d != nil && !d.at.IsZero() && !time.Now().Before(d.at) }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.setDeadline(&s.rdl, t) }

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(&s.wdl, t) }

func (s *Stream) setDeadline(d **deadline, t time.Time) error {
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if *d != nil {
		(*d).timer.Stop()
	}
	*d = nil
	if !t.IsZero() {
		*d = &deadline{t, time.AfterFunc(time.Until(t), func() {
			s.slot.mu.Lock()
			s.change.Broadcast()
			s.slot.mu.Unlock()
		})}
	}
	s.change.Broadcast()
	return nil
}
