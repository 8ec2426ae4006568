package proxy

import (
	"runtime/debug"
	"sync"
	"time"
)

// tidier gives memory back to the system when a crowd of bridges has come. A handshake leaves many times as much garbage behind as an
// idle link holds, and Go's runtime would keep room for as much for as long as nothing more comes.
type tidier struct {
	free func() // debug.FreeOSMemory, but for tests

	mu    sync.Mutex
	timer *time.Timer // guarded by mu, as all below
	came  int         // connections since memory was given back
	done  bool
}

const (
	enoughCame = 64 // connections that are worth it
	noMoreFor  = 2 * time.Second
)

func newTidier() *tidier { return &tidier{free: debug.FreeOSMemory} }

// attached notes that a connection was attached.
func (t *tidier) attached() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.came++
	switch {
	case t.done || t.came < enoughCame:
	case t.timer == nil:
		t.timer = time.AfterFunc(noMoreFor, t.tidy)
	default:
		t.timer.Reset(noMoreFor)
	}
}

// tidy is called when none has come for noMoreFor.
func (t *tidier) tidy() {
	t.mu.Lock()
	due := !t.done && t.came >= enoughCame
	t.came = 0
	t.mu.Unlock()
	if due {
		t.free()
	}
}

func (t *tidier) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = true
	if t.timer != nil {
		t.timer.Stop()
	}
}
