//go:build unix

package sys

import "golang.org/x/sys/unix"

// NoCoreDumps keeps what is in memory, keys included, from being written to disk when the process dies. It cannot be undone.
func NoCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	return notDumpable()
}
