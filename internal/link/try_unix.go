//go:build unix

package link

import (
	"io"

	"golang.org/x/sys/unix"

	"reverser/internal/rawio"
)

const canTry = true

// tryWrite is called at once by batchConn.write, and never asks to wait.
func (b *batchConn) tryWrite(fd uintptr) bool {
	n, err := rawio.Write(int(fd), [][]byte{b.out[b.done:]})
	b.done += n
	if err != unix.EAGAIN {
		b.tryErr = err
	}
	return true
}

// tryRead is called when the socket may be readable; false: it was not, wait.
func (b *batchConn) tryRead(fd uintptr) bool {
	n, err := rawio.Read(int(fd), [][]byte{b.room})
	switch {
	case err == unix.EAGAIN:
		return false
	case err == nil && n == 0:
		err = io.EOF
	}
	b.got, b.readErr = n, err
	return true
}
