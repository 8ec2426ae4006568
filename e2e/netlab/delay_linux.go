package netlab

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// delay keeps packets waiting between two tun devices in the router. Rules lead what enters at r0 into d0 and what
// enters at r1 into d1; each comes out of the other device, from where the plain routes lead on.
type delay struct {
	router  *Host
	devices [2]*os.File
	wg      sync.WaitGroup
}

// rules say which packets take the detour; startDelay adds them, stop deletes them.
var rules = []string{"iif r0 lookup 100", "iif r1 lookup 101"}

// waiting is how many packets may wait in one direction: 100 Mbit/s of full packets for a second.
const waiting = 8000

func startDelay(router *Host, d time.Duration) (_ *delay, err error) {
	dl := &delay{router: router}
	defer func() {
		if err != nil {
			_ = dl.stop()
		}
	}()
	for i := range dl.devices {
		name := fmt.Sprintf("d%d", i)
		err := router.Do(func() (err error) {
			dl.devices[i], err = openTun(name)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("open a tun device: %w", err)
		}
		if err := router.runAll("ip link set "+name+" up", fmt.Sprintf("ip route replace default dev %s table %d", name, 100+i)); err != nil {
			return nil, err
		}
	}
	dl.move(dl.devices[0], dl.devices[1], d)
	dl.move(dl.devices[1], dl.devices[0], d)
	for _, r := range rules {
		if err := router.run("ip rule add " + r); err != nil {
			return nil, err
		}
	}
	return dl, nil
}

func (dl *delay) stop() (err error) {
	for _, r := range rules {
		err = dl.router.run("ip rule del " + r)
	}
	for _, f := range dl.devices {
		if f != nil {
			f.Close()
		}
	}
	dl.wg.Wait()
	return err
}

func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// move reads packets and writes each one when its time has come. It ends when the devices are closed.
func (dl *delay) move(from, to *os.File, d time.Duration) {
	type packet struct {
		due  time.Time
		data []byte
	}
	queue := make(chan packet, waiting)
	dl.wg.Go(func() {
		defer close(queue)
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			select {
			case queue <- packet{time.Now().Add(d), append([]byte(nil), buf[:n]...)}:
			default: // a full queue drops, as routers do
			}
		}
	})
	dl.wg.Go(func() {
		for p := range queue {
			time.Sleep(time.Until(p.due))
			_, _ = to.Write(p.data) // a router does not tell about a packet that it could not pass on
		}
	})
}
