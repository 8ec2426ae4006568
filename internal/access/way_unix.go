//go:build unix

package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// way is what the system goes through to open a file.
type way struct {
	file   string  // its path without symbolic links
	links  []place // every symbolic link
	dirs   []place // of the file, and of each link that stands for the file; not those above, where a system has its own customs
	opened bool    // by whoever started this process, as the shell's < does, and file is no more than a name for that
}

type place struct {
	path string
	info fs.FileInfo
}

// openFile is an open file of this process.
var openFile = regexp.MustCompile(fmt.Sprintf(`^/proc/(self|thread-self|%d)/fd/[0-9]+$`, os.Getpid()))

// wayTo follows a path as the system does.
func wayTo(path string) (way, error) {
	w := way{file: "."}
	for rest := path; rest != ""; {
		if filepath.IsAbs(rest) {
			w.file = "/"
		}
		name, below, _ := strings.Cut(strings.TrimLeft(rest, "/"), "/")
		rest = strings.TrimLeft(below, "/")
		next := filepath.Join(w.file, name)
		// /dev/stdin and /dev/fd/N lead here, where a link is no name of a file but the open file itself.
		if openFile.MatchString(next) && rest == "" {
			return way{file: path, links: w.links, opened: true}, nil
		}
		info, err := os.Lstat(next)
		if err != nil {
			return w, err
		}
		if link := info.Mode()&fs.ModeSymlink != 0; link || rest == "" {
			if rest == "" {
				dir, err := os.Stat(w.file)
				if err != nil {
					return w, err
				}
				w.dirs = append(w.dirs, place{w.file, dir})
			}
			if link {
				if w.links = append(w.links, place{next, info}); len(w.links) > 255 {
					return w, errors.New("too many symbolic links")
				}
				to, err := os.Readlink(next)
				if err != nil {
					return w, err
				}
				if rest != "" {
					to += "/" + rest // not cleaned: after a link, .. is not what it looks like
				}
				rest = to
				continue
			}
		}
		w.file = next
	}
	return w, nil
}
