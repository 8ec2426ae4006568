package sys

import "fmt"

// Holder is a process that listens on a port.
type Holder struct {
	PID     int
	Program string // its name, as it chose it
}

func (h Holder) String() string { return fmt.Sprintf("%s (pid %d)", h.Program, h.PID) }
