package admin_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"reverser/internal/acmetest"
	"reverser/internal/admin"
	"reverser/internal/memnet"
	"reverser/internal/status"
)

const adminToken = "0123456789abcdef0123456789abcdef"

type dialer func(context.Context) (net.Conn, error)

// serveTCP starts a server at an address and returns how to reach it; it ends with the test.
func serveTCP(t *testing.T, s *admin.Server, at admin.Address) (dial dialer, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at.Token = adminToken
	if at.Connections == 0 {
		at.Connections = 64
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeTCP(ctx, l, at) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeTCP = %v, want nil after cancel", err)
		}
	})
	addr = l.Addr().String()
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}, addr
}

// fakePage has the page and one more file.
type fakePage struct{}

func (fakePage) Has(path string) bool {
	return path == "/" || path == "/index.html" || path == "/app.js"
}

func (fakePage) ServeHTTP(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the page") }

// TestPageIsNegotiated: without the token the page is for those who name text/html, as a browser does for what it shows, and for nobody else.
func TestPageIsNegotiated(t *testing.T) {
	dial, addr := serveTCP(t, &admin.Server{Status: snapshot, Page: fakePage{}}, admin.Address{})
	for accept, want := range map[string]int{
		"":                                  401,
		"Accept: */*\r\n":                   401,
		"Accept: \r\n":                      401,
		"Accept: text/*\r\n":                401,
		"Accept: text/plain, */*;q=0.1\r\n": 401,
		"Accept: text/htmlx\r\n":            401,
		"Accept: application/text/html\r\n": 401,
		"Accept: text/html;q=0\r\n":         401,
		"Accept: application/json, text/html; q=0.000, */*\r\n": 401,
		"Accept: text/html;q=none\r\n":                          401,
		"Accept: text/html;q=-1\r\n":                            401,
		"Accept: text/html\r\n":                                 200,
		"Accept: Text/HTML\r\n":                                 200,
		"Accept: text/html;level=1;q=0.1\r\n":                   200,
		"Accept: application/json,text/html;q=0.5\r\n":          200,
		"Accept: application/json\r\nAccept: text/html\r\n":     200,
	} {
		resp, body := ask(t, dial, fmt.Sprintf("GET / HTTP/1.1\r\nHost: %s\r\n%sConnection: close\r\n\r\n", addr, accept))
		if resp.StatusCode != want || (body == "the page") != (want == 200) {
			t.Errorf("%q: %d %.200s, want %d", accept, resp.StatusCode, body, want)
		}
		if resp.Header.Get("Vary") != "Accept" {
			t.Errorf("%q: the answer has the header %v, want Vary: Accept", accept, resp.Header)
		}
	}
}

// TestHostileRequests has what comes to an address that anybody may ask. Each is refused and changes nothing, and no answer lets a page
// elsewhere read it.
func TestHostileRequests(t *testing.T) {
	keys := &fakeKeys{names: []string{"nas"}}
	orders := &fakeOrders{}
	dial, addr := serveTCP(t, &admin.Server{Status: snapshot, Keys: keys, Orders: orders, Page: fakePage{}}, admin.Address{Hosts: func() []string { return []string{"admin.example.com"} }})
	_, port, _ := net.SplitHostPort(addr)
	const right = "Authorization: Bearer " + adminToken + "\r\n"
	const json = "Content-Type: application/json\r\n"
	const browser = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: cross-site\r\n"
	login := `{"token":"` + adminToken + `"}`
	_, answer := ask(t, dial, fmt.Sprintf("POST /api/v1/login HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %d\r\n\r\n%s", addr, json, len(login), login))
	session := "X-Reverser-Session: " + strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(answer), `{"session":"`), `"}`) + "\r\n"
	tests := []struct {
		name, method, path, host, header, body string
		want                                   int
	}{
		{"D1 no token", "GET", "/api/v1/status", addr, "", "", 401},
		{"D1 no token, for what is not there", "GET", "/api/v1/nothing", addr, "", "", 401},
		{"D1 a token in the query", "GET", "/api/v1/status?token=" + adminToken + "&access_token=" + adminToken, addr, "", "", 401},
		{"D1 an empty token", "GET", "/api/v1/status", addr, "Authorization: Bearer \r\n", "", 401},
		{"D1 the beginning of the token", "GET", "/api/v1/status", addr, "Authorization: Bearer " + adminToken[:31] + "\r\n", "", 401},
		{"D1 another scheme", "GET", "/api/v1/status", addr, "Authorization: Basic " + adminToken + "\r\n", "", 401},
		{"D1 the token as a session", "GET", "/api/v1/status", addr, "X-Reverser-Session: " + adminToken + "\r\n", "", 401},
		{"D1 no session", "GET", "/api/v1/status", addr, "X-Reverser-Session: \r\n", "", 401},
		{"the token", "GET", "/api/v1/status", addr, right, "", 200},
		{"a session", "GET", "/api/v1/status", addr, session, "", 200},
		{"D1 no token, for the page, by a program", "GET", "/", addr, "", "", 401},
		{"D1 no token, for the page, by a program that takes anything", "GET", "/", addr, "Accept: */*\r\n", "", 401},
		{"D1 no token, for what is no file of the page", "GET", "/nope", addr, "Accept: text/html\r\n", "", 401},
		{"D1 no token, for the page by its name", "GET", "/index.html", addr, "Accept: application/json\r\n", "", 401},
		{"D1 a wrong token, for the page", "GET", "/", addr, "Authorization: Bearer x\r\n", "", 401},
		{"D1 no token, for another method of the page", "POST", "/", addr, "Accept: text/html\r\n", "", 401},
		{"the page, in a browser", "GET", "/", addr, browser, "", 200},
		{"the page by its name, in a browser", "GET", "/index.html", addr, browser, "", 200},
		{"the head of the page, in a browser", "HEAD", "/", addr, browser, "", 200},
		{"the page, with the token", "GET", "/", addr, right, "", 200},
		{"the page by its name, with the token", "GET", "/index.html", addr, right + "Accept: */*\r\n", "", 200},
		{"its files", "GET", "/app.js", addr, "Accept: */*\r\n", "", 200},
		{"a file for another method", "POST", "/app.js", addr, right, "", 405},
		{"what is no file of the page, with the token", "GET", "/nope", addr, right, "", 404},

		{"D2 another host", "GET", "/api/v1/status", "evil.example", right, "", 421},
		{"D2 another host, for the page", "GET", "/", "evil.example", browser, "", 421},
		{"D2 another host, for a login", "POST", "/api/v1/login", "evil.example:" + port, json, login, 421},
		{"D2 another address", "GET", "/api/v1/status", "192.0.2.7:" + port, right, "", 421},
		{"D2 a host that begins like ours", "GET", "/api/v1/status", "localhost.evil.example", right, "", 421},
		{"D2 no host", "GET", "/api/v1/status", "", right, "", 421},
		{"the host of loopback", "GET", "/api/v1/status", "LocalHost:" + port, right, "", 200},
		{"the host of loopback in IPv6", "GET", "/api/v1/status", "[::1]:" + port, right, "", 200},
		{"a configured host", "GET", "/api/v1/status", "Admin.Example.com.", right, "", 200},
		{"D2 a page of another origin", "GET", "/api/v1/status", addr, right + "Origin: https://evil.example\r\n", "", 403},
		{"D2 a page of another origin, that changes something", "DELETE", "/api/v1/keys/nas", addr, right + "Origin: https://evil.example\r\n", "", 403},
		{"D2 a page of no origin", "POST", "/api/v1/reload", addr, right + "Origin: null\r\n", "", 403},
		{"D2 a page of another port", "POST", "/api/v1/reload", addr, right + "Origin: http://127.0.0.1:1\r\n", "", 403},
		{"D2 a browser says that another site asks", "GET", "/api/v1/status", addr, right + "Sec-Fetch-Site: cross-site\r\n", "", 403},
		{"D2 a browser says that another port asks", "POST", "/api/v1/reload", addr, right + "Sec-Fetch-Site: same-site\r\n", "", 403},
		{"D2 a login by another site", "POST", "/api/v1/login", addr, json + "Sec-Fetch-Site: cross-site\r\n", login, 403},
		{"the page itself asks", "GET", "/api/v1/status", addr, right + "Sec-Fetch-Site: same-origin\r\nOrigin: http://" + addr + "\r\n", "", 200},
		{"D2 an order as text", "POST", "/api/v1/keys", addr, session + "Content-Type: text/plain\r\n", `{"name":"x","allow":["tcp/1"]}`, 403},
		{"D2 an order as a form", "POST", "/api/v1/reload", addr, session + "Content-Type: application/x-www-form-urlencoded\r\n", "a=b", 403},
		{"D2 an order of no kind", "POST", "/api/v1/keys", addr, session, `{"name":"x","allow":["tcp/1"]}`, 403},
		{"D2 an order as a form of a page of another origin, with the token", "POST", "/api/v1/reload", addr, right + "Origin: https://evil.example\r\nContent-Type: application/x-www-form-urlencoded\r\n", "a=b", 403},
		{"D2 an order as a form, with a wrong token", "POST", "/api/v1/reload", addr, "Authorization: Bearer x\r\nContent-Type: application/x-www-form-urlencoded\r\n", "a=b", 401},
		{"D2 a login as text", "POST", "/api/v1/login", addr, "Content-Type: text/plain\r\n", login, 403},

		{"D3 an order by GET", "GET", "/api/v1/reload", addr, right, "", 405},
		{"D3 an order by HEAD", "HEAD", "/api/v1/reload", addr, right, "", 405},
		{"D3 another method", "PUT", "/api/v1/keys", addr, right + json, `{"name":"x"}`, 405},
		{"D3 a login by GET", "GET", "/api/v1/login?token=" + adminToken, addr, right, "", 405},
		{"D3 a preflight", "OPTIONS", "/api/v1/keys", addr, "Access-Control-Request-Method: POST\r\nOrigin: https://evil.example\r\n", "", 403},
		{"D3 a preflight of our own", "OPTIONS", "/api/v1/keys", addr, right + "Access-Control-Request-Method: POST\r\nOrigin: http://" + addr + "\r\n", "", 405},
		{"D3 a preflight for all", "OPTIONS", "*", addr, right, "", 400},
		{"D3 a preflight for all, without the token", "OPTIONS", "*", addr, "", "", 401},

		{"D4 a header of 1 MiB", "GET", "/api/v1/status", addr, right + "X: " + strings.Repeat("x", 1<<20) + "\r\n", "", 431},
		{"D4 many headers", "GET", "/api/v1/status", addr, right + strings.Repeat("X: x\r\n", 1<<17), "", 431},
		{"D4 a body of 1 MiB", "POST", "/api/v1/keys", addr, right + json, `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, 413},
		{"D4 a body that a stranger sends", "POST", "/api/v1/login", addr, json, `{"token":"` + strings.Repeat("x", 1<<20) + `"}`, 413},
		{"D4 //", "GET", "//", addr, right, "", 307},
		{"D4 // before a path", "GET", "//api//v1/status", addr, right, "", 307},
		{"D4 // before a path, without the token", "GET", "//api//v1/status", addr, "", "", 401},
		{"D4 dots", "GET", "/api/v1/../v1/status", addr, right, "", 307},
		{"D4 escaped dots", "DELETE", "/api/v1/keys/%2e%2e", addr, right, "", 404},
		{"D4 escaped dots and slashes, without the token", "DELETE", "/api/v1/keys/%2e%2e%2f%2e%2e", addr, "", "", 401},
		{"D4 a path that is none", "GET", "/api/v1/keys/%zz", addr, right, "", 400},
		{"D4 no HTTP", "\x16\x03\x01\x00\xa5\x01\x00", "", addr, "", "", 400},
		{"D4 a tunnel", "CONNECT", "/api/v1/status", addr, right, "", 405},
		{"D4 pprof", "GET", "/debug/pprof/", addr, right, "", 404}, // it is on the socket alone
	}
	for _, tt := range tests {
		length := ""
		if tt.body != "" {
			length = fmt.Sprintf("Content-Length: %d\r\n", len(tt.body))
		}
		resp, body := ask(t, dial, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\n%s%s\r\n%s", tt.method, tt.path, tt.host, tt.header, length, tt.body))
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %d %.200s, want %d", tt.name, resp.StatusCode, body, tt.want)
		}
		ours := resp.Header.Get("X-Content-Type-Options") != "" // or net/http has answered, for want of a request
		if ours != (tt.want != 400 && tt.want != 431) && tt.path != "*" {
			t.Errorf("%s: the answer has the header %v", tt.name, resp.Header)
		}
		if ours && (resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Referrer-Policy") != "no-referrer" ||
			resp.Header.Get("Content-Security-Policy") != "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'") {
			t.Errorf("%s: the answer has the header %v", tt.name, resp.Header)
		}
		if ours && tt.want > 400 && tt.method != "HEAD" && !isProblem(body, tt.want) {
			t.Errorf("%s: %.200q is no problem with %d", tt.name, body, tt.want)
		}
		if tt.want == 401 && resp.Header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s: the answer has the header %v", tt.name, resp.Header)
		}
		for name := range resp.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s: the answer has %s, which lets pages elsewhere ask", tt.name, name)
			}
		}
	}
	if !slices.Equal(keys.names, []string{"nas"}) {
		t.Errorf("the keys are %v, want nas alone as before", keys.names)
	}
	if n := orders.reloads.Load(); n != 0 {
		t.Errorf("the settings were read %d times", n)
	}
	// Half of a body of 1 GiB that is only announced is not waited for.
	if resp, body := ask(t, dial, "POST /api/v1/keys HTTP/1.1\r\nHost: "+addr+"\r\n"+right+json+"Content-Length: 1073741824\r\n\r\n{"); resp.StatusCode != 413 {
		t.Errorf("D4 a body of 1 GiB: %d %s", resp.StatusCode, body)
	}
	if resp, body := ask(t, dial, "POST /api/v1/keys HTTP/1.1\r\nHost: "+addr+"\r\n"+right+json+"Transfer-Encoding: chunked\r\n\r\n20001\r\n\""+strings.Repeat("x", 1<<17)); resp.StatusCode != 413 {
		t.Errorf("D4 a body without a length: %d %s", resp.StatusCode, body)
	}
}

// TestContentType: with the token itself an order may have any content type, as curl -d sends it. No browser has the token by itself. A session
// and a login are told what is missing.
func TestContentType(t *testing.T) {
	keys := &fakeKeys{}
	orders := &fakeOrders{}
	dial, addr := serveTCP(t, &admin.Server{Status: snapshot, Keys: keys, Orders: orders}, admin.Address{})
	order := func(path, header, body string) (int, string) {
		resp, text := ask(t, dial, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %d\r\n\r\n%s", path, addr, header, len(body), body))
		return resp.StatusCode, text
	}
	const form = "Content-Type: application/x-www-form-urlencoded\r\n"
	for i, kind := range []string{form, "", "Content-Type: text/plain\r\n", "Content-Type: application/json\r\n"} {
		if code, text := order("/api/v1/keys", bearer(adminToken)+kind, fmt.Sprintf(`{"name":"k%d","allow":["tcp/1"]}`, i)); code != 201 {
			t.Errorf("%q: %d %s, want 201", kind, code, text)
		}
	}
	if code, text := order("/api/v1/reload", bearer(adminToken)+form, ""); code != 200 || orders.reloads.Load() != 1 {
		t.Errorf("a reload: %d %s", code, text)
	}
	if code, text := order("/api/v1/keys", bearer(adminToken)+form, "name=k"); code != 400 {
		t.Errorf("what is no JSON: %d %s, want 400", code, text)
	}
	for kind, want := range map[string]string{form: "x-www-form-urlencoded", "": "no Content-Type"} {
		code, text := order("/api/v1/login", kind, `{"token":"`+adminToken+`"}`)
		if code != 403 || !strings.Contains(text, want) || !strings.Contains(text, "needs Content-Type: application/json") {
			t.Errorf("a login with %q: %d %s, want 403 and what to send", kind, code, text)
		}
	}
}

// inBubble serves an address of a network in memory, for a test in a bubble. The returned function ends it.
func inBubble(t *testing.T, s *admin.Server, at admin.Address) (dial dialer, l net.Listener, end func()) {
	t.Helper()
	n := new(memnet.Net)
	l, err := n.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at.Token = adminToken
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeTCP(ctx, l, at) }()
	return func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, l.Addr().String()) }, l, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeTCP = %v, want nil after cancel", err)
		}
	}
}

func get(path, header string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + header + "Connection: close\r\n\r\n"
}

func bearer(token string) string { return "Authorization: Bearer " + token + "\r\n" }

// TestWrongTokens: D1. Some wrong tokens are looked at, then one a second, and the log has a line a minute. The right one is taken all
// the while.
func TestWrongTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		var mu sync.Mutex
		s := &admin.Server{Status: snapshot, Log: slog.New(slog.NewTextHandler(&locked{w: &lines, mu: &mu}, nil))}
		dial, _, end := inBubble(t, s, admin.Address{Connections: 8})
		defer end()
		guess := func() int {
			resp, _ := ask(t, dial, get("/api/v1/status", bearer("guess")))
			if (resp.StatusCode == 429) != (resp.Header.Get("Retry-After") == "1") {
				t.Errorf("%d has Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
			}
			return resp.StatusCode
		}
		answers := make(map[int]int)
		for range 100 {
			answers[guess()]++
		}
		if answers[401] != 5 || answers[429] != 95 {
			t.Errorf("100 wrong tokens at once are answered %v, want 401 to 5 and 429 to the others", answers)
		}
		if resp, _ := ask(t, dial, get("/api/v1/status", bearer(adminToken))); resp.StatusCode != 200 {
			t.Errorf("the right token, meanwhile: %d", resp.StatusCode)
		}
		const login = "POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
		body := `{"token":"guess"}`
		if resp, _ := ask(t, dial, fmt.Sprintf(login, len(body), body)); resp.StatusCode != 429 {
			t.Errorf("a login with a wrong token, meanwhile: %d, want 429", resp.StatusCode)
		}
		time.Sleep(time.Second)
		if a, b := guess(), guess(); a != 401 || b != 429 {
			t.Errorf("a second later, two are answered %d and %d, want 401 and 429", a, b)
		}
		mu.Lock()
		defer mu.Unlock()
		if got := lines.String(); strings.Count(got, "wrong token") != 1 || strings.Contains(got, "guess") {
			t.Errorf("the log has %q, want one line without the token", got)
		}
	})
}

type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// TestSessions: a login gives a secret that opens what the token does, for 12 hours or until a logout. There are 64 at most. A browser gets
// nothing to send by itself: it would send that to all other services of the host too.
func TestSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, _, end := inBubble(t, &admin.Server{Status: snapshot}, admin.Address{Connections: 8})
		defer end()
		login := func(token string) (int, string) {
			body := `{"token":"` + token + `"}`
			resp, text := ask(t, dial, fmt.Sprintf("POST /api/v1/login HTTP/1.1\r\nHost: localhost:3011\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
			if all := resp.Cookies(); len(all) > 0 {
				t.Errorf("a login gives the cookies %v, which a browser sends to all ports of the host", all)
			}
			if resp.Header.Get("Cache-Control") != "no-store" && resp.StatusCode == 200 {
				t.Errorf("the answer to a login may be kept: %v", resp.Header)
			}
			var got struct{ Session string }
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Errorf("login: %q: %v", text, err)
			}
			return resp.StatusCode, got.Session
		}
		with := func(method, path, header string) int {
			resp, _ := ask(t, dial, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost:3011\r\n%s\r\n\r\n", method, path, header))
			return resp.StatusCode
		}
		header := func(session string) string { return "X-Reverser-Session: " + session }
		if code, session := login("guess"); code != 401 || session != "" {
			t.Errorf("a wrong token: %d, %q", code, session)
		}
		code, session := login(adminToken)
		if code != 200 || len(session) < 64 {
			t.Fatalf("login = %d, %q", code, session)
		}
		if code := with("GET", "/api/v1/status", header(session)); code != 200 {
			t.Errorf("with the session: %d", code)
		}
		for _, other := range []string{
			header(session[:63]), header(session + "0"), header(strings.ToUpper(session)), header(anotherDigit(session[0]) + session[1:63] + anotherDigit(session[63])),
			"Cookie: reverser_session=" + session, "Cookie: reverser_session_3011=" + session, "Cookie: X-Reverser-Session=" + session,
		} {
			if code := with("GET", "/api/v1/status", other); code != 401 {
				t.Errorf("with %s: %d, want 401", other, code)
			}
		}
		if code := with("GET", "/api/v1/status?session="+session, "X: x"); code != 401 {
			t.Errorf("with the session in the query: %d", code)
		}
		if code := with("POST", "/api/v1/logout", header(session)); code != 204 {
			t.Errorf("logout: %d", code)
		}
		if code := with("GET", "/api/v1/status", header(session)); code != 401 {
			t.Errorf("after the logout: %d", code)
		}
		_, first := login(adminToken)
		time.Sleep(time.Hour)
		var last string
		for range 64 {
			_, last = login(adminToken)
		}
		if code := with("GET", "/api/v1/status", header(first)); code != 401 {
			t.Errorf("the first session, after 64 others: %d", code)
		}
		if code := with("GET", "/api/v1/status", header(last)); code != 200 {
			t.Errorf("the last session: %d", code)
		}
		time.Sleep(12*time.Hour + time.Second)
		if code := with("GET", "/api/v1/status", header(last)); code != 401 {
			t.Errorf("after 12 hours: %d", code)
		}
	})
}

// TestSessionEndsStreams: an answer that goes on ends with the session that asked for it, and not with another one.
func TestSessionEndsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, _, end := inBubble(t, &admin.Server{Status: snapshot}, admin.Address{Connections: 8})
		defer end()
		login := func() string {
			body := `{"token":"` + adminToken + `"}`
			_, text := ask(t, dial, fmt.Sprintf("POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
			var got struct{ Session string }
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatalf("login: %q: %v", text, err)
			}
			return got.Session
		}
		follow := func(path, session string) (over chan struct{}) {
			c, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nX-Reverser-Session: %s\r\nConnection: close\r\n\r\n", path, session)
			over = make(chan struct{})
			go func() {
				defer close(over)
				io.Copy(io.Discard, c)
			}()
			return over
		}
		isOver := func(c chan struct{}) bool {
			synctest.Wait()
			select {
			case <-c:
				return true
			default:
				return false
			}
		}
		mine, other := login(), login()
		status, events := follow("/api/v1/stream", mine), follow("/api/v1/events?follow=true", mine)
		others := follow("/api/v1/stream", other)
		time.Sleep(11 * time.Hour)
		if isOver(status) || isOver(events) || isOver(others) {
			t.Fatal("a stream ended before its session")
		}
		ask(t, dial, "POST /api/v1/logout HTTP/1.1\r\nHost: localhost\r\nX-Reverser-Session: "+mine+"\r\nConnection: close\r\n\r\n")
		if !isOver(status) || !isOver(events) {
			t.Errorf("after the logout: the stream of states is over: %v, of events: %v; want both", isOver(status), isOver(events))
		}
		if isOver(others) {
			t.Error("the logout ended a stream of another session")
		}
		time.Sleep(time.Hour)
		if !isOver(others) {
			t.Error("a stream goes on after the 12 hours of its session")
		}
	})
}

// TestOtherAuthorization: a server in front may have logins of its own, which are no tokens.
func TestOtherAuthorization(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		var mu sync.Mutex
		s := &admin.Server{Status: snapshot, Page: fakePage{}, Log: slog.New(slog.NewTextHandler(&locked{w: &lines, mu: &mu}, nil))}
		dial, _, end := inBubble(t, s, admin.Address{Connections: 8})
		defer end()
		const basic = "Authorization: Basic dXNlcjpwYXNz\r\n"
		body := `{"token":"` + adminToken + `"}`
		resp, text := ask(t, dial, fmt.Sprintf("POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", basic, len(body), body))
		var got struct{ Session string }
		if json.Unmarshal([]byte(text), &got); resp.StatusCode != 200 {
			t.Fatalf("login: %d %s", resp.StatusCode, text)
		}
		session := "X-Reverser-Session: " + got.Session + "\r\n"
		for _, tt := range []struct {
			path, header string
			want         int
		}{
			{"/", basic + "Accept: text/html\r\n", 200},
			{"/api/v1/status", basic, 401},
			{"/api/v1/status", basic + session, 200},
			{"/api/v1/status", session, 200},
		} {
			if resp, text := ask(t, dial, get(tt.path, tt.header)); resp.StatusCode != tt.want {
				t.Errorf("GET %s with %q: %d, want %d: %s", tt.path, tt.header, resp.StatusCode, tt.want, text)
			}
		}
		resp, _ = ask(t, dial, "POST /api/v1/logout HTTP/1.1\r\nHost: localhost\r\n"+basic+session+"Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n")
		if resp.StatusCode != 403 {
			t.Errorf("an order as text/plain, with a session and without the token: %d, want 403", resp.StatusCode)
		}
		mu.Lock()
		defer mu.Unlock()
		if strings.Contains(lines.String(), "wrong token") {
			t.Errorf("the log has %q", lines.String())
		}
	})
}

// TestRoom: strangers who hold all connections keep nobody out, and close none of those who have shown the token.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, _, end := inBubble(t, &admin.Server{Status: snapshot}, admin.Address{Connections: 4})
		defer end()
		begun := time.Now()
		friend := func() (net.Conn, *bufio.Reader) {
			c, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return c, bufio.NewReader(c)
		}
		status := func(c net.Conn, r *bufio.Reader) error {
			fmt.Fprintf(c, "GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n%s\r\n", bearer(adminToken))
			resp, err := http.ReadResponse(r, nil)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			return err
		}
		strangers := func() { // fewer than there is a pace for, all in all
			for range 30 {
				c, err := dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
			}
			synctest.Wait()
		}
		strangers()
		c, r := friend()
		defer c.Close()
		if err := status(c, r); err != nil {
			t.Fatalf("while strangers hold all connections: %v", err)
		}
		strangers()
		if err := status(c, r); err != nil {
			t.Errorf("once more, after other strangers: %v", err)
		}
		for range 3 {
			c, r := friend()
			defer c.Close()
			if err := status(c, r); err != nil {
				t.Errorf("another one: %v", err)
			}
		}
		if err := status(c, r); err != nil { // the others have been idle for longer
			t.Errorf("while four have shown the token: %v", err)
		}
		strangers() // who get the place of one of the four
		if err := status(c, r); err != nil {
			t.Errorf("while strangers want the places of four who have shown the token: %v", err)
		}
		if d := time.Since(begun); d > 0 {
			t.Errorf("all that took %s, so that somebody was waited for", d)
		}
	})
}

// TestRoomForOthers: whoever has the token, and holds all connections, leaves some to others: those that are idle make way, the longest idle first.
// A request under way is never cut.
func TestRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, _, end := inBubble(t, &admin.Server{Status: snapshot}, admin.Address{Connections: 16})
		defer end()
		ask := func(path string) (net.Conn, *http.Response) {
			c, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", path, bearer(adminToken))
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("GET %s: %v", path, err)
			}
			return c, resp
		}
		var streams, idle []net.Conn
		for range 8 { // as many as may
			c, _ := ask("/api/v1/events?follow=true")
			streams = append(streams, c)
		}
		for range 8 {
			c, resp := ask("/api/v1/status?pairs=false")
			io.Copy(io.Discard, resp.Body)
			idle = append(idle, c)
			time.Sleep(time.Second)
		}
		isOpen := func(c net.Conn) bool {
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := io.Copy(io.Discard, c)
			return errors.Is(err, os.ErrDeadlineExceeded)
		}
		for range 8 { // strangers who stay
			c, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
			if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
				t.Fatalf("/healthz beside 16 who have shown the token: %v, %v", resp, err)
			}
		}
		for i, c := range idle {
			if open := isOpen(c); open != (i >= 2) {
				t.Errorf("idle connection %d is open: %v; want the two closed that were idle for longest", i, open)
			}
		}
		for i, c := range streams {
			if !isOpen(c) {
				t.Errorf("stream %d was closed", i)
			}
		}
	})
}

// TestPace: D4. Of a flood of connections 100 a second are taken, each of which may begin a handshake, and whoever waits behind it is answered.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(memnet.Net)
		ln, err := n.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := &countedListener{Listener: ln}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- (&admin.Server{Status: snapshot}).ServeTCP(ctx, l, admin.Address{Token: adminToken, Connections: 64})
		}()
		dial := func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, ln.Addr().String()) }
		var strangers sync.WaitGroup
		for range 450 {
			strangers.Go(func() {
				if c, err := dial(ctx); err == nil {
					io.Copy(io.Discard, c) // until it has to go
					c.Close()
				}
			})
		}
		check := func(when string, least, most int64) {
			t.Helper()
			synctest.Wait()
			if got := l.accepted.Load(); got < least || got > most {
				t.Errorf("%s: %d connections were taken, want %d to %d", when, got, least, most)
			}
		}
		check("at once", 100, 100)
		time.Sleep(time.Second)
		check("a second later", 195, 200)
		begun := time.Now()
		if resp, _ := ask(t, dial, get("/api/v1/status", bearer(adminToken))); resp.StatusCode != 200 {
			t.Errorf("whoever has the token, behind the flood: %d", resp.StatusCode)
		}
		if d := time.Since(begun); d > 4*time.Second {
			t.Errorf("whoever has the token is answered after %s", d)
		}
		time.Sleep(5 * time.Second)
		check("all of them", 451, 451)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeTCP = %v", err)
		}
		strangers.Wait()
	})
}

// TestSlowAtTCP: D4. A header that comes a byte at a time has 5 s, and a body 10 s.
func TestSlowAtTCP(t *testing.T) {
	for what, tt := range map[string]struct {
		first string
		most  time.Duration
	}{
		"header": {"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nX: ", 6 * time.Second},
		"body":   {"POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{", 12 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			dial, _, end := inBubble(t, &admin.Server{Status: snapshot}, admin.Address{Connections: 4})
			defer end()
			c, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			begun := time.Now()
			var sending sync.WaitGroup
			defer sending.Wait()
			defer c.Close()
			sending.Go(func() {
				io.WriteString(c, tt.first)
				for range 100 {
					time.Sleep(time.Second)
					if _, err := c.Write([]byte("x")); err != nil {
						return
					}
				}
			})
			got, _ := io.ReadAll(c)
			if d := time.Since(begun); d > tt.most || strings.Contains(string(got), "200 OK") {
				t.Errorf("a slow %s: %q after %s", what, got, d)
			}
		})
	}
}

// TestAdminTLS: with a certificate there is TLS and HTTP/2, under the certificate's names. D4: who resets
// thousands of requests at once holds nobody up.
func TestAdminTLS(t *testing.T) {
	chain, key := acmetest.Certificate(t, "admin.example.com")
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	now, most := 0, 0
	look := func() status.Snapshot {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		defer func() {
			mu.Lock()
			now--
			mu.Unlock()
		}()
		return snapshot()
	}
	dial, addr := serveTCP(t, &admin.Server{Status: look}, admin.Address{Certificate: func() *tls.Certificate { return &pair }})
	roots := x509.NewCertPool()
	for rest := chain; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil {
			roots.AddCert(c)
		}
	}
	config := &tls.Config{RootCAs: roots, ServerName: "admin.example.com"}
	transport := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		TLSClientConfig: config, ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	request := func(method, url, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+adminToken)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp
	}
	if resp := request("GET", "https://admin.example.com/api/v1/status", ""); resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Errorf("by TLS: %s by %s", resp.Status, resp.Proto)
	}
	resp := request("POST", "https://admin.example.com/api/v1/login", `{"token":"`+adminToken+`"}`)
	if resp.StatusCode != 200 || len(resp.Cookies()) > 0 {
		t.Errorf("login = %s with the cookies %v", resp.Status, resp.Cookies())
	}
	// By HTTP/2 the host is a pseudo-header.
	client.Transport = &http.Transport{DialContext: transport.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	if resp := request("GET", "https://evil.example/api/v1/status", ""); resp.StatusCode != 421 || resp.ProtoMajor != 2 {
		t.Errorf("D2 another host: %s by %s", resp.Status, resp.Proto)
	}
	client.CloseIdleConnections()
	client.Transport = transport

	raw, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "admin.example.com", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	defer reading.Wait()
	defer raw.Close()
	io.WriteString(raw, http2.ClientPreface)
	fr := http2.NewFramer(raw, raw)
	fr.WriteSettings()
	reading.Go(func() { io.Copy(io.Discard, raw) })
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for i := range 20_000 {
		head.Reset()
		for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "admin.example.com"}, {":path", "/api/v1/status"}, {"authorization", "Bearer " + adminToken}} {
			enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*i + 1)
		if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true}) != nil || fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break // the server has had enough of it
		}
	}
	if resp := request("GET", "https://admin.example.com/api/v1/status", ""); resp.StatusCode != 200 {
		t.Errorf("beside it: %s", resp.Status)
	}
	mu.Lock()
	defer mu.Unlock()
	if most > 2*64 {
		t.Errorf("%d requests of one connection at once", most)
	}
}

// TestHealth: whoever watches asks without the token and under any name, and learns no names; whoever has it is told what is missing.
func TestHealth(t *testing.T) {
	var mu sync.Mutex
	now := snapshot()
	set := func(s status.Snapshot) {
		mu.Lock()
		now = s
		mu.Unlock()
	}
	synctest.Test(t, func(t *testing.T) {
		dial, _, end := inBubble(t, &admin.Server{Status: func() status.Snapshot { mu.Lock(); defer mu.Unlock(); return now }}, admin.Address{Connections: 8})
		defer end()
		for _, tt := range []struct {
			what string
			snap status.Snapshot
			want int
		}{
			{"a proxy", snapshot(), 200},
			{"a proxy that is stopping", status.Snapshot{Role: "proxy", Stopping: true}, 503},
			{"a bridge without a link", status.Snapshot{Role: "bridge", Links: []status.Link{{State: status.LinkDown, Remote: "192.0.2.7:3010"}}}, 503},
			{"a bridge whose services are up or denied", status.Snapshot{Role: "bridge", Links: []status.Link{{State: status.LinkUp}},
				Services: []status.Service{{Public: "tcp/9000", State: status.ServiceUp}, {Public: "tcp/9001", State: status.ServiceDenied}}}, 200},
			{"a bridge whose service is not up", status.Snapshot{Role: "bridge", Links: []status.Link{{State: status.LinkUp}},
				Services: []status.Service{{Public: "tcp/9000", State: status.ServiceRetrying}}}, 503},
		} {
			set(tt.snap)
			time.Sleep(time.Second) // what they are told is a second old at most
			if resp, body := ask(t, dial, "GET /healthz HTTP/1.1\r\nHost: balancer\r\n\r\n"); resp.StatusCode != 200 {
				t.Errorf("%s: /healthz = %d %s", tt.what, resp.StatusCode, body)
			}
			resp, body := ask(t, dial, "GET /readyz HTTP/1.1\r\nHost: balancer\r\n\r\n")
			if resp.StatusCode != tt.want || strings.Contains(body, "tcp/9000") || strings.Contains(body, "192.0.2.7") {
				t.Errorf("%s: /readyz = %d %s, want %d without names", tt.what, resp.StatusCode, body, tt.want)
			}
			resp, body = ask(t, dial, get("/readyz", bearer(adminToken)))
			if known := strings.Contains(body, "tcp/9000") || strings.Contains(body, "192.0.2.7") || strings.Contains(body, "stopping"); resp.StatusCode != tt.want || known != (tt.want == 503) {
				t.Errorf("%s: /readyz with the token = %d %s, want %d and why", tt.what, resp.StatusCode, body, tt.want)
			}
		}
	})
}

// TestHostileNames: D5. What strangers and peers name reaches a terminal, a log and a page as text.
func TestHostileNames(t *testing.T) {
	const hostile = "<script>alert(1)</script>\r\nSet-Cookie: a=b\x1b[2J\u009b31m\u202e"
	look := func() status.Snapshot {
		s := snapshot()
		s.Services = []status.Service{{Public: "http/" + hostile, Target: hostile, State: status.ServiceUp, Reason: hostile}}
		s.Links[0].Bridge = hostile
		return s
	}
	dial, addr := serveTCP(t, &admin.Server{Status: look, Keys: &fakeKeys{}}, admin.Address{})
	for _, path := range []string{"/api/v1/status", "/api/v1/keys/%3Cscript%3E%0d%0aX:y%1b%5b2J", "/api/v1/services/%3Cscript%3E%0d%0a%1b%5b2J/exchanges", "/api/v1/%3Cscript%3E%0d%0a%1b%5b2J", "/%3Cscript%3E%0d%0a%1b%5b2J"} {
		resp, body := ask(t, dial, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, addr, bearer(adminToken)))
		if strings.ContainsAny(body, "\x1b\r\u009b\u202e") || strings.Contains(body, "<script") || strings.Count(body, "\n") != 1 {
			t.Errorf("%s: %q", path, body)
		}
		if kind := resp.Header.Get("Content-Type"); kind != "application/json" && kind != "application/problem+json" {
			t.Errorf("%s is %s", path, kind)
		}
		if resp.Header.Get("X") != "" || resp.Header.Get("Set-Cookie") != "" {
			t.Errorf("%s: the header is %v", path, resp.Header)
		}
	}
	if resp, body := ask(t, dial, "GET /api/v1/status HTTP/1.1\r\nHost: <script>\x1b[2J\r\n\r\n"); resp.StatusCode < 400 || strings.ContainsAny(body, "\x1b") || strings.Contains(body, "<script") {
		t.Errorf("a hostile host: %d %q", resp.StatusCode, body)
	}
}

// TestAddressGivenUp: when the listener is closed, for a successor, those who are being answered go on, and no other comes.
func TestAddressGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := &slowKeys{began: make(chan struct{}), goesOn: make(chan struct{})}
		s := &admin.Server{Status: snapshot, Keys: keys}
		dial, l, end := inBubble(t, s, admin.Address{Connections: 4})
		answered := make(chan int)
		go func() {
			resp, _ := ask(t, dial, "DELETE /api/v1/keys/nas HTTP/1.1\r\nHost: localhost\r\n"+bearer(adminToken)+"\r\n")
			answered <- resp.StatusCode
		}()
		<-keys.began
		l.Close()
		synctest.Wait()
		if c, err := dial(t.Context()); err == nil {
			c.Close()
			t.Error("the address is still there")
		}
		close(keys.goesOn)
		if code := <-answered; code != 204 {
			t.Errorf("who was being answered got %d", code)
		}
		end()
	})
}

// anotherDigit is a hexadecimal digit that is not c.
func anotherDigit(c byte) string {
	if c == '0' {
		return "1"
	}
	return "0"
}
