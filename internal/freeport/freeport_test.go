package freeport

import (
	"net"
	"testing"

	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestGet: no port comes twice, and each can be listened at.
func TestGet(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		addr, err := Addr()
		if err != nil {
			t.Fatal(err)
		}
		if seen[addr] {
			t.Fatalf("%s came twice", addr)
		}
		seen[addr] = true
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}
