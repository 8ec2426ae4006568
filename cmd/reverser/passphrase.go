package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"reverser/internal/access"
	"reverser/internal/config"
	"reverser/internal/export"
)

const passphraseWords = `The passphrase is taken from --passphrase-file, from ` + config.PassphraseEnv + `, or asked
for on the terminal. It is never an argument: other users can see those.`

// passphraseWork is less in tests.
var passphraseWork = export.Work

func addPassphraseFlag(fl *pflag.FlagSet, file *string) {
	fl.StringVar(file, "passphrase-file", "", "`FILE` that holds the passphrase, readable only by you; - is stdin (default: "+config.PassphraseEnv+", else the terminal)")
}

// passphrase gets the passphrase of an export. For a new one it is asked for twice, and may not be short.
func (c *cli) passphrase(file string, trusted []int, isNew bool) (phrase string, err error) {
	switch env := os.Getenv(config.PassphraseEnv); {
	case file != "":
		if phrase, err = config.ReadPassphraseFile(file, c.stdin, access.Rules{Trusted: trusted}); err != nil {
			return "", usage(err)
		}
	case env != "":
		phrase = env
	default:
		if phrase, err = askPassphrase(isNew); err != nil {
			return "", err
		}
	}
	if n := utf8.RuneCountInString(phrase); isNew && n < export.LeastPassphrase {
		return "", usageHint("four or more words that you choose by chance are good, and easy to write down",
			"a passphrase of %d characters can be guessed by whoever gets the file: take %d or more", n, export.LeastPassphrase)
	}
	return phrase, nil
}

// askPassphrase asks whoever sits at the terminal, which the process's own input and output need not be.
func askPassphrase(isNew bool) (string, error) {
	in, out, err := openTerminal()
	if err != nil {
		return "", usageHint("give --passphrase-file FILE, or set "+config.PassphraseEnv, "there is no terminal to ask for the passphrase: %w", err)
	}
	defer in.Close()
	defer out.Close()
	first, err := askSecret(in, out, "Passphrase of the export: ")
	if err != nil || !isNew {
		return first, err
	}
	second, err := askSecret(in, out, "The same once more: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", usage(errors.New("the two passphrases are not the same: nothing is written"))
	}
	return first, nil
}

// askSecret reads a line that the terminal does not show.
func askSecret(in, out *os.File, prompt string) (string, error) {
	fd := int(in.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("ask for the passphrase: %w", err)
	}
	// A process that ends meanwhile would leave a terminal that shows nothing.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	fmt.Fprint(out, prompt)
	type answer struct {
		line []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() { // after a signal it stays in its read, and the process ends
		line, err := term.ReadPassword(fd)
		answers <- answer{line, err}
	}()
	select {
	case a := <-answers:
		fmt.Fprintln(out)
		if a.err != nil {
			return "", fmt.Errorf("ask for the passphrase: %w", a.err)
		}
		if len(a.line) == 0 {
			return "", usage(errors.New("there is no passphrase"))
		}
		return string(a.line), nil
	case sig := <-signals:
		term.Restore(fd, before)
		fmt.Fprintln(out)
		return "", fmt.Errorf("%s: nothing is done", sig)
	}
}
