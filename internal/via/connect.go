package via

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"reverser/internal/escape"
)

// Timeout is how long the server may take for its answer: it connects meanwhile.
const Timeout = 10 * time.Second

// mostHead is how long the head of an HTTP answer may be.
const mostHead = 16 << 10

// Connect asks the server at the other end of sock to connect to target, host:port. When it returns nil, sock leads there. The caller
// closes sock on an error, which is an [*Error] unless ctx has ended.
func (w *Way) Connect(ctx context.Context, sock net.Conn, target string) error {
	if err := sock.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { sock.SetDeadline(time.Unix(1, 0)) })
	ask := w.connectHTTP
	if w.scheme == "socks5" {
		ask = w.connectSOCKS
	}
	err := ask(sock, target)
	switch {
	case !stop() && (err == nil || !answered(err)):
		return ctx.Err()
	case err != nil:
		return err
	}
	return sock.SetDeadline(time.Time{})
}

// answered reports whether an error is what the server said.
func answered(err error) bool { return !errors.Is(err, ErrSilent) }

func (w *Way) fail(target string, kind error, format string, args ...any) error {
	return &Error{Way: w, Target: target, Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// broken is an error of the socket before there was a whole answer.
func (w *Way) broken(target string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return w.Silent(target, Timeout)
	}
	text := "it closed the connection without an answer: check its address, and whether it is of this kind (http or socks5)"
	return &Error{Way: w, Target: target, Kind: ErrSilent, Text: text, Err: err}
}

// Silent is the error of a server that did not answer in time.
func (w *Way) Silent(target string, within time.Duration) error {
	return w.fail(target, ErrSilent, "it did not answer within %s: it may not get there, or be of another kind (http or socks5)", within)
}

func (w *Way) connectHTTP(sock net.Conn, target string) error {
	ask := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\nUser-Agent: reverser\r\n"
	if w.user != "" {
		ask += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(w.user+":"+w.password)) + "\r\n"
	}
	if _, err := io.WriteString(sock, ask+"\r\n"); err != nil {
		return w.broken(target, err)
	}
	head, rest, err := readHead(sock)
	switch {
	case err != nil && len(head) == 0:
		return w.broken(target, err)
	case !bytes.HasPrefix(head, []byte("HTTP/1.")):
		return w.fail(target, ErrOther, "what answers there is no HTTP proxy, it says %s: check the address, and whether it is SOCKS5 (socks5://)", quote(head))
	case err != nil:
		return w.broken(target, err)
	}
	line, fields, _ := strings.Cut(string(head), "\n")
	_, said, _ := strings.Cut(strings.TrimSpace(line), " ")
	said = strings.TrimSpace(said)
	code, _ := strconv.Atoi(said[:min(3, len(said))])
	said = short(said)
	switch page := isPage(fields); {
	case code >= 200 && code < 300 && len(rest) == 0 && !page:
		return nil
	case code >= 200 && code < 300:
		return w.fail(target, ErrPortal, "it answered %s and a page instead of a connection: something in between may want a log-in first, so open any page in a browser", said)
	case code >= 300 && code < 400, code == 511:
		where := ""
		if at := field(fields, "location"); at != "" {
			where = " " + short(at)
		}
		return w.fail(target, ErrPortal, "it answered %s and leads to a page%s: something in between may want a log-in first, so open any page in a browser", said, where)
	case code == 407, code == 401: // tinyproxy says 401 to a wrong password
		if methods := methodsOf(fields); len(methods) > 0 && !hasBasic(methods) {
			return w.fail(target, ErrAuth, "it answered %s and takes %s only, and here is Basic: ask whoever runs it for a user with Basic, or put a helper such as cntlm in between", said, short(strings.Join(methods, ", ")))
		}
		return w.fail(target, ErrAuth, "it answered %s: %s", said, w.credentials())
	case code >= 500 && code != 501 && code != 505:
		return w.fail(target, ErrUnreachable, "it answered %s: it does not get there now; is the address of the proxy right, and `reverser proxy` running there?", said)
	case code >= 400 && code < 500:
		return w.fail(target, ErrBarred, "it answered %s: %s", said, barred(target))
	}
	return w.fail(target, ErrOther, "it answered %s, which is no answer to CONNECT: is it a web server, and no HTTP proxy?", said)
}

// readHead reads the head of an HTTP answer, and what came with it. head holds what there is also with an error.
func readHead(sock net.Conn) (head, rest []byte, err error) {
	buf := make([]byte, 0, 1<<10)
	for {
		if i := endOfHead(buf); i > 0 {
			return buf[:i], buf[i:], nil
		}
		switch {
		case len(buf) >= 7 && !bytes.HasPrefix(buf, []byte("HTTP/1.")):
			return buf, nil, nil
		case len(buf) >= mostHead:
			return buf, nil, fmt.Errorf("its answer does not end within %d KB", mostHead>>10)
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(4*cap(buf), mostHead)), buf...)
		}
		n, err := sock.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err != nil && endOfHead(buf) == 0 {
			return buf, nil, err
		}
	}
}

// endOfHead is where the head ends, 0 if it has not ended.
func endOfHead(b []byte) int {
	for _, end := range []string{"\r\n\r\n", "\n\n"} {
		if i := bytes.Index(b, []byte(end)); i >= 0 {
			return i + len(end)
		}
	}
	return 0
}

// field is the value of the first field of that name, in lower case.
func field(fields, name string) string {
	for line := range strings.Lines(fields) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(strings.TrimSpace(k), name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// isPage reports whether a successful answer has a body, which one to CONNECT has not.
func isPage(fields string) bool {
	return strings.HasPrefix(strings.ToLower(field(fields, "content-type")), "text/html")
}

// methodsOf are the schemes of authentication that an answer offers.
func methodsOf(fields string) (methods []string) {
	for line := range strings.Lines(fields) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(strings.TrimSpace(k), "proxy-authenticate") {
			if words := strings.Fields(v); len(words) > 0 {
				methods = append(methods, strings.Trim(words[0], ","))
			}
		}
	}
	return methods
}

func hasBasic(methods []string) bool {
	for _, m := range methods {
		if strings.EqualFold(m, "Basic") {
			return true
		}
	}
	return false
}

// The bytes of SOCKS5.
const (
	version5     = 5
	authNone     = 0
	authPassword = 2
	authRefused  = 0xff
	commandOpen  = 1
	addrIPv4     = 1
	addrName     = 3
	addrIPv6     = 4
)

func (w *Way) connectSOCKS(sock net.Conn, target string) error {
	methods := []byte{authNone}
	if w.user != "" {
		methods = append(methods, authPassword)
	}
	var answer [2]byte
	if _, err := sock.Write(append([]byte{version5, byte(len(methods))}, methods...)); err != nil {
		return w.broken(target, err)
	}
	if _, err := io.ReadFull(sock, answer[:1]); err != nil {
		return w.broken(target, err)
	}
	if answer[0] != version5 {
		hint := "check the address"
		if answer[0] == 'H' {
			hint = "it answers in HTTP: write http:// instead of socks5://"
		}
		return w.fail(target, ErrOther, "what answers there is no SOCKS5 server: %s", hint)
	}
	if _, err := io.ReadFull(sock, answer[1:]); err != nil {
		return w.broken(target, err)
	}
	switch {
	case answer[1] == authPassword && w.user != "":
		ask := append([]byte{1, byte(len(w.user))}, w.user...)
		ask = append(append(ask, byte(len(w.password))), w.password...)
		if _, err := sock.Write(ask); err != nil {
			return w.broken(target, err)
		}
		if _, err := io.ReadFull(sock, answer[:]); err != nil {
			return w.broken(target, err)
		}
		if answer[1] != 0 {
			return w.fail(target, ErrAuth, "it refused user and password: %s", w.credentials())
		}
	case answer[1] == authRefused && w.user == "":
		return w.fail(target, ErrAuth, "it does not let everybody in: %s", w.credentials())
	case answer[1] != authNone:
		return w.fail(target, ErrAuth, "it takes neither everybody nor user and password: ask whoever runs it for a user with a password")
	}
	ask, err := requestOf(target)
	if err != nil {
		return err
	}
	if _, err := sock.Write(ask); err != nil {
		return w.broken(target, err)
	}
	return w.reply(sock, target)
}

// requestOf is the request of SOCKS5 to connect to target.
func requestOf(target string) ([]byte, error) {
	host, portName, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portName, 10, 16)
	if err != nil {
		return nil, err
	}
	ask := []byte{version5, commandOpen, 0}
	switch ip, err := netip.ParseAddr(host); {
	case err != nil && len(host) > 255:
		return nil, fmt.Errorf("the name %s is longer than 255 bytes", host)
	case err != nil:
		ask = append(append(ask, addrName, byte(len(host))), host...)
	case ip.Unmap().Is4():
		ask = append(append(ask, addrIPv4), ip.Unmap().AsSlice()...)
	default:
		ask = append(append(ask, addrIPv6), ip.AsSlice()...)
	}
	return append(ask, byte(port>>8), byte(port)), nil
}

// replies are what SOCKS5 says instead of success (RFC 1928, section 6).
var replies = [...]string{
	1: "general failure", 2: "not allowed by its rules", 3: "network unreachable", 4: "host unreachable", 5: "connection refused",
	6: "TTL expired", 7: "command not supported", 8: "address type not supported",
}

// reply reads the reply of SOCKS5, to its last byte.
func (w *Way) reply(sock net.Conn, target string) error {
	var head [5]byte // with the first byte of the address
	if _, err := io.ReadFull(sock, head[:2]); err != nil {
		return w.broken(target, err)
	}
	if code := int(head[1]); head[0] != version5 {
		return w.fail(target, ErrOther, "its reply is none of SOCKS5: check the address")
	} else if code != 0 {
		said := fmt.Sprintf("reply %d", code)
		if code < len(replies) {
			said = replies[code]
		}
		switch code {
		case 2:
			return w.fail(target, ErrBarred, "it answered %q: %s", said, barred(target))
		case 7, 8:
			return w.fail(target, ErrBarred, "it answered %q: it cannot be asked for this address; give the proxy's as an IPv4 address, or use another way out", said)
		}
		return w.fail(target, ErrUnreachable, "it answered %q: it does not get there now; is the address of the proxy right, and `reverser proxy` running there?", said)
	}
	if _, err := io.ReadFull(sock, head[2:]); err != nil {
		return w.broken(target, err)
	}
	left := 0 // of address and port behind head
	switch head[3] {
	case addrIPv4:
		left = 3 + 2
	case addrIPv6:
		left = 15 + 2
	case addrName:
		left = int(head[4]) + 2
	default:
		return w.fail(target, ErrOther, "its reply is none of SOCKS5: check the address")
	}
	if _, err := io.ReadFull(sock, make([]byte, left)); err != nil {
		return w.broken(target, err)
	}
	return nil
}

// mostSaid bounds what is repeated of a server's words.
const mostSaid = 80

func short(s string) string {
	if len(s) > mostSaid {
		s = s[:mostSaid] + "…"
	}
	return escape.Text(s)
}

func quote(b []byte) string {
	return strconv.QuoteToASCII(string(b[:min(len(b), mostSaid/2)]))
}
