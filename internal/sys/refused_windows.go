package sys

import (
	"errors"

	"golang.org/x/sys/windows"
)

// PortTaken reports whether a port could not be opened because somebody else has it.
func PortTaken(err error) bool { return errors.Is(err, windows.WSAEADDRINUSE) }

// PortRefused reports whether the system lets this user not open a port. That is also what a port that Hyper-V or another has reserved
// gives.
func PortRefused(err error) bool { return errors.Is(err, windows.WSAEACCES) }

// Forbidden reports whether a dial was forbidden by this machine itself, such as by its firewall.
func Forbidden(err error) bool { return errors.Is(err, windows.WSAEACCES) }

// NoRoute reports whether a dial never left this machine: it has no way there, or no address of that family.
func NoRoute(err error) bool {
	return errors.Is(err, windows.WSAENETUNREACH) || errors.Is(err, windows.WSAEAFNOSUPPORT) || errors.Is(err, windows.WSAEADDRNOTAVAIL)
}

// DiskFull reports whether a write failed for want of room.
func DiskFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL) || errors.Is(err, windows.ERROR_DISK_QUOTA_EXCEEDED)
}
