package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

// Whoever reads the log may end before the program does, as `| head` and a `| tee` that Ctrl-C ends first. Lines are lost then, and
// nothing else: connections go on, and the program drains and ends with 0.
func TestLogReaderEnds(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("no signals to send")
	}
	p := startProxy(t)
	public := freePort(t)
	args := append([]string{"bridge", p.defaultToken(), fmt.Sprintf("%d=%d", public, serve(t, echo)), "--state", t.TempDir()}, longDrain...)
	cmd := exec.Command(reverser(t), args...)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	for r := bufio.NewReader(log); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("the log ended: %v", err)
		}
		if strings.Contains(line, "service up") {
			break
		}
	}
	log.(io.Closer).Close()
	for range 3 { // each is worth log lines
		c := dial(t, loopback(public))
		exchange(t, c, "still there")
		c.Close() // or the bridge waits for it when it drains
	}
	last := dial(t, loopback(public))
	exchange(t, last, "before")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bridge drains", func() bool { l := mustStatus(t, p.state).Links; return len(l) == 1 && l[0].State == "draining" })
	exchange(t, last, "while it drains")
	last.CloseWrite()
	io.Copy(io.Discard, last)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the bridge ended with %v, want 0", err)
	}
}
