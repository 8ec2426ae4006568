package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// A sample is one figure.
type sample struct {
	Round  int     `json:"round"`
	Value  float64 `json:"value"`
	Others float64 `json:"others"` // cores that other processes of the machine used meanwhile
}

// A verdict is a goal and what became of it.
type verdict struct {
	goal
	Measured *float64 `json:"measured,omitempty"` // the ratio or figure that counts; nil if there is none
	Met      bool     `json:"met"`
}

// A row has the raw figures of a kind.
type row struct {
	kind
	Probe     string              `json:"probe"`               // rows with the same were measured together
	Runs      map[string][]sample `json:"runs"`                // by contender
	Ratio     []float64           `json:"ratio,omitempty"`     // reverser to haproxy, for each round that has both
	Verdicts  []verdict           `json:"verdicts,omitempty"`  // for each goal
	Disturbed []string            `json:"disturbed,omitempty"` // which rounds, and why
	Notes     []string            `json:"notes,omitempty"`     // errors that the measuring program saw
}

// column is a contender that takes part.
type column struct {
	Name  string `json:"name"`
	Title string `json:"title"`
}

type roundInfo struct {
	LoadBefore string  `json:"load_before"`
	Others     float64 `json:"others"` // cores that other processes used during the measurements
}

type report struct {
	Machine  machine     `json:"machine"`
	Settings settings    `json:"settings"`
	Columns  []column    `json:"columns"`
	Rounds   []roundInfo `json:"rounds"`
	Rows     []*row      `json:"rows"`
	Returns  []returned  `json:"returns,omitempty"`  // of fleets
	Absent   []string    `json:"absent,omitempty"`   // what could not be measured here
	Failures []string    `json:"failures,omitempty"` // what broke
}

func (r *report) fail(format string, args ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// add takes in one figure. The rows are in the order of their first figures.
func (r *report) add(probe string, k kind, contender string, s sample, note string) {
	if math.IsNaN(s.Value) || math.IsInf(s.Value, 0) {
		return
	}
	i := slices.IndexFunc(r.Rows, func(x *row) bool { return x.Name == k.Name })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, &row{kind: k, Probe: probe, Runs: make(map[string][]sample)})
	}
	x := r.Rows[i]
	x.Runs[contender] = append(x.Runs[contender], s)
	if note != "" {
		x.Notes = append(x.Notes, fmt.Sprintf("%s, %s, round %d: %s", k.Name, contender, s.Round, note))
	}
}

// finish draws the conclusions when all figures are there.
func (r *report) finish() {
	for _, x := range r.Rows {
		x.Ratio = x.ratio(reverser, haproxy)
		x.Disturbed = x.disturbed()
		x.Verdicts = nil
		for _, g := range x.Goals {
			x.Verdicts = append(x.Verdicts, x.judge(g))
		}
	}
}

func (x *row) values(contender string) (v []float64) {
	for _, s := range x.Runs[contender] {
		v = append(v, s.Value)
	}
	return v
}

// ratio compares figures of the same round: what disturbs the machine for longer than a round disturbs both.
func (x *row) ratio(one, other string) (ratios []float64) {
	for _, a := range x.Runs[one] {
		for _, b := range x.Runs[other] {
			if a.Round == b.Round && b.Value > 0 {
				ratios = append(ratios, a.Value/b.Value)
			}
		}
	}
	return ratios
}

func (x *row) judge(g goal) verdict {
	v := x.values(reverser)
	if g.Than != "" {
		v = x.ratio(reverser, g.Than)
	}
	if len(v) == 0 {
		return verdict{goal: g}
	}
	m := median(v)
	met := m >= g.Factor
	if x.Low {
		met = m <= g.Factor
	}
	return verdict{g, &m, met}
}

// text says what the goal is and whether it is met.
func (x *row) text(v verdict) string {
	sign := ">="
	if x.Low {
		sign = "<="
	}
	goal := sign + " " + strconv.FormatFloat(v.Factor, 'f', -1, 64)
	if v.Than != "" {
		goal += " x " + v.Than
	} else if x.Unit != ratioUnit {
		goal += " " + x.Unit
	}
	switch {
	case v.Measured == nil:
		return goal + ": not measured"
	case v.Met:
		return goal + ": met, " + figure(*v.Measured)
	}
	return goal + ": missed, " + figure(*v.Measured)
}

// ratioUnit is the unit of a row whose figures are ratios by themselves.
const ratioUnit = "ratio"

// How far a round may be off before it counts as disturbed.
const (
	steadyRate    = 1.25 // the direct figure and its median
	steadyLatency = 2.0
	quietCores    = 0.25 // what other processes use
)

// disturbed says in which rounds something else was going on: the direct connection, on which no contender has any
// influence, was far off its median, or other processes took part of the machine.
func (x *row) disturbed() (why []string) {
	limit := steadyRate
	if x.Low {
		limit = steadyLatency
	}
	m := 0.0
	if v := x.values(direct); len(v) > 0 {
		m = median(v)
	}
	for _, round := range x.rounds() {
		busiest := 0.0
		for contender, samples := range x.Runs {
			for _, s := range samples {
				if s.Round == round && contender != direct {
					busiest = max(busiest, s.Others)
				}
			}
		}
		var causes []string
		for _, s := range x.Runs[direct] {
			if s.Round == round && m > 0 && (s.Value > m*limit || s.Value < m/limit) {
				causes = append(causes, fmt.Sprintf("direct is %s, its median %s", figure(s.Value), figure(m)))
			}
		}
		if busiest > quietCores {
			causes = append(causes, fmt.Sprintf("other processes used %.2f cores", busiest))
		}
		if len(causes) > 0 {
			why = append(why, fmt.Sprintf("round %d: %s", round, strings.Join(causes, "; ")))
		}
	}
	return why
}

func (x *row) rounds() (rounds []int) {
	for _, samples := range x.Runs {
		for _, s := range samples {
			rounds = append(rounds, s.Round)
		}
	}
	slices.Sort(rounds)
	return slices.Compact(rounds)
}

// mark is what stands in the table for the disturbed rounds.
func (x *row) mark() string {
	if len(x.Disturbed) == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d", len(x.Disturbed), len(x.rounds()))
}

// head describes the run.
func (r *report) head() string {
	var s strings.Builder
	m := r.Machine
	fmt.Fprintf(&s, "%s, %d cores, %.0f GB, Linux %s, TCP %s, %s, %s\n",
		m.CPU, m.Cores, m.Memory, m.Kernel, m.Congestion, m.Go, m.Time.UTC().Format("2006-01-02 15:04 UTC"))
	var programs []string
	for name := range m.Programs {
		programs = append(programs, name)
	}
	slices.Sort(programs)
	for _, name := range programs {
		fmt.Fprintf(&s, "%s %s, ", name, m.Programs[name])
	}
	rev := m.Revision
	if rev == "" {
		rev = "of unknown revision"
	}
	fmt.Fprintf(&s, "reverser %s\n", rev)
	fmt.Fprintf(&s, "%s of %d s, up to %d connections; median (min-max)\n", plural(r.Settings.Rounds, "round"), r.Settings.Seconds, r.Settings.Conns)
	var others, loads []string
	for _, i := range r.Rounds {
		others = append(others, fmt.Sprintf("%.2f", i.Others))
		loads = append(loads, i.LoadBefore)
	}
	fmt.Fprintf(&s, "load %s before, %s at the beginning of each round, %s after; other processes used %s cores meanwhile\n",
		m.LoadBefore, strings.Join(loads, ", "), m.LoadAfter, strings.Join(others, ", "))
	if m.Nice != 0 {
		fmt.Fprintf(&s, "under nice %d: beside others these figures say little, least over a distance, whose router runs in this program\n", m.Nice)
	}
	return s.String()
}

func (r *report) print(w io.Writer) error {
	var s strings.Builder
	s.WriteString(r.head() + "\n")
	t := tabwriter.NewWriter(&s, 0, 0, 3, ' ', 0)
	fmt.Fprint(t, "\t")
	for _, c := range r.Columns {
		fmt.Fprintf(t, "\t%s", c.Title)
	}
	fmt.Fprintln(t, "\treverser / haproxies\tdisturbed\tgoal")
	met, goals := 0, 0
	for _, x := range r.Rows {
		fmt.Fprintf(t, "%s\t%s", x.Name, x.Unit)
		for _, c := range r.Columns {
			fmt.Fprintf(t, "\t%s", cell(x.values(c.Name)))
		}
		var texts []string
		for _, v := range x.Verdicts {
			texts = append(texts, x.text(v))
			if v.Measured != nil {
				goals++
			}
			if v.Met {
				met++
			}
		}
		fmt.Fprintf(t, "\t%s\t%s\t%s\n", cell(x.Ratio), x.mark(), strings.Join(texts, "; "))
	}
	t.Flush()
	if goals > 0 {
		fmt.Fprintf(&s, "\n%d of %d goals met.\n", met, goals)
	}
	var notes, disturbed []string
	last := ""
	for _, x := range r.Rows {
		notes = append(notes, x.Notes...)
		if len(x.Disturbed) > 0 && x.Probe != last { // the rows of a probe are disturbed together
			disturbed = append(disturbed, x.Probe+": "+strings.Join(x.Disturbed, ". "))
			last = x.Probe
		}
	}
	for _, part := range []struct {
		title string
		lines []string
	}{
		{"Disturbed, so that these figures say less", disturbed},
		{"Errors during the measurement, which make its figures doubtful", notes},
		{"Failed", r.Failures},
		{"Left out", r.Absent},
	} {
		if len(part.lines) > 0 {
			fmt.Fprintf(&s, "\n%s:\n  %s\n", part.title, strings.Join(part.lines, "\n  "))
		}
	}
	for line := range strings.Lines(s.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return fmt.Errorf("print the table: %w", err)
		}
	}
	return nil
}

// save writes the table, the numbers and the chart to files that begin with path.
func (r *report) save(path string) error {
	var table strings.Builder
	if err := r.print(&table); err != nil {
		return err
	}
	numbers, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the numbers: %w", err)
	}
	for ending, text := range map[string]string{".txt": table.String(), ".json": string(numbers) + "\n", ".svg": r.chart()} {
		if err := os.WriteFile(path+ending, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write the results: %w", err)
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
