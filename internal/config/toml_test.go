package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLineOffsets(t *testing.T) {
	for _, text := range []string{"", "\n", "a", "a\n", "\n\na\r\nb\n", "listen = 1\n\n[[key]]\nname = \"a\""} {
		begins := lineBegins(text)
		for offset := range len(text) + 1 {
			if got, want := begins.line(offset), strings.Count(text[:offset], "\n")+1; got != want {
				t.Errorf("the byte %d of %q is on line %d, want %d", offset, text, got, want)
			}
		}
	}
}

func TestTOMLLines(t *testing.T) {
	text := "proxy = \"a\"\r\n\n[[expose]]\npublic = \"\"\"\n\n\"\"\"\n  target = 1 # x\n[other]\nx.y = 1\n\n[[expose]]\n\n\"public\" = 2"
	want := map[string]int{
		"proxy": 1, "expose": 3, "expose[0]": 3, "expose[0].public": 4, "expose[0].target": 7, "other": 8, "other.x": 9, "other.x.y": 9,
		"expose[1]": 11, "expose[1].public": 13,
	}
	if got := tomlLines(text); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("tomlLines = %v, want %v", got, want)
	}
}

// BenchmarkManyServices reads files of a bridge. The time for a service is the same however many there are.
func BenchmarkManyServices(b *testing.B) {
	for _, n := range []int{1000, 2000, 4000, 8000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var text strings.Builder
			text.WriteString("proxy = \"proxy.example.com\"\n")
			for i := range n {
				fmt.Fprintf(&text, "\n[[expose]]\npublic = \"tcp/%d\"\ntarget = \"127.0.0.1:80\"\n", 10000+i)
			}
			file := filepath.Join(b.TempDir(), "bridge.toml")
			if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, _, err := bridgeOf(file); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/service")
		})
	}
}
