package accesslog

import (
	"os"

	"golang.org/x/sys/windows"
)

// openToAppend opens a file, which others may give another name meanwhile: a file that os.OpenFile has opened keeps its name on Windows.
// Of a handle without FILE_WRITE_DATA each write goes to the end.
func openToAppend(path string) (*os.File, error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	h, err := windows.CreateFile(p, windows.FILE_GENERIC_WRITE&^windows.FILE_WRITE_DATA|windows.FILE_READ_ATTRIBUTES,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil, windows.OPEN_ALWAYS, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

// mayMake is known on Windows only when a file is made.
func mayMake(string) error { return nil }
