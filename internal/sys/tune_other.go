//go:build !linux

package sys

import "net"

// The options that tune_linux.go sets are Linux's.

// TuneLink would set a link's socket up. It does nothing here.
func TuneLink(net.Conn, int) {}

// LimitUnsent would bound what waits unsent in the kernel. It does nothing here.
func LimitUnsent(net.Conn, int) {}
