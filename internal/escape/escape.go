// Package escape makes harmless what others say: a peer's ERR, the names in a stranger's ClientHello, the path of a request.
// Written as it is, it could move the cursor of a terminal, set its clipboard, hide a line of a log or forge one.
//
// All characters that are not printable are written as JSON writes them, so that JSON stays JSON. A Handler stands in front of the log, a Writer in front of the terminal. The package starts no
// goroutines.
package escape

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Most is how many bytes of one text are kept. The longest that an operator needs is an error with the faults of a file.
const Most = 4096

// Text returns s on one line, without anything that a terminal obeys, and says so where it leaves something out.
func Text(s string) string {
	s = cut(s)
	if i := strings.IndexFunc(s, func(r rune) bool { return !harmless(r) }); i >= 0 {
		return string(appendText([]byte(s[:i]), s[i:], ""))
	}
	return s
}

// NewWriter returns a writer that passes text on to w without anything that a terminal obeys, but for line breaks and tabs.
func NewWriter(w io.Writer) io.Writer { return writer{w} }

type writer struct{ w io.Writer }

func (w writer) Write(p []byte) (int, error) {
	if plain(p) {
		return w.w.Write(p)
	}
	if _, err := w.w.Write(appendText(nil, string(p), "\n\t")); err != nil {
		return 0, err
	}
	return len(p), nil
}

// plain reports whether a text has printable ASCII, line breaks and tabs only, as nearly all of it has.
func plain(p []byte) bool {
	for _, c := range p {
		if (c < ' ' || c > '~') && c != '\n' && c != '\t' {
			return false
		}
	}
	return true
}

// harmless reports whether a character is only printed. RuneError stands for bytes that are no UTF-8 as well: some terminals
// take those from 0x80 to 0x9f for control characters.
func harmless(r rune) bool { return r != utf8.RuneError && strconv.IsPrint(r) }

// appendText appends s, with what is not harmless escaped unless keep has it.
func appendText(b []byte, s, keep string) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case harmless(r) || strings.ContainsRune(keep, r) && r != utf8.RuneError:
			b = append(b, s[:n]...)
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
		s = s[n:]
	}
	return b
}

// cut returns the beginning of a text that is too long, and says so.
func cut(s string) string {
	if len(s) <= Most {
		return s
	}
	end := Most
	for end > Most-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return fmt.Sprintf("%s… (%d bytes)", s[:end], len(s))
}
