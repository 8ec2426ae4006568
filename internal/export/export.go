// Package export is the file in which a state directory moves to another machine: its files as one JSON document, encrypted with a
// passphrase in the format of age (age-encryption.org/v1, a scrypt recipient). The program of that name decrypts it too.
//
// The document carries a version of its own. A reader refuses a newer one by name. What is encrypted is also authenticated, in pieces
// with an end: a file that was cut off or changed anywhere is refused. The package touches no file and asks nobody for the passphrase.
package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"

	"reverser/internal/state"
)

// version is the newest form of the document that this program knows. A change that an older program could misread gets a new one.
const version = 1

// Work is how much work a passphrase is, for whoever knows it and whoever guesses: scrypt with 2^17 blocks of 1 KiB, which take
// Memory bytes and some 0.4 s of one core.
const (
	Work   = 17
	Memory = 1 << (Work + 10)
)

// mostWork is the most that Open does: a file that was encrypted again with the age program has 2^18.
const mostWork = 18

// mostBytes is more than any export has, encrypted or not: the largest files of a state directory are some megabytes together.
const mostBytes = 64 << 20

// magic begins every file of age.
const magic = "age-encryption.org/"

// LeastPassphrase is how many characters a passphrase has at least.
const LeastPassphrase = 8

// Export is what an export has in it.
type Export struct {
	Program string // the version of the program that made it
	Made    time.Time
	State   state.Picture
}

type document struct {
	Version int       `json:"reverser_state"`
	Program string    `json:"program"`
	Made    time.Time `json:"made"`
	Role    string    `json:"role"`
	Files   []file    `json:"files"`
}

type file struct {
	Name string `json:"name"`
	Data []byte `json:"data"` // base64
}

// Write encrypts e and writes it to w. The power of two of scrypt's work is Work, unless a test has no time.
func Write(w io.Writer, e Export, passphrase string, work int) error {
	doc := document{Version: version, Program: e.Program, Made: e.Made.UTC().Truncate(time.Second), Role: e.State.Role(), Files: []file{}}
	for _, f := range e.State {
		doc.Files = append(doc.Files, file(f))
	}
	plain, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return seal(w, plain, passphrase, work)
}

func seal(w io.Writer, plain []byte, passphrase string, work int) error {
	to, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return err
	}
	to.SetWorkFactor(work)
	sealed, err := age.Encrypt(w, to)
	if err != nil {
		return err
	}
	if _, err := sealed.Write(plain); err != nil {
		return err
	}
	return sealed.Close()
}

// ErrPassphrase is what errors.Is finds when a passphrase does not open a file. A file whose first bytes were changed looks the same.
var ErrPassphrase = errors.New("the passphrase is wrong, or the file is damaged")

// Load reads the bytes of an export, without a look into what is encrypted.
func Load(r io.Reader) ([]byte, error) {
	sealed, err := io.ReadAll(io.LimitReader(r, mostBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(sealed) > mostBytes:
		return nil, fmt.Errorf("it has more than %d MiB, which no export has", mostBytes>>20)
	case len(sealed) == 0:
		return nil, errors.New("it is empty")
	case len(sealed) < len(magic) && strings.HasPrefix(magic, string(sealed)):
		return nil, errDamaged
	case !bytes.HasPrefix(sealed, []byte(magic)):
		return nil, errors.New("it does not begin as an export does: `reverser state export FILE` makes one")
	}
	return sealed, nil
}

var errDamaged = errors.New("it is damaged or cut off: take another copy of it")

// Open decrypts what Load returned, and checks that this version of the program can use all of it.
func Open(sealed []byte, passphrase string) (Export, error) {
	by, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return Export{}, err
	}
	by.SetMaxWorkFactor(mostWork)
	r, err := age.Decrypt(bytes.NewReader(sealed), by)
	switch {
	case errors.Is(err, age.ErrIncorrectIdentity):
		if !bytes.Contains(sealed, []byte("\n-> scrypt ")) {
			return Export{}, errors.New("it is damaged, or encrypted with something else than a passphrase, and then no export of this program")
		}
		return Export{}, ErrPassphrase
	case err != nil:
		return Export{}, fmt.Errorf("%w (%w)", errDamaged, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, mostBytes)) // it is as long as sealed at the most
	if err != nil {
		return Export{}, fmt.Errorf("%w (%w)", errDamaged, err)
	}
	return parse(plain)
}

func parse(plain []byte) (Export, error) {
	var head struct {
		Version int    `json:"reverser_state"`
		Program string `json:"program"`
	}
	if err := json.Unmarshal(plain, &head); err != nil || head.Version < 1 {
		return Export{}, errors.New("what is encrypted in it is no state of this program")
	}
	madeBy := "reverser " + head.Program + " made it"
	if head.Version > version {
		return Export{}, fmt.Errorf("it has format %d, and this program knows format %d: %s, so import it with that version or a newer one", head.Version, version, madeBy)
	}
	var doc document
	dec := json.NewDecoder(bytes.NewReader(plain))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return Export{}, fmt.Errorf("read it: %w (%s)", err, madeBy)
	}
	e := Export{Program: doc.Program, Made: doc.Made}
	for _, f := range doc.Files {
		e.State = append(e.State, state.File(f))
	}
	if err := e.State.Check(); err != nil {
		return Export{}, fmt.Errorf("this program cannot use what is in it: %w (%s; import it with that version or a newer one)", err, madeBy)
	}
	if role := e.State.Role(); doc.Role != role {
		return Export{}, fmt.Errorf("it says that it is of a %s and has the files of a %s", doc.Role, role)
	}
	return e, nil
}
