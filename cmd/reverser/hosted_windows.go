package main

import (
	"io"
	"strings"

	"reverser/internal/service"
)

func startedByManager() bool { return service.IsHosted() }

// hosted runs a role and answers the service manager. Warnings and errors go to the event log as well.
func hosted(args []string, role string, log *service.Log, newHosted func(host) *cli, stderr io.Writer) (code int) {
	name := service.UnitName(role)
	err := service.RunHosted(name, func(h *service.Host) int {
		var noEvents error
		log.Events, noEvents = service.EventLog(name)
		c := newHosted(h)
		if noEvents != nil {
			c.fail(noEvents)
		}
		code = c.run(args)
		return code
	})
	if err != nil {
		return newCLI(strings.NewReader(""), io.Discard, stderr).fail(serviceError(err))
	}
	return code
}
