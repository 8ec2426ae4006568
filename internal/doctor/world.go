package doctor

import (
	"context"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"reverser/internal/bridge"
	"reverser/internal/state"
	"reverser/internal/sys"
)

// World is what the checks look at, so that tests can make a broken one.
type World struct {
	Now         func() time.Time
	Built       time.Time // when this program was built, or what it is made of was written; zero: it is not known
	Machine     fs.FS     // the root of the file system, for what the kernel says of itself in /proc; nil: it says nothing there
	Lookup      func(ctx context.Context, network, host string) ([]netip.Addr, error)
	Walk        func(context.Context, bridge.Config) ([]bridge.Examined, error)
	Dial        func(ctx context.Context, network, addr string) (net.Conn, error)
	Route       func(to netip.AddrPort) (from netip.Addr, err error)
	Addrs       func() []netip.Addr // of this machine
	Listen      func(network, addr string) (net.Listener, error)
	Holders     func(port uint16) (holders []sys.Holder, taken bool)
	LookAt      func(dir string, trusted ...int) (state.Looked, error)
	Disk        func(path string) (sys.Disk, error)
	Descriptors func(pid int) int   // the limit of a process, of this one for 0; 0: it is not known
	Memory      func(pid int) int64 // that a process may use, as Descriptors
}

// NewWorld is the world as it is.
func NewWorld(built time.Time) *World {
	w := &World{
		Now: time.Now, Built: built, Lookup: net.DefaultResolver.LookupNetIP, Walk: bridge.Examine,
		Dial: (&net.Dialer{}).DialContext, Route: route, Addrs: addrs, Listen: net.Listen, Holders: sys.PortHolders,
		LookAt: state.Look, Disk: sys.DiskOf,
		Descriptors: func(pid int) int {
			if pid == 0 {
				return sys.DescriptorLimit()
			}
			return sys.DescriptorLimitOf(pid)
		},
		Memory: func(pid int) int64 {
			if pid == 0 {
				return sys.AvailableMemory()
			}
			return sys.MemoryAvailableTo(pid)
		},
	}
	if runtime.GOOS == "linux" { // Wine shows programs of Windows the files of Linux
		w.Machine = os.DirFS("/")
	}
	return w
}

// route asks the system from which address it would dial. To connect a UDP socket sends nothing.
func route(to netip.AddrPort) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// addrs are the addresses of this machine.
func addrs() (all []netip.Addr) {
	all, _ = sys.Addrs()
	return all
}
