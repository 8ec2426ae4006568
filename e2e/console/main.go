//go:build windows

// Command console does to a process of Windows what Windows does when its console window is closed, or its user logs off: it starts a
// thread in it that runs the process's control handlers. There is no other way without a window. Or it ends the process as the task
// manager does.
//
//	console PID close|logoff|shutdown|kill
//
// Windows ends a process behind the others, too, after 5 seconds at the latest; this program does not.
package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/windows"
)

// events are the control signals of SetConsoleCtrlHandler.
var events = map[string]uintptr{"close": windows.CTRL_CLOSE_EVENT, "logoff": windows.CTRL_LOGOFF_EVENT, "shutdown": windows.CTRL_SHUTDOWN_EVENT}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "console:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 || events[args[1]] == 0 && args[1] != "kill" {
		return fmt.Errorf("usage: console PID close|logoff|shutdown|kill")
	}
	pid, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return err
	}
	const rights = windows.PROCESS_TERMINATE | windows.PROCESS_CREATE_THREAD | windows.PROCESS_QUERY_INFORMATION | windows.PROCESS_VM_OPERATION | windows.PROCESS_VM_WRITE | windows.PROCESS_VM_READ
	process, err := windows.OpenProcess(rights, false, uint32(pid))
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer windows.CloseHandle(process)
	if args[1] == "kill" {
		return windows.TerminateProcess(process, 1)
	}
	// kernelbase.dll is at the same place in all processes.
	routine := windows.NewLazySystemDLL("kernelbase.dll").NewProc("CtrlRoutine")
	if err := routine.Find(); err != nil {
		return err
	}
	create := windows.NewLazySystemDLL("kernel32.dll").NewProc("CreateRemoteThread")
	thread, _, err := create.Call(uintptr(process), 0, 0, routine.Addr(), events[args[1]], 0, 0)
	if thread == 0 {
		return fmt.Errorf("start a thread in process %d: %w", pid, err)
	}
	return windows.CloseHandle(windows.Handle(thread))
}
