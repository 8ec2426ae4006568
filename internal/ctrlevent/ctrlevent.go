//go:build windows

// Package ctrlevent sends console control events to processes of Windows that have no console of their own, as tests start them. Windows
// itself sends such an event by a thread that it starts in the process, which runs the process's control handlers; so does this package.
//
// After the events that announce the end, Windows ends the process within seconds; this package does not.
package ctrlevent

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// An Event is a control signal of SetConsoleCtrlHandler.
type Event uint32

// Events.
const (
	Interrupt Event = windows.CTRL_C_EVENT // Ctrl-C
	Close     Event = windows.CTRL_CLOSE_EVENT
	LogOff    Event = windows.CTRL_LOGOFF_EVENT
	Shutdown  Event = windows.CTRL_SHUTDOWN_EVENT
)

// Send sends an event to a process. It does not wait for what the process does.
func Send(pid int, e Event) error {
	const rights = windows.PROCESS_CREATE_THREAD | windows.PROCESS_QUERY_INFORMATION | windows.PROCESS_VM_OPERATION | windows.PROCESS_VM_WRITE | windows.PROCESS_VM_READ
	process, err := windows.OpenProcess(rights, false, uint32(pid))
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer windows.CloseHandle(process)
	// kernelbase.dll is at the same place in all processes.
	routine := windows.NewLazySystemDLL("kernelbase.dll").NewProc("CtrlRoutine")
	if err := routine.Find(); err != nil {
		return err
	}
	create := windows.NewLazySystemDLL("kernel32.dll").NewProc("CreateRemoteThread")
	thread, _, err := create.Call(uintptr(process), 0, 0, routine.Addr(), uintptr(e), 0, 0)
	if thread == 0 {
		return fmt.Errorf("start a thread in process %d: %w", pid, err)
	}
	return windows.CloseHandle(windows.Handle(thread))
}
