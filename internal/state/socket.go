package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// The admin socket is a unix socket in the state directory, or a short path that admin.path records (socket_unix.go). On Windows it is
// a named pipe, whose name admin.path records (socket_windows.go).
const (
	socketFile     = "admin.sock"
	socketPathFile = "admin.path"
)

// ListenAdmin opens the admin socket, reachable by this user only. What stands
// in its place is of a process that is dead or has yielded, as holding the lock
// proves, and is replaced. Close closes it too.
func (d *Dir) ListenAdmin() (l net.Listener, err error) {
	err = d.edit(func() error {
		l, err = d.listenAdmin()
		return err
	})
	return l, err
}

func recordedSocket(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, socketPathFile))
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// AdminSocket is where the live process of a state directory listens, if one
// is there at all.
func AdminSocket(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("state directory %s: %w", dir, err)
	}
	path, err := recordedSocket(abs)
	if errors.Is(err, fs.ErrNotExist) || isNotDir(err) {
		return filepath.Join(abs, socketFile), nil
	}
	if err != nil {
		return "", fmt.Errorf("find the admin socket of %s: %w", abs, err)
	}
	return path, nil
}

// ErrNotRunning is what errors.Is finds when no live process answers for a
// state directory.
var ErrNotRunning = errors.New("no reverser process is running")

// DialAdmin connects to the live process of a state directory. When there is
// none, the error is ErrNotRunning.
func DialAdmin(ctx context.Context, dir string) (net.Conn, error) {
	path, err := AdminSocket(dir)
	if err != nil {
		return nil, err
	}
	c, err := dialPrivate(ctx, path)
	if err != nil {
		if isNobodyThere(err) {
			return nil, fmt.Errorf("%w in %s", ErrNotRunning, dir)
		}
		return nil, fmt.Errorf("ask the process of %s: %w", dir, err)
	}
	return c, nil
}
