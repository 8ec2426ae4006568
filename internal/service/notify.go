package service

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Notifier tells systemd how this process does. The protocol is one datagram of lines NAME=VALUE for each message, to the unix socket
// that $NOTIFY_SOCKET names (sd_notify(3)). A nil Notifier tells nobody.
type Notifier struct {
	addr *net.UnixAddr

	mu   sync.Mutex
	conn *net.UnixConn // guarded by mu. It stays open: a process without a free descriptor must still say that it lives
}

// notifyPatience is how long a message waits for room in the socket.
const notifyPatience = time.Second

// NewNotifier returns the Notifier of the process's environment, nil if nobody wants to be told.
func NewNotifier(getenv func(string) string) (*Notifier, error) {
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if path[0] != '/' && path[0] != '@' {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%q is neither an absolute path nor an abstract name (@…)", path)
	}
	n := &Notifier{addr: &net.UnixAddr{Name: path, Net: "unixgram"}} // package net knows that @ begins an abstract name
	if err := n.dial(); err != nil {
		return nil, fmt.Errorf("tell the service manager of this process: %w", err)
	}
	return n, nil
}

func (n *Notifier) dial() (err error) {
	n.conn, err = net.DialUnix(n.addr.Net, nil, n.addr)
	return err
}

// Watchdog is how often at least the service manager wants to hear [Notifier.Alive], 0 if it does not.
func Watchdog(getenv func(string) string) time.Duration {
	usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 {
		return 0
	}
	if pid := getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0 // meant for a parent of this process
	}
	return time.Duration(usec) * time.Microsecond
}

// Ready says that the process does what it is there for. It is said again behind Reloading.
func (n *Notifier) Ready(status string) error { return n.send("READY=1", statusLine(status)) }

// Status says in words how the process does.
func (n *Notifier) Status(status string) error { return n.send(statusLine(status)) }

// Reloading says that the process reads its settings again. Ready ends that.
func (n *Notifier) Reloading() error {
	return n.send("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(monotonic().Microseconds(), 10))
}

// Stopping says that the process was asked to stop, and is given that long to end.
func (n *Notifier) Stopping(status string, within time.Duration) error {
	return n.send("STOPPING=1", statusLine(status), "EXTEND_TIMEOUT_USEC="+strconv.FormatInt(within.Microseconds(), 10))
}

// Alive says that the process is not stuck.
func (n *Notifier) Alive() error { return n.send("WATCHDOG=1") }

// Close gives the socket back.
func (n *Notifier) Close() error {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conn.Close()
}

// statusLine is one line, whatever the text has.
func statusLine(text string) string { return "STATUS=" + strings.Join(strings.Fields(text), " ") }

func (n *Notifier) send(lines ...string) error {
	if n == nil {
		return nil
	}
	message := []byte(strings.Join(lines, "\n") + "\n")
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.write(message)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTCONN) {
		// The manager has made its socket anew.
		old := n.conn
		if n.dial() != nil {
			n.conn = old
			return fmt.Errorf("tell the service manager %s: %w", lines[0], err)
		}
		old.Close()
		err = n.write(message)
	}
	if err != nil {
		return fmt.Errorf("tell the service manager %s: %w", lines[0], err)
	}
	return nil
}

func (n *Notifier) write(message []byte) error {
	n.conn.SetWriteDeadline(time.Now().Add(notifyPatience))
	_, err := n.conn.Write(message)
	return err
}
