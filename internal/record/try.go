package record

import (
	"io"

	"reverser/internal/sys"
)

// tryWrite is called at once by Send, and never asks to wait.
func (c *Conn) tryWrite(fd uintptr) bool {
	n, err := sys.Write(int(fd), [][]byte{c.out[c.done:]})
	c.done += n
	if !sys.WouldBlock(err) {
		c.tryErr = err
	}
	return true
}

func hungUp(fd uintptr) bool { return sys.HungUp(int(fd)) }

// tryRead is called when the socket may be readable. It reports whether it was; if not, the caller waits.
func (c *Conn) tryRead(fd uintptr) bool {
	n, err := sys.Read(int(fd), [][]byte{c.space()})
	switch {
	case sys.WouldBlock(err):
		c.release()
		return false
	case err == nil && n == 0:
		err = io.EOF
	}
	c.got, c.readErr = n, err
	return true
}

// readNow is tryRead where nobody waits.
func (c *Conn) readNow(fd uintptr) { c.tryRead(fd) }
