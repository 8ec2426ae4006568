package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/status"
)

// TestReloadOnADeadDisk: of a process that does not answer a reload, and answers everything else, is told what it reads, and not that it is
// stopped or busy. One that answers nothing is told as before.
func TestReloadOnADeadDisk(t *testing.T) {
	for _, c := range []struct {
		name      string
		reloading func(began time.Time) *status.Reloading
		words     []string
		not       string
	}{
		{"this reload", func(began time.Time) *status.Reloading {
			return &status.Reloading{Since: began.Add(time.Millisecond), File: "/mnt/secret"}
		}, []string{"the process has read /mnt/secret since 20", "everything else goes on"}, "under way already"},
		{"one before", func(began time.Time) *status.Reloading { return &status.Reloading{Since: began.Add(-time.Hour)} },
			[]string{"a reload is under way already: the process has read its files since"}, "it is silent"},
		{"none", func(time.Time) *status.Reloading { return nil }, []string{"it is silent; an order that it has got"}, "since"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, dials := time.Now(), 0
				client := NewClient(func(context.Context) (net.Conn, error) {
					near, far := net.Pipe()
					if dials++; dials == 1 {
						go io.Copy(io.Discard, far) // the reload
						return near, nil
					}
					go answerStatus(far, status.Snapshot{Reloading: c.reloading(began)})
					return near, nil
				})
				defer client.Close()
				client.Silent = func() error { return errors.New("it is silent") }
				_, err := client.Reload(t.Context())
				if err == nil || time.Since(began) != requestTimeout {
					t.Fatalf("Reload = %v after %s", err, time.Since(began))
				}
				for _, word := range c.words {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("%v; want %q", err, word)
					}
				}
				if strings.Contains(err.Error(), c.not) {
					t.Errorf("%v has %q", err, c.not)
				}
				if e, ok := errors.AsType[*ReadingError](err); ok && !strings.Contains(e.Remedy(), "look at the disk") {
					t.Errorf("Remedy = %q", e.Remedy())
				}
			})
		})
	}
}

// answerStatus answers one question.
func answerStatus(c net.Conn, s status.Snapshot) {
	defer c.Close()
	if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
		return
	}
	io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
	json.NewEncoder(c).Encode(s)
}
