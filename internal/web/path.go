package web

import (
	"iter"
	"path"
	"strings"
)

// mostDecoded is how often a path is decoded in the search for what it may mean.
const mostDecoded = 4

// maxReadings is how long a path may be of which several readings are looked at: that takes far longer than a plain one.
const maxReadings = 8 << 10

// ambiguous reports whether there are several readings of an escaped path.
func ambiguous(escaped string) bool {
	return strings.ContainsAny(escaped, "%\\;") || strings.Contains(escaped, "//") || strings.Contains(escaped, "/.")
}

// readings yields the paths that a target may take an escaped path for, beside the path itself: decoded, also more than once, with dot
// segments resolved, slashes merged, backslashes as slashes, without parameters (";x") in its segments, and cut at what ends a path for some:
// a question mark, a number sign or a NUL that was decoded.
func readings(escaped string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if !ambiguous(escaped) {
			return
		}
		p := escaped
		for range mostDecoded {
			for _, s := range []string{p, withoutParameters(p), upToEnd(p), withoutParameters(upToEnd(p))} {
				s = strings.ReplaceAll(s, "\\", "/")
				if !yield(reescape(s)) || !yield(reescape(path.Clean("/"+s))) {
					return
				}
			}
			next := decode(p)
			if next == p {
				return
			}
			p = next
		}
	}
}

// decode decodes %XX where it stands for a byte, and leaves the rest as it is.
func decode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if high, low := hexValue(s[i+1]), hexValue(s[i+2]); high >= 0 && low >= 0 {
				b.WriteByte(byte(high<<4 | low))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func hexValue(c byte) int {
	return strings.IndexByte("0123456789abcdef", lower(c))
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// reescape writes the bytes that are not ASCII as the PATH of a service has them.
func reescape(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 0x80:
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		case c == '%' && i+2 < len(s) && hexValue(s[i+1]) >= 8 && hexValue(s[i+2]) >= 0:
			b.WriteString("%") // its digits follow; a PATH has them in upper case
		default:
			b.WriteByte(c)
		}
	}
	return upperEscapes(b.String())
}

// upperEscapes writes the digits of %XX in upper case.
func upperEscapes(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' && hexValue(b[i+1]) >= 0 && hexValue(b[i+2]) >= 0 {
			copy(b[i+1:i+3], strings.ToUpper(s[i+1:i+3]))
			i += 2
		}
	}
	return string(b)
}

// upToEnd leaves out what no longer belongs to a path for whoever decodes it before they look for its end.
func upToEnd(p string) string {
	if i := strings.IndexAny(p, "?#\x00"); i >= 0 {
		p = p[:i]
	}
	return p
}

// withoutParameters leaves out what stands behind a ";" in each segment.
func withoutParameters(p string) string {
	if !strings.Contains(p, ";") {
		return p
	}
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}
