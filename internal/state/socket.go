package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"reverser/internal/access"
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

// AdminLost reports whether the admin socket that ListenAdmin opened cannot be found any more: somebody removed it, or put something else
// in its place. ListenAdmin opens it again.
func (d *Dir) AdminLost() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sock.listener != nil && !d.yielded && d.inPlace() && !d.sock.isThere(d)
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

// ErrUnreachable is what errors.Is finds when a live process holds a state directory, as the lock says, and does not answer there: its
// admin socket was removed, or it is only about to open it. The error itself is an [*UnreachableError].
var ErrUnreachable = errors.New("the process cannot be asked")

// UnreachableError says which directory is held, and by whom if that is known.
type UnreachableError struct {
	Path string
	PID  int // 0 when unknown
}

func (e *UnreachableError) Error() string {
	who := "a reverser process"
	if e.PID != 0 {
		who = fmt.Sprintf("a reverser process (pid %d)", e.PID)
	}
	return fmt.Sprintf("%s runs on state directory %s, and its admin socket is not there: it opens the socket again by itself; where it cannot, its log says why", who, e.Path)
}

// Is makes errors.Is(err, ErrUnreachable) true.
func (e *UnreachableError) Is(target error) bool { return target == ErrUnreachable }

// SilentError says that the process of a state directory took a connection to its admin socket, or let it wait, and gave no answer.
type SilentError struct {
	Path string
	PID  int // 0 when unknown
}

// Silent is the error for the process that holds a state directory now.
func Silent(dir string) *SilentError {
	pid, _ := lockHolder(dir)
	return &SilentError{Path: dir, PID: pid}
}

func (e *SilentError) Error() string {
	who := "the process"
	if e.PID != 0 {
		who = fmt.Sprintf("the process (pid %d)", e.PID)
	}
	return fmt.Sprintf("%s that runs on state directory %s does not answer: %s", who, e.Path, e.Remedy())
}

// Remedy is the end of the text that says what to do.
func (e *SilentError) Remedy() string {
	again := "where that stays so, end it and start it again"
	if runtime.GOOS == "windows" || e.PID == 0 {
		return "is it stopped, or very busy? " + again
	}
	return fmt.Sprintf("is it stopped, or very busy? `kill -CONT %d` has a stopped one go on; %s", e.PID, again)
}

// ErrNotRunning is what errors.Is finds when no live process answers for a
// state directory.
var ErrNotRunning = errors.New("no reverser process is running")

// DialAdmin connects to the live process of a state directory. When there is
// none, the error is ErrNotRunning, or ErrUnreachable when one holds the lock.
func DialAdmin(ctx context.Context, dir string) (net.Conn, error) {
	path, err := AdminSocket(dir)
	if err != nil {
		return nil, err
	}
	c, err := dialPrivate(ctx, path)
	if err != nil {
		if isNobodyThere(err) {
			if pid, held := lockHolder(dir); held {
				return nil, &UnreachableError{Path: dir, PID: pid}
			}
			return nil, fmt.Errorf("%w in %s", ErrNotRunning, dir)
		}
		return nil, fmt.Errorf("ask the process of %s: %w", dir, err)
	}
	return c, nil
}

// lockHolder asks the lock of a directory who holds it, without making anything there.
func lockHolder(dir string) (pid int, held bool) {
	f, err := access.Rules{Regular: true}.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if !errors.Is(lockShared(f), errLocked) {
		unlock(f) // a program that is being started has the file open, too
		return 0, false
	}
	return readPID(f), true
}
