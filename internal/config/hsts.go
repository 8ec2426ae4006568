package config

import (
	"time"

	"reverser/internal/grammar"
)

// secureOptions are those of services whose TLS the proxy ends.
var secureOptions = []exposeOption{
	{"hsts", []grammar.Kind{grammar.KindHTTPS}, func(_ *doc, v any, e *grammar.Expose) (string, error) {
		d, err := durationOption(v, time.Second, mostHSTS, `"1h" to begin with, and "365d" when all is well`)
		e.Options.Proxy.HSTS = grammar.Duration(d)
		return "", err
	}},
}

// mostHSTS is what lists of browsers ask for, twice.
const mostHSTS = 2 * 365 * 24 * time.Hour
