package deploy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/internal/freeport"
)

// patience is how long anything may take. It only bounds a test that hangs.
const patience = 4 * time.Minute

// Users that no image knows, as OpenShift gives them out, and the group that a volume of Kubernetes is given to.
const (
	proxyUser  = 1_000_650_000
	bridgeUser = 1_000_720_000
	volumes    = 2_000
)

// podman runs containers of the image, in a store of its own.
type podman struct {
	*testing.T
	global []string
}

// newPodman skips the test where containers cannot be run. In CI it fails.
func newPodman(t *testing.T) *podman {
	t.Helper()
	missing := func(format string, args ...any) {
		t.Helper()
		text := fmt.Sprintf(format, args...)
		if os.Getenv("CI") == "true" {
			t.Fatal(text)
		}
		t.Skip("SKIPPED: " + text)
	}
	if os.Geteuid() != 0 {
		missing("running the image needs root")
	}
	for _, name := range []string{"podman", "runc", "busybox"} {
		if _, err := exec.LookPath(name); err != nil {
			missing("%s is missing; on Debian: apt install podman runc busybox-static", name)
		}
	}
	store, err := os.MkdirTemp("", "reverser-image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// podman tidies up after a container in a process of its own, which may be at it still.
		for begun := time.Now(); os.RemoveAll(store) != nil; time.Sleep(50 * time.Millisecond) {
			if time.Since(begun) > patience {
				t.Errorf("%s cannot be removed", store)
				return
			}
		}
	})
	return &podman{t, []string{
		"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--tmpdir", filepath.Join(store, "tmp"),
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc"}}
}

func (p *podman) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "podman", append(p.global[:len(p.global):len(p.global)], args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// try runs a podman command and returns its exit code, its stdout and, of its stderr, what the program in the container wrote.
func (p *podman) try(args ...string) (code int, stdout, stderr string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := p.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && (!ended || ctx.Err() != nil) {
		p.Fatalf("podman %q: %v\n%s", args, err, errs.String())
	}
	for line := range strings.Lines(errs.String()) {
		if !strings.HasPrefix(line, "time=") && !strings.HasPrefix(line, "Error: non zero exit code") && !strings.HasPrefix(line, "Error: exit status") {
			stderr += line
		}
	}
	return cmd.ProcessState.ExitCode(), out.String(), stderr
}

// run is try for a command that must exit with 0.
func (p *podman) run(args ...string) string {
	p.Helper()
	begun := time.Now()
	code, stdout, stderr := p.try(args...)
	p.Logf("%v %q", time.Since(begun).Round(time.Millisecond), args[:min(2, len(args))])
	if code != 0 {
		p.Fatalf("podman %q: exit code %d\n%s%s", args, code, stdout, stderr)
	}
	return stdout
}

// build makes the image from the Dockerfile. golang:1.26 is a shell here, and this machine's Go with its caches.
func (p *podman) build() (image string) {
	p.Helper()
	base := p.TempDir()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		p.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		p.Fatal(err)
	}
	for _, dir := range []string{"bin", "tmp", "root", "src"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			p.Fatal(err)
		}
	}
	for _, name := range []string{"sh", "mkdir", "chmod"} {
		if err := os.WriteFile(filepath.Join(base, "bin", name), program, 0o755); err != nil {
			p.Fatal(err)
		}
	}
	tar := filepath.Join(p.TempDir(), "base.tar")
	if out, err := exec.Command("tar", "-C", base, "-cf", tar, ".").CombinedOutput(); err != nil {
		p.Fatalf("tar: %v\n%s", err, out)
	}
	p.run("import", "-c", "ENV PATH=/usr/local/go/bin:/bin", "-c", "ENV GOCACHE=/root/.cache/go-build", tar, "docker.io/library/golang:1.26")

	goEnv := func(name string) string {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			p.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	p.run("build", "--pull=never", "--format", "docker", "--isolation", "chroot", "--network", "host", "--layers=false",
		"-v", goEnv("GOROOT")+":/usr/local/go:ro", "-v", goEnv("GOMODCACHE")+":/go/pkg/mod", "-v", goEnv("GOCACHE")+":/root/.cache/go-build",
		"-v", "/etc/ssl:/etc/ssl:ro", "--build-arg", "VERSION=v0.0.0-image", "-t", "reverser", "..")
	return "reverser"
}

// container starts a container of the image as the documents do: nothing in it can be written but its volumes, it has no capability, a
// user that it does not know, and 64 MB. args are podman's, then "--", then the program's.
func (p *podman) container(name string, uid int, args ...string) {
	p.Helper()
	all := []string{"run", "-d", "--name", name, "--network", "host", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all",
		"--security-opt", "no-new-privileges", "--user", fmt.Sprintf("%d:0", uid), "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1024:1024",
		"--memory", "64m", "--memory-swap", "64m"}
	program := false
	for _, a := range args {
		if a == "--" && !program {
			program, a = true, "reverser"
		}
		all = append(all, a)
	}
	p.run(all...)
	p.Cleanup(func() {
		_, log, errs := p.try("logs", name)
		if p.Failed() {
			p.Logf("--- log of %s:\n%s%s", name, log, errs)
		}
		p.try("rm", "-f", "-v", name)
	})
}

// inspect is a field of a container's state.
func (p *podman) inspect(name, field string) string {
	p.Helper()
	return strings.TrimSpace(p.run("inspect", "--format", "{{"+field+"}}", name))
}

// await waits until cond holds.
func (p *podman) await(what string, cond func() bool) {
	p.Helper()
	for begun := time.Now(); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > patience {
			p.Fatalf("waited %v, without success, for: %s", patience, what)
		}
	}
}

// awaitHealthy runs the image's own health check until it succeeds.
func (p *podman) awaitHealthy(name string) {
	p.Helper()
	p.await(name+" is healthy", func() bool {
		code, _, _ := p.try("healthcheck", "run", name)
		return code == 0
	})
	if got := p.inspect(name, ".State.Healthcheck.Status"); got != "healthy" {
		p.Errorf("health of %s is %q; want healthy", name, got)
	}
}

// The image as the Dockerfile makes it, run the way the documents say: both roles, health checks, bytes, secrets, and the way down.
func TestImage(t *testing.T) {
	if raceEnabled {
		t.Skip("the program in the image has no race detector: the run without one tests it")
	}
	p := newPodman(t)
	image := p.build()
	p.wantContents(image)
	port, link, target := freePort(t), freePort(t), echo(t)
	service := "tcp/" + strconv.Itoa(port)

	// Keys can be made before the first start. The volume is empty, and belongs to nobody in particular.
	token := p.run("run", "--rm", "--network", "host", "--read-only", "--read-only-tmpfs=false", "--user", fmt.Sprintf("%d:0", proxyUser),
		"--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1024:1024", "-v", "state:/var/lib/reverser", image, "key", "add", "asr", "--allow", service)
	if !strings.HasPrefix(token, "rv1_") || strings.Count(token, "\n") != 1 {
		t.Fatalf("key add printed %d bytes; want the token alone", len(token))
	}

	p.container("proxy", proxyUser, "-v", "state:/var/lib/reverser", image, "proxy", "--listen", loopback(link))
	p.awaitHealthy("proxy")
	other := p.run("exec", "proxy", "/usr/bin/reverser", "key", "add", "k8s", "--allow", service)

	// A secret as Docker mounts it, and later one as Kubernetes does. The bridge has no volume, only memory.
	dir := t.TempDir()
	secret := filepath.Join(dir, "token")
	write(t, secret, token, 0o444)
	p.container("bridge", bridgeUser, "--tmpfs", "/var/lib/reverser:rw,mode=1777", "-v", secret+":/run/secrets/token:ro", image,
		"bridge", "--token-file", "/run/secrets/token", "--proxy", loopback(link), fmt.Sprintf("%d=%d", port, target))
	p.awaitHealthy("bridge")
	p.await("the proxy's check of the service succeeds", func() bool {
		code, _, _ := p.try("exec", "proxy", "/usr/bin/reverser", "status", "--check", service)
		return code == 0
	})
	if limit := p.memoryLimit("bridge"); limit != 64<<20 {
		t.Errorf("the bridge may use %d bytes; want 64 MiB", limit)
	}
	for range 4 {
		carry(t, port, 16<<20)
	}

	// While the proxy hangs, its health check fails by itself. Nothing is lost.
	user := dial(t, port)
	exchange(t, user, "before")
	p.run("pause", "proxy")
	io.WriteString(user, "mean")
	p.run("unpause", "proxy")
	wantEcho(t, user, "mean")

	// Down: the bridge lets its user finish. Then the proxy has nobody who serves.
	stopped := p.stop("bridge")
	exchange(t, user, "still")
	p.await("the bridge drains", func() bool {
		_, log, errs := p.try("logs", "bridge")
		return strings.Contains(log+errs, "draining")
	})
	exchange(t, user, "again")
	user.CloseWrite()
	if rest, err := io.ReadAll(user); err != nil || len(rest) > 0 {
		t.Errorf("end of the connection = %q, %v; want a clean end", rest, err)
	}
	if code := stopped(); code != 0 {
		t.Errorf("the bridge ended with %d; want 0", code)
	}
	p.await("the proxy misses the bridge", func() bool {
		code, _, errs := p.try("exec", "proxy", "/usr/bin/reverser", "status", "--check", service)
		return code == 1 && strings.Contains(errs, service)
	})
	p.awaitHealthy("proxy") // which is not its fault

	// A secret as Kubernetes mounts it: links to a directory, root's, mode 0440, of the volumes' group.
	p.run("exec", "proxy", "/usr/bin/reverser", "key", "remove", "asr")
	volume := filepath.Join(dir, "volume")
	write(t, filepath.Join(volume, "..2026", "token"), other, 0o440)
	for _, err := range []error{
		os.Chown(filepath.Join(volume, "..2026", "token"), 0, volumes), os.Chmod(volume, 0o755), os.Chmod(filepath.Join(volume, "..2026"), 0o755),
		os.Symlink("..2026", filepath.Join(volume, "..data")), os.Symlink("..data/token", filepath.Join(volume, "token")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.container("pod", bridgeUser, "--tmpfs", "/var/lib/reverser:rw,mode=1777", "--group-add", strconv.Itoa(volumes), "-v", volume+":/etc/reverser:ro", image,
		"bridge", "--token-file", "/etc/reverser/token", "--proxy", loopback(link), fmt.Sprintf("%d=%d", port, target))
	p.awaitHealthy("pod")
	carry(t, port, 1<<20)

	// The proxy's turn. Its successor has the same identity and keys, from the volume.
	if code := p.stop("pod")(); code != 0 {
		t.Errorf("the second bridge ended with %d; want 0", code)
	}
	if code := p.stop("proxy")(); code != 0 {
		t.Errorf("the proxy ended with %d; want 0", code)
	}
	p.run("start", "proxy")
	p.awaitHealthy("proxy")
	p.run("start", "pod")
	p.awaitHealthy("pod")
	carry(t, port, 1<<20)
}

// wantContents wants the program in the image and nothing else, and what orchestrators read of it.
func (p *podman) wantContents(image string) {
	p.Helper()
	tar := filepath.Join(p.TempDir(), "image.tar")
	id := strings.TrimSpace(p.run("create", image))
	p.run("export", "-o", tar, id)
	p.run("rm", "-v", id)
	out, err := exec.Command("tar", "-tf", tar).Output()
	if err != nil {
		p.Fatal(err)
	}
	var files []string
	for name := range strings.Lines(string(out)) {
		if name = strings.TrimSpace(name); !strings.HasSuffix(name, "/") {
			files = append(files, name)
		}
	}
	if len(files) != 1 || files[0] != "usr/bin/reverser" {
		p.Errorf("the image holds %q; want the program alone", files)
	}
	var images []struct {
		Config struct {
			User       string
			StopSignal string
			Volumes    map[string]struct{}
		}
		Healthcheck struct{ Test []string }
		HealthCheck struct{ Test []string }
	}
	if err := json.Unmarshal([]byte(p.run("image", "inspect", image)), &images); err != nil || len(images) != 1 {
		p.Fatalf("image inspect: %v", err)
	}
	c := images[0]
	if c.Config.User != "65532:65532" || c.Config.StopSignal != "SIGTERM" || len(c.Config.Volumes) != 1 {
		p.Errorf("the image says %+v", c.Config)
	}
	p.wantVersion(image)
}

func (p *podman) wantVersion(image string) {
	p.Helper()
	if out := p.run("run", "--rm", "--network", "host", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1024:1024", image, "version"); !strings.HasPrefix(out, "reverser v0.0.0-image (") {
		p.Errorf("version of the image: %q", out)
	}
}

// stop stops a container with plenty of time, and returns what waits for its end and returns its exit code.
func (p *podman) stop(name string) (wait func() int) {
	p.Helper()
	var wg sync.WaitGroup
	wg.Go(func() { p.try("stop", "-t", "100", name) })
	return func() int {
		p.Helper()
		wg.Wait()
		code, err := strconv.Atoi(p.inspect(name, ".State.ExitCode"))
		if err != nil {
			p.Fatal(err)
		}
		return code
	}
}

// memoryLimit reads the limit of a container from its cgroup.
func (p *podman) memoryLimit(name string) int64 {
	p.Helper()
	pid := p.inspect(name, ".State.Pid")
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		var file string
		switch {
		case parts[1] == "memory":
			file = "/sys/fs/cgroup/memory" + parts[2] + "/memory.limit_in_bytes"
		case parts[0] == "0":
			file = "/sys/fs/cgroup" + parts[2] + "/memory.max"
		default:
			continue
		}
		if limit, err := os.ReadFile(file); err == nil {
			n, _ := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64)
			return n
		}
	}
	p.Fatalf("no memory limit in\n%s", text)
	return 0
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	for _, err := range []error{
		os.MkdirAll(filepath.Dir(path), 0o755),
		os.WriteFile(path, []byte(text), 0o600),
		os.Chmod(path, mode), // whatever the umask
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := freeport.Get()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// echo is a service that returns what it gets, until the end of the test.
func echo(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

func dial(t *testing.T, port int) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", loopback(port), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func exchange(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c, text)
}

func wantEcho(t *testing.T, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("echo of %q = %q, %v", text, got, err)
	}
}

// carry sends n random bytes through the tunnel and wants the same back.
func carry(t *testing.T, port int, n int64) {
	t.Helper()
	c := dial(t, port)
	sent, got := sha256.New(), sha256.New()
	var wg sync.WaitGroup
	wg.Go(func() {
		random := rand.NewChaCha8([32]byte{byte(n)})
		if _, err := io.Copy(io.MultiWriter(c, sent), io.LimitReader(random, n)); err != nil {
			t.Errorf("send: %v", err)
		}
		c.CloseWrite()
	})
	back, err := io.Copy(got, c)
	wg.Wait()
	if err != nil || back != n || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%d bytes came back of %d, %v; want the same", back, n, err)
	}
}
