package main

import (
	"bufio"
	"io"
	"text/tabwriter"

	"reverser/internal/escape"
)

// table prints aligned columns.
type table struct {
	w   *tabwriter.Writer
	out *bufio.Writer // a tabwriter writes each cell by itself
}

func newTable(w io.Writer) table {
	out := bufio.NewWriterSize(w, 64<<10)
	return table{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), out}
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

func (t table) flush() error {
	if err := t.w.Flush(); err != nil {
		return err
	}
	return t.out.Flush()
}

// printable keeps a peer's words in their cell: targets and reasons come from the other side.
func printable(s string) string {
	if s == "" {
		return "-"
	}
	return escape.Text(s)
}
