//go:build unix

package state_test

import (
	"os"
	"syscall"
	"testing"
)

func uidOf(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}
