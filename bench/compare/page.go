package main

import (
	"fmt"
	"os"
	"strings"
)

const (
	beginMark = "<!-- written by make bench: begin -->"
	endMark   = "<!-- written by make bench: end -->"
)

// splitPage returns what stands before and after the place for the table.
func splitPage(file string) (parts [2]string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return parts, err
	}
	before, rest, ok1 := strings.Cut(string(text), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok1 || !ok2 {
		return parts, fmt.Errorf("%s has no lines %q and %q to write between", file, beginMark, endMark)
	}
	return [2]string{before, after}, nil
}

// into puts the table between the marks of the file.
func (r *report) into(file string) error {
	parts, err := splitPage(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(parts[0]+beginMark+"\n\n"+r.markdown()+"\n"+endMark+parts[1]), 0o644)
}

// markdown is the table with medians alone; a figure that reverser is measured by has its range too.
func (r *report) markdown() string {
	var s strings.Builder
	for line := range strings.Lines(r.head()) {
		s.WriteString(strings.TrimSpace(line) + ".\n")
	}
	s.WriteString("\n| | |")
	for _, c := range r.Columns {
		fmt.Fprintf(&s, " %s |", c.Title)
	}
	s.WriteString(" reverser / haproxies | disturbed rounds | goal |\n|---|---|" + strings.Repeat("---|", len(r.Columns)+3) + "\n")
	for _, x := range r.Rows {
		fmt.Fprintf(&s, "| %s | %s |", x.Name, x.Unit)
		for _, c := range r.Columns {
			v := x.values(c.Name)
			if len(v) > 0 && c.Name != reverser {
				v = []float64{median(v)}
			}
			fmt.Fprintf(&s, " %s |", cell(v))
		}
		var texts []string
		for _, v := range x.Verdicts {
			text := strings.NewReplacer("<=", "≤", ">=", "≥", " x ", " × ").Replace(x.text(v))
			texts = append(texts, strings.Replace(text, "missed", "**missed**", 1))
		}
		fmt.Fprintf(&s, " %s | %s | %s |\n", cell(x.Ratio), x.mark(), strings.Join(texts, "; "))
	}
	for _, line := range append(r.Failures, r.Absent...) {
		first, _, _ := strings.Cut(line, "\n")
		fmt.Fprintf(&s, "\n%s.\n", first)
	}
	return s.String()
}
