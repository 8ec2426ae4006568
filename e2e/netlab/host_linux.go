package netlab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Host is a network namespace. A nil Host is the one that this process was started in.
type Host struct {
	name string
	ns   *os.File
}

// home is the namespace of this process, to come back to.
var home = sync.OnceValues(func() (*os.File, error) { return os.Open("/proc/self/ns/net") })

func newHost(name string) (*Host, error) {
	h := &Host{name: name}
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		h.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make the network namespace of %s: %w", name, err)
	}
	return h, nil
}

// Do calls f on a thread that stands in the host's namespace. Sockets that f opens and programs that it starts stay there.
func (h *Host) Do(f func() error) error {
	if h == nil {
		return f()
	}
	return onThread(func() error { return unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET) }, f)
}

// onThread calls enter and f on a thread of their own and brings it home again.
func onThread(enter, f func() error) error {
	back, err := home()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := enter()
		if err == nil {
			err = f()
		}
		// A thread that cannot go home stays locked and ends with this goroutine.
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Dial connects from the host to an address given in figures.
func (h *Host) Dial(ctx context.Context, addr string) (conn *net.TCPConn, err error) {
	err = h.Do(func() error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	return conn, err
}

// Listen listens on the host.
func (h *Host) Listen(addr string) (l *net.TCPListener, err error) {
	err = h.Do(func() error {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			l = ln.(*net.TCPListener)
		}
		return err
	})
	return l, err
}

// Start starts a program on the host.
func (h *Host) Start(cmd *exec.Cmd) error { return h.Do(cmd.Start) }

// run runs a program of the system to its end.
func (h *Host) run(line string) error {
	words := strings.Fields(line)
	path, err := exec.LookPath(words[0])
	if err != nil {
		path = "/usr/sbin/" + words[0] // not in everybody's PATH
	}
	var out []byte
	err = h.Do(func() (err error) {
		out, err = exec.Command(path, words[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s on host %s: %w: %s", line, h.name, err, out)
	}
	return nil
}

// Run runs a program of the system, by its words, to its end.
func (h *Host) Run(line string) error { return h.run(line) }

// Close lets go of the host.
func (h *Host) Close() { h.close() }

func (h *Host) runAll(lines ...string) error {
	for _, line := range lines {
		if err := h.run(line); err != nil {
			return err
		}
	}
	return nil
}

// write sets a value below /proc/sys/net, which every namespace has for itself.
func (h *Host) write(name, value string) error {
	return h.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
}

func (h *Host) close() {
	if h != nil && h.ns != nil {
		h.ns.Close()
	}
}
