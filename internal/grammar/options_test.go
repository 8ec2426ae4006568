package grammar

import (
	"strings"
	"testing"
)

func TestParseProxyOptions(t *testing.T) {
	for _, s := range []string{"", "{}"} {
		o, err := ParseProxyOptions([]byte(s))
		if err != nil {
			t.Errorf("ParseProxyOptions(%q): %v", s, err)
		}
		if !(Options{Proxy: o}).Equal(Options{}) {
			t.Errorf("ParseProxyOptions(%q) = %+v, want none", s, o)
		}
		if b, err := o.Encode(); len(b) != 0 || err != nil {
			t.Errorf("no options are encoded as %q, %v", b, err)
		}
	}
	for s, want := range map[string]string{
		`{"of_a_later_version":true}`: `the option "of_a_later_version", which this version does not know: update the proxy`,
		`{} {}`:                       "there is more behind them",
		`{`:                           "cannot be read",
		`[]`:                          "cannot be read",
		"\x00":                        "cannot be read",
	} {
		if _, err := ParseProxyOptions([]byte(s)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseProxyOptions(%q): %v, want %q", s, err, want)
		}
	}
}
