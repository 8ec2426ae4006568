package sys

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestPortHint(t *testing.T) {
	refused := &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EACCES)}
	if got := PortHint(refused); !strings.Contains(got, "setcap") || !strings.Contains(got, "AmbientCapabilities") || !strings.Contains(got, "ip_unprivileged_port_start") {
		t.Errorf("PortHint(%v) = %q, want all ways to get the port", refused, got)
	}
	for _, err := range []error{nil, errors.New("x"), os.NewSyscallError("bind", syscall.EADDRINUSE)} {
		if got := PortHint(err); got != "" {
			t.Errorf("PortHint(%v) = %q, want nothing", err, got)
		}
	}
}
