//go:build unix

package state

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// listenPrivate binds with a mask, so that there is no moment in which others
// could connect, and sets the mode for systems that ignore the mask.
func listenPrivate(path string) (net.Listener, error) {
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func isNobodyThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || isNotDir(err)
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
