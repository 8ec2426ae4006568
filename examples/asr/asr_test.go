package asr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"reverser/internal/memnet"
	"reverser/internal/sys"
)

// start serves in a bubble and returns a dialler.
func start(t *testing.T, s *Server) (dial func() net.Conn) {
	t.Helper()
	var n memnet.Net
	l, err := n.Listen("127.0.0.1:9904")
	if err != nil {
		t.Fatal(err)
	}
	s.Log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(ctx, l); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		serving.Wait()
	})
	return func() net.Conn {
		c, err := n.Dial(t.Context(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// count is a recogniser that says how much it was given.
func count(_ context.Context, audio io.Reader) (string, error) {
	b, err := io.ReadAll(audio)
	return fmt.Sprintf("%d bytes", len(b)), err
}

func TestTranscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := start(t, &Server{Recognize: count})
		audio := make([]byte, 3*BytesPerSecond+2)
		for _, realTime := range []bool{false, true} {
			begin := time.Now()
			got, err := Transcribe(t.Context(), dial(), bytes.NewReader(audio), realTime)
			if want := "96002 bytes"; got != want || err != nil {
				t.Errorf("Transcribe = %q, %v; want %q", got, err, want)
			}
			if took := time.Since(begin); realTime != (took >= 3*time.Second) {
				t.Errorf("Transcribe took %v with realTime %v", took, realTime)
			}
		}
	})
}

func TestFailureIsNoTranscript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := func(_ context.Context, audio io.Reader) (string, error) {
			io.Copy(io.Discard, audio)
			return "", errors.New("no model")
		}
		dial := start(t, &Server{Recognize: broken})
		if got, err := Transcribe(t.Context(), dial(), bytes.NewReader(nil), false); !sys.Reset(err) {
			t.Errorf("Transcribe = %q, %v; want %v", got, err, syscall.ECONNRESET)
		}
	})
}

func TestServerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := start(t, &Server{Recognize: count, Parallel: 2, MaxAudio: time.Second, Silence: time.Minute})
		if got, err := Transcribe(t.Context(), dial(), bytes.NewReader(make([]byte, 2*BytesPerSecond)), false); err == nil {
			t.Errorf("Transcribe of too much = %q; want an error: the reset meets a write, the half-close or the read", got)
		}
		begin := time.Now()
		silent := []net.Conn{dial(), dial()}
		synctest.Wait() // they have both places
		got, err := Transcribe(t.Context(), dial(), bytes.NewReader(make([]byte, 10)), false)
		if want := "10 bytes"; got != want || err != nil {
			t.Errorf("Transcribe = %q, %v; want %q", got, err, want)
		}
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("the third client waited %v; want the minute that the silent ones may take", took)
		}
		for _, c := range silent {
			if _, err := c.Read(make([]byte, 1)); !sys.Reset(err) {
				t.Errorf("Read of a silent client = %v; want %v", err, syscall.ECONNRESET)
			}
			c.Close()
		}
	})
}
