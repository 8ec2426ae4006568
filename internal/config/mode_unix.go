//go:build unix

package config

import (
	"fmt"
	"io/fs"
)

// looseMode refuses a file that its group or the world can read or write.
func looseMode(mode fs.FileMode) error {
	if mode.Perm()&0o066 == 0 {
		return nil
	}
	return fmt.Errorf("%w (mode %04o)", errOpen, mode.Perm())
}
