package main

import (
	"bytes"
	"io"
)

// folder breaks what is written to it, whole lines, at spaces, so that no line
// is longer than a terminal is wide. A word that is longer stays whole: it may
// be something to copy.
type folder struct {
	w      io.Writer
	width  int
	indent string // of what continues a line
}

func (f folder) Write(p []byte) (int, error) {
	var out bytes.Buffer
	for line := range bytes.Lines(p) {
		text, nl := bytes.CutSuffix(line, []byte("\n"))
		column := 0
		for i, word := range bytes.Split(text, []byte(" ")) {
			n := columns(word)
			switch {
			case i == 0:
			case column+1+n > f.width:
				out.WriteString("\n" + f.indent)
				column = len(f.indent)
			default:
				out.WriteByte(' ')
				column++
			}
			out.Write(word)
			column += n
		}
		if nl {
			out.WriteByte('\n')
		}
	}
	if _, err := f.w.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// columns counts the characters of a word, without those that set its colour.
func columns(word []byte) (n int) {
	escape := false
	for _, r := range string(word) {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r != 'm'
		default:
			n++
		}
	}
	return n
}
