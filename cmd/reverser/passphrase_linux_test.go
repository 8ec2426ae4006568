package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"reverser/e2e/process"
)

// terminal is a pseudo-terminal; a program has the other end of it.
type terminal struct {
	*os.File
	program *os.File
	shown   bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	person, program, err := process.Terminal()
	if err != nil {
		t.Fatal(err)
	}
	tty := &terminal{File: person, program: program}
	t.Cleanup(func() {
		tty.Close()
		program.Close()
	})
	return tty
}

// await reads what the terminal shows up to a text.
func (tty *terminal) await(t *testing.T, text string) {
	t.Helper()
	for b := make([]byte, 1); !strings.HasSuffix(tty.shown.String(), text); {
		if _, err := tty.Read(b); err != nil {
			t.Fatalf("the terminal shows %q, then %v; want %q", tty.shown.String(), err, text)
		}
		tty.shown.Write(b)
	}
}

// echoes reports whether the terminal shows what is typed.
func (tty *terminal) echoes(t *testing.T) bool {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(tty.program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return mode.Lflag&unix.ECHO != 0
}

// The passphrase is not shown while it is typed. The terminal shows again what is typed when the program has ended, also by Ctrl-C.
func TestPassphraseIsNotShown(t *testing.T) {
	dir := t.TempDir()
	run := func(tty *terminal, args ...string) *exec.Cmd {
		cmd := exec.Command("reverser", args...)
		cmd.Dir = dir
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty.program, tty.program, tty.program
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	if out, err := exec.Command("reverser", "key", "add", "nas", "--allow", "tcp/9000", "--state", filepath.Join(dir, "st")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, interrupt := range []bool{false, true} {
		tty := newTerminal(t)
		cmd := run(tty, "state", "export", "st.state", "--state", "st")
		tty.await(t, "Passphrase of the export: ")
		for tty.echoes(t) { // it is a moment after the prompt that the program turns it off
		}
		if interrupt {
			io.WriteString(tty, "correct horse\x03")
			tty.await(t, "interrupt: nothing is done")
		} else {
			io.WriteString(tty, "correct horse battery\n")
			tty.await(t, "The same once more: ")
			for tty.echoes(t) {
			}
			io.WriteString(tty, "correct horse battery\n")
			tty.await(t, "exported the state")
		}
		if err := cmd.Wait(); (err != nil) != interrupt {
			t.Errorf("after Ctrl-C %t the program ends with %v; the terminal shows %q", interrupt, err, tty.shown.String())
		}
		if shown := tty.shown.String(); strings.Contains(shown, "horse") {
			t.Errorf("the terminal shows %q", shown)
		}
		if !tty.echoes(t) {
			t.Errorf("after Ctrl-C %t the terminal does not show what is typed any more", interrupt)
		}
		os.Remove(filepath.Join(dir, "st.state"))
	}

	// Nor does it get the bytes of an export.
	tty := newTerminal(t)
	cmd := run(tty, "state", "export", "-", "--state", "st")
	tty.await(t, "stdout is a terminal, and an export is no text")
	if err := cmd.Wait(); err == nil {
		t.Error("an export to the terminal is made")
	}
}
