package main

import (
	"io"
	"text/tabwriter"

	"reverser/internal/escape"
)

// table prints aligned columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) table {
	return table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

func (t table) row(cells ...string) {
	for i, cell := range cells {
		if i > 0 {
			io.WriteString(t.w, "\t")
		}
		io.WriteString(t.w, printable(cell))
	}
	io.WriteString(t.w, "\n")
}

func (t table) flush() error { return t.w.Flush() }

// printable keeps a peer's words in their cell: targets and reasons come from the other side.
func printable(s string) string {
	if s == "" {
		return "-"
	}
	return escape.Text(s)
}
