package sys

import (
	"math"
	"os"

	"golang.org/x/sys/windows"
)

// DiskOf returns the room of the volume that has path.
func DiskOf(path string) (Disk, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return Disk{}, err
	}
	var free, size uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, &size, nil); err != nil {
		return Disk{}, os.NewSyscallError("GetDiskFreeSpaceEx", err)
	}
	return Disk{Free: int64(min(free, math.MaxInt64)), Size: int64(min(size, math.MaxInt64))}, nil
}
