package config

import (
	"fmt"
	"io"
	"strings"

	"reverser/internal/access"
)

// PassphraseEnv is the environment variable that may hold the passphrase of an export.
const PassphraseEnv = "REVERSER_PASSPHRASE"

// ReadPassphraseFile reads a passphrase out of a file, or out of stdin for "-": its one line. Who else may read or write the file is
// as for a token file.
func ReadPassphraseFile(path string, stdin io.Reader, rules access.Rules) (string, error) {
	text, err := readPassphraseFile(path, stdin, rules)
	if path == "-" {
		path = "standard input"
	}
	if err != nil {
		return "", fmt.Errorf("passphrase of %s: %w", path, err)
	}
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	switch {
	case text == "":
		return "", fmt.Errorf("passphrase of %s: there is none", path)
	case strings.ContainsAny(text, "\r\n"):
		return "", fmt.Errorf("passphrase of %s: it has several lines, and a passphrase is one", path)
	}
	return text, nil
}

func readPassphraseFile(path string, stdin io.Reader, rules access.Rules) (string, error) {
	if path == "-" {
		return readAll(stdin)
	}
	text, file, err := readText(path, rules)
	if err != nil {
		if hint := hintFor(err); hint != "" {
			return "", fmt.Errorf("%w: %s", trimPath(err), hint)
		}
		return "", trimPath(err)
	}
	for _, check := range []func() ([]string, *access.Fault){file.Private, file.Owned} {
		if _, fault := check(); fault != nil { // what is noted is for a process that goes on
			return "", fault
		}
	}
	return text, nil
}
