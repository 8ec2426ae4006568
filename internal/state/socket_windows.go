package state

import (
	"errors"
	"io/fs"
	"net"

	"golang.org/x/sys/windows"
)

// listenPrivate relies on the directory: a socket file inherits its ACL.
func listenPrivate(path string) (net.Listener, error) { return net.Listen("unix", path) }

func isNobodyThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || isNotDir(err) ||
		errors.Is(err, windows.WSAECONNREFUSED) || errors.Is(err, windows.WSAENETUNREACH) ||
		// Connecting to a missing socket file.
		errors.Is(err, windows.WSAEINVAL) || errors.Is(err, windows.ERROR_FILE_NOT_FOUND)
}

func isNotDir(err error) bool { return errors.Is(err, windows.ERROR_DIRECTORY) }
