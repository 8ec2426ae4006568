//go:build unix

package sys

import (
	"errors"
	"syscall"
)

// PortTaken reports whether a port could not be opened because somebody else has it.
func PortTaken(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// PortRefused reports whether the system lets this user not open a port.
func PortRefused(err error) bool { return errors.Is(err, syscall.EACCES) }

// Forbidden reports whether a dial was forbidden by this machine itself, such as by its firewall.
func Forbidden(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES)
}

// NoRoute reports whether a dial never left this machine: it has no way there, or no address of that family.
func NoRoute(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// DiskFull reports whether a write failed for want of room.
func DiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
