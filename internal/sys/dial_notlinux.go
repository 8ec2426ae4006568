//go:build !linux

package sys

import "net"

// inheritKeepAlive leaves it to net to set the options of each connection.
func inheritKeepAlive(*net.ListenConfig) {}

// dialLocal leaves it to net.
func dialLocal(_, _ string) (net.Conn, error) { return nil, nil }
