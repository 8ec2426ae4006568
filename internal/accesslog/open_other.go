//go:build !windows

package accesslog

import (
	"os"

	"golang.org/x/sys/unix"
)

// openToAppend opens a file, which others may give another name meanwhile.
func openToAppend(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, fileMode)
}

// mayMake reports why this process may not make files in a directory.
func mayMake(dir string) error {
	return unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
}
