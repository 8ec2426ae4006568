package main

import (
	"context"
	"net"
	"os/exec"
)

// A host is where programs run and users dial from: this machine, or a namespace with a network of its own.
type host interface {
	Start(cmd *exec.Cmd) error
	Dial(ctx context.Context, addr string) (*net.TCPConn, error)
}

// here is this machine.
type here struct{}

func (here) Start(cmd *exec.Cmd) error { return cmd.Start() }

func (here) Dial(ctx context.Context, addr string) (*net.TCPConn, error) {
	d := net.Dialer{KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// A place is where a bed stands. Users and the first half of each contender are in front, the second half and the
// servers behind them in the back.
type place struct {
	front, back     host
	frontIP, backIP string
}

var loopback = place{here{}, here{}, "127.0.0.1", "127.0.0.1"}
