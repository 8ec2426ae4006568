//go:build windows

// Command console does to a process of Windows what Windows does when its console window is closed, or its user logs off (see package
// ctrlevent). Or it ends the process as the task manager does.
//
//	console PID close|logoff|shutdown|kill
package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/windows"

	"reverser/internal/ctrlevent"
)

var events = map[string]ctrlevent.Event{"close": ctrlevent.Close, "logoff": ctrlevent.LogOff, "shutdown": ctrlevent.Shutdown}

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
	if args[1] == "kill" {
		process, err := windows.OpenProcess(windows.PROCESS_TERMINATE, false, uint32(pid))
		if err != nil {
			return fmt.Errorf("open process %d: %w", pid, err)
		}
		defer windows.CloseHandle(process)
		return windows.TerminateProcess(process, 1)
	}
	return ctrlevent.Send(int(pid), events[args[1]])
}
