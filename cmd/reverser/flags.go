package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"reverser/internal/config"
)

// addCommonFlags adds what proxy and bridge share. All defaults are empty, so
// that a flag which is not given leaves the word to the configuration file.
func addCommonFlags(fl *pflag.FlagSet, state, config, admin, logFormat *string) {
	addStateFlag(fl, state)
	fl.StringVar(config, "config", "", "configuration `FILE` (TOML, or the source system's XML); flags win over it")
	fl.StringVar(admin, "admin", "", "not in this version: `ADDR` of the HTTP API and page")
	fl.StringVar(logFormat, "log-format", "", "`FORMAT` of the log on stderr: text or json (default text)")
}

// limits are the two durations that proxy and bridge share.
type limits struct{ drain, resumeWithin string }

func (l *limits) add(fl *pflag.FlagSet) {
	fl.StringVar(&l.drain, "drain", "", "`DURATION` that open connections get to finish after a signal to stop (default 30s)")
	fl.StringVar(&l.resumeWithin, "resume-within", "", "`DURATION` that connections outlive a break of the link, then they are reset (default 5m)")
}

// parse checks what the flags and, where they are not given, a file say. 0 is
// for the role's own default; a drain that is to take no time is negative.
func (l *limits) parse(drain, resumeWithin string) (d, r time.Duration, err error) {
	if s := first(l.drain, drain); s != "" {
		if d, err = config.ParseDrain(s); err != nil {
			return 0, 0, usage(fmt.Errorf("--drain: %w", err))
		}
		d = cmp.Or(d, -1)
	}
	if s := first(l.resumeWithin, resumeWithin); s != "" {
		if r, err = config.ParseResumeWithin(s); err != nil {
			return 0, 0, usage(fmt.Errorf("--resume-within: %w", err))
		}
	}
	return d, r, nil
}

func addStateFlag(fl *pflag.FlagSet, state *string) {
	fl.StringVar(state, "state", "", "state directory `DIR` (default: the platform's place for it)")
}
