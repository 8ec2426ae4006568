package main

import (
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"reverser/internal/access"
	"reverser/internal/config"
	"reverser/internal/service"
)

// addCommonFlags adds what proxy and bridge share. All defaults are empty, so
// that a flag which is not given leaves the word to the configuration file.
func addCommonFlags(fl *pflag.FlagSet, args *config.CommonArgs, file *string) {
	fl.StringVar(&args.Drain, "drain", "", "`DURATION` that open connections get to finish after a signal to stop (default 30s)")
	fl.StringVar(&args.ResumeWithin, "resume-within", "", "`DURATION` that connections outlive a break of the link, then they are reset (default 5m)")
	fl.StringVar(&args.ACMEEmail, "acme-email", "", "`EMAIL` that the authority of certificates may write to (default: none)")
	fl.StringVar(&args.ACMEDirectory, "acme-directory", "", "`URL` of the ACME directory of the authority that certificates come from (default: Let's Encrypt)")
	fl.StringVar(&args.ACMERoot, "acme-root", "", "`FILE` with the root certificate of an authority that is not a public one")
	addStateFlag(fl, &args.State)
	addTrustFlag(fl, &args.TrustOwner)
	fl.StringVar(file, "config", "", "configuration `FILE` (TOML, or the source system's XML); flags win over it")
	fl.StringVar(&args.Admin.Addr, "admin", "", "`ADDR` of the HTTP API and page, such as 127.0.0.1:3011 (default: only the admin socket in the state directory)")
	fl.StringArrayVar(&args.Admin.Hosts, "admin-host", nil, "`NAME` in the address of the page, where it is not that of --admin, of its certificate or of loopback; may be given several times")
	fl.StringVar(&args.Admin.CertificateFile, "admin-certificate", "", "`FILE` with the certificate of the --admin address, in PEM, with those of the authorities behind it (default: no TLS)")
	fl.StringVar(&args.Admin.KeyFile, "admin-certificate-key", "", "`FILE` with the key of that certificate, in PEM, readable only by you")
	fl.BoolVar(&args.Admin.Plain, "admin-plain", false, "let other machines reach the --admin address without TLS, though its token can be read on the way")
	fl.StringVar(&args.LogFormat, "log-format", "", "`FORMAT` of the log on stderr: text or json (default text)")
	// isHosted looks for it before the command line is read.
	hosted := strings.TrimPrefix(service.HostedFlag, "--")
	fl.Bool(hosted, false, "a service manager has started this process: the log goes to a file in the state directory")
	fl.MarkHidden(hosted)
	fl.StringVar(&args.LogLevel, "log-level", "", "least `LEVEL` that is logged: debug, info, warn or error (default info)")
	fl.StringVar(&args.AccessLog, "access-log", "", "`FILE` that gets a line of JSON for each connection of a user, - is standard output (default: none)")
	fl.StringVar(&args.Pairs, "pairs", "", "`BOOL`: whether each connection of a user is logged, when it begins and when it ends (default true)")
}

func addStateFlag(fl *pflag.FlagSet, state *string) {
	fl.StringVar(state, "state", "", "state directory `DIR` (default: the platform's place for it)")
}

// addTrustFlag is for every command that reads files which another user may own.
func addTrustFlag(fl *pflag.FlagSet, uids *[]int) {
	fl.Var((*ownerList)(uids), "trust-owner", "take files and directories of the user `UID` as one's own (repeatable): for bind mounts in containers, and for a state directory that a group shares")
}

// ownerList is the value of --trust-owner.
type ownerList []int

func (l *ownerList) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		uid, err := access.ParseOwner(word)
		if err != nil {
			return err
		}
		*l = append(*l, uid)
	}
	return nil
}

func (l *ownerList) String() string {
	words := make([]string, len(*l))
	for i, uid := range *l {
		words[i] = strconv.Itoa(uid)
	}
	return strings.Join(words, ",")
}

func (*ownerList) Type() string { return "UID" }
