//go:build !linux

package link

import "net"

// The options that tune_linux.go sets are Linux's.

func tune(net.Conn) {}

func limitUnsent(net.Conn, int) {}
