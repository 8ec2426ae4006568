package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// A page is a file with a place for a table, between two marks.
type page struct {
	file  string
	by    string // the make target that writes the table, which the marks name
	parts [2]string
}

func (p *page) marks() (begin, end string) {
	return "<!-- written by make " + p.by + ": begin -->", "<!-- written by make " + p.by + ": end -->"
}

// open reads what stands before and after the place for the table.
func (p *page) open() error {
	text, err := os.ReadFile(p.file)
	if err != nil {
		return err
	}
	begin, end := p.marks()
	before, rest, ok1 := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q to write between", p.file, begin, end)
	}
	p.parts = [2]string{before, after}
	return nil
}

// write puts a table between the marks, as the file stands now.
func (p *page) write(table string) error {
	if err := p.open(); err != nil {
		return err
	}
	begin, end := p.marks()
	return os.WriteFile(p.file, []byte(p.parts[0]+begin+"\n\n"+table+"\n"+end+p.parts[1]), 0o644)
}

// fleets is the table of the rows about fleets.
func (r *report) fleets() string {
	return r.part(func(row string) bool { return strings.HasPrefix(row, "fleet") }).markdown()
}

// names is the table of the rows about names. Of who is absent only frp would be in it.
func (r *report) names() string {
	part := r.part(ofNames)
	part.Absent = slices.DeleteFunc(slices.Clone(part.Absent), func(line string) bool { return !strings.HasPrefix(line, frp+" ") })
	return part.markdown()
}

// bench is the table of all others.
func (r *report) bench() string {
	return r.part(func(row string) bool { return !ofNames(row) }).markdown()
}

// part has some of the rows, and only who was measured there as a column.
func (r *report) part(in func(row string) bool) *report {
	part := *r
	part.Rows, part.Columns = nil, nil
	for _, x := range r.Rows {
		if in(x.Name) {
			part.Rows = append(part.Rows, x)
		}
	}
	for _, c := range r.Columns {
		if slices.ContainsFunc(part.Rows, func(x *row) bool { return len(x.values(c.Name)) > 0 }) {
			part.Columns = append(part.Columns, c)
		}
	}
	return &part
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
	ratios := slices.ContainsFunc(r.Rows, func(x *row) bool { return len(x.Ratio) > 0 })
	if ratios {
		s.WriteString(" reverser / haproxies |")
	}
	s.WriteString(" disturbed rounds | goal |\n|" + strings.Repeat("---|", len(r.Columns)+4))
	if ratios {
		s.WriteString("---|")
	}
	s.WriteString("\n")
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
		if ratios {
			fmt.Fprintf(&s, " %s |", cell(x.Ratio))
		}
		fmt.Fprintf(&s, " %s | %s |\n", x.mark(), strings.Join(texts, "; "))
	}
	for _, line := range append(r.Failures, r.Absent...) {
		first, _, _ := strings.Cut(line, "\n")
		fmt.Fprintf(&s, "\n%s.\n", first)
	}
	return s.String()
}
