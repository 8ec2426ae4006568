//go:build linux

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var apache = program{"apache2", "apache2-bin"}

// startWeb starts a proxy with a port for HTTP, and a bridge with services behind it: PUBLIC=TARGET, or the text of a file.
func startWeb(t *testing.T, file string, exposes ...string) (p *proxyProcess, b *bridgeProcess, port int) {
	t.Helper()
	port = freePort(t)
	p = startProxy(t, "--http", loopback(port))
	args := append(exposes, "--proxy", loopback(p.link))
	var services []string
	for _, e := range exposes {
		public, _, _ := strings.Cut(e, "=")
		services = append(services, public)
	}
	if file != "" {
		args = append(args, "--config", writeFile(t, filepath.Join(t.TempDir(), "bridge.toml"), file))
		for line := range strings.SplitSeq(file, "\n") {
			if public, ok := strings.CutPrefix(line, "public = "); ok {
				services = append(services, strings.Trim(public, `"`))
			}
		}
	}
	b = startBridge(t, addKey(t, p.state, "web", "http/*"), args...)
	b.awaitUp(services...)
	return p, b, port
}

// curlTo runs curl against a host that is served at a port, and returns what it writes.
func curlTo(t *testing.T, port int, args ...string) string {
	t.Helper()
	return run(t, curl.path(t), append([]string{"--silent", "--show-error", "--noproxy", "*", "--max-time", "300", "--connect-to", "::" + loopback(port)}, args...)...)
}

// TestWebServers: nginx and Apache share the port for HTTP, by name and by path; curl reads, resumes, uploads and asks them over one
// connection, in HTTP/1.1 and HTTP/2.
func TestWebServers(t *testing.T) {
	t.Parallel()
	need(t, nginx, curl, apache)
	dir, one, two := t.TempDir(), freePort(t), freePort(t)
	www := makeDir(t, filepath.Join(dir, "www"))
	makeDir(t, filepath.Join(www, "put"))
	sum := randomFile(t, filepath.Join(www, "big"), 20<<20)
	startNginx(t, www, fmt.Sprintf(`
		listen 127.0.0.1:%d;
		root %s;
		location = /who { return 200 "nginx for $http_x_forwarded_for at $host"; }
		location /put/ { dav_methods PUT; }
`, one, www))
	docs := makeDir(t, filepath.Join(dir, "docs", "manual"))
	writeFile(t, filepath.Join(docs, "index.html"), "this is Apache")
	modules := "/usr/lib/apache2/modules/"
	user := ""
	if os.Getuid() == 0 {
		user = "User www-data\nGroup www-data\n"
		for _, d := range []string{filepath.Dir(dir), dir, filepath.Dir(docs), docs, filepath.Join(docs, "index.html")} { // its workers must read them
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	conf := writeFile(t, filepath.Join(dir, "httpd.conf"), fmt.Sprintf(`ServerRoot %[1]s
Listen 127.0.0.1:%[2]d
ServerName localhost
PidFile %[1]s/httpd.pid
ErrorLog %[1]s/httpd.log
LoadModule mpm_event_module %[3]smod_mpm_event.so
LoadModule authz_core_module %[3]smod_authz_core.so
LoadModule dir_module %[3]smod_dir.so
%[4]sDocumentRoot %[1]s/docs
`, dir, two, modules, user))
	server := start(t, "apache2", apache.path(t), nil, "-X", "-f", conf)
	server.awaitListener(two)
	p, b, port := startWeb(t, "", fmt.Sprintf("http/app.example=%d", one), fmt.Sprintf("http/app.example/manual=%d", two))
	for _, version := range []string{"--http1.1", "--http2-prior-knowledge"} {
		got := filepath.Join(dir, "got")
		var out string
		if urls := []string{"http://app.example/who", "http://app.example/manual/"}; version == "--http1.1" {
			out = curlTo(t, port, append(urls, version, "--fail", "--write-out", " %{num_connects}\n")...)
		} else { // curl 7.88 cannot use such a connection twice
			out = curlTo(t, port, version, "--fail", "--write-out", " %{num_connects}\n", urls[0]) + curlTo(t, port, version, "--fail", "--write-out", " 0\n", urls[1])
		}
		if want := "nginx for 127.0.0.1 at app.example 1\nthis is Apache 0\n"; out != want {
			t.Errorf("%s: %.200q, want %q", version, out, want)
		}
		curlTo(t, port, version, "--fail", "--output", got, "http://app.example/big")
		if s := sumOfFile(t, got); s != sum {
			t.Errorf("%s: checksum %s, want %s", version, s, sum)
		}
		if out := curlTo(t, port, version, "--range", "5000000-5000099", "--output", got, "--write-out", "%{http_code} %{size_download}", "http://app.example/big"); out != "206 100" {
			t.Errorf("%s: a range is %s", version, out)
		}
		out = curlTo(t, port, version, "--upload-file", filepath.Join(www, "big"), "--header", "Expect: 100-continue", "--write-out", "%{http_code}", "http://app.example/put/"+version[2:])
		if s := sumOfFile(t, filepath.Join(www, "put", version[2:])); out != "201" || s != sum {
			t.Errorf("%s: an upload: %s, checksum %s", version, out, s)
		}
	}
	if out := curlTo(t, port, "http://other.example/"); !strings.Contains(out, "404") {
		t.Errorf("an unknown host: %q", out)
	}
	server.Kill()
	out := curlTo(t, port, "--header", "Accept: application/json", "http://app.example/manual/")
	_, id, _ := strings.Cut(out, `"request":"`)
	if id, _, _ = strings.Cut(id, `"`); !strings.Contains(out, `"status":502`) || len(id) != 32 || strings.Contains(out, strconv.Itoa(two)) {
		t.Errorf("a target that is down: %q", out)
	}
	if r := p.awaitRecord("request not answered by its target", "service", "http/app.example/manual"); r.Text("request") != id {
		t.Errorf("the log has the request %s, the page %s", r.Text("request"), id)
	}
	b.awaitRecord("target cannot be reached, the client gets a reset", "request", id)
}

// TestWebPrograms: WebSocket and all four kinds of gRPC calls, by programs that nobody here wrote.
func TestWebPrograms(t *testing.T) {
	for _, c := range []struct{ module, deb, script, options string }{
		{"websockets", "python3-websockets", "testdata/websocket.py", ""},
		{"grpc", "python3-grpcio", "testdata/grpc_streams.py", "h2c = true\n"},
	} {
		t.Run(c.module, func(t *testing.T) {
			pythonModule(t, c.module, c.deb)
			heavy(t)
			port := freePort(t)
			server := start(t, "server", python.path(t), nil, c.script, "serve", strconv.Itoa(port))
			server.awaitOutput("listening")
			_, _, public := startWeb(t, fmt.Sprintf("[[expose]]\npublic = \"http/127.0.0.1\"\ntarget = %d\n%s", port, c.options))
			client := start(t, "client", python.path(t), nil, c.script, "check", strconv.Itoa(public))
			if code := client.awaitEnd(); code != 0 || !strings.Contains(client.Stdout.String(), "all as it should be") {
				t.Errorf("the client: exit code %d, %q\n%s", code, client.Stdout.String(), client.Stderr.String())
			}
		})
	}
}

// TestWebGit: git pushes and clones over HTTP.
func TestWebGit(t *testing.T) {
	need(t, git)
	heavy(t)
	dir := t.TempDir()
	env := []string{"HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0"}
	git := func(args ...string) string {
		t.Helper()
		p := start(t, "git", git.path(t), env, append([]string{"-c", "user.name=t", "-c", "user.email=t@test.example", "-c", "init.defaultBranch=main", "-c", "safe.directory=*", "-c", "http.postBuffer=100000000"}, args...)...)
		if code := p.awaitEnd(); code != 0 {
			t.Fatalf("git %s: exit code %d\n%s", args, code, p.Stderr.String())
		}
		return p.Stdout.String()
	}
	bare, work := filepath.Join(dir, "repos", "r.git"), filepath.Join(dir, "work")
	git("init", "-q", "--bare", bare)
	git("-C", bare, "config", "http.receivepack", "true")
	git("init", "-q", work)
	want := randomFile(t, filepath.Join(work, "big"), 10<<20)
	git("-C", work, "add", ".")
	git("-C", work, "commit", "-qm", "first")
	backend := filepath.Join(strings.TrimSpace(git("--exec-path")), "git-http-backend")
	target := serveHTTP(t, (&cgi.Handler{Path: backend, Env: append(env, "GIT_PROJECT_ROOT="+filepath.Join(dir, "repos"), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")}).ServeHTTP)
	_, _, port := startWeb(t, "", fmt.Sprintf("http/127.0.0.1/r.git=%d", target))
	url := "http://" + loopback(port) + "/r.git"
	git("-C", work, "push", "-q", url, "main")
	git("clone", "-q", url, filepath.Join(dir, "clone"))
	if sumOfFile(t, filepath.Join(dir, "clone", "big")) != want {
		t.Error("the checksum of the clone differs")
	}
}

// TestWebSurvivesBreaks: an upload and a download at once through one request go on behind 20 breaks of the link, to the byte, and other
// requests are answered meanwhile.
func TestWebSurvivesBreaks(t *testing.T) {
	t.Parallel()
	const cuts, part = 20, 1 << 20
	target := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		sum := sha256.New()
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, io.TeeReader(r.Body, sum))
		w.Header().Set("X-Sum", hex.EncodeToString(sum.Sum(nil)))
	})
	port := freePort(t)
	p := startProxy(t, "--http", loopback(port))
	r := startRouter(t, p.link)
	b := startBridge(t, addKey(t, p.state, "web", "http/*"), fmt.Sprintf("http/app.example=%d", target), "--proxy", loopback(r.port))
	b.awaitUp("http/app.example")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	body, source := io.Pipe()
	req, _ := http.NewRequest("POST", "http://"+loopback(port)+"/", body)
	req.Host = "app.example"
	go func() {
		_, err := io.Copy(source, newPattern(cuts*part))
		source.CloseWithError(err)
	}()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sum, buf, expect := sha256.New(), make([]byte, part), newPattern(cuts*part)
	want := make([]byte, part)
	for i := range cuts {
		r.cut()
		io.ReadFull(expect, want)
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != string(want) {
			t.Fatalf("part %d of %d is wrong: %v", i+1, cuts, err)
		}
		sum.Write(buf)
		if i%5 == 0 {
			other, _ := http.NewRequest("POST", "http://"+loopback(port)+"/", strings.NewReader("other"))
			other.Host = "app.example"
			resp, err := tr.RoundTrip(other)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(resp.Body); string(got) != "other" || err != nil {
				t.Errorf("beside it: %q, %v", got, err)
			}
			resp.Body.Close()
		}
	}
	if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
		t.Errorf("at the end %d bytes more, %v", len(rest), err)
	}
	if got := resp.Trailer.Get("X-Sum"); got != hex.EncodeToString(sum.Sum(nil)) {
		t.Errorf("the target read what has the checksum %s", got)
	}
	tr.CloseIdleConnections()
	if r := p.awaitRecord("pair released", "service", "http/app.example"); r.Text("reason") != "eof" {
		t.Errorf("the client left as %q, want eof", r.Text("reason"))
	}
}

// uploadBytes is how much uploads carry: what the environment says, or that many.
func uploadBytes(otherwise int64) int64 {
	if n, err := strconv.ParseInt(os.Getenv("REVERSER_E2E_UPLOAD_BYTES"), 10, 64); err == nil {
		return n
	}
	return otherwise
}

// TestWebUpload: an upload of a gigabyte as a registry of container images gets it, of which the client sends nothing before it may.
// REVERSER_E2E_UPLOAD_BYTES makes it longer or shorter.
func TestWebUpload(t *testing.T) {
	t.Parallel()
	need(t, curl)
	size := int64(1 << 30)
	if raceEnabled {
		size = 64 << 20
	}
	size = uploadBytes(size)
	target := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" { // before a byte of the body was read
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%d %v %x", n, err, sum.Sum(nil))
	})
	file := filepath.Join(t.TempDir(), "layer")
	want := randomFile(t, file, size)
	_, _, port := startWeb(t, "", fmt.Sprintf("http/registry.example=%d", target))
	upload := []string{"--upload-file", file, "--header", "Expect: 100-continue", "--expect100-timeout", "60", "http://registry.example/v2/blobs/uploads/1"}
	// The bridge takes what the target does not ask for within a second, which may be a moment on a busy machine.
	eventually(t, "an upload is refused with 401 before it has sent a byte", func() bool {
		out := curlTo(t, port, append(upload, "--write-out", "%{http_code} %{size_upload}")...)
		if !strings.HasPrefix(out, "401 ") {
			t.Fatalf("a refused upload is %s, want 401 and no byte", out)
		}
		return out == "401 0"
	})
	if out := curlTo(t, port, append(upload, "--header", "Authorization: Bearer x")...); out != fmt.Sprintf("%d <nil> %s", size, want) {
		t.Errorf("the upload: %s, want %d bytes with %s", out, size, want)
	}
}
