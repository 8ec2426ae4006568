package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestFollowASilentProcess: a process that takes the question for a stream and does not begin its answer is not waited for without a word.
func TestFollowASilentProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := errors.New("it is silent")
		c := NewClient(func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			go io.Copy(io.Discard, far)
			return near, nil
		})
		defer c.Close()
		c.Silent = func() error { return silent }
		begin := time.Now()
		if err := c.events(t.Context(), "/api/v1/events", nil); err != silent || time.Since(begin) != requestTimeout {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
	})
}
