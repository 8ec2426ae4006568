//go:build !darwin && !freebsd && !linux && !windows

package sys

import "errors"

// DiskOf returns an error: this system is not asked.
func DiskOf(string) (Disk, error) { return Disk{}, errors.ErrUnsupported }
