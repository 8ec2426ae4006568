package grammar

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
)

// checkSocketPath refuses what the system would refuse with no more than
// "invalid argument", and relative paths: a bridge that runs as a service has
// a working directory that nobody chose.
func checkSocketPath(path string) error {
	return checkSocketPathFor(runtime.GOOS, path)
}

func checkSocketPathFor(goos, path string) error {
	if path == "" {
		return errors.New("the path of the socket is missing: write unix:/path")
	}
	for _, c := range []byte(path) {
		if c < 0x20 || c == 0x7f {
			return errors.New("the path of the socket has a control character in it")
		}
	}
	// Windows has unix sockets too (since 10 1803), under C:\path or C:/path.
	drive := len(path) > 2 && isLetter(path[0]) && path[1] == ':' && (path[2] == '\\' || path[2] == '/')
	if !strings.HasPrefix(path, "/") && (goos != "windows" || !drive) {
		return fmt.Errorf("the path %q of the socket is not absolute: write unix:/path", path)
	}
	limit := 107 // sun_path holds 108 bytes with the final zero
	if strings.HasSuffix(goos, "bsd") || goos == "darwin" || goos == "ios" {
		limit = 103
	}
	if len(path) > limit {
		return fmt.Errorf("the path of the socket has %d bytes, and this system takes %d: use a shorter one, or a symbolic link", len(path), limit)
	}
	return nil
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
