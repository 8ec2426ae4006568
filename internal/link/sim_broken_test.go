//go:build mutant

package link

import (
	"flag"
	"fmt"
	"slices"
)

func init() {
	flag.Func("sim.broken", "the rule to break", func(name string) error {
		i := slices.Index(ruleNames[:], name)
		if i < 0 {
			return fmt.Errorf("no such rule; there are %v", ruleNames)
		}
		broken = rule(i)
		return nil
	})
}
