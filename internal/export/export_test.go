package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

const phrase = "correct horse battery"

// picture is the state of a proxy with a key.
func picture(t *testing.T) state.Picture {
	t.Helper()
	d, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, _, err := d.Identity(); err != nil {
		t.Fatal(err)
	}
	allow, err := grammar.ParsePolicy([]string{"tcp/9000"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddKey("nas", allow, state.Limits{}); err != nil {
		t.Fatal(err)
	}
	p, err := d.Picture()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sealed is what Write makes, with less work for the passphrase.
func sealed(t *testing.T, e Export) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, e, phrase, 1); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(b []byte, passphrase string) (Export, error) {
	b, err := Load(bytes.NewReader(b))
	if err != nil {
		return Export{}, err
	}
	return Open(b, passphrase)
}

func TestRoundTrip(t *testing.T) {
	for _, p := range []state.Picture{picture(t), nil} {
		want := Export{Program: "v1", Made: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), State: p}
		b := sealed(t, want)
		got, err := read(b, phrase)
		if err != nil {
			t.Fatal(err)
		}
		if !got.State.Equal(p) || got.Program != "v1" || !got.Made.Equal(want.Made.Truncate(time.Second)) {
			t.Errorf("read %+v; want %+v", got, want)
		}
		for _, word := range []string{"identity.pem", "PRIVATE", "secret", "reverser"} {
			if bytes.Contains(b, []byte(word)) {
				t.Errorf("%q stands in the file as it is", word)
			}
		}
	}
}

// A file that was cut off at any byte, or has a bit or a byte too many, is refused, and the error says what to do.
func TestDamage(t *testing.T) {
	whole := sealed(t, Export{Program: "v1", State: picture(t)})
	refused := func(what string, at int, b []byte) {
		t.Helper()
		e, err := read(b, phrase)
		if err == nil || e.State != nil {
			t.Fatalf("%s at byte %d of %d: read %+v, %v", what, at, len(whole), e, err)
		}
		if text := err.Error(); !strings.Contains(text, "damaged") && !strings.Contains(text, "empty") && !strings.Contains(text, "does not begin") {
			t.Fatalf("%s at byte %d of %d: %v", what, at, len(whole), err)
		}
	}
	for n := range whole {
		refused("cut", n, whole[:n])
	}
	const header = 200 // of text; behind it a bit is as good as another
	for n := range 8 * len(whole) {
		if n/8 > header && n%8 != n/8%8 {
			continue
		}
		b := bytes.Clone(whole)
		b[n/8] ^= 1 << (n % 8)
		refused("a changed bit", n/8, b)
	}
	refused("one more", len(whole), append(bytes.Clone(whole), 0))
	refused("a second file", len(whole), append(bytes.Clone(whole), whole...))
	for n := 1; n < len(whole); n += 7 {
		refused("a byte that is missing", n, append(bytes.Clone(whole[:n-1]), whole[n:]...))
	}
}

func TestWrongPassphrase(t *testing.T) {
	b := sealed(t, Export{State: picture(t)})
	for _, wrong := range []string{"x", phrase + " ", phrase[1:], strings.ToUpper(phrase)} {
		if _, err := read(b, wrong); !errors.Is(err, ErrPassphrase) {
			t.Errorf("with %q: %v", wrong, err)
		}
	}
	if _, err := read(b, ""); err == nil {
		t.Error("no passphrase is enough")
	}
}

// endless is a file of any size.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestStrangeFiles(t *testing.T) {
	if _, err := Load(io.MultiReader(strings.NewReader(magic), endless{})); err == nil || !strings.Contains(err.Error(), "64 MiB") {
		t.Errorf("an endless file: %v", err)
	}
	for _, text := range []string{"hello", "PK\x03\x04", "-----BEGIN AGE ENCRYPTED FILE-----\n"} {
		if _, err := Load(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), "does not begin as an export") {
			t.Errorf("%q: %v", text, err)
		}
	}
	// Whoever makes the file chooses how much memory it would take: 2^30 KiB are too many.
	b := bytes.Replace(sealed(t, Export{}), []byte(" 1\n"), []byte(" 30\n"), 1)
	if _, err := read(b, phrase); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("too much work: %v", err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var toKey bytes.Buffer
	w, err := age.Encrypt(&toKey, other.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := read(toKey.Bytes(), phrase); err == nil || !strings.Contains(err.Error(), "something else than a passphrase") {
		t.Errorf("encrypted with a key: %v", err)
	}
}

// Who knows the passphrase may still have another program, or none of ours.
func TestStrangeDocuments(t *testing.T) {
	p := picture(t)
	var files []file
	for _, f := range p {
		files = append(files, file(f))
	}
	named := func(name string) []file { return append([]file{{name, []byte("x")}}, files...) }
	doc := func(version int, role string, files []file) string {
		b, err := json.Marshal(document{Version: version, Program: "v9.9", Role: role, Files: files})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tt := range []struct{ what, plain, want string }{
		{"no document", "tar", "no state of this program"},
		{"nothing", "", "no state of this program"},
		{"another document", "{}", "no state of this program"},
		{"a newer format", `{"reverser_state":2,"program":"v9.9","all":"is new"}`, "format 2, and this program knows format 1: reverser v9.9 made it, so import it with that version or a newer one"},
		{"a field more", strings.Replace(doc(1, "proxy", files), `"made"`, `"colour":1,"made"`, 1), `"colour"`},
		{"up", doc(1, "proxy", named("../identity.pem")), `no file "../identity.pem"`},
		{"a path", doc(1, "proxy", named("/etc/passwd")), `no file "/etc/passwd"`},
		{"the lock", doc(1, "proxy", named("lock")), `no file "lock"`},
		{"a folder", doc(1, "proxy", named("import.ready/files")), `no file "import.ready/files"`},
		{"no name", doc(1, "proxy", named("")), `no file ""`},
		{"twice", doc(1, "proxy", append(files, files[0])), "twice"},
		{"no identity", doc(1, "proxy", files[1:]), "no identity.pem"},
		{"of a bridge", doc(1, "bridge", files), "files of a proxy"},
		{"of a proxy without files", doc(1, "proxy", nil), "files of a bridge"},
		{"keys of a newer program", doc(1, "proxy", []file{files[0], {"keys.json", bytes.Replace(files[1].Data, []byte(`"name"`), []byte(`"colour": 1, "name"`), 1)}}), `unknown field "colour") (reverser v9.9 made it`},
		{"no certificate", doc(1, "proxy", []file{{"identity.pem", []byte("x")}}), "identity.pem"},
		{"no address", doc(1, "proxy", append(files, file{"address", bytes.Repeat([]byte("x"), 1<<20)})), "no address"},
	} {
		var b bytes.Buffer
		if err := seal(&b, []byte(tt.plain), phrase, 1); err != nil {
			t.Fatal(err)
		}
		if e, err := read(b.Bytes(), phrase); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: read %+v, %v; want an error with %q", tt.what, e, err, tt.want)
		}
	}
}
