//go:build !windows

package accesslog

import "os"

// openToAppend opens a file, which others may give another name meanwhile.
func openToAppend(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, fileMode)
}
