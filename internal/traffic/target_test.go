package traffic

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/logtest"
	"reverser/internal/relay"
	"reverser/internal/status"
)

// TestTarget: the last user's connection says whether the target answers, at the end that connects to it and at the one that does not.
func TestTarget(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, c *Conns, _ *logtest.Journal) {
		account := c.Account(keyA, "tcp/9000")
		want := func(state, err string, at time.Time) {
			t.Helper()
			var st status.Service
			account.Describe(&st)
			if st.TargetState != state || st.TargetError != err || !st.TargetAt.Equal(at) {
				t.Errorf("the target is %q at %v: %q; want %q at %v: %q", st.TargetState, st.TargetAt, st.TargetError, state, at, err)
			}
		}
		after := func(d time.Duration) time.Time { time.Sleep(d); return time.Now() }
		var nobody time.Time
		want(status.TargetUnknown, "", nobody)

		// Where it is connected to.
		refuse := func(why Refusal, text string) {
			a := admit(t, account, alice)
			a.NotReached(why, errors.New(text))
			a.Refuse(why, "no")
		}
		reach := func() {
			a := admit(t, account, alice)
			a.Reached()
			a.Refuse(RefusedLeft, "gone")
		}
		at := after(time.Minute)
		refuse(RefusedTarget, "connection refused")
		want(status.TargetRefused, "connection refused", at)
		first := after(time.Minute)
		reach()
		want(status.TargetAnswers, "", first)
		after(same / 2)
		reach()
		want(status.TargetAnswers, "", first) // within a second it is not said anew
		at = after(same)
		reach()
		want(status.TargetAnswers, "", at)
		at = after(time.Minute)
		refuse(RefusedUnreachable, "i/o timeout")
		want(status.TargetUnreachable, "i/o timeout", at)

		// Where the end of a pair says it.
		account = c.Account(keyA, "tcp/9001")
		pair := func(received uint64) (*fake, *Admission) {
			f := &fake{received: received}
			a := admit(t, account, alice)
			a.bind(f, "")
			return f, a
		}
		f, _ := pair(0)
		at = after(time.Minute)
		f.End(relay.ReasonRefused, 0)
		synctest.Wait()
		want(status.TargetRefused, "", at)
		f, _ = pair(0)
		after(time.Minute)
		f.End(relay.ReasonEOF, 0) // the client left before the target said anything
		synctest.Wait()
		want(status.TargetRefused, "", at)
		f, _ = pair(5)
		at = after(time.Minute)
		f.End(relay.ReasonEOF, 0)
		synctest.Wait()
		want(status.TargetAnswers, "", at)
		f, _ = pair(0)
		at = after(time.Minute)
		f.End(relay.ReasonUnreachable, 0)
		synctest.Wait()
		want(status.TargetUnreachable, "", at)
		for range 3 { // close behind each other, with a handshake before the bridge tries the target
			f, a := pair(0)
			a.Moved(0, 2840)
			at = after(same / 4)
			f.End(relay.ReasonUnreachable, 0)
			synctest.Wait()
			want(status.TargetUnreachable, "", at)
		}
		f, a := pair(0)
		want(status.TargetUnreachable, "", at)
		a.Moved(0, 7) // it goes on
		want(status.TargetAnswers, "", nobody)
		f.End(relay.ReasonEOF, 0)
		synctest.Wait()
	})
}
