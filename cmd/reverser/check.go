package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reverser/internal/config"
)

func (c *cli) checkCommand() *cobra.Command {
	var trusted []int
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Long: `Check a configuration file of a proxy or a bridge, which it tells from its
keys, without starting anything. The exit code is 0 or, for a file that would
be refused, 2.`,
		Example: `  reverser check bridge.toml`,
		Args:    takes("reverser check proxy.toml", "FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			role, warnings, err := config.Check(args[0], trusted...)
			c.printWarnings(warnings)
			if err != nil {
				return usage(err)
			}
			_, err = fmt.Fprintf(c.stdout, "%s: a %s's configuration, in order\n", args[0], role)
			return err
		},
	}
	addTrustFlag(cmd.Flags(), &trusted)
	return cmd
}
