package main

import (
	"bytes"
	"strings"
	"testing"

	"reverser/internal/doctor"
)

// TestDoctorEscapes: what a stranger says reaches the terminal as text, on its own line.
func TestDoctorEscapes(t *testing.T) {
	var out bytes.Buffer
	c := newCLI(strings.NewReader(""), &out, &out)
	c.printCheck(doctor.Check{Name: "services", State: doctor.Fail, Found: "denied\x1b]0;x\a\nok    all is well", Hint: "\x9b31m\u202e"})
	if text := out.String(); strings.Count(text, "\n") != 2 || strings.ContainsAny(text, "\x1b\x9b\a\u202e") || !strings.Contains(text, "denied") {
		t.Errorf("printed %q, want two lines without what a terminal obeys", text)
	}
}
