package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// tableSize is how many descriptors the kernel's table has room for from the start: 8 bytes each, and a few bits.
const tableSize = 16 << 10

// WidenDescriptorTable makes the kernel's table of this process's descriptors wide at once. It would begin with room for 64 or 256, and be
// doubled whenever it is full. Where a process has several threads the kernel waits for all processors then (synchronize_rcu in
// expand_files, fs/file.c), and whoever needs a descriptor meanwhile waits, too: 8 to 17 ms were measured, in which no user of a busy
// tunnel had an answer. It does nothing where it cannot: a lower limit of descriptors is respected.
func WidenDescriptorTable() {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return
	}
	defer f.Close()
	last := min(tableSize, DescriptorLimit()) - 1
	if high, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, last); err == nil {
		unix.Close(high)
	}
}
