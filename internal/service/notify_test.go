//go:build unix

package service

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// listen is the end of a service manager.
func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// heard is the next message that a service manager gets.
func heard(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// What is sent is what sd_notify(3) says, to a path and to an abstract name.
func TestNotifier(t *testing.T) {
	names := []string{filepath.Join(t.TempDir(), "notify")}
	if runtime.GOOS == "linux" {
		names = append(names, "@reverser-test-"+strconv.Itoa(os.Getpid()))
	}
	for _, name := range names {
		manager := listen(t, name)
		n, err := NewNotifier(environment("NOTIFY_SOCKET", name))
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		for _, c := range []struct {
			say  func() error
			want string
		}{
			{func() error { return n.Ready("link up, 1 of 1 service up") }, `^READY=1\nSTATUS=link up, 1 of 1 service up\n$`},
			{func() error { return n.Status("two\nlines\tand tabs\nREADY=1") }, `^STATUS=two lines and tabs READY=1\n$`},
			{n.Reloading, `^RELOADING=1\nMONOTONIC_USEC=[0-9]+\n$`},
			{func() error { return n.Stopping("stopping", 45*time.Second) }, `^STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=45000000\n$`},
			{n.Alive, `^WATCHDOG=1\n$`},
		} {
			if err := c.say(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := heard(t, manager); !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("%s: the manager got %q, want %s", name, got, c.want)
			}
		}
	}
}

// The clock of a reload is the one by which systemd knows when it asked.
func TestNotifierClock(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no systemd elsewhere")
	}
	uptime, err := os.ReadFile("/proc/uptime") // of the clock that also runs while the machine sleeps
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.ParseFloat(strings.Fields(string(uptime))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	if got := monotonic().Seconds(); got <= 0 || got > most+60 {
		t.Errorf("monotonic = %v s, and the machine has been up for %v s", got, most)
	}
}

// A manager that made its socket anew is told as before; one that is gone is an error, and no more than that.
func TestNotifierAgain(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	manager := listen(t, name)
	n, err := NewNotifier(environment("NOTIFY_SOCKET", name))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	manager.Close()
	os.Remove(name)
	if err := n.Alive(); err == nil {
		t.Error("nobody is there, and Alive = nil")
	}
	manager = listen(t, name)
	if err := n.Alive(); err != nil {
		t.Errorf("Alive = %v after the manager came back", err)
	}
	if got := heard(t, manager); got != "WATCHDOG=1\n" {
		t.Errorf("the manager got %q", got)
	}
}

func TestNoNotifier(t *testing.T) {
	n, err := NewNotifier(environment())
	if n != nil || err != nil {
		t.Errorf("without NOTIFY_SOCKET: %v, %v; want nil, nil", n, err)
	}
	if err := n.Ready("nobody listens"); err != nil {
		t.Errorf("Ready of a nil Notifier = %v", err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("Close of a nil Notifier = %v", err)
	}
	for _, bad := range []string{"relative", "vsock:2:1234", filepath.Join(t.TempDir(), "nobody")} {
		if n, err := NewNotifier(environment("NOTIFY_SOCKET", bad)); err == nil {
			n.Close()
			t.Errorf("NOTIFY_SOCKET=%s: no error", bad)
		}
	}
}

func TestWatchdog(t *testing.T) {
	me := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"60000000", "", time.Minute},
		{"60000000", me, time.Minute},
		{"60000000", "1", 0},
		{"0", me, 0},
		{"-5", me, 0},
		{"often", me, 0},
	} {
		if got := Watchdog(environment("WATCHDOG_USEC", c.usec, "WATCHDOG_PID", c.pid)); got != c.want {
			t.Errorf("WATCHDOG_USEC=%s WATCHDOG_PID=%s: %v, want %v", c.usec, c.pid, got, c.want)
		}
	}
}
