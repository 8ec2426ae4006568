package config

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
)

// element is an element of an XML text. The text itself is one without a name.
type element struct {
	name     string
	attrs    []xml.Attr
	line     int
	children []*element
	text     int // the line on which text stands directly in it; 0: there is none
}

// attr returns the value of an attribute.
func (e *element) attr(name string) (value string, ok bool) {
	for _, a := range e.attrs {
		if a.Name.Local == name {
			return a.Value, true
		}
	}
	return "", false
}

// contains reports whether there is an element with that name in it, however deep.
func (e *element) contains(name string) bool {
	// A list, not a recursion: the depth is the writer's to choose.
	for list := e.children; len(list) > 0; list = list[1:] {
		if list[0].name == name {
			return true
		}
		list = append(list[:len(list):len(list)], list[0].children...)
	}
	return false
}

// parseXML reads a text that readText made UTF-8 of.
func parseXML(text string) (*element, *Error) {
	dec := xml.NewDecoder(strings.NewReader(text))
	// The first line may still say another encoding.
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	top := &element{}
	open := []*element{top}
	for {
		tok, err := dec.Token()
		line, _ := dec.InputPos()
		if err == io.EOF {
			return top, nil
		}
		if err != nil {
			return nil, syntaxError(text, line, err)
		}
		in := open[len(open)-1]
		switch tok := tok.(type) {
		case xml.StartElement:
			e := &element{name: tok.Name.Local, attrs: tok.Copy().Attr, line: line}
			in.children = append(in.children, e)
			open = append(open, e)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if in.text == 0 && strings.TrimSpace(string(tok)) != "" {
				in.text = line
			}
		}
	}
}

func syntaxError(text string, line int, err error) *Error {
	e := &Error{Line: line, Text: "this is not XML", Hint: "look for a missing quote or />", Err: err}
	var se *xml.SyntaxError
	if errors.As(err, &se) {
		e.Line, e.Text = se.Line, "this is not XML: "+se.Msg
	}
	switch {
	case strings.ContainsAny(lineOf(text, e.Line), "“”„"):
		e.Hint = `a copy from a document has curly quotes: write straight ones, "`
	case strings.ContainsAny(lineOf(text, e.Line), "＝＂＜＞／"):
		e.Hint = `there are full-width characters on this line: write =, ", <, > and / with a Latin keyboard`
	}
	return e
}
