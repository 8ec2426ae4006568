package bridge

import (
	"context"
	"net"
	"time"

	"reverser/internal/sys"
	"reverser/internal/wire"
)

// dialTime bounds the connect to a target.
const dialTime = 10 * time.Second

// dialTarget connects to the real server of a service.
func (b *Bridge) dialTarget(svc Service) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(b.ctx, dialTime)
	defer cancel()
	return b.targets.Dial(ctx, svc.Target.Network, svc.Target.Address)
}

// targetCode is the code of the reset that a user gets when the target was not connected.
func targetCode(err error) wire.Code {
	if sys.Refused(err) {
		return wire.CodeRefused
	}
	return wire.CodeUnreachable
}
