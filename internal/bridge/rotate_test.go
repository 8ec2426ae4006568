package bridge

import (
	"testing"

	"reverser/internal/grammar"
)

// TestSecretBeforeTheFirstDial: a newer token that is read while a bridge is starting is the one that it begins with.
func TestSecretBeforeTheFirstDial(t *testing.T) {
	b, err := New(Config{Token: grammar.Token{Addrs: []string{"127.0.0.1:1"}, Secret: [32]byte{1}}})
	if err != nil {
		t.Fatal(err)
	}
	newer := [32]byte{2}
	for _, s := range []Settings{{}, {Secret: newer}, {}} { // zero changes nothing
		if _, err := b.Apply(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	b.uplinks[0].newDialer()
	if !b.uplinks[0].dialer.Proves(newer) || b.proves([32]byte{1}) {
		t.Error("it begins with another secret")
	}
	b.stop()
}
