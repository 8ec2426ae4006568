//go:build unix

package service

import (
	"fmt"
	"os"
	"syscall"
)

// IsJournal reports whether what is written to f goes to systemd's journal.
func IsJournal(f *os.File) bool {
	stream := os.Getenv("JOURNAL_STREAM")
	if stream == "" {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
