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

// niceness is by how much this process comes behind others.
func niceness() int {
	n, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		return 0
	}
	return 20 - n // the system call gives no negative numbers
}

// raiseFileLimit lets this process and its children open so many files, if it may, and returns how many they may. That is
// for programs that do not ask for themselves: wrk and nginx.
func raiseFileLimit(need uint64) uint64 {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return 0
	}
	for _, most := range []uint64{max(lim.Max, need), lim.Max} { // the first needs a privilege if it is more
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: most, Max: most}); err == nil {
			return most
		}
	}
	return lim.Cur
}
