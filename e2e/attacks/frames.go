package attacks

import (
	"errors"
	"io"
	"net"
	"sync"

	"reverser/internal/wire"
)

// frames are the frames of one connection.
type frames struct {
	net.Conn
	buf []byte // of the one who reads

	mu sync.Mutex // held while somebody writes
}

func newFrames(c net.Conn) *frames {
	return &frames{Conn: c, buf: make([]byte, wire.HeaderLen+wire.MaxPayload)}
}

// read returns the next frame, which is good until the next call.
func (c *frames) read() (wire.Frame, error) {
	if _, err := io.ReadFull(c.Conn, c.buf[:wire.HeaderLen]); err != nil {
		return wire.Frame{}, err
	}
	f, _, err := wire.Parse(c.buf[:wire.HeaderLen])
	if !errors.Is(err, wire.ErrTruncated) {
		return f, err
	}
	size := int(c.buf[2])<<8 | int(c.buf[3])
	if _, err := io.ReadFull(c.Conn, c.buf[wire.HeaderLen:wire.HeaderLen+size]); err != nil {
		return wire.Frame{}, err
	}
	f, _, err = wire.Parse(c.buf[:wire.HeaderLen+size])
	return f, err
}

// write sends encoded frames.
func (c *frames) write(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.Conn.Write(b)
	return err
}

// serve passes frames on until the connection ends. PING is answered: whoever attacks wants to be taken for alive.
func (c *frames) serve(handle func(wire.Frame)) error {
	for {
		f, err := c.read()
		if err != nil {
			return err
		}
		if f.Type == wire.TypePing {
			if err := c.write(wire.AppendEmpty(nil, wire.TypePong, 0, f.Offset)); err != nil {
				return err
			}
			continue
		}
		handle(f)
	}
}
