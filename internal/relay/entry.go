package relay

import (
	"log/slog"
	"net"
	"strconv"
	"time"

	"reverser/internal/link"
	"reverser/internal/status"
)

// Entry is a pair as logs and status name it, at either end alike.
type Entry struct {
	*Pair
	ID                      uint64
	Service, Target, Client string
	Since                   time.Time
}

// State describes a frozen pair, names included.
func (e *Entry) State() State {
	st := e.Pair.State()
	st.ID, st.Since, st.Service, st.Target, st.Client = e.ID, e.Since, e.Service, e.Target, e.Client
	return st
}

// RestoreEntry is Restore for a pair with names.
func RestoreEntry(st State, conn net.Conn, s *link.Stream) *Entry {
	return &Entry{Pair: Restore(st, conn, s), ID: st.ID, Since: st.Since, Service: st.Service, Target: st.Target, Client: st.Client}
}

// Created logs that the pair exists.
func (e *Entry) Created(log *slog.Logger) {
	log.Info("pair created", "service", e.Service, "client", e.Client, "target", e.Target)
}

// Released logs that the pair is over, and why.
func (e *Entry) Released(log *slog.Logger, reason Reason) {
	sent, received := e.Counts()
	log.Info("pair released", "service", e.Service, "client", e.Client, "target", e.Target,
		"sent", sent, "received", received, "duration", Seconds(time.Since(e.Since)),
		"reason", string(reason), "resumes", e.stream.Resumes())
}

// Status returns a snapshot.
func (e *Entry) Status() status.Pair {
	sent, received := e.Counts()
	st := status.Pair{
		ID: strconv.FormatUint(e.ID, 10), Service: e.Service, Client: e.Client, Target: e.Target,
		Sent: sent, Received: received, Since: e.Since, State: status.PairOpen,
	}
	switch {
	case e.stream.Paused():
		st.State = status.PairPaused
	case e.HalfClosed():
		st.State = status.PairHalfClosed
	}
	return st
}

// Seconds is d for a log line: in seconds, to the microsecond.
func Seconds(d time.Duration) float64 {
	return float64(max(d.Round(time.Microsecond), time.Microsecond).Microseconds()) / 1e6
}
