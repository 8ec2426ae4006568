package traffic

import (
	"sync/atomic"
	"time"

	"reverser/internal/relay"
	"reverser/internal/status"
)

// targetWord is what is known of the target of a service.
type targetWord struct {
	state string // of status
	at    time.Time
	err   string

	total, received uint64 // what the service had counted then
}

// target is the last word about the target of a service. It costs a user who is served nothing but two loads, once a second more.
type target struct{ word atomic.Pointer[targetWord] }

// same is how long a word stands that says the same as the next one.
const same = time.Second

func (a *Account) noteTarget(state, err string, now time.Time) {
	last := a.target.word.Load()
	if last != nil && last.state == state && last.err == err && now.Sub(last.at) < same &&
		(state == status.TargetAnswers || last.received == a.received.Load()) { // else what was received would seem to be of one that answers
		return
	}
	a.target.word.Store(&targetWord{state, now, err, a.total.Load(), a.received.Load()})
}

// Reached says that the target of the service was connected.
func (a *Admission) Reached() { a.account.noteTarget(status.TargetAnswers, "", time.Now()) }

// NotReached says that the target of the service could not be connected. err is nil where somebody else tried it. A pair may hear of it,
// too: the end of that one says that the target answers only if more was received of it.
func (a *Admission) NotReached(why Refusal, err error) {
	state, text := status.TargetUnreachable, ""
	if why == RefusedTarget {
		state = status.TargetRefused
	}
	if err != nil {
		text = err.Error()
	}
	if a.pair != nil {
		_, received := a.pair.Counts()
		a.unreached.Store(received)
	}
	a.account.noteTarget(state, text, time.Now())
}

// noteEnd says what the end of a pair tells about the target, where somebody else connects to it. received counts from the last word on.
func (a *Account) noteEnd(reason relay.Reason, received uint64) {
	switch {
	case reason == relay.ReasonRefused:
		a.noteTarget(status.TargetRefused, "", time.Now())
	case reason == relay.ReasonUnreachable:
		a.noteTarget(status.TargetUnreachable, "", time.Now())
	case received > 0:
		a.noteTarget(status.TargetAnswers, "", time.Now())
	}
}

// describe writes what is known of the target into the status of the service.
func (t *target) describe(st *status.Service) {
	word := t.word.Load()
	switch {
	case word != nil && (word.state == status.TargetAnswers || st.Total <= word.total || st.Received <= word.received):
		st.TargetState, st.TargetAt, st.TargetError = word.state, word.at, word.err
	case st.Received > 0: // a connection that goes on, and began after the word
		st.TargetState = status.TargetAnswers
	default:
		st.TargetState = status.TargetUnknown
	}
}
