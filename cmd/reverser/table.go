package main

import (
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
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

// printable keeps a peer's words from doing anything to the terminal: targets
// and reasons come from the other side.
func printable(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
