package browser

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
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
	flag.Parse()
	if !slices.ContainsFunc(os.Args[1:], func(a string) bool { return strings.HasPrefix(strings.TrimLeft(a, "-"), "test.parallel") }) {
		flag.Set("test.parallel", "4") // most of them wait
	}
	code := leaktest.Run(m)
	os.RemoveAll(dir)
	os.Exit(code)
}
