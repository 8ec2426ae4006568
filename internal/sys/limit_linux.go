package sys

import "golang.org/x/sys/unix"

// DescriptorLimitOf returns how many descriptors another process may hold; 0 where the system does not tell this user.
func DescriptorLimitOf(pid int) int {
	var r unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &r); err != nil {
		return 0
	}
	return int(min(r.Cur, 1<<20))
}
