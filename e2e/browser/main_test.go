package browser

import (
	"fmt"
	"os"
	"testing"

	"reverser/internal/leaktest"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "reverser-browser-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	code := leaktest.Run(m)
	os.RemoveAll(dir)
	os.Exit(code)
}
