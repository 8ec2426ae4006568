package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"reverser/internal/accesslog"
)

var logrotate = program{"logrotate", "logrotate"}

// accessLines reads an access log, each line of which must be whole.
func accessLines(t *testing.T, path string) (all []accesslog.Entry) {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		var e accesslog.Entry
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("%s: %q: %v", path, s.Text(), err)
		}
		all = append(all, e)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestAccessLog: both ends write a line for each connection. logrotate moves the file aside, and lines go to the new one from then on.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	need(t, logrotate)
	dir := t.TempDir()
	atProxy, atBridge := filepath.Join(dir, "proxy.log"), filepath.Join(dir, "bridge.log")
	p := startProxyAt(t, t.TempDir(), freePort(t), "--access-log", atProxy)
	service, port := serve(t, echo), freePort(t)
	public := fmt.Sprintf("tcp/%d", port)
	b := startBridge(t, addKey(t, p.state, "nas", public), fmt.Sprintf("%d=%d", port, service), "--proxy", loopback(p.link), "--access-log", atBridge)
	b.awaitUp(public)
	visit := func(say string) (client string) {
		c := dial(t, loopback(port))
		exchange(t, c, say)
		client = c.LocalAddr().String()
		c.Close()
		return client
	}
	client := visit("hello")
	for _, path := range []string{atProxy, atBridge} {
		eventually(t, path+" has a line", func() bool { return len(accessLines(t, path)) == 1 })
		e := accessLines(t, path)[0]
		if e.Kind != accesslog.KindConnection || e.Service != public || e.Client != client || e.Target != loopback(service) || e.Sent != 5 || e.Received != 5 ||
			e.Reason != "eof" || e.Refused != "" || e.Duration <= 0 || e.Time.IsZero() || e.Key == "" || path == atProxy && e.Key != "nas" {
			t.Errorf("%s has %+v", path, e)
		}
	}

	conf, done := filepath.Join(dir, "rotate.conf"), filepath.Join(dir, "rotate.state")
	text := fmt.Sprintf("%s {\n\tdaily\n\trotate 2\n\tmissingok\n\tcreate\n\tpostrotate\n\t\t%s reload --state %s\n\tendscript\n}\n", atProxy, reverser(t), p.state)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(logrotate.path(t), "--force", "--state", done, conf).CombinedOutput(); err != nil {
		t.Fatalf("logrotate: %v: %s", err, out)
	}
	client = visit("again")
	eventually(t, "the new file has a line", func() bool { return len(accessLines(t, atProxy)) == 1 })
	if e := accessLines(t, atProxy)[0]; e.Client != client {
		t.Errorf("the new file has %+v", e)
	}
	if n := len(accessLines(t, atProxy+".1")); n != 1 {
		t.Errorf("the file that was moved aside has %d lines, want 1", n)
	}

	// SIGHUP does the same, without an answer.
	if err := os.Rename(atProxy, atProxy+".2"); err != nil {
		t.Fatal(err)
	}
	if err := p.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file is there again", func() bool { _, err := os.Stat(atProxy); return err == nil })
	client = visit("once more")
	eventually(t, "the file has a line", func() bool { return len(accessLines(t, atProxy)) == 1 })
	if e := accessLines(t, atProxy)[0]; e.Client != client {
		t.Errorf("the file has %+v", e)
	}

	// A user who is not served has a line, too.
	b.stop()
	b.awaitEnd()
	if c, err := net.DialTimeout("tcp", loopback(port), patience); err == nil { // else it is reset already
		c.Close()
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	eventually(t, "the refused user has a line", func() bool { return len(accessLines(t, atProxy)) == 2 })
	if e := accessLines(t, atProxy)[1]; e.Refused == "" || e.Reason != "" || e.Service != public {
		t.Errorf("the line of a refused user is %+v", e)
	}
	eventually(t, "status counts the lines", func() bool { // which are in the file a moment before
		s, err := statusOf(t, p.state)
		return err == nil && s.AccessLog != nil && s.AccessLog.Written == 4
	})
	if s, err := statusOf(t, p.state); err != nil || s.AccessLog.File != atProxy || s.AccessLog.Lost != 0 {
		t.Errorf("status has %+v, %v", s.AccessLog, err)
	}
}

// TestAccessLogOnAFullDisk: a full disk costs lines, which status counts, and nothing else.
func TestAccessLogOnAFullDisk(t *testing.T) {
	t.Parallel()
	p, disk := startProxyOnDisk(t, "64k", "--access-log", "access.log")
	service, port := serve(t, echo), freePort(t)
	public := fmt.Sprintf("tcp/%d", port)
	b := startBridge(t, addKey(t, p.state, "nas", public), fmt.Sprintf("%d=%d", port, service), "--proxy", loopback(p.link))
	b.awaitUp(public)
	filler := fillDisk(t, disk)
	visits := 0
	visit := func() {
		c := dial(t, loopback(port))
		exchange(t, c, "hello")
		c.Close()
		visits++
	}
	counted := func() (written, lost uint64) {
		s, err := statusOf(t, p.state)
		if err != nil || s.AccessLog == nil {
			t.Fatalf("status: %+v, %v", s.AccessLog, err)
		}
		return s.AccessLog.Written, s.AccessLog.Lost
	}
	for range 40 { // the last page of the file may have room for some
		visit()
	}
	eventually(t, "lines are lost", func() bool { _, lost := counted(); return lost > 0 })
	if text := quick(t, "status", "--state", p.state); !strings.Contains(text, "the access log access.log lost ") || !strings.Contains(text, "no space left") {
		t.Errorf("status does not say it:\n%.600s", text)
	}
	p.awaitLogged("access log", "lines are lost", "no space left")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	visit()
	path := filepath.Join(disk, "access.log")
	eventually(t, "every connection is counted", func() bool { written, lost := counted(); return written+lost == uint64(visits) })
	if written, lost := counted(); written != uint64(len(accessLines(t, path))) || lost == 0 {
		t.Errorf("%d lines are counted as written and %d as lost; the file has %d", written, lost, len(accessLines(t, path)))
	}
}
