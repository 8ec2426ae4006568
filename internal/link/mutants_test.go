package link

import (
	"flag"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

var simMutants = flag.Bool("sim.mutants", false, "let TestMutants break one rule after the other")

// TestMutants breaks each rule and wants the simulation to notice within 1,000 seeds; with no rule broken they must pass.
func TestMutants(t *testing.T) {
	if !*simMutants || testing.Short() || raceEnabled {
		t.Skip("breaks the rules of the protocol one by one, in a build of its own: go test -run TestMutants -sim.mutants")
	}
	bin := filepath.Join(t.TempDir(), "link.test")
	if out, err := exec.Command("go", "test", "-tags", "mutant", "-c", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	found := regexp.MustCompile(`seed (\d+): (.*)`)
	for _, name := range ruleNames {
		t.Run(name, func(t *testing.T) {
			run := exec.Command(bin, "-test.run", "^TestSimulation$", "-test.timeout", "1m", "-sim.seeds", "1000", "-sim.broken", name)
			out, err := run.CombinedOutput()
			what := found.FindSubmatch(out)
			switch {
			case name == ruleNames[none] && err != nil:
				t.Fatalf("no rule is broken: %v\n%s", err, out)
			case name == ruleNames[none]:
			case err == nil:
				t.Error("nobody noticed in 1,000 seeds")
			case what == nil:
				t.Errorf("the simulation failed in another way: %v\n%s", err, out)
			default:
				t.Logf("seed %s: %s", what[1], what[2])
			}
		})
	}
}
