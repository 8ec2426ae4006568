package escape

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"plain text = \"quoted\" C:\\new", "plain text = \"quoted\" C:\\new"},
		{"日本 é 🙂", "日本 é 🙂"},
		{"\x1b[31mred", `\u001b[31mred`},
		{"\x1b]52;c;ZXZpbA==\x07", `\u001b]52;c;ZXZpbA==\u0007`},
		{"a\nb\rc\td", `a\nb\rc\td`},
		{"\u009b31m\u0085", `\u009b31m\u0085`},
		{"\x9b31m", `\ufffd31m`}, // C1 as one byte
		{"safe\u202egnp.exe\u2066", `safe\u202egnp.exe\u2066`},
		{"\u2028\u200b\ufeff\x7f\x00", `\u2028\u200b\ufeff\u007f\u0000`},
		{"\U000e0041", `\udb40\udc41`}, // a tag: invisible
	} {
		if got := Text(c.in); got != c.want {
			t.Errorf("Text(%q) = %q, want %q", c.in, got, c.want)
		}
	}
	long := Text(strings.Repeat("é", 30_000))
	if len(long) > Most+40 || !strings.HasSuffix(long, "… (60000 bytes)") || !utf8.ValidString(long) {
		t.Errorf("a long text became %d bytes, ending in %q", len(long), long[len(long)-20:])
	}
}

// TestWriter: line breaks and tabs pass, and JSON means the same.
func TestWriter(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	fmt.Fprint(w, "a\tb\n\x1b[2J\r")
	if got, want := b.String(), "a\tb\n\\u001b[2J\\r"; got != want {
		t.Errorf("the writer passed %q, want %q", got, want)
	}
	b.Reset()
	in := map[string]string{"name": "\x1b[31m\u009b\u202e\x7f\U000e0041 é 🙂"}
	if err := json.NewEncoder(w).Encode(in); err != nil {
		t.Fatal(err)
	}
	var out map[string]string
	if err := json.Unmarshal(b.Bytes(), &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%s means %q, %v; want %q", b.Bytes(), out, err, in)
	}
	if i := strings.IndexFunc(strings.TrimSpace(b.String()), func(r rune) bool { return !harmless(r) }); i >= 0 {
		t.Errorf("%q has a character that is not harmless", b.String())
	}
	if _, err := NewWriter(broken{}).Write([]byte("x")); err == nil {
		t.Error("the error of the writer behind was lost")
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

// TestHandler: each kind of value passes as a text, and what cannot be dangerous as it is.
func TestHandler(t *testing.T) {
	const evil = "\x1b[31m"
	var b bytes.Buffer
	log := slog.New(Handler{Next: slog.NewJSONHandler(&b, nil)})
	var nobody *netip.Addr
	log.With("with", evil).WithGroup("group"+evil).Info("message"+evil, "string", evil, "err", errors.New(evil), "n", 5, "yes", true,
		"nil", nil, "nobody", nobody, "list", []string{evil}, "addr", netip.MustParseAddr("192.0.2.1"), "key"+evil, valuer(evil),
		slog.Group("inner", "a", evil), slog.Attr{})
	const gone = `\u001b[31m`
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "time")
	want := map[string]any{
		"level": "INFO", "msg": "message" + gone, "with": gone,
		"group_[31m": map[string]any{
			"string": gone, "err": gone, "n": 5.0, "yes": true, "nil": nil, "nobody": "<nil>", "list": "[" + gone + "]", "addr": "192.0.2.1", "key_[31m": gone,
			"inner": map[string]any{"a": gone},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the record became\n%v, want\n%v", got, want)
	}
}

type valuer string

func (v valuer) LogValue() slog.Value { return slog.StringValue(string(v)) }
