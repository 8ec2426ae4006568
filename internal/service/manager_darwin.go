package service

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// New returns the service manager of this machine.
func New() Manager {
	return &launchd{uid: os.Geteuid(), sudo: os.Getenv("SUDO_USER"), run: runProgram, give: give}
}

// give makes a user the owner of everything below a path.
func give(path, name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return misuse("--user names one that is there", "the user of the service: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("the user %s has the id %q, which is no number", name, u.Uid)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return fmt.Errorf("the group of the user %s has the id %q, which is no number", name, u.Gid)
	}
	return filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		// Whoever could write here could give a file of somebody else a second name, and would get that file.
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !info.IsDir() && st.Nlink > 1 && int(st.Uid) != uid {
			return hint("look where else it is, and remove it here", "%s has a second name, and is not given to the user %s", p, name)
		}
		return os.Lchown(p, uid, gid)
	})
}
