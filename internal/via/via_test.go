package via

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Way{
		"http://proxy.example.com:3128":     {"http", "proxy.example.com:3128", "", ""},
		"HTTP://Proxy.Example.com/":         {"http", "proxy.example.com:80", "", ""},
		"socks5://127.0.0.1":                {"socks5", "127.0.0.1:1080", "", ""},
		"socks5h://[2001:DB8::1]:9":         {"socks5", "[2001:db8::1]:9", "", ""},
		"http://a:b@h:1":                    {"http", "h:1", "a", "b"},
		"http://a@h:1":                      {"http", "h:1", "a", ""},
		"http://CORP%5Ca:p@s/s%3A%25@h:1":   {"http", "h:1", `CORP\a`, "p@s/s:%"},
		" socks5://user:pa:ss@h:1080\n":     {"socks5", "h:1080", "user", "pa:ss"},
		"socks5://u%3aser:%C3%BC@h:1080":    {"socks5", "h:1080", "u:ser", "ü"},
		"http://xn--bcher-kva.example:8080": {"http", "xn--bcher-kva.example:8080", "", ""},
	} {
		got, err := Parse(in)
		if err != nil || *got != want {
			t.Errorf("Parse(%q) = %v, %v; want %v", in, got, err, &want)
		}
	}
	for in, word := range map[string]string{
		"": "no URL", "proxy:3128": "write http://", "ftp://h:1": "neither", "https://s3cret:s3cret@h:443": "over TLS", "socks4://h:1": "not in this version",
		"http://": "", "http://h:0": "", "http://h:65536": "", "http://:3128": "host", "http://h:1/path": "path", "http://h:1?x": "path",
		"http://s3cret:s3cret@": "", "http://s3cret:s3cret%zz@h:1": "%25", "http://:s3cret@h:1": "user", "socks5://s3cret@h:1": "password",
		"http://u:s3cret\x01@h:1": "control", "http://u%3a:s3cret@h:1": "colon", "http://u:" + strings.Repeat("s3cret", 50) + "@h": "longer",
		"http://u:s3cret@h h:1": "", "http://rv1_x:1": "token",
	} {
		got, err := Parse(in)
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("Parse(%q) = %v, %v; want an error with %q", in, got, err, word)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("Parse(%q): the secret is in %q", in, err)
		}
	}
}

func TestNothingPrintsThePassword(t *testing.T) {
	w, err := Parse("http://alice:s3cret@h:1")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "via", w)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "via", w, "choice", Choice{Way: w})
	for _, v := range []any{w, *w, struct{ W *Way }{w}, Choice{Way: w}, &Error{Way: w, Target: "t:1", Kind: ErrAuth, Text: w.credentials()}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&b, verb+"\n", v)
		}
	}
	if out, err := json.Marshal(w); err == nil {
		t.Errorf("json.Marshal = %s, want an error", out)
	}
	for _, secret := range []string{"s3cret", "733363726574"} {
		if strings.Contains(b.String(), secret) {
			t.Errorf("the password is in %s", b.String())
		}
	}
	if got := w.String(); got != "http://alice@h:1" {
		t.Errorf("String = %s", got)
	}
}

func TestChoice(t *testing.T) {
	w, _ := Parse("http://h:1")
	c := Choice{Way: w, From: "HTTPS_PROXY", Except: func(addr string) bool { return addr == "near:3010" }}
	if c.For("near:3010") != nil || c.For("far:3010") != w || (Choice{}).For("far:3010") != nil || (Choice{Way: w}).For("near:3010") != w {
		t.Error("For chooses another way")
	}
	if c.String() != "http://h:1 (HTTPS_PROXY)" || (Choice{}).String() != "none" {
		t.Errorf("String = %s, %s", c, Choice{})
	}
}

// serve plays a server: it answers each of the things that it is to read with something.
func serve(t *testing.T, sock net.Conn, steps ...string) {
	defer sock.Close()
	for i := 0; i+1 < len(steps); i += 2 {
		got := make([]byte, len(steps[i]))
		if n, err := io.ReadFull(sock, got); err != nil || string(got) != steps[i] {
			t.Errorf("the server read %q, %v; want %q", got[:n], err, steps[i])
			return
		}
		for _, b := range []byte(steps[i+1]) { // as slow as may be
			sock.Write([]byte{b})
		}
	}
	io.Copy(io.Discard, sock)
}

const (
	connect = "CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\nUser-Agent: reverser\r\n"
	secret  = "Proxy-Authorization: Basic YWxpY2U6czNjcmV0\r\n" // alice:s3cret
	target  = "\x05\x01\x00\x03\x0bfar.example\x01\xbb"
)

func TestConnect(t *testing.T) {
	const none, alice = "http://h:1", "http://alice:s3cret@h:1"
	const socks, socksAlice = "socks5://h:1", "socks5://alice:s3cret@h:1"
	for _, tt := range []struct {
		name, way string
		steps     []string
		kind      error // nil: it leads there
		words     []string
	}{
		{"http", none, []string{connect + "\r\n", "HTTP/1.1 200 Connection established\r\n\r\n"}, nil, nil},
		{"http, with fields", none, []string{connect + "\r\n", "HTTP/1.0 200 OK\r\nProxy-agent: x\r\nContent-Length: 0\r\n\r\n"}, nil, nil},
		{"http, bare line feeds", none, []string{connect + "\r\n", "HTTP/1.0 200\n\n"}, nil, nil},
		{"http with a password", alice, []string{connect + secret + "\r\n", "HTTP/1.1 200 OK\r\n\r\n"}, nil, nil},
		{"407 without a user", none, []string{connect + "\r\n", "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n<html>"}, ErrAuth, []string{"407 Proxy Authentication Required", "http://USER:PASSWORD@h:1", "--via-file"}},
		{"407 with one", alice, []string{connect + secret + "\r\n", "HTTP/1.1 407 No\r\n\r\n"}, ErrAuth, []string{"407 No", `check user "alice"`}},
		{"401", alice, []string{connect + secret + "\r\n", "HTTP/1.0 401 Unauthorized\r\n\r\n"}, ErrAuth, []string{"401 Unauthorized", `check user "alice"`}},
		{"407 with NTLM alone", none, []string{connect + "\r\n", "HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Negotiate\r\n\r\n"}, ErrAuth, []string{"NTLM, Negotiate", "cntlm"}},
		{"403", none, []string{connect + "\r\n", "HTTP/1.1 403 Forbidden\r\n\r\n"}, ErrBarred, []string{"403 Forbidden", "ask whoever runs it", "--sni"}},
		{"405", none, []string{connect + "\r\n", "HTTP/1.1 405 Method Not Allowed\r\n\r\n"}, ErrBarred, []string{"405"}},
		{"503", none, []string{connect + "\r\n", "HTTP/1.1 503 Service Unavailable\r\n\r\n"}, ErrUnreachable, []string{"503 Service Unavailable", "does not get there now"}},
		{"504", none, []string{connect + "\r\n", "HTTP/1.1 504 Gateway Timeout\r\n\r\n"}, ErrUnreachable, []string{"504"}},
		{"511", none, []string{connect + "\r\n", "HTTP/1.1 511 Network Authentication Required\r\n\r\n"}, ErrPortal, []string{"in a browser"}},
		{"a redirect", none, []string{connect + "\r\n", "HTTP/1.1 302 Found\r\nLocation: http://login.example/\x1b[2J\r\n\r\n"}, ErrPortal, []string{"http://login.example/", "in a browser"}},
		{"a page", none, []string{connect + "\r\n", "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"}, ErrPortal, []string{"in a browser"}},
		{"a page without a type", none, []string{connect + "\r\n", "HTTP/1.1 200 OK\n\n<html>"}, nil, nil}, // the page comes behind
		{"501", none, []string{connect + "\r\n", "HTTP/1.1 501 Unsupported\r\n\r\n"}, ErrOther, []string{"web server"}},
		{"SOCKS5 asked in HTTP", none, []string{connect + "\r\n", "\x05\xff and then more"}, ErrOther, []string{"no HTTP proxy", "socks5://"}},
		{"SSH", none, []string{connect + "\r\n", "SSH-2.0-OpenSSH_9.2\r\n"}, ErrOther, []string{"SSH-2.0"}},
		{"a head without end", none, []string{connect + "\r\n", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 4000)}, ErrSilent, []string{"does not end within 16 KB"}},
		{"nothing", none, []string{connect + "\r\n", ""}, ErrSilent, []string{"did not answer within 10s"}},
		{"half a head", none, []string{connect + "\r\n", "HTTP/1.1 200 OK\r\n"}, ErrSilent, []string{"did not answer within 10s"}},

		{"socks", socks, []string{"\x05\x01\x00", "\x05\x00", target, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"}, nil, nil},
		{"socks, bound to IPv6", socks, []string{"\x05\x01\x00", "\x05\x00", target, "\x05\x00\x00\x04" + strings.Repeat("\x00", 18)}, nil, nil},
		{"socks, bound to a name", socks, []string{"\x05\x01\x00", "\x05\x00", target, "\x05\x00\x00\x03\x02ab\x00\x01"}, nil, nil},
		{"socks with a password", socksAlice, []string{"\x05\x02\x00\x02", "\x05\x02", "\x01\x05alice\x06s3cret", "\x01\x00", target, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"}, nil, nil},
		{"socks that needs none", socksAlice, []string{"\x05\x02\x00\x02", "\x05\x00", target, "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"}, nil, nil},
		{"a wrong password", socksAlice, []string{"\x05\x02\x00\x02", "\x05\x02", "\x01\x05alice\x06s3cret", "\x01\x01"}, ErrAuth, []string{"refused user and password", `"alice"`}},
		{"a password is missing", socks, []string{"\x05\x01\x00", "\x05\xff"}, ErrAuth, []string{"socks5://USER:PASSWORD@h:1"}},
		{"GSSAPI alone", socksAlice, []string{"\x05\x02\x00\x02", "\x05\xff"}, ErrAuth, []string{"takes neither"}},
		{"a method that was not offered", socks, []string{"\x05\x01\x00", "\x05\x02"}, ErrAuth, []string{"takes neither"}},
		{"barred", socks, []string{"\x05\x01\x00", "\x05\x00", target, "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"}, ErrBarred, []string{"not allowed by its rules"}},
		{"refused", socks, []string{"\x05\x01\x00", "\x05\x00", target, "\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"}, ErrUnreachable, []string{"connection refused"}},
		{"an unknown reply", socks, []string{"\x05\x01\x00", "\x05\x00", target, "\x05\x99\x00\x01\x00\x00\x00\x00\x00\x00"}, ErrUnreachable, []string{"reply 153"}},
		{"no names", socks, []string{"\x05\x01\x00", "\x05\x00", target, "\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"}, ErrBarred, []string{"as an IPv4 address"}},
		{"HTTP asked in SOCKS5", socks, []string{"\x05\x01\x00", "HTTP/1.1 400 Bad Request\r\n\r\n"}, ErrOther, []string{"http:// instead of socks5://"}},
		{"SOCKS4", socks, []string{"\x05\x01\x00", "\x00\x5b"}, ErrOther, []string{"no SOCKS5 server"}},
		{"a strange reply", socks, []string{"\x05\x01\x00", "\x05\x00", target, "\x05\x00\x00\x09\x00\x00\x00\x00\x00\x00"}, ErrOther, []string{"none of SOCKS5"}},
		{"a silent one", socks, []string{"\x05\x01\x00", "\x05"}, ErrSilent, []string{"did not answer within 10s"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, err := Parse(tt.way)
				if err != nil {
					t.Fatal(err)
				}
				near, far := net.Pipe()
				go serve(t, far, tt.steps...)
				err = w.Connect(t.Context(), near, "far.example:443")
				if !errors.Is(err, tt.kind) {
					t.Errorf("Connect: %v; want %v", err, tt.kind)
				}
				if Lasting(err) != (tt.kind == ErrAuth || tt.kind == ErrBarred) {
					t.Errorf("Lasting(%v) = %v", err, Lasting(err))
				}
				for _, word := range append(tt.words, "connect to far.example:443 through "+w.String()+": ") {
					if tt.kind != nil && (err == nil || !strings.Contains(err.Error(), word)) {
						t.Errorf("Connect: %v; want %q in it", err, word)
					}
				}
				if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "\x1b")) {
					t.Errorf("Connect: %q", err)
				}
				if err == nil { // the socket is as it was, and no byte is missing
					time.Sleep(time.Hour)
					go near.Write([]byte("x"))
				}
				near.Close()
				synctest.Wait()
			})
		})
	}
}

// TestConnectEndsWithItsContext: whoever gives an attempt up does not wait for the server.
func TestConnectEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, url := range []string{"http://h:1", "socks5://h:1"} {
			w, err := Parse(url)
			if err != nil {
				t.Fatal(err)
			}
			near, far := net.Pipe()
			go io.Copy(io.Discard, far)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			begin := time.Now()
			if err := w.Connect(ctx, near, "far.example:443"); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
				t.Errorf("%s: %v after %s, want the context's end", url, err, time.Since(begin))
			}
			cancel()
			near.Close()
			far.Close()
		}
	})
}

// FuzzConnect: whatever a server answers, Connect ends, and an error says so in few words.
func FuzzConnect(f *testing.F) {
	f.Add(false, []byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Add(false, []byte("HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n"))
	f.Add(false, []byte("HTTP/1.1 \r\n\r\n"))
	f.Add(true, []byte("\x05\x02\x01\x00\x05\x00\x00\x03\xff"))
	f.Add(true, []byte("\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, socks bool, answer []byte) {
		w := &Way{scheme: "http", addr: "h:1", user: "alice", password: "s3cret"}
		if socks {
			w.scheme = "socks5"
		}
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			go io.Copy(io.Discard, far)
			far.Write(answer)
			far.Close()
		}()
		err := w.Connect(context.Background(), near, "far.example:443")
		near.Close()
		<-done
		if err != nil && (len(err.Error()) > 1000 || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%q", err)
		}
	})
}
