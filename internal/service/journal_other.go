//go:build !unix

package service

import "os"

// IsJournal reports whether what is written to f goes to systemd's journal: here is none.
func IsJournal(*os.File) bool { return false }
