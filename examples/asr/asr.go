// Package asr is a small speech-to-text service over plain TCP, and its client.
//
// A client sends 16 kHz mono signed 16-bit little-endian audio, without a header,
// and then closes its half of the connection. The server recognises while the
// audio comes in, answers with one line of text and closes. A connection that
// ends without that line has failed. The server needs no more of its network than
// TCP with half-close, which is what makes it a good test of a tunnel.
package asr

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// The audio format.
const (
	SampleRate     = 16000
	BytesPerSecond = SampleRate * 2
)

// ChunkSize is what a client sends at a time: a tenth of a second.
const ChunkSize = BytesPerSecond / 10

// Transcribe streams audio over conn in small chunks, closes the sending half and
// returns the line that the server answers. With realTime it sends as fast as the
// audio was spoken, as from a microphone. It closes conn.
func Transcribe(ctx context.Context, conn net.Conn, audio io.Reader, realTime bool) (string, error) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sent, err := send(ctx, conn, audio, realTime)
	if err != nil {
		return "", fmt.Errorf("send audio to %s after %d bytes: %w", conn.RemoteAddr(), sent, err)
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 1<<20)).ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the server ended before a complete line: %w", io.ErrUnexpectedEOF)
	}
	if err != nil {
		return "", fmt.Errorf("read transcript from %s: %w", conn.RemoteAddr(), err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

func send(ctx context.Context, conn net.Conn, audio io.Reader, realTime bool) (sent int64, err error) {
	start := time.Now()
	chunk := make([]byte, ChunkSize)
	for {
		n, err := io.ReadFull(audio, chunk)
		if n > 0 {
			if _, err := conn.Write(chunk[:n]); err != nil {
				return sent, err
			}
			sent += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return sent, err
		}
		if realTime {
			spoken := time.Duration(sent) * time.Second / BytesPerSecond
			select {
			case <-time.After(spoken - time.Since(start)):
			case <-ctx.Done():
				return sent, ctx.Err()
			}
		}
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return sent, fmt.Errorf("%T cannot close its sending half", conn)
	}
	return sent, half.CloseWrite()
}
