package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"
)

// Addresses of the hosts. The lan host has the second one after [Lab.Move].
const (
	PublicIP = "10.1.0.1"
	LANIP    = "10.2.0.2"
	movedIP  = "10.2.0.3"
)

// A Direction of packets through the router.
type Direction int

// Directions.
const (
	ToProxy Direction = iota
	ToBridge
)

func (d Direction) String() string { return [...]string{"to the proxy", "to the bridge"}[d] }

// A Lab is the three hosts. Its methods are called by one goroutine at a time.
type Lab struct {
	Public, Router, LAN *Host

	moved bool
	loss  [2]*xdp // by direction, as of SetLoss or SetLargest: stands where such packets enter the router
	delay *delay
}

// Available says what is missing to make a Lab.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		if _, err := os.Stat("/usr/sbin/ip"); err != nil {
			return errors.New("missing: ip; on Debian: apt install iproute2")
		}
	}
	return nil
}

// New makes the hosts and connects them. The caller closes the Lab.
func New() (lab *Lab, err error) {
	if err := Available(); err != nil {
		return nil, err
	}
	lab = new(Lab)
	defer func() {
		if err != nil {
			lab.Close()
		}
	}()
	for _, h := range []struct {
		at   **Host
		name string
	}{{&lab.Public, "public"}, {&lab.Router, "router"}, {&lab.LAN, "lan"}} {
		if *h.at, err = newHost(h.name); err != nil {
			return nil, err
		}
		if err := (*h.at).run("ip link set lo up"); err != nil {
			return nil, err
		}
	}
	for _, conf := range []string{"ipv4/ip_forward 1", "ipv4/conf/all/rp_filter 0", "ipv4/conf/default/rp_filter 0"} {
		var name, value string
		fmt.Sscan(conf, &name, &value)
		if err := lab.Router.write(name, value); err != nil {
			return nil, err
		}
	}
	for _, side := range []struct {
		host                     *Host
		device, port, ip, router string
	}{
		{lab.Public, "eth0", "r0", PublicIP, "10.1.0.254"},
		{lab.LAN, "eth0", "r1", LANIP, "10.2.0.254"},
	} {
		// The router's end is made here and handed over, so that no name is ever taken in the namespace of this process.
		err := lab.Router.run(fmt.Sprintf("ip link add %s type veth peer name %s netns /proc/%d/fd/%d",
			side.port, side.device, os.Getpid(), side.host.ns.Fd()))
		if err != nil {
			return nil, err
		}
		if err := lab.Router.runAll("ip addr add "+side.router+"/24 dev "+side.port, "ip link set "+side.port+" up"); err != nil {
			return nil, err
		}
		if err := side.host.runAll("ip addr add "+side.ip+"/24 dev "+side.device, "ip link set "+side.device+" up",
			"ip route add default via "+side.router); err != nil {
			return nil, err
		}
	}
	return lab, nil
}

// Addresses of the host that Behind makes, and of the lan host as its router.
const (
	BehindIP       = "10.3.0.1"
	behindRouterIP = "10.3.0.254"
)

// Behind makes another host, to which the lan host is the only way. The caller calls it once, and closes it.
func (lab *Lab) Behind() (h *Host, err error) {
	if h, err = newHost("behind"); err != nil {
		return nil, err
	}
	err = lab.LAN.runAll(fmt.Sprintf("ip link add eth1 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), h.ns.Fd()),
		"ip addr add "+behindRouterIP+"/24 dev eth1", "ip link set eth1 up")
	if err == nil {
		err = h.runAll("ip link set lo up", "ip addr add "+BehindIP+"/24 dev eth0", "ip link set eth0 up", "ip route add default via "+behindRouterIP)
	}
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// Close removes everything but what still runs on the hosts.
func (lab *Lab) Close() {
	_ = lab.SetDelay(0) // the devices go with the namespace whatever happens here
	for _, x := range lab.loss {
		x.close()
	}
	lab.Public.close()
	lab.Router.close()
	lab.LAN.close()
}

// Down stops all packets between the hosts, whose own devices stay up.
func (lab *Lab) Down() error { return lab.Router.run("ip link set r0 down") }

// Up is the end of Down.
func (lab *Lab) Up() error { return lab.Router.run("ip link set r0 up") }

// SetLoss drops packets of a direction at random; a fraction of 1 is a black hole in that direction.
func (lab *Lab) SetLoss(d Direction, fraction float64) error {
	lab.loss[d].close()
	lab.loss[d] = nil
	if fraction <= 0 {
		return nil
	}
	device := "r1"
	if d == ToBridge {
		device = "r0"
	}
	err := lab.Router.Do(func() (err error) {
		lab.loss[d], err = dropAt(device, fraction)
		return err
	})
	if err != nil {
		return fmt.Errorf("lose %v of the packets %v: %w", fraction, d, err)
	}
	return nil
}

// SetLargest drops packets of more than size bytes in a direction, and nobody says so; 0 ends it. It takes the place of SetLoss.
func (lab *Lab) SetLargest(d Direction, size int) error {
	if err := lab.SetLoss(d, 0); err != nil || size == 0 {
		return err
	}
	device := "r1"
	if d == ToBridge {
		device = "r0"
	}
	err := lab.Router.Do(func() (err error) {
		lab.loss[d], err = dropLargeAt(device, size)
		return err
	})
	if err != nil {
		return fmt.Errorf("drop packets of more than %d bytes %v: %w", size, d, err)
	}
	return nil
}

// SetThin makes the way to the proxy as thin as rate, with a queue before it, both as tc writes them; "" ends it.
func (lab *Lab) SetThin(rate, queue string) error {
	if rate == "" {
		return lab.Router.run("tc qdisc del dev r0 root")
	}
	return lab.Router.run("tc qdisc replace dev r0 root tbf rate " + rate + " burst 8kb limit " + queue)
}

// Move gives the lan host another address; the one it had is gone at once.
func (lab *Lab) Move() error {
	from, to := LANIP, movedIP
	if lab.moved {
		from, to = to, from
	}
	lab.moved = !lab.moved
	return lab.LAN.runAll("ip addr add "+to+"/24 dev eth0", "ip addr del "+from+"/24 dev eth0",
		"ip addr replace "+to+"/24 dev eth0", "ip route replace default via 10.2.0.254")
}

// AddAddress gives the lan host one more address of its network, for sockets that are bound to it.
func (lab *Lab) AddAddress(ip netip.Addr) error {
	return lab.LAN.run("ip addr replace " + ip.String() + "/24 dev eth0")
}

// SetDelay makes every packet wait in the router, in each direction, on top of what else happens to it; 0 ends it.
func (lab *Lab) SetDelay(d time.Duration) error {
	if lab.delay != nil {
		err := lab.delay.stop()
		lab.delay = nil
		if err != nil {
			return err
		}
	}
	if d == 0 {
		return nil
	}
	var err error
	lab.delay, err = startDelay(lab.Router, d)
	return err
}
