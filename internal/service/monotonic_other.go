//go:build !linux

package service

import "time"

// monotonic has no use where there is no systemd.
func monotonic() time.Duration { return 0 }
