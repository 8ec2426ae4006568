package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"reverser/internal/config"
)

func (c *cli) checkCommand() *cobra.Command {
	var trusted []int
	var asJSON bool
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
			if asJSON {
				return c.printChecked(args[0], role, warnings, err)
			}
			c.printWarnings(warnings)
			if err != nil {
				return usage(err)
			}
			_, err = fmt.Fprintf(c.stdout, "%s: a %s's configuration, in order\n", args[0], role)
			return err
		},
	}
	addTrustFlag(cmd.Flags(), &trusted)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// checked is what `check --json` prints.
type checked struct {
	File     string   `json:"file"`
	Role     string   `json:"role"` // "" where the file does not tell
	Warnings []string `json:"warnings"`
	Error    string   `json:"error"` // why it would be refused; "" if it would not
}

func (c *cli) printChecked(file, role string, warnings []config.Warning, refused error) error {
	all := checked{File: file, Role: role, Warnings: []string{}}
	for _, w := range warnings {
		all.Warnings = append(all.Warnings, w.String())
	}
	if refused != nil {
		all.Error = redact(refused.Error())
	}
	if err := c.printJSON(all); err != nil {
		return err
	}
	if refused != nil {
		return usage(refused)
	}
	return nil
}
