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
)

const (
	socketFile     = "admin.sock"
	socketPathFile = "admin.path"
	tempPrefix     = "reverser-"

	// maxSocketPath is what sockaddr_un takes on every platform we build for:
	// 104 bytes on macOS and the BSDs, less the closing NUL.
	maxSocketPath = 103
)

// socket is the admin socket of a Dir that listens.
type socket struct {
	listener  net.Listener
	tempDir   string // made for it, "" when it is in the state directory
	succeeded bool   // what stands in its place is a successor's
}

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

func (d *Dir) listenAdmin() (net.Listener, error) {
	d.dropStaleSocket()
	direct := filepath.Join(d.path, socketFile)
	var first error
	if len(direct) <= maxSocketPath {
		l, err := listenPrivate(direct)
		if err == nil {
			d.sock = socket{listener: keepFile(l)}
			return l, nil
		}
		// Some file systems (shared folders, a few network ones) hold files
		// but no sockets: the temporary directory usually does.
		first = err
	}
	bases := []string{os.TempDir()}
	if runtime.GOOS != "windows" {
		bases = append(bases, "/tmp") // $TMPDIR may be as deep as the state directory
	}
	for _, base := range bases {
		l, dir, err := listenTemp(base)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		d.sock = socket{listener: keepFile(l), tempDir: dir}
		if err := d.write(socketPathFile, []byte(filepath.Join(dir, socketFile)+"\n")); err != nil {
			d.closeSocket()
			return nil, err
		}
		return l, nil
	}
	return nil, fmt.Errorf("open the admin socket of state directory %s: %w", d.path, first)
}

// keepFile has the end of the listener leave its file to closeSocket: another
// process's may stand there by then.
func keepFile(l net.Listener) net.Listener {
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l
}

func listenTemp(base string) (net.Listener, string, error) {
	dir, err := os.MkdirTemp(base, tempPrefix) // mode 0700
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(dir, socketFile)
	if len(path) > maxSocketPath {
		os.Remove(dir)
		return nil, "", fmt.Errorf("%s is too long for a socket", path)
	}
	l, err := listenPrivate(path)
	if err != nil {
		os.Remove(dir)
		return nil, "", err
	}
	return l, dir, nil
}

func (d *Dir) closeSocket() {
	if d.sock.listener == nil {
		return
	}
	d.sock.listener.Close()
	switch {
	case d.sock.succeeded:
	case d.sock.tempDir != "":
		os.Remove(filepath.Join(d.sock.tempDir, socketFile))
		os.Remove(d.sock.tempDir)
		d.root.Remove(socketPathFile)
	default:
		d.root.Remove(socketFile)
	}
	d.sock = socket{}
}

// dropStaleSocket removes what a killed process left behind, or one that has
// yielded and is still there.
func (d *Dir) dropStaleSocket() {
	d.root.Remove(socketFile)
	path, err := recordedSocket(d.path)
	if err != nil {
		return
	}
	// Only ever what listenTemp could have made.
	if dir := filepath.Dir(path); filepath.Base(path) == socketFile && strings.HasPrefix(filepath.Base(dir), tempPrefix) {
		os.Remove(path)
		os.Remove(dir)
	}
	d.root.Remove(socketPathFile)
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
	if len(path) > maxSocketPath {
		// A live process would have recorded a shorter one.
		return nil, fmt.Errorf("%w in %s", ErrNotRunning, dir)
	}
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		if isNobodyThere(err) {
			return nil, fmt.Errorf("%w in %s", ErrNotRunning, dir)
		}
		return nil, fmt.Errorf("ask the process of %s: %w", dir, err)
	}
	return c, nil
}
