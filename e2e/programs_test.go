package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

var (
	nginx       = program{"nginx", "nginx-light"}
	curl        = program{"curl", "curl"}
	redisServer = program{"redis-server", "redis-server"}
	redisCLI    = program{"redis-cli", "redis-tools"}
	sshd        = program{"sshd", "openssh-server"}
	ssh         = program{"ssh", "openssh-client"}
	scp         = program{"scp", "openssh-client"}
	sshKeygen   = program{"ssh-keygen", "openssh-client"}
)

func (p program) path(t *testing.T) string {
	t.Helper()
	path, err := lookPath(p.name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// randomFile writes n random bytes and returns their checksum.
func randomFile(t *testing.T, path string, n int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.Reader, n); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func sumOfFile(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// startNginx starts nginx with one server, whose files of its own are in dir, and waits until it listens.
func startNginx(t *testing.T, dir, server string) {
	t.Helper()
	asUser := ""
	if os.Getuid() == 0 {
		asUser = "user root;" // the workers must reach our temporary directory
	}
	conf := filepath.Join(dir, "nginx.conf")
	err := os.WriteFile(conf, fmt.Appendf(nil, `%s
daemon off;
worker_processes 1;
pid %[2]s/nginx.pid;
error_log stderr;
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	client_max_body_size 0;
	server {%[3]s}
}
`, asUser, dir, server), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	start(t, "nginx", nginx.path(t), nil, "-c", conf, "-p", dir, "-e", "stderr")
	eventually(t, "nginx answers", func() bool {
		c, err := os.ReadFile(filepath.Join(dir, "nginx.pid"))
		return err == nil && len(c) > 0
	})
}

func TestNginxAndCurl(t *testing.T) {
	t.Parallel()
	need(t, nginx, curl)
	dir, port := t.TempDir(), freePort(t)
	www := filepath.Join(dir, "www")
	if err := os.Mkdir(www, 0o755); err != nil {
		t.Fatal(err)
	}
	startNginx(t, dir, fmt.Sprintf(`
		listen 127.0.0.1:%d;
		root %s/www;
		location / { dav_methods PUT; }
`, port, dir))
	tun := startTunnel(t, strconv.Itoa(port))
	url := "http://" + tun.addr()
	fetch := func(args ...string) string {
		t.Helper()
		return run(t, curl.path(t), append([]string{"--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "300"}, args...)...)
	}

	t.Run("big download", func(t *testing.T) {
		want := randomFile(t, filepath.Join(www, "big"), 64<<20)
		got := filepath.Join(dir, "big")
		fetch("--output", got, url+"/big")
		if sumOfFile(t, got) != want {
			t.Error("the checksum differs")
		}
	})
	t.Run("parallel requests", func(t *testing.T) {
		const n = 60
		want := make([]string, n)
		for i := range want {
			want[i] = randomFile(t, filepath.Join(www, fmt.Sprintf("part%d", i+1)), int64(i*i*100))
		}
		fetch("--parallel", "--parallel-max", "20", "--output", filepath.Join(dir, "part#1"), fmt.Sprintf("%s/part[1-%d]", url, n))
		for i := range want {
			if sumOfFile(t, filepath.Join(dir, fmt.Sprintf("part%d", i+1))) != want[i] {
				t.Errorf("the checksum of part %d differs", i+1)
			}
		}
	})
	t.Run("keep-alive", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(www, "small"), []byte("small"), 0o644); err != nil {
			t.Fatal(err)
		}
		out := fetch("--write-out", " %{num_connects}\n", url+"/small", url+"/small", url+"/small", "--output", os.DevNull, "--output", os.DevNull, "--output", os.DevNull)
		if got := strings.Fields(out); strings.Join(got, " ") != "1 0 0" {
			t.Errorf("curl opened %v connections for three requests; want 1 0 0", got)
		}
	})
	t.Run("chunked upload", func(t *testing.T) {
		src := filepath.Join(dir, "upload")
		want := randomFile(t, src, 8<<20)
		fetch("--header", "Transfer-Encoding: chunked", "--upload-file", src, url+"/uploaded")
		if sumOfFile(t, filepath.Join(www, "uploaded")) != want {
			t.Error("the checksum differs")
		}
	})
}

func TestRedis(t *testing.T) {
	t.Parallel()
	need(t, redisServer, redisCLI)
	port := freePort(t)
	server := start(t, "redis-server", redisServer.path(t), nil,
		"--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--save", "", "--appendonly", "no", "--dir", t.TempDir())
	server.awaitOutput("eady to accept connections")
	tun := startTunnel(t, strconv.Itoa(port))
	cli := redisCLI.path(t)
	through := strconv.Itoa(tun.public)

	t.Run("pipelining", func(t *testing.T) {
		const n = 20_000
		var commands bytes.Buffer
		for i := range n {
			v := fmt.Sprintf("value %d", i)
			fmt.Fprintf(&commands, "*3\r\n$3\r\nSET\r\n$%d\r\nkey:%d\r\n$%d\r\n%s\r\n", len(fmt.Sprintf("key:%d", i)), i, len(v), v)
		}
		file := filepath.Join(t.TempDir(), "commands")
		if err := os.WriteFile(file, commands.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		out := runInput(t, file, cli, "-p", through, "--pipe")
		if !strings.Contains(out, fmt.Sprintf("errors: 0, replies: %d", n)) {
			t.Errorf("redis-cli --pipe: %s; want %d replies without an error", out, n)
		}
		if got := run(t, cli, "-p", through, "GET", "key:19999"); got != "value 19999\n" {
			t.Errorf("GET = %q; want %q", got, "value 19999\n")
		}
	})
	t.Run("big value", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "value")
		randomFile(t, file, 8<<20)
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		runInput(t, file, cli, "-p", through, "-x", "SET", "big")
		if got := run(t, cli, "-p", through, "--raw", "GET", "big"); got != string(want)+"\n" {
			t.Errorf("GET returned %d bytes; want the %d that were set, and a line end", len(got), len(want))
		}
	})
	t.Run("blocking pop", func(t *testing.T) {
		pop := start(t, "redis-cli BLPOP", cli, nil, "-p", through, "BLPOP", "queue", "0")
		eventually(t, "the client is blocked", func() bool {
			return strings.Contains(run(t, cli, "-p", strconv.Itoa(port), "INFO", "clients"), "blocked_clients:1")
		})
		run(t, cli, "-p", through, "RPUSH", "queue", "job")
		if code := pop.awaitEnd(); code != 0 || pop.Stdout.String() != "queue\njob\n" {
			t.Errorf("BLPOP = %q, exit code %d; want the job", pop.Stdout.String(), code)
		}
	})
	t.Run("publish and subscribe", func(t *testing.T) {
		sub := start(t, "redis-cli SUBSCRIBE", cli, nil, "-p", through, "SUBSCRIBE", "news")
		sub.awaitOutput("subscribe\nnews\n1\n")
		var want strings.Builder
		for i := range 20 {
			run(t, cli, "-p", through, "PUBLISH", "news", fmt.Sprintf("number %d", i))
			fmt.Fprintf(&want, "message\nnews\nnumber %d\n", i)
		}
		sub.awaitOutput(want.String())
	})
}

// runInput is run with a file on stdin.
func runInput(t *testing.T, file, path string, args ...string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := prepare(t, filepath.Base(path), path, nil, args...)
	p.Cmd.Stdin = f
	p.start()
	if code := p.awaitEnd(); code != 0 {
		t.Fatalf("%s: exit code %d; want 0\n%s", p.Cmd, code, p.Stderr.String())
	}
	return p.Stdout.String()
}

func TestSSH(t *testing.T) {
	t.Parallel()
	need(t, sshd, ssh, scp, sshKeygen)
	if runtime.GOOS == "windows" {
		t.Skip("sshd needs Unix")
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid == "0" {
		// What its start script does; without it sshd refuses to run as root.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir, port := t.TempDir(), freePort(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"host", "client"} {
		run(t, sshKeygen.path(t), "-q", "-t", "ed25519", "-N", "", "-f", file(name))
	}
	conf := fmt.Appendf(nil, `ListenAddress 127.0.0.1:%d
HostKey %s
AuthorizedKeysFile %s
StrictModes no
UsePAM no
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
`, port, file("host"), file("client.pub"))
	if err := os.WriteFile(file("sshd_config"), conf, 0o600); err != nil {
		t.Fatal(err)
	}
	server := start(t, "sshd", sshd.path(t), nil, "-D", "-e", "-f", file("sshd_config"))
	server.awaitOutput("Server listening")
	tun := startTunnel(t, strconv.Itoa(port))
	options := []string{
		"-F", "none", "-i", file("client"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=" + os.DevNull, "-o", "LogLevel=ERROR",
	}
	where := me.Username + "@127.0.0.1"

	const n = 20 << 20
	want := randomFile(t, file("data"), n)
	t.Run("scp up and down", func(t *testing.T) {
		args := append(options, "-q", "-P", strconv.Itoa(tun.public))
		run(t, scp.path(t), append(args, file("data"), where+":"+file("up"))...)
		run(t, scp.path(t), append(args, where+":"+file("up"), file("down"))...)
		for _, name := range []string{"up", "down"} {
			if sumOfFile(t, file(name)) != want {
				t.Errorf("scp: the checksum of %s differs", name)
			}
		}
	})
	t.Run("cat both ways at once", func(t *testing.T) {
		args := append(options, "-p", strconv.Itoa(tun.public), where, "cat")
		if out := runInput(t, file("data"), ssh.path(t), args...); sumOf(out) != want {
			t.Errorf("ssh cat returned %d bytes; want the %d that were sent", len(out), n)
		}
	})
	t.Run("exit status", func(t *testing.T) {
		p := start(t, "ssh", ssh.path(t), nil, append(options, "-p", strconv.Itoa(tun.public), where, "exit 42")...)
		if code := p.awaitEnd(); code != 42 {
			t.Errorf("exit code %d; want 42", code)
		}
	})
}

func sumOf(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
