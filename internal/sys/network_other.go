//go:build !linux

package sys

import (
	"context"
	"sync"
)

// listen returns false: here a tick compares.
func (*watcher) listen(context.Context, *sync.WaitGroup) bool { return false }
