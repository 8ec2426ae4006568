package asr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// A Server answers connections with transcripts.
type Server struct {
	Recognize Recognizer
	Parallel  int           // how many are recognised at a time; the others wait unread
	MaxAudio  time.Duration // the longest audio of one connection; 0 means 10 minutes
	Silence   time.Duration // how long a client may send nothing; 0 means 1 minute
	Log       *slog.Logger
}

// Serve answers the connections of l until ctx ends, and returns when the last is done.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, max(s.Parallel, 1))
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		handlers.Go(func() {
			select {
			case slots <- struct{}{}:
				s.handle(ctx, conn)
				<-slots
			case <-ctx.Done():
				reset(conn)
			}
		})
	}
}

func (s *Server) handle(ctx context.Context, conn net.Conn) {
	log := s.Log.With("client", conn.RemoteAddr().String())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { reset(conn) })()
	audio := &audioReader{conn: conn, silence: s.Silence, left: BytesPerSecond * 600, cancel: cancel}
	if s.Silence == 0 {
		audio.silence = time.Minute
	}
	if s.MaxAudio > 0 {
		audio.left = int64(s.MaxAudio.Seconds() * BytesPerSecond)
	}
	start := time.Now()
	text, err := s.Recognize(ctx, audio)
	read, failure := audio.state()
	if failure != nil {
		err = failure // it explains the recogniser's
	}
	if err == nil {
		_, err = fmt.Fprintln(conn, text)
	}
	attrs := []any{"audio", time.Duration(read) * time.Second / BytesPerSecond, "took", time.Since(start).Round(time.Millisecond)}
	if err != nil {
		// A reset, so that the client cannot take it for an empty transcript.
		reset(conn)
		log.Warn("not recognised", append(attrs, "err", err)...)
		return
	}
	conn.Close()
	log.Info("recognised", append(attrs, "transcript", text)...)
}

func reset(conn net.Conn) {
	if c, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		c.SetLinger(0)
	}
	conn.Close()
}

// An audioReader bounds what one client can take up, and ends the recogniser when
// the client fails: to a process that reads a pipe it would look like the end.
type audioReader struct {
	conn    net.Conn
	silence time.Duration
	cancel  func()

	mu   sync.Mutex // guards what follows: a recogniser that died may leave a Read behind
	left int64
	read int64
	err  error
}

func (r *audioReader) state() (read int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read, r.err
}

func (r *audioReader) Read(b []byte) (int, error) {
	r.conn.SetReadDeadline(time.Now().Add(r.silence))
	n, err := r.conn.Read(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read += int64(n)
	r.left -= int64(n)
	switch {
	case r.left < 0:
		err = errors.New("more audio than this server takes in one connection")
	case errors.Is(err, io.EOF):
		return n, err
	}
	if err != nil {
		r.err = err
		r.cancel()
	}
	return n, err
}
