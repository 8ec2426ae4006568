package main

import (
	"errors"
	"fmt"
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

var shellExecuteEx = windows.NewLazySystemDLL("shell32.dll").NewProc("ShellExecuteExW")

// shellExecuteInfo is SHELLEXECUTEINFOW.
type shellExecuteInfo struct {
	size       uint32
	mask       uint32
	window     windows.HWND
	verb       *uint16
	file       *uint16
	parameters *uint16
	directory  *uint16
	show       int32
	instance   windows.Handle
	idList     uintptr
	class      *uint16
	classKey   windows.Handle
	hotKey     uint32
	icon       windows.Handle
	process    windows.Handle
}

// seeMaskNoCloseProcess asks for the handle of the process.
const seeMaskNoCloseProcess = 0x40

// forAdministrator closes a file to all but administrators. This user is not named: whoever becomes administrator for them may be
// another person, and to that one's process this user is one of the others who must not read a token.
func forAdministrator(path string) error {
	sd, err := windows.SecurityDescriptorFromString("D:P(A;;FA;;;SY)(A;;FA;;;BA)")
	if err != nil {
		return err
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
}

// asAdministrator runs a command of this program with the rights of an administrator: here, by the function given, where this process
// has them, else in a window of its own, for which Windows asks the person.
func asAdministrator(command []string, here func([]string) error) error {
	if windows.GetCurrentProcessToken().IsElevated() {
		return here(command)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	return runElevated(exe, command)
}

func runElevated(exe string, command []string) error {
	verb, err := windows.UTF16PtrFromString("runas")
	if err != nil {
		return err
	}
	file, err := windows.UTF16PtrFromString(exe)
	if err != nil {
		return err
	}
	parameters, err := windows.UTF16PtrFromString(windows.ComposeCommandLine(command))
	if err != nil {
		return err
	}
	info := shellExecuteInfo{mask: seeMaskNoCloseProcess, verb: verb, file: file, parameters: parameters, show: windows.SW_SHOWNORMAL}
	info.size = uint32(unsafe.Sizeof(info))
	if ok, _, err := shellExecuteEx.Call(uintptr(unsafe.Pointer(&info))); ok == 0 {
		if errors.Is(err, windows.ERROR_CANCELLED) {
			return errors.New("Windows was told not to let the program make changes")
		}
		return fmt.Errorf("start %s as administrator: %w", exe, err)
	}
	defer windows.CloseHandle(info.process)
	if _, err := windows.WaitForSingleObject(info.process, windows.INFINITE); err != nil {
		return fmt.Errorf("wait for the installation: %w", err)
	}
	var code uint32
	if err := windows.GetExitCodeProcess(info.process, &code); err != nil {
		return fmt.Errorf("wait for the installation: %w", err)
	}
	if code != exitOK {
		return fmt.Errorf("the installation ended with exit code %d; its window said why", code)
	}
	return nil
}
