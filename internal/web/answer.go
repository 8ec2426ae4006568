package web

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

var endOfHead = []byte("\r\n\r\n")

// readAnswer reads the head of an answer, whose bytes begin with raw. Its body is read from br as well.
func readAnswer(br *bufio.Reader, r *http.Request, raw []byte) (*http.Response, error) {
	if res := plainAnswer(br, r); res != nil {
		return res, nil
	}
	connection := connectionOf(raw) // reading overwrites raw
	res, err := http.ReadResponse(br, r)
	if err == nil && res.Close && res.StatusCode != http.StatusSwitchingProtocols && len(connection) > 0 {
		// Where Connection says close, net/http drops it as a whole, with the names of the headers that go no further.
		res.Header["Connection"] = connection
	}
	return res, err
}

var nameConnection = []byte("connection:")

// connectionOf returns the values of Connection in the head of an answer. A line that begins with a space continues the one before it.
func connectionOf(raw []byte) (values []string) {
	inside := false
	for line := range bytes.Lines(raw) {
		value := line
		switch {
		case line[0] == '\n', line[0] == '\r': // the end of the head
			return values
		case line[0] == ' ', line[0] == '\t':
		default:
			if inside = len(line) >= len(nameConnection) && bytes.EqualFold(line[:len(nameConnection)], nameConnection); inside {
				value = line[len(nameConnection):]
			}
		}
		if inside {
			values = append(values, textproto.TrimString(string(value)))
		}
	}
	return values
}

// plainAnswer reads the head of a plain answer: it is in the buffer as a whole, is of HTTP/1.1, says in one way how long its body is, and
// can be read in one way only. Most answers are, and the result is that of http.ReadResponse, in half of the time. nil: the answer is not
// plain, or not there yet, and nothing of it was taken.
func plainAnswer(br *bufio.Reader, r *http.Request) *http.Response {
	raw, _ := br.Peek(br.Buffered())
	size := bytes.Index(raw, endOfHead) + len(endOfHead)
	if size < len(endOfHead) || r.Method == http.MethodHead || r.Method == http.MethodConnect {
		return nil
	}
	head := string(raw[:size-len(endOfHead)])
	const version = "HTTP/1.1 "
	line, rest, _ := strings.Cut(head, "\r\n")
	if len(line) < len(version)+4 || line[:len(version)] != version || line[len(version)+3] != ' ' || !httpguts.ValidHeaderFieldValue(line) {
		return nil
	}
	status := line[len(version):]
	code, err := strconv.ParseUint(status[:3], 10, 16)
	if err != nil || code < 200 || code == http.StatusNoContent || code == http.StatusNotModified {
		return nil
	}
	n := bytes.Count(raw[:size], endOfHead[:2]) - 2
	res := &http.Response{Status: status, StatusCode: int(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header, n), ContentLength: -1, Request: r}
	values := make([]string, n)
	for rest != "" {
		var field string
		field, rest, _ = strings.Cut(rest, "\r\n")
		name, value, ok := cutField(field)
		if !ok {
			return nil
		}
		known := http.CanonicalHeaderKey(name)
		had := res.Header[known]
		switch known {
		case "Content-Length":
			length, err := strconv.ParseUint(value, 10, 63)
			if err != nil || had != nil {
				return nil
			}
			res.ContentLength = int64(length)
		case "Connection":
			if had != nil || res.Close {
				return nil
			}
			if res.Close = strings.EqualFold(value, "close"); res.Close {
				continue
			}
			if !strings.EqualFold(value, "keep-alive") {
				return nil
			}
		case "Transfer-Encoding", "Trailer", "Upgrade", "Pragma": // net/http takes Pragma for Cache-Control
			return nil
		}
		if had != nil {
			res.Header[known] = append(had, value)
			continue
		}
		values[0] = value
		res.Header[known], values = values[:1:1], values[1:]
	}
	switch {
	case res.ContentLength < 0:
		return nil
	case res.ContentLength == 0:
		res.Body = http.NoBody
	default:
		res.Body = &sized{br, res.ContentLength}
	}
	br.Discard(size)
	return res
}

// cutField cuts a line of a head into name and value. false: it is no field, or has an octet that does not belong there.
func cutField(line string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	return name, value, ok && httpguts.ValidHeaderFieldName(name) && httpguts.ValidHeaderFieldValue(value)
}

// sized is a body that has so many bytes left.
type sized struct {
	br   *bufio.Reader
	left int64
}

func (s *sized) Read(b []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.br.Read(b[:min(int64(len(b)), s.left)])
	switch s.left -= int64(n); {
	case s.left == 0:
		err = io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (*sized) Close() error { return nil }
