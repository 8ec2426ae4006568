//go:build unix

package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The whole service process stands still, as under a debugger. Its kernel still takes
// connections in.
func TestStoppedServiceProcess(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	service := startService(t, port)
	tun := startTunnel(t, strconv.Itoa(port))
	c := tun.dial(t)
	io.WriteString(c, "echo\n")
	exchange(t, c, "before")

	signal(t, service, syscall.SIGSTOP)
	io.WriteString(c, "meanwhile")
	late := tun.dial(t)
	io.WriteString(late, "echo\nlate")
	for _, side := range []string{tun.proxy.state, tun.bridge.state} {
		eventually(t, "both pairs are open, with all bytes sent", func() bool {
			sent := int64(0)
			pairs := mustStatus(t, side).Pairs
			for _, p := range pairs {
				sent += p.Sent
			}
			return len(pairs) == 2 && sent == int64(len("echo\nbeforemeanwhile")+len("echo\nlate"))
		})
	}
	signal(t, service, syscall.SIGCONT)
	for c, want := range map[io.Reader]string{c: "meanwhile", late: "late"} {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Errorf("after the stop: read %q, %v; want %q", got, err, want)
		}
	}
}

// A proxy that is asked to stop takes no new connections and ends with its last pair.
func TestDrain(t *testing.T) {
	t.Parallel()
	tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
	c := tun.dial(t)
	exchange(t, c, "hello")
	tun.proxy.stop()
	eventually(t, "no new connection is served", func() bool { return !served(tun.addr()) })
	endsWith(t, tun.proxy.testProcess, c)
}

// endsWith wants the process to go on until the connection ends, and to end then.
func endsWith(t *testing.T, p *testProcess, c *net.TCPConn) {
	t.Helper()
	exchange(t, c, "the old one goes on")
	if !p.Running() {
		t.Fatal("the process ended before its last pair")
	}
	c.CloseWrite()
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the old connection: %v; want a clean end", err)
	}
	if code := p.awaitEnd(); code != 0 {
		t.Errorf("exit code %d; want 0", code)
	}
}

// A bridge that is asked to stop serves newcomers for as long as there is nobody else for them. A successor with the same key attaches
// beside it and gets them; the old one ends with its last pair.
func TestDrainOfABridge(t *testing.T) {
	t.Parallel()
	service := strconv.Itoa(serve(t, echo))
	tun := startTunnel(t, service)
	c := tun.dial(t)
	exchange(t, c, "hello")
	old := tun.bridge.testProcess
	old.stop()
	old.awaitLogged(`"draining"`)
	late := tun.dial(t)
	exchange(t, late, "a newcomer, and nobody else is there")

	next := startBridge(t, tun.token, fmt.Sprintf("%d=%s", tun.public, service))
	next.awaitUp(tun.service)
	exchange(t, tun.dial(t), "a newcomer, and a successor is there")
	next.awaitLogged(`"pair created"`)
	late.Close()
	endsWith(t, old, c)
	exchange(t, tun.dial(t), "the successor goes on")
}

func TestSecondSignalStopsNow(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"proxy", "bridge"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
			c := tun.dial(t)
			exchange(t, c, "hello")
			p := tun.proxy.testProcess
			if role == "bridge" {
				p = tun.bridge.testProcess
			}
			signal(t, p, syscall.SIGINT)
			p.awaitRecord("draining")
			signal(t, p, os.Interrupt)
			if code := p.awaitEnd(); code != 0 {
				t.Errorf("exit code %d; want 0", code)
			}
			wantReset(t, c, 0)
			p.awaitRecord("pair released", "service", tun.service, "reason", "drain")
		})
	}
}

// served reports whether an echo service behind addr answers.
func served(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "x")
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	return err == nil && string(got) == "x"
}

func signal(t *testing.T, p *testProcess, s os.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		t.Fatalf("signal %v to %s: %v", s, p.Name, err)
	}
}
