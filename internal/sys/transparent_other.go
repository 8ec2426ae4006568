//go:build !linux

package sys

import (
	"errors"
	"net/netip"
)

var errNotTransparent = errors.New("this operating system has no way to connect from a user's address: it needs Linux")

func setTransparent(int, netip.Addr) error { return errNotTransparent }

// CheckTransparent returns why this process cannot connect as DialAs does, nil if it can.
func CheckTransparent() error { return errNotTransparent }

// TransparentRoutes is not needed here.
func TransparentRoutes(netip.Addr) string { return "" }
