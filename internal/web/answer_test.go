package web

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

var answers = []string{
	"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sun, 29 Nov 2026 12:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 12\r\nConnection: keep-alive\r\n\r\nhello world\n",
	"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nset-cookie: a=b\r\nSet-Cookie: c=d\r\n\r\n",
	"HTTP/1.1 500 \r\nConnection: close\r\nContent-Length:3 \r\nX-A:\t1\r\nx-empty:\r\n\r\nabc",
	"HTTP/1.1 301 Moved Permanently\r\nLocation: /x\r\nCONTENT-LENGTH: 007\r\n\r\nabcdefgHTTP/1.1 200 OK\r\n\r\n",
}

// FuzzPlainAnswer: an answer that is plain is read as net/http reads it, and so is what follows.
func FuzzPlainAnswer(f *testing.F) {
	for _, a := range answers {
		f.Add([]byte(a))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { checkAnswer(t, raw) })
}

// TestPlainAnswer: what mutations of answers make of them is read as net/http reads it, or not plain.
func TestPlainAnswer(t *testing.T) {
	parts := []string{"\r\n", "\n", "\r", " ", "\t", ":", ",", "0", "9", "-", "+", "_", "\x00", "\x7f", "\x80", "\xff", "\r\n\r\n", "\r\n ", "Content-Length: 3\r\n", "content-length:0\r\n",
		"Content-Length: 3, 3\r\n", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: identity\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n", "Connection: Upgrade\r\n",
		"Connection: x, close\r\n", "Upgrade: websocket\r\n", "Trailer: X-B\r\n", "Pragma: no-cache\r\n", "Cache-Control: x\r\n", "Set-Cookie: e=f\r\n", "X-A: 2\r\n",
		"HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "200", "204", "304", "101", "100", "999", "099"}
	if plain := mutate(t, answers, parts, checkAnswer); plain < 2000 {
		t.Errorf("%d answers were plain: too few to say anything", plain)
	}
}

// checkAnswer compares a plain answer with what net/http reads. It reports whether raw begins with one.
func checkAnswer(t *testing.T, raw []byte) bool {
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%q: "+format, append([]any{raw}, args...)...)
	}
	r := &http.Request{Method: http.MethodGet}
	br := bufio.NewReader(bytes.NewReader(raw))
	br.Peek(len(raw)) // it has come
	got := plainAnswer(br, r)
	if got == nil {
		if rest, _ := io.ReadAll(br); !bytes.Equal(rest, raw) {
			fail("it is not plain, but %q is left of it", rest)
		}
		return false
	}
	other := bufio.NewReader(bytes.NewReader(raw))
	want, err := http.ReadResponse(other, r)
	if err != nil {
		fail("net/http says %v", err)
		return true
	}
	body, err := io.ReadAll(got.Body)
	wantBody, wantErr := io.ReadAll(want.Body)
	if !bytes.Equal(body, wantBody) || !errors.Is(err, wantErr) {
		fail("the body is %q, %v; of net/http %q, %v", body, err, wantBody, wantErr)
	}
	rest, _ := io.ReadAll(br)
	if wantRest, _ := io.ReadAll(other); !bytes.Equal(rest, wantRest) {
		fail("%q is left; of net/http %q", rest, wantRest)
	}
	got.Body, want.Body = nil, nil
	if !reflect.DeepEqual(got, want) {
		fail("%+v; net/http reads %+v", got, want)
	}
	return true
}

// TestAnswerInParts: an answer whose head comes in parts is read all the same, and so is one that a request of HEAD has.
func TestAnswerInParts(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
	for _, tt := range []struct {
		method string
		parts  []string
		want   string
	}{
		{http.MethodGet, []string{answer[:20], answer[20:30], answer[30:]}, "hello"},
		{http.MethodGet, []string{answer[:len(answer)-3], answer[len(answer)-3:]}, "hello"},
		{http.MethodHead, []string{strings.TrimSuffix(answer, "hello")}, ""},
	} {
		var sources []io.Reader
		for _, p := range tt.parts {
			sources = append(sources, strings.NewReader(p))
		}
		br := bufio.NewReader(io.MultiReader(sources...))
		br.Peek(1)
		res, err := readAnswer(br, &http.Request{Method: tt.method}, nil)
		if err != nil {
			t.Errorf("%s in %d parts: %v", tt.method, len(tt.parts), err)
			continue
		}
		if body, err := io.ReadAll(res.Body); err != nil || string(body) != tt.want || res.ContentLength != 5 {
			t.Errorf("%s in %d parts: body %q, %v, of %d bytes", tt.method, len(tt.parts), body, err, res.ContentLength)
		}
	}
}
