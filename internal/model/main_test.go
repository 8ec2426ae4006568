package model

import (
	"flag"
	"runtime/debug"
	"testing"

	"reverser/internal/leaktest"
)

var full = flag.Bool("model.full", false, "search with all breaks, which takes about a minute")

// skipUnderRace: there is no goroutine here, and the search takes ten times as long.
func skipUnderRace(t *testing.T) {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" && s.Value == "true" {
			t.Skip("the race detector has nothing to find in a model")
		}
	}
}

func TestMain(m *testing.M) { leaktest.Main(m) }
