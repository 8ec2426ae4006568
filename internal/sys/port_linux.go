package sys

import (
	"errors"
	"syscall"
)

// PortHint says what lets a program listen on a port that the system refused it, "" where that is not what err says.
func PortHint(err error) string {
	if !errors.Is(err, syscall.EACCES) {
		return ""
	}
	return "a port below 1024 needs CAP_NET_BIND_SERVICE: AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit, " +
		"setcap cap_net_bind_service=+ep on the program, or sysctl net.ipv4.ip_unprivileged_port_start=0 for every program of the machine"
}
