//go:build !linux

package link

import "net"

// tune has nothing to set here: the options are Linux's.
func tune(net.Conn) {}
