package grammar

import (
	"strings"
	"testing"
)

func TestParseServices(t *testing.T) {
	if a, err := ParseServices("tcp/9000-9010"); err != nil || a.String() != "tcp/9000-9010" {
		t.Errorf("a range = %v, %v", a, err)
	}
	for s, want := range map[string]string{"": "service is empty: give the PUBLIC", "foo": `service "foo" is neither`, "tcp/0": `service "tcp/0": `} {
		if _, err := ParseServices(s); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "allow") {
			t.Errorf("%q: %v; want %s", s, err, want)
		}
	}
}
