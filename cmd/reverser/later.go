package main

import (
	"slices"

	"github.com/spf13/cobra"
)

// laterCommands are commands of versions to come, each with what to use until then. They are refused by name, so that nobody
// looks for a slip.
var laterCommands = []struct{ name, today string }{
	{"connect", "until then, tcp/127.0.0.1:PORT opens a port that only the proxy's own machine reaches"},
	{"policy", "until then, `reverser key edit NAME --max-connections N` limits what the users of a key's services take"},
	{"ban", "until then, a firewall keeps an address out, and `reverser end --client CIDR` resets its connections"},
	{"upgrade", "until then, install the new program and restart: docs/UPGRADING.md says how"},
	{"cluster", "until then, a bridge serves several proxies with --proxy A --proxy B"},
}

// laterFlags are flags of versions to come.
var laterFlags = []string{"cluster", "advertise-peer", "uplink", "accept-services", "sealed", "country", "datagrams", "close-when-down", "keys-from", "group", "bandwidth"}

// laterFlag is the answer to a flag of versions to come, nil for another one.
func laterFlag(name string) error {
	if !slices.Contains(laterFlags, name) {
		return nil
	}
	return usageHint("leave it out", "--%s comes with a later version", name)
}

// addLaterCommands adds the commands of versions to come, which no help shows.
func addLaterCommands(root *cobra.Command) {
	for _, l := range laterCommands {
		root.AddCommand(&cobra.Command{
			Use:                l.name,
			Hidden:             true,
			DisableFlagParsing: true, // its flags come later, too
			RunE: func(cmd *cobra.Command, _ []string) error {
				return usageHint(l.today, "%s comes with a later version", cmd.CommandPath())
			},
		})
	}
}
