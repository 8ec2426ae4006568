package sys

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

// Who vanishes behind an idle connection, as a machine does whose power goes, is noticed: nobody waits for it for ever.
func TestKeepAlive(t *testing.T) {
	user, accepted := accept(t)
	defer user.Close()
	defer accepted.Close()
	server, dialled := dial(t)
	defer server.Close()
	defer dialled.Close()
	for name, c := range map[string]net.Conn{"accepted": accepted, "dialled": dialled} {
		withDescriptor(c, func(fd int) {
			for _, o := range []struct {
				name       string
				level, opt int
				want       time.Duration
			}{
				{"SO_KEEPALIVE", windows.SOL_SOCKET, windows.SO_KEEPALIVE, 1},
				{"TCP_KEEPIDLE", windows.IPPROTO_TCP, windows.TCP_KEEPIDLE, keepAlive.Idle / time.Second},
				{"TCP_KEEPINTVL", windows.IPPROTO_TCP, windows.TCP_KEEPINTVL, keepAlive.Interval / time.Second},
			} {
				if got, err := windows.GetsockoptInt(windows.Handle(fd), o.level, o.opt); err != nil || time.Duration(got) != o.want {
					t.Errorf("%s of the %s socket = %d, %v; want %d", o.name, name, got, err, o.want)
				}
			}
		})
	}
}
