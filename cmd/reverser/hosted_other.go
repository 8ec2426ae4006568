//go:build !windows

package main

import (
	"io"

	"reverser/internal/service"
)

// startedByManager: elsewhere the command line says so.
func startedByManager() bool { return false }

// hosted runs a role whose manager needs no answer but signals.
func hosted(args []string, _ string, _ *service.Log, newHosted func(host) *cli, _ io.Writer) int {
	return newHosted(nil).run(args)
}
