package main

import (
	"github.com/spf13/pflag"

	"reverser/internal/config"
)

// addCommonFlags adds what proxy and bridge share. All defaults are empty, so
// that a flag which is not given leaves the word to the configuration file.
func addCommonFlags(fl *pflag.FlagSet, args *config.CommonArgs, file, admin *string) {
	fl.StringVar(&args.Drain, "drain", "", "`DURATION` that open connections get to finish after a signal to stop (default 30s)")
	fl.StringVar(&args.ResumeWithin, "resume-within", "", "`DURATION` that connections outlive a break of the link, then they are reset (default 5m)")
	addStateFlag(fl, &args.State)
	fl.StringVar(file, "config", "", "configuration `FILE` (TOML, or the source system's XML); flags win over it")
	fl.StringVar(admin, "admin", "", "not in this version: `ADDR` of the HTTP API and page")
	fl.StringVar(&args.LogFormat, "log-format", "", "`FORMAT` of the log on stderr: text or json (default text)")
	fl.StringVar(&args.LogLevel, "log-level", "", "least `LEVEL` that is logged: debug, info, warn or error (default info)")
}

func addStateFlag(fl *pflag.FlagSet, state *string) {
	fl.StringVar(state, "state", "", "state directory `DIR` (default: the platform's place for it)")
}
