package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// A kind is a row of the table: what is measured, and how good it has to be.
type kind struct {
	Name string  `json:"name"`
	Unit string  `json:"unit"`
	Goal float64 `json:"goal,omitempty"`
	goal goal
}

type goal int

const (
	none         goal = iota
	ratioAtLeast      // reverser's figure is at least Goal times HAProxy's
	valueAtMost       // reverser's figure is at most Goal
)

// A row has the raw figures of a kind, one for each round.
type row struct {
	kind
	Runs  map[string][]float64 `json:"runs"`            // by contender
	Ratio []float64            `json:"ratio"`           // reverser to haproxy, round by round
	Met   *bool                `json:"met,omitempty"`   // nil without a goal
	Notes []string             `json:"notes,omitempty"` // errors that the measuring program saw
}

type report struct {
	Machine  machine  `json:"machine"`
	Settings settings `json:"settings"`
	Rows     []*row   `json:"rows"`
}

// add takes in one figure. The rows are in the order of their first figures.
func (r *report) add(k kind, round int, contender string, v float64, note string) {
	i := slices.IndexFunc(r.Rows, func(x *row) bool { return x.Name == k.Name })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, &row{kind: k, Runs: make(map[string][]float64)})
	}
	x := r.Rows[i]
	x.Runs[contender] = append(x.Runs[contender], v)
	if note != "" {
		x.Notes = append(x.Notes, fmt.Sprintf("%s, %s, round %d: %s", k.Name, contender, round+1, note))
	}
	x.judge()
}

// judge compares figures of the same round: what disturbs the machine for longer than a round disturbs both.
func (x *row) judge() {
	ours, theirs := x.Runs[reverser], x.Runs[haproxy]
	x.Ratio, x.Met = nil, nil
	for i := range min(len(ours), len(theirs)) {
		x.Ratio = append(x.Ratio, ours[i]/theirs[i])
	}
	if len(x.Ratio) == 0 {
		return
	}
	var met bool
	switch x.goal {
	case ratioAtLeast:
		met = median(x.Ratio) >= x.Goal
	case valueAtMost:
		met = median(ours) <= x.Goal
	default:
		return
	}
	x.Met = &met
}

// verdict says what the goal is and whether it is met.
func (x *row) verdict() string {
	if x.Met == nil {
		return ""
	}
	word := "missed"
	if *x.Met {
		word = "met"
	}
	if x.goal == ratioAtLeast {
		return fmt.Sprintf(">= %.1f x haproxy: %s", x.Goal, word)
	}
	return fmt.Sprintf("<= %.0f %s: %s", x.Goal, x.Unit, word)
}

func (r *report) print(w io.Writer) error {
	var s strings.Builder
	m := r.Machine
	fmt.Fprintf(&s, "%s, %d cores, Linux %s, TCP %s, %s, load %s before and %s after\n",
		m.CPU, m.Cores, m.Kernel, m.Congestion, m.Go, m.LoadBefore, m.LoadAfter)
	for _, n := range needed {
		fmt.Fprintf(&s, "%s %s, ", n.program, m.Programs[n.program])
	}
	rev := m.Revision
	if rev == "" {
		rev = "of unknown revision"
	}
	fmt.Fprintf(&s, "reverser %s\n", rev)
	fmt.Fprintf(&s, "%d rounds of %d s, %d idle connections; median (min-max)\n\n", r.Settings.Rounds, r.Settings.Seconds, r.Settings.Conns)

	t := tabwriter.NewWriter(&s, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "\t\tdirect\t2 haproxies\treverser\treverser / haproxies\tgoal")
	for _, x := range r.Rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", x.Name, x.Unit,
			cell(x.Runs[direct]), cell(x.Runs[haproxy]), cell(x.Runs[reverser]), cell(x.Ratio), x.verdict())
	}
	t.Flush()
	var notes []string
	for _, x := range r.Rows {
		notes = append(notes, x.Notes...)
	}
	if len(notes) > 0 {
		fmt.Fprintf(&s, "\nErrors during the measurement, which make its figures doubtful:\n  %s\n", strings.Join(notes, "\n  "))
	}
	for line := range strings.Lines(s.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return fmt.Errorf("print the table: %w", err)
		}
	}
	return nil
}

func cell(v []float64) string {
	switch len(v) {
	case 0:
		return "-"
	case 1:
		return figure(v[0])
	}
	return fmt.Sprintf("%s (%s-%s)", figure(median(v)), figure(slices.Min(v)), figure(slices.Max(v)))
}

// figure shows three digits: the fourth is noise.
func figure(v float64) string {
	switch {
	case v >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// outFile is where the raw numbers go. It is opened before the run, which is too long to find out afterwards.
type outFile struct {
	f    *os.File // nil: nowhere
	made bool     // by us, and not written yet
}

func openOut(path string) (*outFile, error) {
	if path == "" {
		return &outFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	made := err == nil
	if errors.Is(err, fs.ErrExist) {
		f, err = os.OpenFile(path, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open the file of -out: %w", err)
	}
	return &outFile{f, made}, nil
}

func (o *outFile) write(r *report) error {
	if o.f == nil {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the numbers: %w", err)
	}
	_ = o.f.Truncate(0) // a pipe or terminal has no length
	if _, err := o.f.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("write the numbers: %w", err)
	}
	o.made = false
	return nil
}

// discard closes the file, and removes it if it is one that we made in vain.
func (o *outFile) discard() {
	if o.f == nil {
		return
	}
	o.f.Close()
	if o.made {
		os.Remove(o.f.Name())
	}
}
