//go:build darwin || freebsd || linux

package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// DiskOf returns the room of the file system that has path.
func DiskOf(path string) (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Disk{}, os.NewSyscallError("statfs", err)
	}
	block := int64(st.Bsize)
	return Disk{Free: int64(st.Bavail) * block, Size: int64(st.Blocks) * block}, nil
}
