package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"reverser/e2e/process"
)

// compatBase names the commit that this version must work with, by its full hash: the last release, or, before the first one, the
// commit that made the wire extensible. Without a hash there is none yet.
const compatBase = "testdata/compat-base"

// successorBase names a commit whose processes make way for a successor that is started beside them, by its full hash, while the
// compatBase is older than that.
const successorBase = "testdata/successor-base"

// The programs of the two commits, built once.
var (
	buildBase          = sync.OnceValues(func() (string, error) { return buildCommit(compatBase) })
	buildSuccessorBase = sync.OnceValues(func() (string, error) { return buildCommit(successorBase) })
)

// baseSource is where the sources of a commit are that buildCommit has built.
func baseSource(file string) string { return filepath.Join(buildDir, filepath.Base(file)) }

// buildCommit builds the program of the commit that a file names and returns its path.
func buildCommit(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	hash := strings.TrimSpace(string(b))
	if hash == "" {
		return "", fmt.Errorf("%s %w", file, errNoBase)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // nothing of it may be in Go's cache
	defer cancel()
	git := exec.CommandContext(ctx, "git", "archive", "--format=tar", hash)
	git.Dir = ".."
	var said bytes.Buffer
	git.Stderr = &said
	source, err := git.Output()
	if err != nil {
		return "", &baseMissingError{file, hash, strings.TrimSpace(said.String() + " " + err.Error())}
	}
	dir := baseSource(file)
	if err := unpack(dir, source); err != nil {
		return "", fmt.Errorf("unpack commit %s: %w", hash, err)
	}
	bin := dir + "-reverser"
	if runtime.GOOS == "windows" {
		bin += ".exe"
	}
	if err := process.Build(ctx, dir, bin); err != nil {
		return "", fmt.Errorf("commit %s: %w", hash, err)
	}
	return bin, nil
}

var errNoBase = errors.New("names no commit")

// baseMissingError says that the base commit is not in this copy of the sources, as in a shallow clone or without git.
type baseMissingError struct{ file, hash, why string }

func (e *baseMissingError) Error() string {
	return fmt.Sprintf("commit %s of %s is not here (%s): fetch the whole history, as with git fetch --unshallow", e.hash, e.file, e.why)
}

// unpack writes the files of a tar archive below dir.
func unpack(dir string, archive []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case h.Typeflag == tar.TypeDir:
			if err := root.Mkdir(strings.TrimSuffix(h.Name, "/"), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		case h.Typeflag == tar.TypeReg:
			f, err := root.Create(h.Name)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, r)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
	}
}

// shallow reports whether this copy of the sources has a part of the history only.
func shallow() bool {
	out, err := exec.Command("git", "rev-parse", "--is-shallow-repository").Output()
	return err == nil && strings.TrimSpace(string(out)) == "true"
}

// baseProgram returns the path of the base's program. It skips the test where that cannot be had. In CI it fails, but for a
// shallow clone, which cannot have it.
func baseProgram(t *testing.T) string { t.Helper(); return programOf(t, buildBase) }

// successorProgram is baseProgram for the commit of successorBase.
func successorProgram(t *testing.T) string { t.Helper(); return programOf(t, buildSuccessorBase) }

func programOf(t *testing.T, build func() (string, error)) string {
	t.Helper()
	bin, err := build()
	_, missing := errors.AsType[*baseMissingError](err)
	switch {
	case err == nil:
		return bin
	case errors.Is(err, errNoBase):
		t.Skip(err)
	case missing && (os.Getenv("CI") != "true" || shallow()):
		t.Skip(err)
	}
	t.Fatal(err)
	return ""
}

// Two versions of the program work together, either as the proxy: tokens, handshake, claims, users in both directions, resumes,
// half-closes, resets, and a service that comes back when its bridge is started anew.
func TestTwoVersionsTogether(t *testing.T) {
	t.Parallel()
	base, head := baseProgram(t), reverser(t)
	for name, c := range map[string]struct {
		proxy, bridge string
		more          []string // for the proxy: what its token says and an older bridge skips
	}{
		"the base's proxy with this bridge": {base, head, nil},
		"this proxy with the base's bridge": {head, base, []string{"--sni", "tunnel.example.com", "--https", loopback(freePort(t))}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			twoVersions(t, c.proxy, c.bridge, c.more...)
		})
	}
}

func twoVersions(t *testing.T, proxy, bridge string, more ...string) {
	link, public := freePort(t), freePort(t)
	p := start(t, "proxy", proxy, nil, append([]string{"proxy", "--listen", loopback(link), "--state", t.TempDir(), "--log-format", "json"}, more...)...)
	p.awaitRecord("proxy listening")
	p.awaitOutput("reverser bridge rv1_")
	token := tokenPattern.FindString(p.Stdout.String())
	r := startRouter(t, link)
	service := fmt.Sprintf("tcp/%d", public)
	target := serve(t, echo)
	startOne := func() *testProcess {
		b := start(t, "bridge", bridge, nil, "bridge", token, "--state", t.TempDir(), "--log-format", "json",
			fmt.Sprintf("%d=%d", public, target), "--proxy", loopback(r.port))
		b.awaitRecord("service up", "service", service)
		return b
	}
	b := startOne()

	// Every byte of a transfer in both directions at once, over several breaks of the link, up to a clean end.
	const n, breaks = 12 << 20, 3
	c := dial(t, loopback(public))
	client := c.LocalAddr().String()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, newPattern(n))
		c.CloseWrite()
		done <- err
	}()
	got, err := readPattern(&interrupting{r: c, every: n / (breaks + 1), interrupt: r.cut})
	if got != n || err != nil {
		t.Errorf("read %d bytes, then %s; want %d, then a clean end", got, describe(err), n)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, side := range []*testProcess{p, b} {
		if r := side.awaitRecord("pair released", "client", client); r.Number("resumes") < 1 || r.Text("reason") != "eof" {
			t.Errorf("%s: resumes %v, reason %v; want at least 1, and eof", side.Name, r["resumes"], r["reason"])
		}
	}

	// A reset is one at the other end.
	reset := dial(t, loopback(public))
	exchange(t, reset, "hello")
	reset.SetLinger(0)
	client = reset.LocalAddr().String()
	reset.Close()
	for _, side := range []*testProcess{p, b} {
		side.awaitRecord("pair released", "client", client, "reason", "client-reset")
	}

	// A bridge that was killed resets its users, and another process with its token takes the service over.
	user := dial(t, loopback(public))
	exchange(t, user, "hello")
	b.Kill()
	b = startOne()
	if _, err := user.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a user of the bridge that was killed reads %v; want a reset", err)
	}
	eventually(t, "the next bridge serves", func() bool {
		c, err := net.DialTimeout("tcp", loopback(public), patience)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "hello"); err != nil {
			return false
		}
		got := make([]byte, 5)
		_, err = io.ReadFull(c, got)
		return err == nil && string(got) == "hello"
	})
	for _, side := range []*testProcess{p, b} {
		for _, word := range []string{"protocol violation", "gave the connection up"} {
			if lines := side.Said(word); len(lines) > 0 {
				t.Errorf("%s logged %v", side.Name, lines)
			}
		}
	}
}
