//go:build unix

package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// looseMode refuses a file that its group or the world can read or write.
func looseMode(mode fs.FileMode) error {
	if mode.Perm()&0o066 == 0 {
		return nil
	}
	return fmt.Errorf("%w (mode %04o)", errOpen, mode.Perm())
}

// writtenByOthers says who else can write a configuration file, or put another in its place, and what to do about that; ""
// if nobody can.
func writtenByOthers(path string) (text, hint string) {
	link, err := os.Lstat(path)
	if err != nil {
		return "", ""
	}
	if link.Mode()&fs.ModeSymlink != 0 {
		file, err := os.Stat(path)
		if err != nil {
			return "", ""
		}
		if at, to := owner(link), owner(file); to != at && to != 0 && to != os.Geteuid() {
			return "this is a symbolic link to a file of another user, who can change it", "name a file of your own, or of root"
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", ""
		}
	}
	file, err := os.Stat(path)
	if err != nil || !file.Mode().IsRegular() { // a pipe, as the shell's <(...) makes
		return "", ""
	}
	if openTo(file) {
		return fmt.Sprintf("others on this machine can write it (mode %04o)", file.Mode().Perm()), "run chmod go-w " + path
	}
	dir := filepath.Dir(path)
	// In a directory with the sticky bit, such as /tmp, a file is its owner's to replace.
	if in, err := os.Stat(dir); err == nil && openTo(in) && in.Mode()&fs.ModeSticky == 0 {
		return fmt.Sprintf("others on this machine can write its directory %s (mode %04o) and put another file in its place", dir, in.Mode().Perm()), "run chmod go-w " + dir
	}
	return "", ""
}

// openTo is whether others than the owner can write. A group of the owner alone, which many systems give to each user and
// number alike, is nobody else.
func openTo(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return info.Mode().Perm()&0o002 != 0 || info.Mode().Perm()&0o020 != 0 && (!ok || st.Gid != st.Uid)
}

func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
