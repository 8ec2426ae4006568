package sys

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listen has the kernel tell the news. It returns false where that is not possible.
func (w *watcher) listen(ctx context.Context, wg *sync.WaitGroup) bool {
	routing, err := openRouting()
	if err != nil {
		return false
	}
	up := linksUp()
	wg.Go(func() { w.readRouting(ctx, routing, up) })
	context.AfterFunc(ctx, func() { routing.Close() })
	if clock, err := openClock(); err == nil {
		wg.Go(func() { w.readClock(ctx, clock) })
		context.AfterFunc(ctx, func() { clock.Close() })
	}
	return true
}

// openRouting opens a netlink socket that gets the news of links, addresses and routes.
func openRouting() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// readRouting reads until the socket is closed. up says which links are up.
func (w *watcher) readRouting(ctx context.Context, f *os.File, up map[int32]bool) {
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, unix.ENOBUFS) { // more news than the socket holds
			w.tell(ctx, Routes)
			continue
		}
		if err != nil {
			return
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			continue
		}
		for _, m := range msgs {
			if why := judge(m, up); why != "" {
				w.tell(ctx, why)
			}
		}
	}
}

// judge says what a message is news of, "" for none.
func judge(m syscall.NetlinkMessage, up map[int32]bool) string {
	d := m.Data
	switch m.Header.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return Addresses
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE: // struct rtmsg
		if len(d) < unix.SizeofRtMsg {
			return ""
		}
		table, protocol, flags := d[4], d[5], binary.NativeEndian.Uint32(d[8:])
		// The kernel's own routes come and go with addresses.
		if table == unix.RT_TABLE_LOCAL || protocol == unix.RTPROT_KERNEL || flags&unix.RTM_F_CLONED != 0 {
			return ""
		}
		return Routes
	case unix.RTM_NEWLINK: // struct ifinfomsg; sent for much that is not news, such as counters
		if len(d) < unix.SizeofIfInfomsg {
			return ""
		}
		index, flags := int32(binary.NativeEndian.Uint32(d[4:])), binary.NativeEndian.Uint32(d[8:])
		was, known := up[index]
		up[index] = flags&unix.IFF_UP != 0 && flags&unix.IFF_RUNNING != 0
		if known && was != up[index] { // a new one is of no use before it has an address
			return Links
		}
	case unix.RTM_DELLINK:
		if len(d) >= unix.SizeofIfInfomsg {
			delete(up, int32(binary.NativeEndian.Uint32(d[4:])))
		}
	}
	return ""
}

// linksUp says of each link whether it is up and has a carrier.
func linksUp() map[int32]bool {
	up := make(map[int32]bool)
	links, _ := net.Interfaces()
	for _, l := range links {
		up[int32(l.Index)] = l.Flags&net.FlagUp != 0 && l.Flags&net.FlagRunning != 0
	}
	return up
}

// openClock makes a timer whose only use is to be cancelled: a read of it fails with ECANCELED when the clock was set
// (timerfd_create(2)), and the kernel sets it when it wakes.
func openClock() (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	if err := arm(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "timerfd"), nil
}

// arm sets the timer to a year from now.
func arm(fd int) error {
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(time.Now().AddDate(1, 0, 0).UnixNano())}
	return os.NewSyscallError("timerfd_settime", unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &at, nil))
}

// readClock reads until the timer is closed. That somebody set the clock is no news; that the machine slept is.
func (w *watcher) readClock(ctx context.Context, f *os.File) {
	before := asleep()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	for {
		if _, err := f.Read(make([]byte, 8)); err != nil && !errors.Is(err, unix.ECANCELED) {
			return
		}
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = arm(int(fd)) }); err != nil || failed != nil {
			return
		}
		if now := asleep(); now-before > time.Second {
			before = now
			w.tell(ctx, Awake)
		}
	}
}

// asleep is how long the machine has slept since it started.
func asleep() time.Duration {
	var boot, mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - mono.Nano())
}
