package web

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"reverser/internal/grammar"
)

// TestVanishedHTTP2: a client of HTTP/2 that is there no more, or stands still, is noticed though it waits for an answer. TCP does not
// tell: something between may acknowledge what is sent to it.
func TestVanishedHTTP2(t *testing.T) {
	for what, read := range map[string]bool{"it answers no ping": true, "it reads nothing": false} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				site := &Site{
					Name: "http/a", Options: func() *grammar.ProxyOptions { return new(grammar.ProxyOptions) },
					Enter: func(*Visit) (func(error), func(uint64, uint64), error) {
						return func(error) {}, func(uint64, uint64) {}, nil
					},
					Dial: func(ctx context.Context, _ Call, _ func()) (*Upstream, error) {
						<-ctx.Done() // a target that takes its time
						return nil, ctx.Err()
					},
				}
				s := &Server{Find: func(bool, string, string) *Site { return site }}
				s.Start()
				defer s.Close()
				near, far := net.Pipe()
				defer near.Close()
				gone := make(chan time.Time, 1)
				s.Serve(s.NewClient(far, nil, func(bool) { gone <- time.Now() }))
				var head bytes.Buffer
				h := hpack.NewEncoder(&head)
				for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}} {
					h.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
				}
				var say bytes.Buffer
				say.WriteString(http2.ClientPreface)
				f := http2.NewFramer(&say, nil)
				f.WriteSettings()
				f.WriteSettingsAck()
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true})
				if read {
					go io.Copy(io.Discard, near)
				} else {
					go io.CopyN(io.Discard, near, 9) // the begin of what the server says first
				}
				if _, err := near.Write(say.Bytes()); err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				select {
				case at := <-gone:
					if d := at.Sub(begun); d < time.Minute || d > 3*time.Minute {
						t.Errorf("it was let go after %s", d)
					}
				case <-time.After(time.Hour):
					t.Error("it is there for ever")
				}
			})
		})
	}
}
