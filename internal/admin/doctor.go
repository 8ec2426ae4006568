package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"reverser/internal/status"
)

// doctorLimit is how long a process looks for `reverser doctor`, which waits a little longer.
const doctorLimit = 12 * time.Second

type doctorReply struct {
	Checks []status.Check `json:"checks"`
}

// doctor has the process look at what only it can look at, for one who asks at a time: it dials for that.
func (a *api) doctor(w http.ResponseWriter, r *http.Request) {
	s := a.server
	if !s.examining.TryLock() {
		refuse(w, http.StatusTooManyRequests, errors.New("the process looks already, for another `reverser doctor`: ask again in some seconds"))
		return
	}
	defer s.examining.Unlock()
	ctx, cancel := context.WithTimeout(r.Context(), doctorLimit)
	defer cancel()
	defer context.AfterFunc(a.stopping, cancel)()
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // or whoever asks would be taken for gone
	rc.SetWriteDeadline(time.Now().Add(doctorLimit + requestTimeout))
	answer := doctorReply{Checks: []status.Check{}}
	if s.Doctor != nil {
		answer.Checks = append(answer.Checks, s.Doctor(ctx)...)
	}
	reply(w, http.StatusOK, answer)
}

// Doctor has the process look at what only it can look at for `reverser doctor`. An older one does not know of that, which is
// [errors.ErrUnsupported].
func (c *Client) Doctor(ctx context.Context) ([]status.Check, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorLimit+requestTimeout)
	defer cancel()
	patient := &Client{Silent: c.Silent, http: &http.Client{Transport: c.http.Transport}} // other calls are answered sooner
	var r doctorReply
	err := patient.do(ctx, http.MethodPost, "/api/v1/doctor", nil, &r)
	if refusal, ok := errors.AsType[*UsageError](err); ok && refusal.Code == http.StatusNotFound {
		err = errors.ErrUnsupported
	}
	return r.Checks, err
}
