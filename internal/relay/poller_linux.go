package relay

import (
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"reverser/internal/link"
	"reverser/internal/sys"
)

// watcher watches the sockets of pairs that say nothing, so that none of them needs a goroutine, and sends what several of
// them say at the same time as one batch.
//
// It is an epoll set that Go's own poller watches. Every socket is in that one as well, for what has to wait.
type watcher struct {
	loops [link.Carriers]loop // by the carrier, whose batches each of them fills
	wg    sync.WaitGroup

	makeSet func() (fd int, err error) // of tests; nil: epollSet
}

// loop is one epoll set and its goroutine, which runs from the first pair until Close.
type loop struct {
	mu     sync.Mutex
	set    *os.File        // guarded by mu, as all below; nil: not there yet
	fd     int             // of set
	raw    syscall.RawConn // of set
	closed bool
	pairs  []watched
	free   []int32 // indexes into pairs

	events [64]unix.EpollEvent // only the goroutine uses both
	n      int
}

// watched is a place for a pair. The number tells events of this pair from those of an earlier one at the same place.
type watched struct {
	pair   *Pair
	number int32
}

// watch is a pair's place at a poller.
type watch struct {
	loop  *loop
	index int32
}

// add watches the pair's socket and reports whether that is possible. The pair's mu is held.
func (w *watcher) add(pair *Pair) bool {
	if pair.sock.raw == nil {
		return false
	}
	l := &w.loops[pair.stream.ID()%uint64(len(w.loops))]
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.set == nil && !w.begin(l) {
		return false
	}
	if len(l.free) == 0 {
		l.free = append(l.free, int32(len(l.pairs)))
		l.pairs = append(l.pairs, watched{})
	}
	i := l.free[len(l.free)-1]
	place := &l.pairs[i]
	pair.sock.polled, pair.life.watch = true, watch{l, i}
	place.pair = pair
	place.number++
	if !l.control(&pair.sock, unix.EPOLL_CTL_ADD, wanted, i) {
		place.pair, pair.sock.polled, pair.life.watch = nil, false, watch{}
		return false
	}
	l.free = l.free[:len(l.free)-1]
	return true
}

// wanted are the events that the poller asks for, each told once. After one of unfinished, a short read does not mean that the socket is
// empty: there is an end to read, or bytes behind an urgent one, in front of which Linux ends a read.
const (
	wanted     = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET
	unfinished = unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
)

func (l *loop) control(s *socket, op int, events uint32, index int32) bool {
	ok := false
	s.raw.Control(func(fd uintptr) {
		ok = unix.EpollCtl(l.fd, op, int(fd), &unix.EpollEvent{Events: events, Fd: index, Pad: l.pairs[index].number}) == nil
	})
	return ok
}

// arm sets whether the poller tells of bytes in the socket, those that are there already included. The pair's mu is held.
func (w *watch) arm(s *socket, bytes bool) {
	if w.loop == nil {
		return
	}
	w.loop.mu.Lock()
	defer w.loop.mu.Unlock()
	if w.loop.closed {
		return
	}
	events := uint32(unix.EPOLLET)
	if bytes {
		events = wanted
	}
	w.loop.control(s, unix.EPOLL_CTL_MOD, events, w.index)
}

// forget gives the place up. The kernel forgets a socket only when its last descriptor is closed: if it is shared, forget takes it out of
// the set. The pair's mu is held.
func (w *watch) forget(s *socket, shared bool) {
	l := w.loop
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if shared && !l.closed {
		l.control(s, unix.EPOLL_CTL_DEL, 0, w.index)
	}
	l.pairs[w.index].pair = nil
	l.free = append(l.free, w.index)
	w.loop = nil
}

// begin makes the set. mu is held.
func (w *watcher) begin(l *loop) bool {
	makeSet := epollSet
	if w.makeSet != nil {
		makeSet = w.makeSet
	}
	fd, err := makeSet()
	if err != nil {
		return false
	}
	unix.SetNonblock(fd, true)
	set := os.NewFile(uintptr(fd), "epoll")
	raw, err := set.SyscallConn()
	if err != nil || set.SetReadDeadline(time.Time{}) != nil { // Go's poller did not take it
		set.Close()
		return false
	}
	l.set, l.fd, l.raw = set, fd, raw
	w.wg.Go(l.run)
	return true
}

func epollSet() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) }

// close ends the goroutines.
func (w *watcher) close() {
	for i := range w.loops {
		l := &w.loops[i]
		l.mu.Lock()
		l.closed = true
		if l.set != nil {
			l.set.Close()
		}
		l.mu.Unlock()
	}
	w.wg.Wait()
}

func (l *loop) run() {
	var flush []*link.Stream
	ready := l.ready // made once: a method value is an allocation
	for l.raw.Read(ready) == nil {
		for _, e := range l.events[:l.n] {
			l.mu.Lock()
			w := l.pairs[e.Fd]
			l.mu.Unlock()
			if w.pair != nil && w.number == e.Pad && w.pair.readable(e.Events&unfinished != 0) {
				flush = append(flush, w.pair.stream)
			}
		}
		for _, s := range flush {
			s.Flush()
		}
		clear(flush)
		flush = flush[:0]
		runtime.Gosched() // what became ready meanwhile is not to wait for the next pause of the users
	}
}

// ready takes the events that are there. It reports whether there are any.
func (l *loop) ready(fd uintptr) bool {
	l.n = sys.Events(int(fd), l.events[:])
	return l.n > 0
}
