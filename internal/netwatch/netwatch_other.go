//go:build !linux

package netwatch

import (
	"context"
	"sync"
)

// listen returns false: here a tick compares.
func (*watcher) listen(context.Context, *sync.WaitGroup) bool { return false }
