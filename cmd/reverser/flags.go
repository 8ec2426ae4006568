package main

import "github.com/spf13/pflag"

// addCommonFlags adds what proxy and bridge share. All defaults are empty, so
// that a flag which is not given leaves the word to the configuration file.
func addCommonFlags(fl *pflag.FlagSet, state, config, admin, logFormat *string) {
	addStateFlag(fl, state)
	fl.StringVar(config, "config", "", "configuration `FILE` (TOML, or the source system's XML); flags win over it")
	fl.StringVar(admin, "admin", "", "not in this version: `ADDR` of the HTTP API and page")
	fl.StringVar(logFormat, "log-format", "", "`FORMAT` of the log on stderr: text or json (default text)")
}

func addStateFlag(fl *pflag.FlagSet, state *string) {
	fl.StringVar(state, "state", "", "state directory `DIR` (default: the platform's place for it)")
}
