package main

import (
	"io"
	"os"

	"golang.org/x/sys/windows"
)

// canColor turns escape sequences on in a Windows console, and reports whether
// it takes them: the ones before Windows 10 print them as they are.
func canColor(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	h := windows.Handle(f.Fd())
	var mode uint32
	if windows.GetConsoleMode(h, &mode) != nil {
		return false
	}
	return windows.SetConsoleMode(h, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
