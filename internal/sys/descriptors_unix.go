//go:build unix

package sys

import "syscall"

// descriptorLimit returns how many descriptors this process may hold. Go has raised the soft limit to the hard one by now.
func descriptorLimit() int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 1024
	}
	return int(min(uint64(r.Cur), 1<<20, uint64(mostDescriptors())))
}
