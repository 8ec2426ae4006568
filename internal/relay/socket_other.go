//go:build !unix && !windows

package relay

import "net"

// Here a socket cannot be read or written without waiting: reading holds a buffer, and all writing is the drain goroutine's.
func (s *socket) init(conn net.Conn) { s.conn = conn }

func (s *socket) read(limit int) (int, error) { return s.blockingRead(limit) }

// tryRead reads nothing: no poller could say when to.
func (s *socket) tryRead(int) (int, error) { return 0, errNothing }

func (s *socket) tryWrite([][]byte) (int, error) { return 0, nil }

// queued cannot be asked for; a reset may overtake the last bytes here.
func (s *socket) queued() int { return 0 }

// unsent cannot be asked for either.
func (s *socket) unsent() int { return 0 }

// gone cannot be asked for; a dead socket is noticed when it is read or written.
func (s *socket) gone() bool { return false }

// hungUp cannot be asked for.
func (s *socket) hungUp() bool { return false }
