//go:build !linux && !darwin

package sys

import "syscall"

// maxSegment does nothing: this system has no such option.
func maxSegment(int) func(network, addr string, c syscall.RawConn) error { return nil }

// maxSegmentConnected does nothing, for the same reason.
func maxSegmentConnected(int, int) {}
