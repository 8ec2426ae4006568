// Package via connects to an address through a server on the way out of a network: an HTTP proxy (CONNECT, RFC 9110 section 9.3.6) or
// a SOCKS5 server (RFC 1928 and 1929). Its secret is what these servers say, and what a person can do about it.
//
// It speaks on a socket that its caller has connected to the server, and takes no byte beyond the server's answer: behind Connect the
// socket leads to the address. Names are looked up by the server, which may know names that this machine does not. The package starts
// no goroutine. No error and no printed form of a Way holds its password.
package via

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"

	"reverser/internal/grammar"
)

// Way is a server on the way out. Parse makes one.
type Way struct {
	scheme         string // "http" or "socks5"
	addr           string // host:port
	user, password string // both empty: none
}

// Addr is where the server is, host:port.
func (w *Way) Addr() string { return w.addr }

// HasPassword reports whether the way holds a secret.
func (w *Way) HasPassword() bool { return w != nil && w.password != "" }

// Equal reports whether two ways are the same, with their secrets. nil is no way.
func (w *Way) Equal(o *Way) bool {
	if w == nil || o == nil {
		return w == o
	}
	return *w == *o
}

// String is the URL without the password.
func (w Way) String() string {
	user := ""
	if w.user != "" {
		user = url.User(w.user).String() + "@"
	}
	return w.scheme + "://" + user + w.addr
}

// Format is String for every verb: %x of a struct would print the password.
func (w Way) Format(f fmt.State, _ rune) { io.WriteString(f, w.String()) }

// LogValue is String.
func (w Way) LogValue() slog.Value { return slog.StringValue(w.String()) }

// MarshalText refuses: no encoder is to write the password.
func (w Way) MarshalText() ([]byte, error) {
	return nil, errors.New("a way out is not written by an encoder, as it may hold a password")
}

const example = "such as http://proxy.example.com:3128 or socks5://127.0.0.1:1080"

// Parse parses http://[USER[:PASSWORD]@]HOST[:PORT], or the same with socks5://. Without a port it is 80, or 1080 for socks5.
func Parse(s string) (*Way, error) {
	scheme, rest, ok := strings.Cut(strings.TrimSpace(s), "://")
	if !ok {
		return nil, errors.New("the way out is no URL: write http:// or socks5:// before it, " + example)
	}
	w := &Way{scheme: strings.ToLower(scheme)}
	port := uint16(80)
	switch w.scheme {
	case "http":
	case "socks5", "socks5h": // names are looked up there in any case
		w.scheme, port = "socks5", 1080
	case "https":
		return nil, errors.New("the way out is asked over TLS (https://), which is not in this version: the link is encrypted anyway, so write http:// with the port of the proxy that takes CONNECT without TLS")
	case "socks4", "socks4a", "socks":
		return nil, errors.New("the way out is of a kind that is not in this version: it is http:// or socks5://, " + example)
	default:
		return nil, errors.New("the way out begins with neither http:// nor socks5://: write " + example)
	}
	host := rest
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		user, password, _ := strings.Cut(rest[:i], ":")
		var errs [2]error
		w.user, errs[0] = url.PathUnescape(user)
		w.password, errs[1] = url.PathUnescape(password)
		switch host = rest[i+1:]; {
		case errs[0] != nil || errs[1] != nil:
			return nil, errors.New("there is a % in the user or password of the way out that begins no escape: write %25 for it")
		case w.user == "":
			return nil, errors.New("the user of the way out is missing before the @: write http://USER:PASSWORD@HOST:PORT")
		case len(w.user) > 255 || len(w.password) > 255:
			return nil, errors.New("user or password of the way out is longer than 255 bytes")
		case w.scheme == "http" && strings.Contains(w.user, ":"):
			return nil, errors.New("the user of the way out has a colon in it, which HTTP's Basic cannot say")
		case strings.ContainsFunc(w.user+w.password, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return nil, errors.New("there is a control character in the user or password of the way out")
		case w.scheme == "socks5" && w.password == "":
			return nil, errors.New("the password of the way out is missing: SOCKS5 needs one with a user: write socks5://USER:PASSWORD@HOST:PORT")
		}
	}
	host = strings.TrimSuffix(host, "/")
	if strings.ContainsAny(host, "/?#") {
		return nil, errors.New("the way out has a path behind its address: write scheme, host and port alone, " + example)
	}
	addr, err := grammar.ParseHost(host, port)
	if err != nil {
		return nil, fmt.Errorf("the way out: %w", err)
	}
	w.addr = addr
	return w, nil
}

// Choice is which way out leads to an address. The zero value is none: all addresses are dialled directly.
type Choice struct {
	Way    *Way
	From   string                 // what chose it, for people: "--via", "HTTPS_PROXY"
	Except func(addr string) bool // addresses that are dialled directly all the same; nil: none
}

// For is the way out to an address, host:port; nil: it is dialled directly.
func (c Choice) For(addr string) *Way {
	if c.Way == nil || c.Except != nil && c.Except(addr) {
		return nil
	}
	return c.Way
}

// String says which way it is, and what chose it.
func (c Choice) String() string {
	if c.Way == nil {
		return "none"
	}
	return fmt.Sprintf("%s (%s)", c.Way, cmp.Or(c.From, "--via"))
}

// What stands in the way, for errors.Is. The text of an [Error] says what to do.
var (
	ErrAuth        = errors.New("the way out wants to know who asks")
	ErrBarred      = errors.New("the way out lets nobody connect there")
	ErrPortal      = errors.New("the way out answers with a page")
	ErrUnreachable = errors.New("the way out does not get there")
	ErrSilent      = errors.New("the way out does not answer")
	ErrOther       = errors.New("what answers is no such way out")
)

// Error is why a way out did not lead to an address.
type Error struct {
	Way    *Way
	Target string // host:port
	Kind   error  // one of those above
	Text   string // what it said, and the remedy
	Err    error  // of the socket, if it was that
}

func (e *Error) Error() string {
	s := fmt.Sprintf("connect to %s through %s: %s", e.Target, e.Way, e.Text)
	if e.Err != nil {
		s += " (" + e.Err.Error() + ")"
	}
	return s
}

func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Lasting reports whether err will not pass by trying again soon. Trying a wrong password often locks accounts.
func Lasting(err error) bool { return errors.Is(err, ErrAuth) || errors.Is(err, ErrBarred) }

// credentials is the remedy for ErrAuth.
func (w *Way) credentials() string {
	if w.user == "" {
		return fmt.Sprintf("give it user and password, %s://USER:PASSWORD@%s, best in a file that only you can read (--via-file, via_file)", w.scheme, w.addr)
	}
	return fmt.Sprintf("check user %q and its password (--via, --via-file)", w.user)
}

// barred is the remedy for ErrBarred.
func barred(target string) string {
	_, port, _ := net.SplitHostPort(target)
	if n, err := strconv.Atoi(port); err == nil && n != 443 {
		return "many let connections out to port 443 only: have the proxy take the link there (`reverser proxy --https :443`) and name that port, --proxy HOST:443, or ask whoever runs the way out to allow this address"
	}
	return "ask whoever runs it to allow this address; some look at the name in the TLS too (--sni)"
}
