package link

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// simMutants lets TestMutants break one rule after the other. Of a flag go test would not remember what passed, and of a variable it knows
// only when a test asks for it.
func simMutants() bool { return os.Getenv("SIM_MUTANTS") != "" }

// mutants is what testdata/mutants.txt says: the names of the rules that can be broken, and the files of the package with the
// changes that break them.
type mutants struct {
	names []string
	files map[string]string
}

func readMutants() (*mutants, error) {
	b, err := os.ReadFile(filepath.Join("testdata", "mutants.txt"))
	if err != nil {
		return nil, err
	}
	m := &mutants{files: map[string]string{}}
	_, rules, _ := strings.Cut(string(b), "\n== ")
	for rule := range strings.SplitSeq(rules, "\n== ") {
		name, _, _ := strings.Cut(rule, ":")
		m.names = append(m.names, name)
		for _, change := range strings.Split(rule, "\n@@ ")[1:] {
			file, lines, _ := strings.Cut(change, "\n")
			if err := m.change(file, lines); err != nil {
				return nil, fmt.Errorf("rule %s: %w", name, err)
			}
		}
	}
	return m, nil
}

// change applies one change to a file.
func (m *mutants) change(file, lines string) error {
	if m.files[file] == "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		m.files[file] = string(b)
	}
	var was, is strings.Builder
	for line := range strings.Lines(strings.TrimRight(lines, "\n") + "\n") {
		if text := line[1:]; line[0] == '+' {
			is.WriteString(text)
		} else {
			was.WriteString(text)
			if line[0] == ' ' {
				is.WriteString(text)
			}
		}
	}
	if n := strings.Count(m.files[file], was.String()); n != 1 {
		return fmt.Errorf("%s has %d places like\n%s", file, n, was.String())
	}
	m.files[file] = strings.Replace(m.files[file], was.String(), is.String(), 1)
	return nil
}

// chooser is a further file of the package: it says which rule is broken.
const chooser = `package link

import "flag"

var broken = flag.String("sim.broken", "", "the rule to break")

func mutant(name string) bool { return *broken == name }
`

// build builds the package's tests with the changes, which are in no other build.
func (m *mutants) build(t *testing.T) (bin string) {
	dir := t.TempDir()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	m.files["mutant.go"] = chooser
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, text := range m.files {
		overlay.Replace[filepath.Join(here, name)] = write(name, text)
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	bin = filepath.Join(dir, "link.test")
	if out, err := exec.Command("go", "test", "-overlay", write("overlay.json", string(b)), "-c", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// TestMutants breaks each rule and wants the simulation to notice within 1,000 seeds; with no rule broken they must pass.
func TestMutants(t *testing.T) {
	m, err := readMutants()
	if err != nil {
		t.Fatal(err)
	}
	if !simMutants() || testing.Short() || raceEnabled {
		t.Skip("breaks the rules of the protocol one by one, in a build of its own: SIM_MUTANTS=1 go test -run TestMutants")
	}
	bin := m.build(t)
	found := regexp.MustCompile(`seed (\d+): (.*)`)
	for _, name := range append([]string{""}, m.names...) {
		t.Run(name, func(t *testing.T) {
			run := exec.Command(bin, "-test.run", "^TestSimulation$", "-test.timeout", "1m", "-sim.seeds", "1000", "-sim.broken", name)
			out, err := run.CombinedOutput()
			what := found.FindSubmatch(out)
			switch {
			case name == "" && err != nil:
				t.Fatalf("no rule is broken: %v\n%s", err, out)
			case name == "":
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
