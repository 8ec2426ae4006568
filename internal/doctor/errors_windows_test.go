package doctor

import "golang.org/x/sys/windows"

// What the system says of a full disk, a port that is taken, and a network that there is no way to.
var errDiskFull, errPortTaken, errNoWay error = windows.ERROR_DISK_FULL, windows.WSAEADDRINUSE, windows.WSAENETUNREACH
