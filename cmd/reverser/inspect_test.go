package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"reverser/internal/inspect"
)

// TestPrintExchange: what strangers said is on marked lines, and moves no cursor.
func TestPrintExchange(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte("packed \x1b[31m text\r\nHTTP/1.1 200 OK\n"))
	z.Close()
	x := inspect.Exchange{
		Summary: inspect.Summary{
			ID: "17", Service: "http/a", Begun: time.Now(), Client: "192.0.2.7:5", Method: "POST", Host: "a\u202e", Path: "/\x1b[2J\r\n< 200 OK", Proto: "HTTP/1.1",
			State: inspect.StateAborted, Status: 502, Answered: 0.0123, Duration: 2.5, ReplayOf: "3", Frames: 5,
		},
		Request: inspect.Message{
			Header: []inspect.Field{{Name: "X-Evil", Value: "a\x1b]52;c;x\x07b\r\n< fake"}}, Body: "one\n< 200 OK\ntwo\u009b31m", Encoding: "text", Bytes: 100_000, Kept: 20, Omitted: 2,
		},
		Response: inspect.Message{
			Header: []inspect.Field{{Name: "Content-Encoding", Value: "gzip"}}, Body: base64.StdEncoding.EncodeToString(packed.Bytes()), Encoding: "base64",
			Bytes: int64(packed.Len()), Kept: packed.Len(), Trailer: []inspect.Field{{Name: "X-Sum", Value: "7"}},
		},
		LastFrames: []inspect.Frame{
			{At: 1.5, From: "client", Type: "text", Final: true, Bytes: 9, Body: "hi\x1b[31m\n<", Encoding: "text"},
			{At: 2, From: "target", Type: "binary", Bytes: 2, Body: "//4=", Encoding: "base64", Compressed: true, Cut: true},
			{At: 2, From: "target", Type: "close", Final: true, Bytes: 5, Body: base64.StdEncoding.EncodeToString([]byte("\x03\xe8bye")), Encoding: "base64"},
		},
	}
	var b bytes.Buffer
	if err := printExchange(&b, x); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{
		"exchange 17 of http/a, from 192.0.2.7:5\n", "answered after 12.3 ms, aborted after 2.50 s, replay of 3\n",
		`> POST /\u001b[2J\r\n< 200 OK HTTP/1.1` + "\n", `> Host: a\u202e` + "\n", `> X-Evil: a\u001b]52;c;x\u0007b\r\n< fake` + "\n",
		"> one\n> < 200 OK\n> two\\u009b31m\n", "(2 fields for which there was no room)\n", "(100000 bytes of body, the first 20 are kept)\n",
		"< 502 Bad Gateway\n", `< packed \u001b[31m text` + "\n< HTTP/1.1 200 OK\n", "< X-Sum: 7\n", "5 frames, the first 2 are not kept\n",
		`1.500 s  > text, 9 bytes: hi\u001b[31m\n<` + "\n", "2.000 s  < binary, more follows, cut off, compressed, 2 bytes: fffe\n", "< close, 5 bytes: 1000 bye\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
	for _, r := range out {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == '\u202e' || r == '\ufffd' {
			t.Errorf("the output has %q:\n%q", r, out)
		}
	}
}

// TestReadable: a body is text, or it is not, whatever it is packed in.
func TestReadable(t *testing.T) {
	cut := strings.Repeat("x", inspect.BodyKept-1) + "é"
	for name, c := range map[string]struct {
		m    inspect.Message
		text bool
		body string
	}{
		"text":     {inspect.Message{Body: "abc", Encoding: "text"}, true, "abc"},
		"binary":   {inspect.Message{Body: "//4=", Encoding: "base64"}, false, "\xff\xfe"},
		"zeros":    {inspect.Message{Body: "a\x00b", Encoding: "text"}, false, "a\x00b"},
		"no gzip":  {inspect.Message{Header: []inspect.Field{{Name: "Content-Encoding", Value: "gzip"}}, Body: "abc", Encoding: "text"}, true, "abc"},
		"brotli":   {inspect.Message{Header: []inspect.Field{{Name: "Content-Encoding", Value: "br"}}, Body: "//4=", Encoding: "base64"}, false, "\xff\xfe"},
		"cut rune": {inspect.Message{Body: base64.StdEncoding.EncodeToString([]byte(cut[:inspect.BodyKept])), Encoding: "base64"}, true, cut[:inspect.BodyKept-1]},
	} {
		body, text := readable(c.m)
		if text != c.text || body != c.body {
			t.Errorf("%s: %d bytes, text %t; want %d, %t", name, len(body), text, len(c.body), c.text)
		}
	}
}
