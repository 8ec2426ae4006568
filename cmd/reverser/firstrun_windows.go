package main

import (
	"os"
	"strings"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"
)

func init() {
	// Cobra would refuse to run what Explorer started, a shortcut with a whole command line included.
	cobra.MousetrapHelpText = ""
}

var getConsoleProcessList = windows.NewLazySystemDLL("kernel32.dll").NewProc("GetConsoleProcessList")

// ownWindow reports whether this process is the only one of a console that a person looks at: it was not started from a shell, and
// the window closes when it ends.
func ownWindow() bool {
	if !isTerminal(os.Stdin) || !isTerminal(os.Stdout) {
		return false
	}
	var pids [2]uint32
	n, _, _ := getConsoleProcessList.Call(uintptr(unsafe.Pointer(&pids[0])), uintptr(len(pids)))
	return n == 1
}

// readsChinese reports whether Chinese is the first language of the person's Windows.
func readsChinese() bool {
	langs, err := windows.GetUserPreferredUILanguages(windows.MUI_LANGUAGE_NAME)
	return err == nil && len(langs) > 0 && strings.HasPrefix(strings.ToLower(langs[0]), "zh")
}
