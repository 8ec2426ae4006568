//go:build unix && !linux && !darwin && !dragonfly && !freebsd

package access

import "os"

// isOpenReadOnly and isReadOnly cannot tell on this system: no mount counts as read-only.
func isOpenReadOnly(*os.File) bool { return false }
func isReadOnly(string) bool       { return false }
