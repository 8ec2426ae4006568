package sys

import (
	"runtime"
	"testing"
)

func TestAvailable(t *testing.T) {
	n := AvailableMemory()
	switch runtime.GOOS {
	case "linux", "darwin", "windows":
		if n < 16*mib {
			t.Errorf("AvailableMemory() = %d; this test runs, so there is more", n)
		}
	}
}

func TestFigures(t *testing.T) {
	for _, c := range []struct {
		available, budget, runtime int64
		names, strangers           int
	}{
		{0, 128, 0, 16_384, 0}, // unknown
		{128, 32, 157, 4096, 64},
		{256, 64, 197, 8192, 128},
		{512, 128, 384, 16_384, 256},
		{1024, 128, 768, 32_768, 512},
		{24 << 10, 128, 18 << 10, 786_432, 12 << 10},
	} {
		if got := MostStrangers(c.available * mib); got != c.strangers {
			t.Errorf("MostStrangers(%d MiB) = %d, want %d", c.available, got, c.strangers)
		}
		if got := MostNames(c.available * mib); got != c.names {
			t.Errorf("MostNames(%d MiB) = %d, want %d", c.available, got, c.names)
		}
		if got := MemoryBudget(c.available*mib) / mib; got != c.budget {
			t.Errorf("MemoryBudget(%d MiB) = %d MiB, want %d", c.available, got, c.budget)
		}
		got := RuntimeLimit(c.available * mib)
		if got/mib != c.runtime {
			t.Errorf("RuntimeLimit(%d MiB) = %d MiB, want %d", c.available, got/mib, c.runtime)
		}
		if live := MemoryBudget(c.available*mib) + 10_000*(8<<10) + 16*mib; got != 0 && got < live+live/4 {
			t.Errorf("RuntimeLimit(%d MiB) = %d MiB: the collector would have no room above the %d MiB that are live", c.available, got/mib, live/mib)
		}
	}
}
