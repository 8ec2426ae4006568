package notify

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"reverser/internal/status"
)

const day = 24 * time.Hour

var moment = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// told is what a watch says of a snapshot at a time.
func told(w *watch, s status.Snapshot, now time.Time) (all []string) {
	for _, e := range w.look(s, now) {
		all = append(all, e.words())
	}
	return all
}

// TestKeyExpiring: a week and a day before its end, a key is told of, once each; not when it is given more time, and not of one that has ended.
func TestKeyExpiring(t *testing.T) {
	key := func(expires time.Time) status.Snapshot {
		return status.Snapshot{Role: "proxy", Keys: []status.Key{{Key: "nas", Expires: expires}, {Key: "office"}}}
	}
	type step struct {
		left, gone time.Duration // until the end, and since the step before
		want       string
	}
	const remedy = ": `reverser key edit` with --expires gives it more time"
	for name, steps := range map[string][]step{
		"as time goes by": {{30 * day, 0, ""}, {8 * day, 22 * day, ""}, {7 * day, day, ""}, {7*day - 30*time.Second, 30 * time.Second, "7 days"}, {2 * day, 5 * day, ""},
			{day - time.Minute, day, ""}, {day - 2*time.Minute, time.Minute, "24 hours"}, {time.Hour, 23 * time.Hour, ""}, {-time.Hour, 2 * time.Hour, ""}},
		"a start within the last day":     {{90 * time.Minute, 0, ""}, {89 * time.Minute, time.Minute, "89 minutes"}, {time.Minute, time.Hour, ""}},
		"a start within the last minutes": {{2 * time.Minute, 0, ""}, {80 * time.Second, 40 * time.Second, "1 minute"}},
		"a start within the last minute":  {{59 * time.Second, 0, ""}, {29 * time.Second, 30 * time.Second, "less than a minute"}},
		"more time within the delay":      {{6 * day, 0, ""}, {60 * day, 20 * time.Second, ""}, {60*day - time.Minute, time.Minute, ""}},
		"more time, and again":            {{6 * day, 0, ""}, {6*day - time.Minute, time.Minute, "6 days"}, {90 * day, time.Minute, ""}, {5 * day, 85 * day, ""}, {5*day - time.Minute, time.Minute, "5 days"}},
		"ended at the start":              {{-time.Minute, 0, ""}, {-2 * time.Minute, time.Minute, ""}},
		"ends within the delay":           {{10 * time.Second, 0, ""}, {-20 * time.Second, 30 * time.Second, ""}},
	} {
		w, now := &watch{after: 30 * time.Second}, moment
		for i, step := range steps {
			now = now.Add(step.gone)
			expires := now.Add(step.left)
			var want []string
			if step.want != "" {
				want = []string{"key nas expires at " + expires.Format("2006-01-02 15:04:05 MST") + ", in " + step.want + remedy}
			}
			if got := told(w, key(expires), now); !slices.Equal(got, want) {
				t.Errorf("%s, step %d: told %q, want %q", name, i, got, want)
			}
		}
	}
	w := &watch{}
	told(w, key(moment.Add(day)), moment)
	told(w, status.Snapshot{}, moment)
	if len(w.keys) != 0 {
		t.Errorf("keys that are gone are remembered: %v", w.keys)
	}
}

// TestCertificates: what somebody has to look after is told once, and when it is well again.
func TestCertificates(t *testing.T) {
	cert := func(state string, notAfter, renewAt time.Duration, err string) *status.Certificate {
		c := &status.Certificate{Host: "app.example.com", State: state, Error: err}
		if notAfter != 0 {
			c.NotAfter = moment.Add(notAfter)
		}
		if renewAt != 0 {
			c.RenewAt = moment.Add(renewAt)
		}
		return c
	}
	const again = "certificate of app.example.com is well again until 2026-04-02"
	good := cert(status.CertificateValid, 90*day, 60*day, "")
	type step struct {
		at   time.Duration
		c    *status.Certificate
		want string // how it begins
	}
	for name, steps := range map[string][]step{
		"a good one":                       {{0, good, ""}, {time.Hour, good, ""}},
		"one that is asked for, and comes": {{0, cert(status.CertificatePending, 0, 0, ""), ""}, {time.Hour, good, ""}},
		"one that cannot be had": {{0, cert(status.CertificateFailed, 0, 0, "the name leads elsewhere\x1b[2J"), ""},
			{time.Minute, cert(status.CertificateFailed, 0, 0, "the name leads elsewhere\x1b[2J"), `certificate of app.example.com cannot be had: the name leads elsewhere\u001b[2J`},
			{day, cert(status.CertificateFailed, 0, 0, "other words"), ""}, {2 * day, good, ""}, {2*day + time.Minute, good, again}},
		"a failure that passes": {{0, good, ""}, {time.Hour, cert(status.CertificateFailed, 0, 0, "no"), ""}, {time.Hour + 10*time.Second, good, ""}, {day, good, ""}},
		"one that is not renewed": {{0, cert(status.CertificateValid, 30*day, day, "no"), ""}, {22 * day, cert(status.CertificateValid, 30*day, day, "no"), ""},
			{23 * day, cert(status.CertificateValid, 30*day, day, "no"), ""}, {23*day + time.Minute, cert(status.CertificateValid, 30*day, day, "no"), "certificate of app.example.com was not renewed, and is good until 2026-02-01 03:04:05 UTC: no"}},
		"one that has ended": {{0, cert(status.CertificateFailed, -day, -30*day, "no"), ""},
			{time.Minute, cert(status.CertificateFailed, -day, -30*day, "no"), "certificate of app.example.com cannot be renewed, and was good until 2026-01-01"}},
		"one that begins later": {{0, cert(status.CertificateFailed, 90*day, 0, "it is not valid before"), ""},
			{time.Minute, cert(status.CertificateFailed, 90*day, 0, "it is not valid before"), "certificate of app.example.com cannot be used: it is not valid before"}},
		"a short one that is renewed in time": {{0, cert(status.CertificateValid, 6*day, 4*day, ""), ""}, {4*day + time.Minute, cert(status.CertificateValid, 6*day, 4*day, ""), ""}, {4*day + 2*time.Minute, good, ""}},
		"a renewal of which nothing is heard": {{4 * day, cert(status.CertificateValid, 6*day, 4*day, ""), ""}, {4*day + 2*time.Hour, cert(status.CertificateValid, 6*day, 4*day, ""), ""},
			{4*day + 3*time.Hour, cert(status.CertificateValid, 6*day, 4*day, ""), "certificate of app.example.com was not renewed"}},
		"a file that nobody replaces": {{0, cert(status.CertificateValid, 10*day, 0, ""), ""}, {3 * day, cert(status.CertificateValid, 10*day, 0, ""), ""}, {3*day + time.Minute, cert(status.CertificateValid, 10*day, 0, ""), "certificate of app.example.com was not renewed"}},
		"a name that is not served": {{0, cert(status.CertificateFailed, 0, 0, "no"), ""}, {10 * time.Second, nil, ""}, {time.Hour, nil, ""}, {2 * time.Hour, cert(status.CertificateFailed, 0, 0, "no"), ""},
			{3 * time.Hour, cert(status.CertificateFailed, 0, 0, "no"), "certificate of app.example.com cannot be had"}, {4 * time.Hour, nil, ""}, {5 * time.Hour, cert(status.CertificateFailed, 0, 0, "no"), ""}, {6 * time.Hour, cert(status.CertificateFailed, 0, 0, "no"), ""}, {60 * day, nil, ""}},
	} {
		w := &watch{after: 30 * time.Second}
		for i, step := range steps {
			s := status.Snapshot{Role: "bridge", Links: []status.Link{{Key: "k", State: status.LinkUp}}}
			if step.c != nil {
				s.Certificates = []status.Certificate{*step.c}
			}
			got := told(w, s, moment.Add(step.at))
			if step.want == "" && len(got) != 0 || step.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], step.want)) {
				t.Errorf("%s, step %d: told %q, want %q", name, i, got, step.want)
			}
		}
		if steps[len(steps)-1].c == nil && len(w.subjects) != 1 {
			t.Errorf("%s: %d subjects are remembered", name, len(w.subjects))
		}
	}
}

// TestCertificateEvent: what a program is told, of two for one host the one that is not well.
func TestCertificateEvent(t *testing.T) {
	s := status.Snapshot{Certificates: []status.Certificate{
		{Host: "a", State: status.CertificateFailed, Error: "no", Hint: "do this", NotAfter: moment},
		{Host: "a", State: status.CertificateValid, NotAfter: moment.Add(90 * day), RenewAt: moment.Add(60 * day)},
	}}
	w := &watch{}
	got := w.look(s, moment)
	want := []Event{{Event: "certificate", Name: "a", Reason: "no: do this", Since: moment, State: "failed", Expires: moment}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the events are %v, want %v", got, want)
	}
	s.Certificates = s.Certificates[1:]
	if got = w.look(s, moment.Add(time.Hour)); len(got) != 1 || got[0].State != "valid" || got[0].Reason != "" {
		t.Errorf("when it is well again: %+v", got)
	}
}
