//go:build !unix

package sys

import (
	"errors"
	"net"
	"os"
)

var errNoPassing = errors.New("sys: an open connection cannot be handed over on this system")

// Duplicate returns an error: a socket stays tied to its process here.
func Duplicate(net.Conn) (*os.File, error) { return nil, errNoPassing }

// Adopt returns an error, as Duplicate does.
func Adopt(*os.File) (net.Conn, error) { return nil, errNoPassing }
