package config

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"reverser/internal/grammar"
)

// No file that we read is larger; a disk image given by mistake is.
const maxFile = 1 << 20

// The causes when others may do with a secret or a configuration what is not theirs to do.
var (
	errOpen         = errors.New("others on this machine can read it")
	errWritable     = errors.New("others on this machine can write it")
	errOpenWritable = errors.New("others on this machine can read and write it")
)

// ReadTokenFile reads the token out of a file, or out of stdin for "-". A file
// that others can read or write is refused: the secret in it is no longer one. So is one
// of another user, who can put another token in it.
func ReadTokenFile(path string, stdin io.Reader) (string, error) {
	if path == "-" {
		text, err := readAll(stdin)
		if err != nil {
			return "", fmt.Errorf("read the token from standard input: %w", err)
		}
		if strings.TrimSpace(text) == "" {
			return "", errors.New("read the token from standard input: there was none")
		}
		return strings.TrimSpace(text), nil
	}
	text, info, err := readText(path)
	if err != nil {
		if hint := hintFor(err); hint != "" {
			return "", fmt.Errorf("read token file %s: %w: %s", path, trimPath(err), hint)
		}
		return "", fmt.Errorf("read token file %s: %w", path, trimPath(err))
	}
	if loose := looseMode(info); loose != nil {
		return "", fmt.Errorf("token file %s: %w: run chmod 600 %s", path, loose, path)
	}
	if text, hint := ownedByOthers(path, info); text != "" {
		return "", fmt.Errorf("token file %s: %s: %s", path, text, hint)
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", fmt.Errorf("token file %s is empty: put the token in it that the proxy or `reverser key add` printed", path)
	}
	return text, nil
}

// readToken is ReadTokenFile and a look at what it found.
func readToken(path string) (grammar.Token, error) {
	s, err := ReadTokenFile(path, nil)
	if err != nil {
		return grammar.Token{}, err
	}
	t, err := grammar.ParseToken(s)
	if err != nil {
		return grammar.Token{}, fmt.Errorf("token file %s: %w", path, err)
	}
	return t, nil
}

// readText reads a file as UTF-8 text. Mode and owner in info are those of the
// open file, so nobody exchanges the one for the other in between.
func readText(path string) (text string, info fs.FileInfo, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	info, err = f.Stat()
	if err != nil {
		return "", nil, err
	}
	if info.IsDir() {
		return "", nil, errors.New("this is a directory")
	}
	text, err = readAll(f)
	return text, info, err
}

func readAll(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return decode(b), nil
}

// decode makes UTF-8 of what editors and shells write on Windows: UTF-8 with a
// byte-order mark, and UTF-16 (PowerShell's > does that).
func decode(b []byte) string {
	var order binary.ByteOrder
	switch s := string(b); {
	case strings.HasPrefix(s, "\xef\xbb\xbf"):
		return s[3:]
	case strings.HasPrefix(s, "\xff\xfe"):
		order = binary.LittleEndian
	case strings.HasPrefix(s, "\xfe\xff"):
		order = binary.BigEndian
	case !utf8.ValidString(s) && oldCharset.MatchString(s):
		// The words in another encoding are comments. Keys and values that we know
		// are ASCII, and no byte of these encodings' letters looks like markup.
		return strings.Map(func(r rune) rune {
			if r == utf8.RuneError {
				return '?'
			}
			return r
		}, s)
	default:
		return s
	}
	units := make([]uint16, 0, len(b)/2)
	for b = b[2:]; len(b) >= 2; b = b[2:] {
		units = append(units, order.Uint16(b))
	}
	return string(utf16.Decode(units))
}

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
