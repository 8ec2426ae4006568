//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package sys

import "golang.org/x/sys/unix"

// HungUp reports whether the peer of a connected socket sent its end or a reset, also behind bytes that nobody has read yet.
func HungUp(fd int) bool {
	in, _, _ := ends(fd)
	return in
}

// State returns what is known of a connected socket without reading it: whether the peer reset the connection, and whether both
// directions of it have ended, by FINs or by a reset.
func State(fd int) (reset, over bool) {
	in, out, failed := ends(fd)
	return failed, in && out
}

// ends asks which directions of a connected socket have ended, and whether an error waits to be told to who reads or writes next.
//
// poll(2) does not serve for that: on macOS it says nothing unasked, and calls a socket hung up when one direction has ended; and no BSD
// shows an error by it. The filters of kqueue(2) tell both, and leave the error where it is.
func ends(fd int) (in, out, failed bool) {
	q, err := unix.Kqueue()
	if err != nil { // no descriptor is free: nothing is known
		return false, false, false
	}
	defer unix.Close(q)
	var ask, told [2]unix.Kevent_t
	unix.SetKevent(&ask[0], fd, unix.EVFILT_READ, unix.EV_ADD|unix.EV_ONESHOT)
	unix.SetKevent(&ask[1], fd, unix.EVFILT_WRITE, unix.EV_ADD|unix.EV_ONESHOT)
	n, err := unix.Kevent(q, ask[:], told[:], new(unix.Timespec))
	for err == unix.EINTR { // what was asked is kept
		n, err = unix.Kevent(q, nil, told[:], new(unix.Timespec))
	}
	if err != nil {
		return false, false, false
	}
	for _, e := range told[:n] {
		if e.Flags&unix.EV_ERROR != 0 || e.Flags&unix.EV_EOF == 0 {
			continue
		}
		failed = failed || e.Fflags != 0
		if e.Filter == unix.EVFILT_READ {
			in = true
		} else {
			out = true
		}
	}
	return in, out, failed
}
