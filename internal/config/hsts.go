package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"reverser/internal/grammar"
)

// secureOptions are those of services whose TLS the proxy ends.
var secureOptions = []exposeOption{
	{"hsts", []grammar.Kind{grammar.KindHTTPS}, func(_ *doc, v any, e *grammar.Expose) (string, error) {
		const say = `write a time, hsts = "1h" to begin with and hsts = "365d" when all is well, or leave it out`
		s, ok := v.(string)
		if !ok {
			return say, errors.New("the value is no text")
		}
		d, err := parseDays(s)
		if err != nil {
			return say, err
		}
		e.Options.Proxy.HSTS = grammar.Duration(d)
		return "", nil
	}},
}

// mostHSTS is what lists of browsers ask for, twice.
const mostHSTS = 2 * 365 * 24 * time.Hour

// parseDays parses a time that may be many days: "365d", "12h".
func parseDays(s string) (d time.Duration, err error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is no length of time", s)
		}
		d = time.Duration(n) * 24 * time.Hour
	} else if d, err = time.ParseDuration(s); err != nil {
		return 0, fmt.Errorf("%q is no length of time", s)
	}
	if d < time.Second || d > mostHSTS {
		return 0, fmt.Errorf("%q is not between a second and 730 days", s)
	}
	return d, nil
}
