package main

import (
	"log/slog"
	"time"

	"reverser/internal/accesslog"
	"reverser/internal/proxy"
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

// requests returns what writes a line about a request that is over; nil: there is no access log.
func (l *accessLog) requests() func(proxy.Request) {
	if !l.On() {
		return nil
	}
	return func(r proxy.Request) {
		l.Write(&accesslog.Entry{
			Time: time.Now(), Kind: accesslog.KindRequest, Service: r.Service, Key: r.Key, Client: r.Client, Target: r.Target,
			Sent: r.Sent, Received: r.Received, Duration: traffic.Seconds(r.Duration),
			Request: &accesslog.Request{
				ID: r.ID, Method: r.Method, Host: r.Host, Path: r.Path, Proto: r.Proto, Status: r.Status, UserAgent: r.UserAgent, Referer: r.Referer,
			},
		})
	}
}
