package state

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// pipePrefix begins the name of every admin socket. A random part follows, so that no other program can have the name first.
const pipePrefix = `\\.\pipe\reverser-`

// socket is the admin socket of a Dir that listens.
type socket struct {
	listener  *pipeListener
	succeeded bool // what stands in its place is a successor's
}

// isThere reports whether others can still find the pipe's name.
func (s socket) isThere(d *Dir) bool {
	name, err := recordedSocket(d.path)
	return name == s.listener.name || err != nil && !errors.Is(err, fs.ErrNotExist)
}

func (d *Dir) listenAdmin() (net.Listener, error) {
	l, err := listenPipe(pipePrefix + rand.Text())
	if err != nil {
		return nil, fmt.Errorf("open the admin pipe of state directory %s: %w", d.path, err)
	}
	if err := d.write(socketPathFile, []byte(l.name+"\n")); err != nil {
		l.Close()
		return nil, err
	}
	d.sock = socket{listener: l}
	return l, nil
}

func (d *Dir) closeSocket() {
	if d.sock.listener == nil {
		return
	}
	d.sock.listener.Close()
	if !d.sock.succeeded {
		d.root.Remove(socketPathFile)
	}
	d.sock = socket{}
}

// dialPrivate connects to the admin pipe of that name.
func dialPrivate(ctx context.Context, name string) (net.Conn, error) {
	if !strings.HasPrefix(name, pipePrefix) {
		return nil, fs.ErrNotExist // a live process would have recorded the name of a pipe
	}
	p, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return nil, err
	}
	for {
		// The process at the other end may ask who this is, and not act as this user.
		h, err := windows.CreateFile(p, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING,
			windows.FILE_FLAG_OVERLAPPED|windows.SECURITY_SQOS_PRESENT|windows.SECURITY_IDENTIFICATION, 0)
		switch {
		case err == nil:
			return newPipeConn(h, name), nil
		case !errors.Is(err, windows.ERROR_PIPE_BUSY):
			return nil, &net.OpError{Op: "dial", Net: "pipe", Addr: pipeAddr(name), Err: err}
		}
		select { // the server makes an instance for the next client at this moment
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: "pipe", Addr: pipeAddr(name), Err: ctx.Err()}
		}
	}
}

func isNobodyThere(err error) bool { return errors.Is(err, fs.ErrNotExist) || isNotDir(err) }

func isNotDir(err error) bool { return errors.Is(err, windows.ERROR_DIRECTORY) }

// pipeListener accepts clients of a named pipe. There is always an instance that the next client can open.
type pipeListener struct {
	name   string
	attrs  *windows.SecurityAttributes
	closed atomic.Bool
	ended  windows.Handle // an event: closed was set

	accepting sync.Mutex     // one Accept at a time, and Close after the last one
	next      windows.Handle // the instance that waits for a client. Guarded by accepting
	// The system writes into it when a client comes, while the goroutine goes on. So it must not be on the stack, which may move.
	// Guarded by accepting.
	over windows.Overlapped
}

func listenPipe(name string) (*pipeListener, error) {
	attrs, err := privateAttributes()
	if err != nil {
		return nil, err
	}
	l := &pipeListener{name: name, attrs: attrs}
	if l.ended, err = windows.CreateEvent(nil, 1, 0, nil); err != nil {
		return nil, err
	}
	// Of one name, the first instance says who may connect: whoever has the name already must not be joined.
	if l.next, err = l.instance(windows.FILE_FLAG_FIRST_PIPE_INSTANCE); err != nil {
		windows.CloseHandle(l.ended)
		return nil, err
	}
	return l, nil
}

// privateAttributes lets this user, administrators and the system in, and nobody else.
func privateAttributes() (*windows.SecurityAttributes, error) {
	sd, err := privateDescriptor()
	if err != nil {
		return nil, err
	}
	return &windows.SecurityAttributes{Length: uint32(unsafe.Sizeof(windows.SecurityAttributes{})), SecurityDescriptor: sd}, nil
}

func privateDescriptor() (*windows.SECURITY_DESCRIPTOR, error) {
	me, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("ask who this user is: %w", err)
	}
	return windows.SecurityDescriptorFromString("D:P(A;OICI;GA;;;SY)(A;OICI;GA;;;BA)(A;OICI;GA;;;" + me.User.Sid.String() + ")")
}

func (l *pipeListener) instance(flags uint32) (windows.Handle, error) {
	name, err := windows.UTF16PtrFromString(l.name)
	if err != nil {
		return 0, err
	}
	return windows.CreateNamedPipe(name, windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED|flags,
		windows.PIPE_TYPE_BYTE|windows.PIPE_READMODE_BYTE|windows.PIPE_WAIT|windows.PIPE_REJECT_REMOTE_CLIENTS,
		windows.PIPE_UNLIMITED_INSTANCES, 64<<10, 64<<10, 0, l.attrs)
}

// Accept waits for a client.
func (l *pipeListener) Accept() (net.Conn, error) {
	l.accepting.Lock()
	defer l.accepting.Unlock()
	for {
		if l.closed.Load() {
			return nil, l.opError(net.ErrClosed)
		}
		h := l.next
		switch err := l.connect(h); {
		case errors.Is(err, windows.ERROR_NO_DATA): // a client that came and left
			windows.DisconnectNamedPipe(h)
			continue
		case err != nil:
			return nil, l.opError(err)
		}
		next, err := l.instance(0)
		if err != nil { // without another instance nobody could come any more: this client has to try again
			windows.DisconnectNamedPipe(h)
			return nil, l.opError(err)
		}
		l.next = next
		return newPipeConn(h, l.name), nil
	}
}

// connect waits until a client has opened h, or the listener is closed. accepting is held.
func (l *pipeListener) connect(h windows.Handle) error {
	done, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(done)
	l.over = windows.Overlapped{HEvent: done}
	switch err := windows.ConnectNamedPipe(h, &l.over); err {
	case nil, windows.ERROR_PIPE_CONNECTED:
		return nil
	case windows.ERROR_IO_PENDING:
	default:
		return err
	}
	at, err := windows.WaitForMultipleObjects([]windows.Handle{l.ended, done}, false, windows.INFINITE)
	if err == nil && at == windows.WAIT_OBJECT_0+1 {
		var n uint32
		return windows.GetOverlappedResult(h, &l.over, &n, false)
	}
	// The system must be done with it before it is used again.
	windows.CancelIoEx(h, &l.over)
	var n uint32
	windows.GetOverlappedResult(h, &l.over, &n, true)
	if err != nil {
		return err
	}
	return net.ErrClosed
}

// Close ends Accept and waits for it. Nobody else closes the instance that waits: if it were closed twice, its number could belong to
// another handle by then, such as one of the runtime's.
func (l *pipeListener) Close() error {
	if l.closed.Swap(true) {
		return l.opError(net.ErrClosed)
	}
	windows.SetEvent(l.ended)
	l.accepting.Lock()
	defer l.accepting.Unlock()
	return errors.Join(windows.CloseHandle(l.next), windows.CloseHandle(l.ended))
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr(l.name) }

func (l *pipeListener) opError(err error) error {
	return &net.OpError{Op: "accept", Net: "pipe", Addr: pipeAddr(l.name), Err: err}
}

// pipeConn is one client's connection to a pipe.
type pipeConn struct {
	*os.File // waits by the runtime's completion port: its deadlines work
	addr     pipeAddr
}

func newPipeConn(h windows.Handle, name string) net.Conn {
	return &pipeConn{os.NewFile(uintptr(h), name), pipeAddr(name)}
}

func (c *pipeConn) LocalAddr() net.Addr  { return c.addr }
func (c *pipeConn) RemoteAddr() net.Addr { return c.addr }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }
