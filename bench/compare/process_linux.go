package main

import (
	"os"
	"os/exec"
	"syscall"
)

// own makes cmd a child that ends with this process even if that is killed, and that a Ctrl-C reaches only through
// it, so that an interrupted run does not look like a broken one.
func own(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// killGroup kills a child and its own children: own gave it a group of its own.
func killGroup(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }

// fileLimit is how many files this process may open; the runtime has raised it as far as it may.
func fileLimit() uint64 {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return 0
	}
	return lim.Cur
}
