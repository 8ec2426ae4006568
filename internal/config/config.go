// Package config reads the settings of one process: from the command line, from a file in TOML or in the XML of the system that
// reverser replaces, and from the keys of the state directory. The command line wins over the file.
//
// The way of a setting:
//  1. document.go reads a file, toml.go and xml.go its two formats, proxyfile.go and bridgefile.go what it says about a role.
//  2. source.go joins it with the command line, and keys.go with the keys of the state directory. The result is a Settings.
//  3. watch.go tells when the file has changed.
//  4. changes.go says what is different then, and refuses what cannot change while the process runs.
//
// A file is refused as a whole, and every fault in it is told at once, with file, line, key and remedy. No error holds a token.
// No goroutine is left when a function has returned.
package config

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/via"
)

// The roles that Check tells.
const (
	RoleProxy  = "proxy"
	RoleBridge = "bridge"
)

// Settings are everything that one process was told, checked and with addresses in their canonical form.
type Settings struct {
	Role string // RoleProxy or RoleBridge
	Common
	Proxy  Proxy            // what a proxy was told
	Bridge Bridge           // what a bridge was told
	Origin map[string]Place // option as in TOML → where the file has it; options of the command line and defaults are not there
}

// Common are the settings that both roles have.
type Common struct {
	State        string // the state directory; "": the platform's place
	TrustOwner   []int  // users, by their ids, whose files are taken as one's own
	LogFormat    string // "", "text" or "json"
	LogLevel     slog.Level
	AccessLog    string        // the file with a line for each connection of a user, or - for standard output; "": none
	NoPairs      bool          // the beginning and the end of each user's connection are not logged
	Drain        time.Duration // 0: the role's default; negative: at once
	ResumeWithin time.Duration // 0: the role's default
	ACME         ACME
	Notify       []Notify // who is told what happens
	Admin        Admin
}

// Proxy are the settings that only a proxy has.
type Proxy struct {
	Listen    string // ":3010" or "127.0.0.1:3010"
	Transfer  string // "": Listen carries everything
	HTTP      string // the port of http/ names; "": none
	HTTPS     string // the port of tls/ names; "": none
	Bind      string // IP address of public ports that have none of their own; "": every one
	Advertise string // host:port for new tokens, "" if not given
	SNI       string // for new tokens; "": none
	// ProxyProtocolFrom are the balancers that say by the PROXY protocol whose connection one is.
	ProxyProtocolFrom []netip.Prefix
	Tables            []KeyTable
	Given             []Given          // certificates from files
	Keys              []Key            // that are in force, see InForce; none before the state directory is open
	Offer             []grammar.Public // WorkPort of the source system's XML
}

// Bridge are the settings that only a bridge has.
type Bridge struct {
	Token         grammar.Token
	Proxies       []string      // host:port, each gets a link of its own; none: the token has it
	ProxyTransfer string        // host:port; "": the proxy announces it
	SNI           string        // in place of the token's; "": the token's
	Via           via.Choice    // the way out to the proxies
	Keepalive     time.Duration // 0: the default
	Sources       []netip.Addr  // of this machine, that targets are dialled from; none: the system chooses
	Services      []grammar.Expose
	Certificates  map[grammar.Public]*tls.Certificate // from the files that services name
}

// Place is where something stands in a file.
type Place struct {
	File string
	Line int    // 0 where there is none to name
	Key  string // the file's own word for the option, which in XML is another one
}

func (p Place) String() string { return at(p.File, p.Line) }

// Warning is something in a file that has no effect, and that its writer may
// not know to have none.
type Warning struct {
	File string
	Line int
	Text string
}

func (w Warning) String() string { return fmt.Sprintf("%s: %s", at(w.File, w.Line), w.Text) }

// Error is one fault of a file.
type Error struct {
	File string
	Line int    // 0 where there is none to name
	Key  string // as it stands in the file; "" where the fault is no key's
	Text string
	Hint string // the remedy, "" where Text has it
	Err  error  // the cause, when there is one for errors.Is
}

func (e *Error) Error() string {
	s := at(e.File, e.Line) + ": "
	if e.Key != "" {
		s += e.Key + ": "
	}
	s += e.Text
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

func at(file string, line int) string {
	if line <= 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// ArgError is a fault of the command line, or of the command line and the file together.
type ArgError struct {
	Err  error
	Hint string // the remedy, "" where Err has it; Error leaves it out
}

func (e *ArgError) Error() string { return e.Err.Error() }
func (e *ArgError) Unwrap() error { return e.Err }

func argError(hint, format string, args ...any) error {
	return &ArgError{Err: fmt.Errorf(format, args...), Hint: hint}
}
