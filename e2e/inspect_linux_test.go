package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"reverser/internal/accesslog"
	"reverser/internal/acmetest"
	"reverser/internal/inspect"
)

// inspectedExchange is one exchange as `reverser inspect --json` has it.
func inspectedExchange(t *testing.T, state, service, id string) (x inspect.Exchange) {
	t.Helper()
	if err := json.Unmarshal([]byte(runReverser(t, "inspect", service, id, "--json", "--state", state)), &x); err != nil {
		t.Fatal(err)
	}
	return x
}

func inspectedList(t *testing.T, state, service string) []inspect.Summary {
	t.Helper()
	var list struct {
		Exchanges []inspect.Summary `json:"exchanges"`
	}
	if err := json.Unmarshal([]byte(runReverser(t, "inspect", service, "--json", "--state", state)), &list); err != nil {
		t.Fatal(err)
	}
	return list.Exchanges
}

// TestInspect: what curl and a client of WebSockets say to nginx and to a server of WebSockets can be looked at, followed and sent again.
func TestInspect(t *testing.T) {
	t.Parallel()
	need(t, nginx, curl)
	pythonModule(t, "websockets", "python3-websockets")
	const public = "http/app.example.com"
	dir, web, sockets, http := t.TempDir(), freePort(t), freePort(t), freePort(t)
	if err := os.Mkdir(filepath.Join(dir, "www"), 0o755); err != nil {
		t.Fatal(err)
	}
	startNginx(t, dir, fmt.Sprintf(`
		listen 127.0.0.1:%d;
		root %[2]s/www;
		location / { dav_methods PUT; add_header Set-Cookie "sid=s3cr3t; Path=/"; }
`, web, dir))
	server := start(t, "websocket.py", python.path(t), nil, "testdata/websocket.py", "serve", fmt.Sprint(sockets))
	server.awaitOutput("listening")

	files := t.TempDir()
	accessLog := filepath.Join(files, "access.log")
	p := startProxyAt(t, t.TempDir(), freePort(t), "--http", loopback(http), "--access-log", accessLog)
	if err := os.WriteFile(filepath.Join(files, "token"), []byte(addKey(t, p.state, "web", "http/*")), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(files, "bridge.toml")
	configure := func(inspect string) {
		text := fmt.Sprintf("token_file = \"token\"\nproxy = %q\n[[expose]]\npublic = %q\ntarget = %d\n%s\n[[expose]]\npublic = \"http/app.example.com/talk\"\ntarget = %d\n%[4]s\n",
			loopback(p.link), public, web, inspect, sockets)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure("inspect = true")
	b := &bridgeProcess{state: t.TempDir()}
	b.testProcess = startReverser(t, "bridge", nil, "bridge", "--config", conf, "--state", b.state, "--log-format", "json")
	b.awaitUp(public, public+"/talk")
	p.awaitRecord("service is inspected: its last exchanges are kept in memory", "service", public)
	if text := runReverser(t, "status", "--state", p.state); !strings.Contains(text, "up, inspected") {
		t.Errorf("status does not say that the service is inspected:\n%s", text)
	}
	if list := inspectedList(t, p.state, public); len(list) != 0 {
		t.Fatalf("before the first request: %+v", list)
	}

	follower := startReverser(t, "inspect", nil, "inspect", public+"/talk", "--follow", "--state", p.state)
	url := "http://app.example.com"
	fetch := func(args ...string) string {
		t.Helper()
		return run(t, curl.path(t), append([]string{"--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--connect-to", "::" + loopback(http)}, args...)...)
	}
	awaitList := func(service string, n int) (list []inspect.Summary) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d exchanges of %s are over", n, service), func() bool {
			list = inspectedList(t, p.state, service)
			return len(list) == n && list[n-1].State != inspect.StateOpen
		})
		return list
	}
	fetch("--upload-file", "testdata/websocket.py", "--header", "Authorization: Bearer s3cr3t", url+"/put.py")
	if got := fetch("--header", "Cookie: sid=s3cr3t", "--http2-prior-knowledge", url+"/put.py?x=y"); !strings.HasPrefix(got, `"""An echo`) {
		t.Errorf("curl got %.100q", got)
	}
	list := awaitList(public, 2)
	put, get := inspectedExchange(t, p.state, public, list[0].ID), inspectedExchange(t, p.state, public, list[1].ID)
	script, err := os.ReadFile("testdata/websocket.py")
	if err != nil {
		t.Fatal(err)
	}
	if put.Method != "PUT" || put.Path != "/put.py" || put.Status != 201 || put.Request.Body != string(script) || put.Request.Bytes != int64(len(script)) {
		t.Errorf("the PUT is %+v", put.Summary)
	}
	if get.Method != "GET" || get.Proto != "HTTP/2.0" || get.Path != "/put.py?x=y" || get.Status != 200 || get.Response.Body != string(script) || get.Host != "app.example.com" {
		t.Errorf("the GET is %+v", get.Summary)
	}
	for _, x := range []inspect.Exchange{put, get} {
		if text := fmt.Sprint(x); strings.Contains(text, "s3cr3t") {
			t.Errorf("a secret is shown: %s", text)
		}
	}
	if text := runReverser(t, "inspect", public, "--state", p.state); !strings.Contains(text, "PUT") || !strings.Contains(text, "201") || !strings.Contains(text, "/put.py?x=y") {
		t.Errorf("the list for people is\n%s", text)
	}
	if text := runReverser(t, "inspect", public, get.ID, "--state", p.state); !strings.Contains(text, "< 200 OK\n") || !strings.Contains(text, "< Set-Cookie: sid=[6 bytes]; Path=/\n") {
		t.Errorf("the exchange for people is\n%s", text)
	}

	// nginx gets the file a second time, with the key that is not shown.
	if err := os.Remove(filepath.Join(dir, "www", "put.py")); err != nil {
		t.Fatal(err)
	}
	if text := runReverser(t, "inspect", public, "--replay", put.ID, "--state", p.state); !strings.Contains(text, "replay of "+put.ID) || !strings.Contains(text, "< 201 Created\n") {
		t.Errorf("the replay is\n%s", text)
	}
	if again, err := os.ReadFile(filepath.Join(dir, "www", "put.py")); err != nil || string(again) != string(script) {
		t.Errorf("the replay wrote %d bytes, %v", len(again), err)
	}

	follower.awaitOutput("CLIENT")
	run(t, python.path(t), "testdata/websocket.py", "talk", fmt.Sprint(http))
	talk := inspectedExchange(t, p.state, public+"/talk", awaitList(public+"/talk", 1)[0].ID)
	if talk.Status != 101 || talk.Upgrade != "websocket" {
		t.Errorf("the WebSocket is %+v", talk.Summary)
	}
	var said strings.Builder
	for _, f := range talk.LastFrames {
		if f.Type != "ping" && f.Type != "pong" {
			fmt.Fprintf(&said, "%s %s %q\n", f.From, f.Type, f.Body)
		}
	}
	var want strings.Builder
	for _, text := range []string{"hello 词", "hello 词 again", "\x1b[31mred"} {
		fmt.Fprintf(&want, "client text %q\ntarget text %[1]q\n", text)
	}
	want.WriteString("client binary \"/wA=\"\ntarget binary \"/wA=\"\nclient close \"D6Blbm91Z2g=\"\ntarget close \"D6Blbm91Z2g=\"\n")
	if said.String() != want.String() {
		t.Errorf("the frames are\n%swant\n%s", said.String(), want.String())
	}
	follower.awaitOutput("/talk")
	follower.awaitOutput("< text, ")
	follower.awaitOutput(`\u001b[31mred`)
	follower.awaitOutput("> close, 8 bytes: 4000 enough")

	// Each request has a line in the access log.
	eventually(t, "four requests have a line", func() bool { return len(accessLines(t, accessLog)) == 4 })
	var got strings.Builder
	for _, e := range accessLines(t, accessLog) {
		fmt.Fprintf(&got, "%s %s %s %s %d\n", e.Kind, e.Service, e.Request.Method, e.Request.Path, e.Request.Status)
	}
	if want := accesslog.KindRequest + " " + public + " PUT /put.py 201\n"; !strings.HasPrefix(got.String(), want) || strings.Count(got.String(), want) != 2 ||
		!strings.Contains(got.String(), public+"/talk GET /talk 101\n") {
		t.Errorf("the access log has\n%s", got.String())
	}

	// The bridge says where to look, and a service that is not inspected any more has nothing to be seen.
	refused := func(state, want string) {
		t.Helper()
		path, args := command(t, []string{"inspect", public, "--state", state})
		c := prepare(t, "inspect", path, nil, args...)
		c.start()
		if code := c.awaitEnd(); code == 0 || !strings.Contains(c.Stderr.String(), want) {
			t.Errorf("exit code %d, %s; want a word about %q", code, c.Stderr.String(), want)
		}
	}
	refused(b.state, "the proxy speaks HTTP for "+public)
	configure("")
	if _, err := reload(b.state); err != nil {
		t.Fatal(err)
	}
	p.awaitRecord("service is inspected no longer: its exchanges are forgotten", "service", public)
	refused(p.state, "inspect = true")
	eventually(t, "the follower ends with the recorder", func() bool { return !follower.Running() })
	for s := bufio.NewScanner(strings.NewReader(follower.Stdout.String())); s.Scan(); {
		if strings.ContainsAny(s.Text(), "\x1b\x07") {
			t.Errorf("the terminal gets %q", s.Text())
		}
	}
}

// TestInspectHTTPS: what clients say over TLS, with HTTP/1.1, HTTP/2, WebSockets and gRPC, can be looked at, followed and sent again as what
// they say without it.
func TestInspectHTTPS(t *testing.T) {
	t.Parallel()
	need(t, curl)
	pythonModule(t, "websockets", "python3-websockets")
	pythonModule(t, "grpc", "python3-grpcio")
	const app, talk, call = "https/app.example.com", "https/app.example.com/talk", "https/unary.grpc.example.com"
	dir, https443, sockets, calls := t.TempDir(), freePort(t), freePort(t), freePort(t)
	chain, key := acmetest.Certificate(t, "*.example.com", "*.grpc.example.com")
	roots := writeFile(t, filepath.Join(dir, "chain.pem"), string(chain))
	writeFile(t, filepath.Join(dir, "key.pem"), string(key))
	asked := make(chan string, 8)
	web := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked <- fmt.Sprintf("%s %s://%s%s %q %q %s", r.Method, r.Header.Get("X-Forwarded-Proto"), r.Host, r.RequestURI, r.Header["Authorization"], r.Header["X-Forwarded-For"], body)
		w.Header().Set("Set-Cookie", "sid=s3cr3t; Secure")
		fmt.Fprintf(w, "you say %s", body)
	})
	for script, port := range map[string]int{"testdata/websocket.py": sockets, "testdata/grpc_streams.py": calls} {
		start(t, script, python.path(t), nil, script, "serve", strconv.Itoa(port)).awaitOutput("listening")
	}
	p := startProxy(t, "--https", loopback(https443), "--config", writeFile(t, filepath.Join(dir, "proxy.toml"), "[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n"))
	conf := fmt.Sprintf("[[expose]]\npublic = %q\ntarget = %d\ninspect = true\n", app, web)
	conf += fmt.Sprintf("[[expose]]\npublic = %q\ntarget = %d\ninspect = true\n", talk, sockets)
	conf += fmt.Sprintf("[[expose]]\npublic = %q\ntarget = %d\ninspect = true\nh2c = true\n", call, calls)
	b := startBridge(t, addKey(t, p.state, "web", "https/*"), "--proxy", loopback(p.link), "--config", writeFile(t, filepath.Join(dir, "bridge.toml"), conf))
	b.awaitUp(app, talk, call)
	only := func(service string, n int) (x inspect.Exchange) {
		t.Helper()
		var list []inspect.Summary
		eventually(t, fmt.Sprintf("exchange %d of %s is over", n, service), func() bool {
			list = inspectedList(t, p.state, service)
			return len(list) == n && list[n-1].State != inspect.StateOpen
		})
		return inspectedExchange(t, p.state, service, list[n-1].ID)
	}

	follower := startReverser(t, "inspect", nil, "inspect", app, "--follow", "--state", p.state)
	follower.awaitOutput("CLIENT")
	n := 0
	for flag, proto := range map[string]string{"--http1.1": "HTTP/1.1", "--http2": "HTTP/2.0"} {
		n++
		got := run(t, curl.path(t), "--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--connect-to", "::"+loopback(https443), "--cacert", roots,
			flag, "--data", "hello over "+proto, "--header", "Authorization: Bearer s3cr3t", "https://app.example.com/x?by="+flag)
		if want := "you say hello over " + proto; got != want {
			t.Errorf("%s: curl got %q, want %q", flag, got, want)
		}
		first := <-asked
		x := only(app, n)
		if x.Scheme != "https" || x.Proto != proto || x.Method != "POST" || x.Host != "app.example.com" || x.Path != "/x?by="+flag || x.Status != 200 || x.State != inspect.StateDone ||
			x.Request.Body != "hello over "+proto || x.Response.Body != got {
			t.Errorf("%s: the exchange is %+v", flag, x)
		}
		if text := fmt.Sprint(x); strings.Contains(text, "s3cr3t") {
			t.Errorf("%s: a secret is shown: %s", flag, text)
		}
		follower.awaitOutput("/x?by=" + flag)

		n++
		if text := runReverser(t, "inspect", app, "--replay", x.ID, "--state", p.state); !strings.Contains(text, "replay of "+x.ID) || !strings.Contains(text, "< you say hello over "+proto+"\n") {
			t.Errorf("%s: the replay is\n%s", flag, text)
		}
		if again := <-asked; again != first || !strings.Contains(again, "Bearer s3cr3t") || !strings.Contains(again, "POST https://app.example.com/") {
			t.Errorf("%s: the target was asked %q, and again %q", flag, first, again)
		}
		if x := only(app, n); x.Scheme != "https" || x.Proto != proto || x.Response.Body != got {
			t.Errorf("%s: the replay is %+v", flag, x)
		}
	}

	run(t, python.path(t), "testdata/websocket.py", "talk", strconv.Itoa(https443), roots)
	x := only(talk, 1)
	var said strings.Builder
	for _, f := range x.LastFrames {
		if f.Type == "text" {
			fmt.Fprintf(&said, "%s %q\n", f.From, f.Body)
		}
	}
	var want strings.Builder
	for _, text := range []string{"hello 词", "hello 词 again", "\x1b[31mred"} {
		fmt.Fprintf(&want, "client %q\ntarget %[1]q\n", text)
	}
	if x.Scheme != "https" || x.Status != 101 || x.Upgrade != "websocket" || said.String() != want.String() {
		t.Errorf("the WebSocket is %+v, its texts are\n%swant\n%s", x.Summary, said.String(), want.String())
	}

	run(t, python.path(t), "testdata/grpc_streams.py", "unary", strconv.Itoa(https443), roots)
	x = only(call, 1)
	status := slices.ContainsFunc(x.Response.Trailer, func(f inspect.Field) bool { return strings.EqualFold(f.Name, "grpc-status") && f.Value == "0" })
	if x.Scheme != "https" || x.Proto != "HTTP/2.0" || x.Path != "/t.T/Unary" || x.Status != 200 || x.State != inspect.StateDone ||
		x.Sent != 3<<20+5 || x.Received != x.Sent || !status {
		t.Errorf("the call is %+v, its trailers are %v; want HTTP/2.0, 3 MiB both ways and grpc-status 0", x.Summary, x.Response.Trailer)
	}
}
