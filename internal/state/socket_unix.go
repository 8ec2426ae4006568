//go:build unix

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
	"syscall"
)

const (
	tempPrefix = "reverser-"

	// maxSocketPath is what sockaddr_un takes on every platform we build for:
	// 104 bytes on macOS and the BSDs, less the closing NUL.
	maxSocketPath = 103
)

// socket is the admin socket of a Dir that listens.
type socket struct {
	listener  net.Listener
	file      fs.FileInfo
	tempDir   string // made for it, "" when it is in the state directory
	succeeded bool   // what stands in its place is a successor's
}

// isThere reports whether others can still find the socket.
func (s socket) isThere(d *Dir) bool {
	if s.tempDir == "" {
		info, err := d.root.Lstat(socketFile)
		return err == nil && os.SameFile(info, s.file) || err != nil && !errors.Is(err, fs.ErrNotExist)
	}
	path := filepath.Join(s.tempDir, socketFile)
	if recorded, err := recordedSocket(d.path); recorded != path && (err == nil || errors.Is(err, fs.ErrNotExist)) {
		return false
	}
	info, err := os.Lstat(path)
	return err == nil && os.SameFile(info, s.file) || err != nil && !errors.Is(err, fs.ErrNotExist)
}

func (d *Dir) listenAdmin() (net.Listener, error) {
	if !d.inPlace() {
		return nil, fmt.Errorf("open the admin socket: state directory %s was removed, moved or replaced: put it back, and restart", d.path)
	}
	d.dropStaleSocket()
	direct := filepath.Join(d.path, socketFile)
	var first error
	if len(direct) <= maxSocketPath {
		l, err := listenPrivate(direct)
		if err == nil {
			file, err := d.root.Lstat(socketFile)
			if err != nil {
				l.Close()
				return nil, err
			}
			d.sock = socket{listener: keepFile(l), file: file}
			return l, nil
		}
		// Some file systems (shared folders, a few network ones) hold files
		// but no sockets: the temporary directory usually does.
		first = err
	}
	for _, base := range []string{os.TempDir(), "/tmp"} { // $TMPDIR may be as deep as the state directory

		l, dir, err := listenTemp(base)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		file, err := os.Lstat(filepath.Join(dir, socketFile))
		if err != nil {
			l.Close()
			return nil, err
		}
		d.sock = socket{listener: keepFile(l), file: file, tempDir: dir}
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

// listenPrivate binds with a mask, so that there is no moment in which others
// could connect, and sets the mode for systems that ignore the mask.
func listenPrivate(path string) (net.Listener, error) {
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// dialPrivate connects to the admin socket at path.
func dialPrivate(ctx context.Context, path string) (net.Conn, error) {
	if len(path) > maxSocketPath {
		return nil, fs.ErrNotExist // a live process would have recorded a shorter one
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", path)
}

func isNobodyThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || isNotDir(err)
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
