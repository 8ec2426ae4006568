package config

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"reverser/internal/access"
	"reverser/internal/grammar"
)

// No file that we read is larger; a disk image given by mistake is.
const maxFile = 1 << 20

// readTokenFile reads the token out of a file, or out of stdin for "-". A file
// that others can read or write is refused: the secret in it is no longer one. So is one
// of another user, who can put another token in it. The notes are for the log.
func readTokenFile(path string, stdin io.Reader, rules access.Rules) (token string, notes []string, err error) {
	if path == "-" {
		text, err := readAll(stdin)
		if err != nil {
			if e, ok := errors.AsType[*Error](err); ok {
				e.File = "standard input"
			}
			return "", nil, fmt.Errorf("read the token from standard input: %w", err)
		}
		if strings.TrimSpace(text) == "" {
			return "", nil, errors.New("read the token from standard input: there was none")
		}
		return strings.TrimSpace(text), nil, nil
	}
	text, file, err := readText(path, rules)
	if e, ok := errors.AsType[*Error](err); ok {
		return "", nil, fmt.Errorf("token file %w", e)
	}
	if err != nil {
		if hint := hintFor(err); hint != "" {
			return "", nil, fmt.Errorf("read token file %s: %w: %s", path, trimPath(err), hint)
		}
		return "", nil, fmt.Errorf("read token file %s: %w", path, trimPath(err))
	}
	for _, check := range []func() ([]string, *access.Fault){file.Private, file.Owned} {
		more, fault := check()
		if fault != nil {
			return "", nil, fmt.Errorf("token file %s: %w", path, fault)
		}
		notes = append(notes, more...)
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", nil, fmt.Errorf("token file %s is empty: put the token in it that the proxy or `reverser key add` printed", path)
	}
	return text, notes, nil
}

// readToken is readTokenFile and a look at what it found.
func readToken(path string, rules access.Rules) (grammar.Token, []string, error) {
	s, notes, err := readTokenFile(path, nil, rules)
	if err != nil {
		return grammar.Token{}, nil, err
	}
	t, err := grammar.ParseToken(s)
	if err != nil {
		return grammar.Token{}, nil, fmt.Errorf("token file %s: %w", path, err)
	}
	return t, notes, nil
}

// readText reads a file as UTF-8 text, and looks at who else can use the file that it has open.
func readText(path string, rules access.Rules) (text string, file *access.File, err error) {
	f, err := rules.Open(path)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", nil, err
	}
	if info.IsDir() {
		return "", nil, errors.New("this is a directory")
	}
	if file, err = rules.Look(path, f); err != nil {
		return "", nil, err
	}
	text, err = readAll(f)
	if e, ok := errors.AsType[*Error](err); ok {
		e.File = path
	}
	return text, file, err
}

// readAll reads a text. Its errors name no file.
func readAll(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	text, bad := decode(b)
	if bad != nil {
		return "", bad
	}
	return text, nil
}

// saveAsUTF8 is the remedy for text in another encoding.
const saveAsUTF8 = "save the file as UTF-8 (in Notepad: Save as, Encoding, UTF-8)"

// decode makes UTF-8 of what editors and shells write on Windows: UTF-8 with a
// byte-order mark, and UTF-16 with one (PowerShell's > does that) or without.
func decode(b []byte) (string, *Error) {
	var order binary.ByteOrder
	s := string(b)
	switch {
	case strings.HasPrefix(s, "\xef\xbb\xbf"):
		s = s[3:]
	case strings.HasPrefix(s, "\xff\xfe"):
		order, b = binary.LittleEndian, b[2:]
	case strings.HasPrefix(s, "\xfe\xff"):
		order, b = binary.BigEndian, b[2:]
	case len(b) > 1 && b[0] != 0 && b[1] == 0: // what we read begins with an ASCII character
		order = binary.LittleEndian
	case len(b) > 1 && b[0] == 0 && b[1] != 0:
		order = binary.BigEndian
	case !utf8.ValidString(s) && oldCharset.MatchString(s):
		// The words in another encoding are comments. Keys and values that we know
		// are ASCII, and no byte of these encodings' letters looks like markup.
		s = strings.ToValidUTF8(s, string(utf8.RuneError))
	}
	if order != nil {
		units := make([]uint16, 0, len(b)/2)
		for ; len(b) >= 2; b = b[2:] {
			units = append(units, order.Uint16(b))
		}
		s = string(utf16.Decode(units))
	}
	line := 0
	for text := range strings.Lines(s) {
		line++
		switch {
		case !utf8.ValidString(text):
			return "", &Error{Line: line, Text: "this is not UTF-8 text, but in another encoding, such as GBK", Hint: saveAsUTF8, Err: errEncoding}
		case strings.Contains(text, "\x00"):
			return "", &Error{Line: line, Text: "this is no text: there is a zero byte in it", Hint: saveAsUTF8, Err: errEncoding}
		}
	}
	return s, nil
}

var errEncoding = errors.New("not UTF-8")

// oldCharset finds the declaration of an encoding of which we can read the
// ASCII part.
var oldCharset = regexp.MustCompile(`(?i)^\s*<\?xml[^>]*\sencoding=["'](gb2312|gbk|gb18030|iso-8859-\d+|windows-\d+)["']`)

// trimPath takes "open FILE" out of an error of package os: whoever wraps it
// says that.
func trimPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func hintFor(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "check the path"
	case errors.Is(err, fs.ErrPermission):
		return "the file must be readable by the user that runs reverser"
	}
	return ""
}
