package main

import (
	"fmt"
	"time"

	"reverser/e2e/netlab"
)

// A distance is a way between the halves of a contender that takes time and loses packets: two hosts in network
// namespaces and a router between them. It delays packets, so that handshakes and acknowledgements take as long as they
// would; a relay in user space would answer for the other side.
type distance struct {
	place
	lab *netlab.Lab
}

func newDistance() (*distance, error) {
	lab, err := netlab.New()
	if err != nil {
		return nil, err
	}
	return &distance{place{lab.Public, lab.LAN, netlab.PublicIP, netlab.LANIP}, lab}, nil
}

func (d *distance) close() { d.lab.Close() }

// set changes the condition of the way.
func (d *distance) set(path string) error {
	var oneWay time.Duration
	var loss float64
	switch path {
	case near:
		oneWay = 10 * time.Millisecond
	case far:
		oneWay = 50 * time.Millisecond
	case lossy:
		oneWay, loss = 10*time.Millisecond, 0.01
	default:
		return fmt.Errorf("no such path: %s", path)
	}
	for _, dir := range []netlab.Direction{netlab.ToProxy, netlab.ToBridge} {
		if err := d.lab.SetLoss(dir, loss); err != nil {
			return err
		}
	}
	return d.lab.SetDelay(oneWay)
}
