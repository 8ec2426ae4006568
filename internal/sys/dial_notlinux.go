//go:build !linux

package sys

import "net"

// inheritKeepAlive leaves it to net to set the options of each connection.
func inheritKeepAlive(*net.ListenConfig) {}

// dialLocal leaves it to net.
func dialLocal(_, _ string) (net.Conn, error) { return nil, nil }

// bindNoPort is not needed here, or not there.
func bindNoPort(uintptr) {}

// portsHint is what helps where no local port is free.
const portsHint = "widen the system's range of ephemeral ports, or give the bridge more addresses with --source"
