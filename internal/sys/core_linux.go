package sys

import "golang.org/x/sys/unix"

// notDumpable is for kernels that pipe dumps to a program, which RLIMIT_CORE does not stop. Other processes of the same user
// cannot read the memory then either.
func notDumpable() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }
