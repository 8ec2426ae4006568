//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
)

// A report is what a run found out.
type report struct {
	machine string
	size    size
	list    []scenario
	results []*result // as list
	picture string    // one sentence about the picture
	peers   *peerTable
}

const (
	beginMark = "<!-- written by make faults: begin -->"
	endMark   = "<!-- written by make faults: end -->"
)

// verdict is one word, or a few more where a promise was not kept.
func (r *result) verdict() string {
	switch {
	case r.skipped != "":
		return "not run: " + r.skipped
	case len(r.broken) > 0:
		return "broken: " + strings.Join(r.broken, "; ")
	case len(r.missed) > 0:
		return "missed: " + strings.Join(r.missed, "; ")
	}
	return "kept"
}

// cell makes text fit into a table of Markdown.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(text)
}

func (r *report) table() string {
	var s strings.Builder
	kept, missed, broken, skipped := 0, 0, 0, 0
	for _, res := range r.results {
		switch {
		case res.skipped != "":
			skipped++
		case len(res.broken) > 0:
			broken++
		case len(res.missed) > 0:
			missed++
		default:
			kept++
		}
	}
	command := "make faults"
	if r.size == full {
		command = "make faults FAULTS=-full"
	} else if r.size == ci {
		command = "make faults FAULTS=-quick"
	}
	fmt.Fprintf(&s, "Measured by `%s` (size: %s): %s\n\n", command, r.size, r.machine)
	fmt.Fprintf(&s, "Of %d scenarios **%d** kept every promise, in **%d** something took longer or more than promised, in **%d** bytes or connections were wrong",
		len(r.results), kept, missed, broken)
	if skipped > 0 {
		fmt.Fprintf(&s, ", and **%d** could not be run", skipped)
	}
	s.WriteString(".\n\n| | what happens | promised | measured | |\n|---|---|---|---|---|\n")
	for i, sc := range r.list {
		res := r.results[i]
		verdict := res.verdict()
		if verdict != "kept" {
			word, why, _ := strings.Cut(verdict, ":")
			verdict = "**" + word + "**:" + why
		}
		fmt.Fprintf(&s, "| %s | **%s.** %s | %s | %s. *How: %s.* | %s |\n", sc.id, cell(sc.name), cell(sc.user), cell(sc.promise),
			cell(strings.Join(res.figures, "; ")), cell(sc.how), cell(verdict))
	}
	if r.picture != "" {
		fmt.Fprintf(&s, "\n### An outage\n\n![throughput, bytes and echo round trips of a user across an outage](outage.svg)\n\n%s\n", r.picture)
	}
	if r.peers != nil {
		s.WriteString("\n### Other programs in the same hands\n\n" + r.peers.markdown())
	}
	return s.String()
}

// into replaces what stands between the marks of the file.
func (r *report) into(file string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(old), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q to write between", file, beginMark, endMark)
	}
	return os.WriteFile(file, []byte(before+beginMark+"\n\n"+r.table()+"\n"+endMark+after), 0o644)
}
