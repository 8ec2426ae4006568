package link

import (
	"errors"

	"reverser/internal/wire"
)

// ErrDuplicate is what Host.Serve returns, to errors.Is, for a bridge that was refused because another live one holds its
// key.
var ErrDuplicate = errors.New("another live bridge holds the key")

// Is implements the interface of errors.Is.
func (r *refusal) Is(target error) bool {
	return target == ErrDuplicate && r.status == wire.StatusDuplicate
}
