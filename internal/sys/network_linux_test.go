package sys

import (
	"context"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespace runs a watcher in a network namespace of its own. It returns a socket of that namespace, through which
// interfaces can be configured from any thread.
func namespace(t *testing.T, events chan<- NetworkEvent) (sock int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace of its own")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ready <- os.NewSyscallError("unshare", err)
			return
		}
		var err error
		if sock, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			ready <- os.NewSyscallError("socket", err)
			return
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		w := &watcher{addresses: addresses, news: make(chan string)}
		if !w.listen(ctx, &wg) {
			t.Error("no netlink here")
		}
		ready <- nil
		w.run(ctx, func(e NetworkEvent) { events <- e })
	}()
	t.Cleanup(func() { cancel(); <-done; unix.Close(sock) })
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	return sock
}

// configure makes one change to an interface.
func configure(t *testing.T, sock int, name string, request uint, set func(*unix.Ifreq)) {
	t.Helper()
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	set(r)
	if err := unix.IoctlIfreq(sock, request, r); err != nil {
		t.Fatalf("%s: ioctl %#x: %v", name, request, err)
	}
}

func TestTheKernelTells(t *testing.T) {
	events := make(chan NetworkEvent, 10)
	sock := namespace(t, events)
	want := func(what string, ok func(NetworkEvent) bool) {
		t.Helper()
		for late := time.After(time.Minute); ; {
			select {
			case e := <-events:
				if ok(e) {
					return
				}
			case <-late:
				t.Fatalf("no news of %s", what)
			}
		}
	}
	at := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}
	configure(t, sock, "lo", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP) })
	want("a link that came up", func(e NetworkEvent) bool { return e.Why == Links || e.Why == Addresses })
	configure(t, sock, "lo:1", unix.SIOCSIFADDR, func(r *unix.Ifreq) { r.SetInet4Addr(at.IP.To4()) })
	want("an address that came", func(e NetworkEvent) bool { return e.Why == Addresses && !e.Gone(at) })
	configure(t, sock, "lo:1", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(0) }) // removes it
	want("an address that went", func(e NetworkEvent) bool { return e.Why == Addresses && e.Gone(at) })
	configure(t, sock, "lo", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(0) })
	want("a link that went down", func(e NetworkEvent) bool { return e.Why == Links })
}

func TestJudge(t *testing.T) {
	route := func(table, protocol, flags byte) []byte {
		return []byte{unix.AF_INET, 0, 0, 0, table, protocol, 0, unix.RTN_UNICAST, 0, flags, 0, 0}
	}
	link := func(index, flags byte) []byte {
		d := make([]byte, unix.SizeofIfInfomsg)
		for i := range 4 { // the same in either byte order
			d[4+i], d[8+i] = index, flags
		}
		return d
	}
	up := map[int32]bool{0x07070707: true}
	for i, c := range []struct {
		kind uint16
		data []byte
		want string
	}{
		{unix.RTM_NEWADDR, nil, Addresses},
		{unix.RTM_DELROUTE, route(unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, 0), Routes},
		{unix.RTM_NEWROUTE, route(unix.RT_TABLE_MAIN, unix.RTPROT_KERNEL, 0), ""},
		{unix.RTM_NEWROUTE, route(unix.RT_TABLE_LOCAL, unix.RTPROT_BOOT, 0), ""},
		{unix.RTM_NEWROUTE, []byte{1, 2}, ""},
		{unix.RTM_NEWLINK, link(7, unix.IFF_UP|unix.IFF_RUNNING), ""}, // as it was
		{unix.RTM_NEWLINK, link(7, unix.IFF_UP), Links},
		{unix.RTM_NEWLINK, link(7, unix.IFF_UP), ""},
		{unix.RTM_NEWLINK, link(8, unix.IFF_UP|unix.IFF_RUNNING), ""}, // new
		{unix.RTM_DELLINK, link(8, 0), ""},
		{unix.RTM_NEWLINK, []byte{1}, ""},
		{unix.RTM_NEWNEIGH, nil, ""},
	} {
		m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: c.kind}, Data: c.data}
		if got := judge(m, up); got != c.want {
			t.Errorf("message %d: %q, want %q", i, got, c.want)
		}
	}
}

// The clock's timer can be made here, says nothing while nobody sleeps, and ends when it is closed.
func TestClock(t *testing.T) {
	f, err := openClock()
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{news: make(chan string)}
	done := make(chan struct{})
	go func() { w.readClock(t.Context(), f); close(done) }()
	f.Close()
	select {
	case why := <-w.news:
		t.Errorf("news of %q", why)
	case <-done:
	}
	if d := asleep(); d < -time.Second {
		t.Errorf("asleep() = %s", d)
	}
}

func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { WatchNetwork(ctx, func(NetworkEvent) {}); close(done) }()
	cancel()
	<-done
}
