package access

import (
	"os"

	"golang.org/x/sys/unix"
)

// isOpenReadOnly reports whether an open file was reached through a read-only mount: nobody can change it there, whatever its owner and
// mode say.
func isOpenReadOnly(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// isReadOnly reports whether a path leads through a read-only mount.
func isReadOnly(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}
