//go:build unix

package doctor

import "syscall"

// What the system says of a full disk, a port that is taken, and a network that there is no way to.
var errDiskFull, errPortTaken, errNoWay error = syscall.ENOSPC, syscall.EADDRINUSE, syscall.ENETUNREACH
