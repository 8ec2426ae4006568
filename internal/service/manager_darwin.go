package service

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
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
	return filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, uid, gid)
	})
}
