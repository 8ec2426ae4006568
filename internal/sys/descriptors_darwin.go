package sys

import "golang.org/x/sys/unix"

// mostDescriptors is what the kernel gives a process at most, whatever its limit says, which is often none.
func mostDescriptors() int {
	n, err := unix.SysctlUint32("kern.maxfilesperproc")
	if err != nil || n == 0 {
		return 10_240 // OPEN_MAX
	}
	return int(n)
}
