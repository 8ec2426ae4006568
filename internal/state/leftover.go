package state

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// probeName stands in the place of a file's name where it is only tried whether the directory takes one.
const probeName = "probe"

// written are the files of the directory that are written whole.
var written = []string{identityFile, keysFile, offeredFile, addressFile, knownFile, usersFile, socketPathFile, adminTokenFile, probeName}

// removeLeftovers removes what a process had not put in its place when it was killed: it may hold secrets, and nobody would ever remove it.
// The lock is held, so nobody is writing. What cannot be removed stays: nothing depends on it.
func (d *Dir) removeLeftovers() {
	files := d.root.FS()
	remove := func(at string, entry fs.DirEntry) {
		if entry.Type().IsRegular() {
			d.root.Remove(at)
		}
	}
	if entries, err := fs.ReadDir(files, "."); err == nil {
		for _, e := range entries {
			if slices.Contains(written, tempFor(e.Name())) {
				remove(e.Name(), e)
			}
		}
	}
	fs.WalkDir(files, tlsFolder, func(at string, e fs.DirEntry, err error) error {
		if err == nil && tempFor(path.Base(at)) != "" {
			remove(at, e)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// tempFor returns for which file tempName made the name; "": for none.
func tempFor(temp string) string {
	name, dotted := strings.CutPrefix(temp, ".")
	dot := strings.LastIndexByte(name, '.')
	if !dotted || dot < 1 || len(name)-dot-1 != 2*tempBytes || strings.Trim(name[dot+1:], "0123456789abcdef") != "" {
		return ""
	}
	return name[:dot]
}
