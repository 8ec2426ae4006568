package main

import (
	"log/slog"
	"time"

	"reverser/internal/accesslog"
	"reverser/internal/status"
	"reverser/internal/traffic"
)

// accessLog is the access log of a role.
type accessLog struct{ *accesslog.Log }

func newAccessLog(log *slog.Logger) *accessLog { return &accessLog{accesslog.New(log)} }

// over writes a line about a connection that is over.
func (l *accessLog) over(c traffic.Over) {
	if !l.On() {
		return
	}
	e := &accesslog.Entry{
		Time: time.Now(), Kind: accesslog.KindConnection, Service: c.Service, Key: c.Key, Client: c.Client, Target: c.Target,
		Sent: c.Sent, Received: c.Received, Reason: string(c.Reason), Resumes: c.Resumes, Refused: string(c.Refused),
	}
	if c.Refused == "" {
		e.Duration = traffic.Seconds(c.Duration)
	}
	l.Write(e)
}

// status is nil when there is no access log.
func (l *accessLog) status() *status.AccessLog {
	s := l.State()
	if s.Path == "" {
		return nil
	}
	st := &status.AccessLog{File: s.Path, Written: s.Written, Lost: s.Lost}
	if s.Err != nil {
		st.Error = s.Err.Error()
	}
	return st
}
