package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// console runs the program of e2e/console for the Windows process of a state directory.
func console(t *testing.T, state, what string) {
	t.Helper()
	lock, err := os.ReadFile(filepath.Join(state, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(os.Getenv("REVERSER_E2E_CONSOLE"))
	run(t, words[0], append(words[1:], strings.TrimSpace(string(lock)), what)...)
}

// Kill ends the process as SIGKILL does, and a Windows program as the task manager does: of one that SIGKILL ends, Wine keeps sockets.
func (p *proxyProcess) Kill() { p.testProcess.killAt(p.state) }

// Kill ends the process as SIGKILL does, and a Windows program as the task manager does.
func (b *bridgeProcess) Kill() { b.testProcess.killAt(b.state) }

func (p *testProcess) killAt(state string) {
	p.t.Helper()
	if p.onWine && p.Running() && os.Getenv("REVERSER_E2E_CONSOLE") != "" {
		console(p.t, state, "kill")
		p.awaitEnd()
	}
	p.Kill()
}

// TestConsoleEnds: when the console window of a Windows program is closed, or its user logs off, Windows ends it after 5 seconds. It
// uses them: who is connected may finish, and whoever is left is reset, with a reason in the log.
func TestConsoleEnds(t *testing.T) {
	t.Parallel()
	if os.Getenv("REVERSER_E2E_CONSOLE") == "" {
		t.Skip("needs a program of Windows: .ci/wine runs it")
	}
	for _, role := range []string{"proxy", "bridge"} {
		if !onWine(role) {
			continue
		}
		for _, event := range []string{"close", "logoff", "shutdown"} {
			t.Run(event+" of the "+role, func(t *testing.T) {
				t.Parallel()
				tun := startTunnel(t, strconv.Itoa(serve(t, echo)))
				c := tun.dial(t)
				exchange(t, c, "hello")
				p, state := tun.proxy.testProcess, tun.proxy.state
				if role == "bridge" {
					p, state = tun.bridge.testProcess, tun.bridge.state
				}
				console(t, state, event)
				stopping := p.awaitRecord("stopping when the last connection ends", "signal", "terminated")
				exchange(t, c, "who is connected may finish")
				if code := p.awaitEnd(); code != 0 {
					t.Errorf("exit code %d; want 0", code)
				}
				wantReset(t, c, 0)
				released := p.awaitRecord("pair released", "service", tun.service, "reason", "drain")
				// 4 seconds, and what a busy machine adds; the drain that everybody else gets takes an hour.
				if took := released.Time().Sub(stopping.Time()); took > patience {
					t.Errorf("it took %v to stop; Windows would have ended it before", took)
				}
			})
		}
	}
}
