package service

import "os"

// New returns the service manager of this machine.
func New() Manager { return &systemd{uid: os.Geteuid(), run: runProgram} }
