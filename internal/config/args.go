package config

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"reverser/internal/access"
	"reverser/internal/grammar"
)

// TokenEnv is the environment variable that may hold a bridge's token.
const TokenEnv = "REVERSER_TOKEN"

// CommonArgs is what a command line, or a file, says about the options that both roles have. "" is nothing.
type CommonArgs struct {
	State               string
	TrustOwner          []int // users whose files are taken as one's own
	LogFormat, LogLevel string
	AccessLog           string // a file, or - for standard output
	Pairs               string // "true" or "false"
	Drain, ResumeWithin string
	ACMEEmail           string
	ACMEDirectory       string
	ACMERoot            string   // a file
	Notify              []Notify // in a file only
	Admin               AdminArgs
}

// ProxyArgs is the command line of a proxy. "" is nothing.
type ProxyArgs struct {
	CommonArgs
	Config    string // the file
	Listen    string
	Transfer  string
	HTTP      string
	HTTPS     string
	Bind      string
	Advertise string
	SNI       string
	// ProxyProtocolFrom are addresses and ranges of them.
	ProxyProtocolFrom []string
}

// BridgeArgs is the command line and the environment of a bridge. "" is nothing.
type BridgeArgs struct {
	CommonArgs
	Config        string // the file
	Token         string // the first argument, where that is a token
	TokenFile     string // "-" is Stdin
	TokenEnv      string // what the environment variable TokenEnv holds
	Proxies       []string
	ProxyTransfer string
	SNI           string
	Via           string
	ViaFile       string
	Keepalive     string
	AutoCert      bool
	Sources       []string
	Expose        []string
	Stdin         io.Reader
	Environ       func(name string) string // the variables that may name a way out; nil: none counts
}

// mostBalancers is how many addresses and ranges proxy_protocol_from may have: each new connection is compared with them.
const mostBalancers = 256

// parseBalancers parses proxy_protocol_from.
func parseBalancers(words []string) (from []netip.Prefix, err error) {
	if len(words) > mostBalancers {
		return nil, fmt.Errorf("%d addresses and ranges, at most %d are possible: write ranges that hold several", len(words), mostBalancers)
	}
	for _, word := range words {
		p, err := grammar.ParsePrefix(word)
		if err != nil {
			return nil, err
		}
		if slices.Contains(from, p) {
			return nil, fmt.Errorf("%s is there twice", p)
		}
		from = append(from, p)
	}
	return from, nil
}

// join parses what args say and, where they say nothing, the file. again is for another time than the first: see access.Rules.Regular.
func (args CommonArgs) join(file CommonArgs, again bool) (c Common, err error) {
	c.State = cmp.Or(args.State, file.State)
	c.Notify = file.Notify
	c.TrustOwner = args.TrustOwner
	if len(c.TrustOwner) == 0 {
		c.TrustOwner = file.TrustOwner
	}
	c.LogFormat = cmp.Or(args.LogFormat, file.LogFormat)
	if err := checkLogFormat(c.LogFormat); err != nil {
		return Common{}, argError("", `--log-format: %w: it is text or json`, err)
	}
	if c.LogLevel, err = parseLogLevel(cmp.Or(args.LogLevel, file.LogLevel)); err != nil {
		return Common{}, argError("", `--log-level: %w: it is debug, info, warn or error`, err)
	}
	c.AccessLog = cmp.Or(args.AccessLog, file.AccessLog)
	if s := cmp.Or(args.Pairs, file.Pairs, "true"); s != "true" && s != "false" {
		return Common{}, argError("", "--pairs: %q is neither true nor false", s)
	} else {
		c.NoPairs = s == "false"
	}
	if s := cmp.Or(args.Drain, file.Drain); s != "" {
		if c.Drain, err = ParseDrain(s); err != nil {
			return Common{}, argError("", "--drain: %w", err)
		}
		c.Drain = cmp.Or(c.Drain, -1) // 0 is the default
	}
	if s := cmp.Or(args.ResumeWithin, file.ResumeWithin); s != "" {
		if c.ResumeWithin, err = ParseResumeWithin(s); err != nil {
			return Common{}, argError("", "--resume-within: %w", err)
		}
	}
	rules := access.Rules{Trusted: c.TrustOwner, Regular: again}
	if c.Admin, err = args.Admin.join(file.Admin, rules); err != nil {
		return Common{}, err
	}
	if c.ACME, err = args.acme(file, rules); err != nil {
		return Common{}, err
	}
	return c, nil
}

// override takes the origin of options that the command line gives.
func (args CommonArgs) override(origin map[string]Place) {
	override(origin, "state", args.State)
	if len(args.TrustOwner) > 0 {
		delete(origin, "trust_owner")
	}
	override(origin, "log_format", args.LogFormat)
	override(origin, "log_level", args.LogLevel)
	override(origin, "access_log", args.AccessLog)
	override(origin, "pairs", args.Pairs)
	override(origin, "drain", args.Drain)
	override(origin, "resume_within", args.ResumeWithin)
	override(origin, "acme_email", args.ACMEEmail)
	override(origin, "acme_directory", args.ACMEDirectory)
	override(origin, "acme_root", args.ACMERoot)
	args.Admin.override(origin)
}

func override(origin map[string]Place, option, arg string) {
	if arg != "" {
		delete(origin, option)
	}
}

func checkLogFormat(s string) error {
	switch s {
	case "", "text", "json":
		return nil
	}
	return fmt.Errorf("%q is no format", s)
}

func parseLogLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is no level", s)
}

// mostDuration is what the wire's 32 bits of milliseconds hold, in round figures.
const mostDuration = 1000 * time.Hour

// ParseDrain parses how long a stopping process lets connections finish: "30s". Nothing is 0: they are reset at once.
func ParseDrain(s string) (time.Duration, error) {
	return parseDuration(s, 0, mostDuration, `"30s" or "2m"`)
}

// ParseResumeWithin parses how long connections outlive a break of the link: "5m".
func ParseResumeWithin(s string) (time.Duration, error) {
	return parseDuration(s, time.Second, mostDuration, `"5m" or "90s"`)
}

// The bounds of --keepalive: less would cost more than a connection in use, and no NAT keeps a connection for longer.
const (
	leastKeepalive = 5 * time.Second
	mostKeepalive  = time.Hour
)

// ParseKeepalive parses how long the link of a bridge may say nothing: "25s".
func ParseKeepalive(s string) (time.Duration, error) {
	return parseDuration(s, leastKeepalive, mostKeepalive, `"25s", which suits most NATs and firewalls`)
}

// ParseSource parses an address of this machine that targets are dialled from: "192.168.1.7". Whether the machine has it is seen when
// it is used: addresses come and go.
func ParseSource(s string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(s)
	switch ip = ip.Unmap(); {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is no IP address: write one of this machine, such as 192.168.1.7, without a port", s)
	case ip.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("%q is no address of its own: leave it out, and the system chooses", s)
	case ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, fmt.Errorf("%q is an address of many machines: write one of this machine, such as 192.168.1.7", s)
	}
	return ip, nil
}

// parseDuration parses a length of time from least to most.
func parseDuration(s string, least, most time.Duration, example string) (time.Duration, error) {
	d, err := grammar.ParseDuration(s, example)
	if err == nil && (d < least || d > most) {
		return 0, fmt.Errorf("%q is not between %s and %s: write one in between, such as %s", s, lengthOf(least), lengthOf(most), example)
	}
	return d, err
}

// lengthOf is a length of time as people write it.
func lengthOf(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d > day && d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	case d > 0 && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return d.String()
}
