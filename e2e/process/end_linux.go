package process

import (
	"os"
	"os/exec"
	"syscall"
)

// endWithParent lets the kernel kill the program when this process is gone. It tells by the thread that started the
// program; threads of Go end before the process only when a goroutine that is locked to one does.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// killAll kills a program and its children: endWithParent gave it a group of its own.
func killAll(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }
