package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"reverser/internal/status"
)

// Client asks a live process. Close it after use.
type Client struct {
	// Silent, unless nil, makes the error for a process that does not answer in time.
	Silent func() error

	http *http.Client
}

// NewClient makes a client that dials with the given function.
func NewClient(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{http: &http.Client{
		Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			DisableKeepAlives: true,
		},
		Timeout: requestTimeout,
	}}
}

// Close gives the connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status is the process's state as it is now.
func (c *Client) Status(ctx context.Context) (status.Snapshot, error) {
	var s status.Snapshot
	err := c.do(ctx, http.MethodGet, "/api/v1/status", nil, &s)
	return s, err
}

// Summary is Status without the connections, of which there may be very many.
func (c *Client) Summary(ctx context.Context) (status.Snapshot, error) {
	var s status.Snapshot
	err := c.do(ctx, http.MethodGet, "/api/v1/status?pairs=false", nil, &s)
	return s, err
}

// ListKeys is the keys the proxy honours.
func (c *Client) ListKeys(ctx context.Context) ([]KeyInfo, error) {
	var r keysReply
	err := c.do(ctx, http.MethodGet, "/api/v1/keys", nil, &r)
	return r.Keys, err
}

// AddKey makes a key that is honoured at once, and returns its token.
func (c *Client) AddKey(ctx context.Context, k NewKey) (string, error) {
	var r keyReply
	err := c.do(ctx, http.MethodPost, "/api/v1/keys", k, &r)
	return r.Token, err
}

// EditKey changes a key at once, and returns what it is then.
func (c *Client) EditKey(ctx context.Context, name string, e KeyEdit) (KeyInfo, error) {
	var k KeyInfo
	err := c.do(ctx, http.MethodPatch, "/api/v1/keys/"+url.PathEscape(name), e, &k)
	return k, err
}

// RotateKey gives a key another token, and returns it.
func (c *Client) RotateKey(ctx context.Context, name string) (string, error) {
	var r keyReply
	err := c.do(ctx, http.MethodPost, "/api/v1/keys/"+url.PathEscape(name)+"/rotate", nil, &r)
	return r.Token, err
}

// RemoveKey ends a key, its links and its connections.
func (c *Client) RemoveKey(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/api/v1/keys/"+url.PathEscape(name), nil, nil)
}

// Reload has the process read its settings again. A refusal is a [*UsageError].
func (c *Client) Reload(ctx context.Context) (Reloaded, error) {
	var r Reloaded
	begun := time.Now()
	asking := *c
	asking.Silent = func() error {
		// Orders wait for the files, and nothing else does.
		if s, err := c.Summary(ctx); err == nil && s.Reloading != nil {
			return &ReadingError{*s.Reloading, s.Reloading.Since.Before(begun)}
		}
		if c.Silent == nil {
			return context.DeadlineExceeded
		}
		return c.Silent()
	}
	err := asking.do(ctx, http.MethodPost, "/api/v1/reload", nil, &r)
	return r, err
}

// ReadingError says that a process is not through with the files of its settings.
type ReadingError struct {
	status.Reloading
	Before bool // it had begun when this reload was ordered
}

func (e *ReadingError) Error() string {
	what := "the process has read"
	if e.Before {
		what = "a reload is under way already: the process has read"
	}
	return fmt.Sprintf("%s %s since %s, and is not through: until then the settings stay as they were, and everything else goes on", what, e.What(), e.Since.Local().Format(time.DateTime))
}

// Remedy says what to do about it.
func (e *ReadingError) Remedy() string {
	hint := "look at the disk that has the file: the reload goes on by itself when that answers, and neither Ctrl-C here nor another `reverser reload` ends it"
	if e.Before {
		hint += "; then reload again, for what has changed meanwhile"
	}
	return hint
}

// TestNotices has the process send a message to each [[notify]].
func (c *Client) TestNotices(ctx context.Context) ([]Notified, error) {
	var r notifiedReply
	err := c.do(ctx, http.MethodPost, "/api/v1/notify/test", nil, &r)
	return r.Results, err
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer drain(resp.Body)
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the process's answer: %w", err)
	}
	return nil
}

// send returns the answer, unless it is an error.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return nil, err
		}
	}
	// The host is a name for the Host header only; the socket is the address.
	req, err := http.NewRequestWithContext(ctx, method, "http://reverser"+path, &body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// The URL that net/http puts in front says nothing to a person.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() && c.Silent != nil {
			err = c.Silent()
			if _, reading := errors.AsType[*ReadingError](err); method != http.MethodGet && !reading {
				err = fmt.Errorf("%w; an order that it has got is carried out when it goes on", err)
			}
		}
		return nil, err
	}
	if resp.StatusCode >= 400 {
		defer drain(resp.Body)
		var p problem
		if err := json.NewDecoder(resp.Body).Decode(&p); err != nil || p.Detail == "" {
			return nil, fmt.Errorf("the process answered %s", resp.Status)
		}
		if resp.StatusCode < 500 {
			return nil, &UsageError{Err: errors.New(p.Detail), Code: resp.StatusCode}
		}
		return nil, errors.New(p.Detail)
	}
	return resp, nil
}
