// Package status holds what a running proxy or bridge tells about itself:
// the data behind `reverser status --json` and GET /api/v1/status.
//
// The names here are read by people's scripts, so they may grow but are never
// renamed. The package knows no sockets, no clock and no lock: proxy and bridge
// fill a Snapshot under their own lock and hand it away.
package status

import (
	"encoding/json"
	"strings"
	"time"
)

// States of a [Link].
const (
	LinkUp       = "up"       // authenticated, carries streams
	LinkDown     = "down"     // being dialled again, or waited for
	LinkDraining = "draining" // takes no new streams, ends with its last pair
)

// States of a [Service].
const (
	ServiceUp       = "up"       // its public port answers
	ServiceDenied   = "denied"   // the key's policy does not allow it; Reason says which
	ServiceRetrying = "retrying" // could not be opened, is tried again; Reason says why
	ServiceAway     = "away"     // its bridge is not connected, or not for data, or one of both ends is stopping, or an operator lets no new users in: Reason says which
)

// ServiceRemoved is the state of those in Snapshot.Removed, and of no other.
const ServiceRemoved = "removed"

// States of a [Pair].
const (
	PairOpen       = "open"        // bytes may flow both ways
	PairHalfClosed = "half-closed" // one direction has ended, the other goes on
	PairPaused     = "paused"      // its carrier is broken; it waits to be resumed
)

// Snapshot is the state of one process at one moment.
type Snapshot struct {
	Role          string     `json:"role"` // "proxy" or "bridge"
	Version       string     `json:"version"`
	UptimeSeconds float64    `json:"uptime_seconds"`
	Stopping      bool       `json:"stopping,omitempty"` // it was asked to stop: a successor may start beside it
	Links         []Link     `json:"links"`
	Services      []Service  `json:"services"`
	Pairs         []Pair     `json:"pairs"`
	Keys          []Key      `json:"keys"`                // what each carried since the start; at a proxy also those that carried nothing and expire, and of those that were removed the 100 largest
	Clients       []Client   `json:"clients"`             // those with the most connections, or bytes where these are equal; 20 at most
	Removed       []Service  `json:"removed"`             // services that are gone, with what they counted; 100 at most, the largest first
	Pressure      []Pressure `json:"pressure"`            // what ran out
	Unstored      *Unstored  `json:"unstored,omitempty"`  // nil: all orders are stored
	Reload        *Reload    `json:"reload,omitempty"`    // the last one; nil: none since the start
	Reloading     *Reloading `json:"reloading,omitempty"` // nil: no files are being read
	Faults        []string   `json:"faults,omitempty"`    // what became of the state directory behind the process's back, and what to do

	AccessLog *AccessLog `json:"access_log,omitempty"` // nil: there is none
	Usage     *Usage     `json:"usage,omitempty"`      // nil: none is kept

	// Certificates are those of names for which this process ends TLS.
	Certificates []Certificate `json:"certificates,omitempty"`
}

// Pressure says that something ran out: somebody is refused for want of it, or waits.
type Pressure struct {
	What    string    `json:"what"`
	Used    int64     `json:"used"`
	Limit   int64     `json:"limit"`   // of Used
	Largest Holder    `json:"largest"` // who has most of it
	Hint    string    `json:"hint"`    // what to do
	Since   time.Time `json:"since"`
}

// Holder is who has how much of something. What is "" is not known, or does not apply.
type Holder struct {
	Key     string `json:"key"`
	Service string `json:"service"` // canonical PUBLIC
	Client  string `json:"client"`
	Used    int64  `json:"used"` // by the key
}

// Unstored says that orders are in force and not stored, so that a restart would undo them.
type Unstored struct {
	Removed []string `json:"removed"`          // keys that were removed
	Edited  []string `json:"edited,omitempty"` // keys from which something was taken away
	Error   string   `json:"error"`            // why
}

// What says what is not stored: "the removal of key a, b and the change of key c".
func (u *Unstored) What() string {
	var words []string
	for _, of := range []struct {
		what string
		keys []string
	}{{"the removal of key ", u.Removed}, {"the change of key ", u.Edited}} {
		if len(of.keys) > 0 {
			words = append(words, of.what+strings.Join(of.keys, ", "))
		}
	}
	return strings.Join(words, " and ")
}

// Then says what a restart does before it is stored.
func (u *Unstored) Then() string {
	switch {
	case len(u.Edited) == 0:
		return "a restart brings the key back"
	case len(u.Removed) == 0:
		return "a restart gives the key back what was taken away"
	}
	return "a restart undoes it"
}

// Reload is what became of an attempt to put new settings in force.
type Reload struct {
	At    time.Time `json:"at"`
	Error string    `json:"error"` // why nothing was changed; "" if all is in force
}

// Reloading is a reload that reads the files: a disk may never answer.
type Reloading struct {
	Since time.Time `json:"since"`
	File  string    `json:"file,omitempty"` // that is being read; "": not known
}

// SlowReload is how long a reload may read before it is told.
const SlowReload = 5 * time.Second

// Slow reports whether a reload reads for so long that the disk may be why.
func (r *Reloading) Slow(now time.Time) bool { return r != nil && now.Sub(r.Since) >= SlowReload }

// What says what is read.
func (r *Reloading) What() string {
	if r.File == "" {
		return "its files"
	}
	return r.File
}

// AccessLog is what became of the lines about users' connections and requests since the start.
type AccessLog struct {
	File    string `json:"file"`
	Written uint64 `json:"written"`         // lines
	Lost    uint64 `json:"lost"`            // lines
	Error   string `json:"error,omitempty"` // why the last line could not be written
}

// Name is where the lines go, for people.
func (l *AccessLog) Name() string {
	if l.File == "-" {
		return "standard output"
	}
	return l.File
}

// Link is the connection between one bridge and one proxy, however many TCP
// connections it takes and has taken.
type Link struct {
	Key       string    `json:"key"`           // name of the key; the bridge knows only its id
	Bridge    string    `json:"bridge"`        // instance id of the bridge process
	Remote    string    `json:"remote"`        // address of the other side
	Via       string    `json:"via,omitempty"` // the way out through which it is dialled, which Remote then is
	State     string    `json:"state"`
	RTTMillis float64   `json:"rtt_ms"`
	Carriers  int       `json:"carriers"` // of the connections for data, how many are there
	Resumes   uint64    `json:"resumes"`  // how often a broken slot went on where it stood
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason,omitempty"` // why State is LinkDown, at the bridge

	// ChecksumErrors counts directions of connections that did not arrive as they were sent, and were reset for it.
	ChecksumErrors uint64 `json:"checksum_errors,omitempty"`
}

// Service is one public port and what stands behind it.
type Service struct {
	Public      string `json:"public"` // canonical, such as "tcp/9000"
	Target      string `json:"target"`
	Key         string `json:"key,omitempty"` // whose bridge offers it, at the proxy
	State       string `json:"state"`
	Connections int    `json:"connections"`
	Reason      string `json:"reason,omitempty"` // why State is not ServiceUp, where there is more to say

	// Drained says that no new users are let in by order of the proxy's operator. ServiceAway is what was asked for then.
	Drained bool `json:"drained,omitempty"`

	// Probe is what came of the bridge's last probe of the public port, at the bridge.
	Probe Probe `json:"probe,omitzero"`

	// Inspect is whether the last exchanges of the service are kept, see `reverser inspect`.
	Inspect bool `json:"inspect,omitempty"`

	// Whether the target answered the last user. Nobody is connected to it for this alone.
	TargetState string    `json:"target_state,omitempty"` // left out: of a service that is gone
	TargetAt    time.Time `json:"target_at,omitzero"`     // when it was so
	TargetError string    `json:"target_error,omitempty"` // why it did not answer, where that is known: at the bridge

	// What was counted since the process started. The bytes move while a connection lives.
	Total    uint64 `json:"total,omitempty"`    // connections
	Sent     uint64 `json:"sent,omitempty"`     // bytes client → target
	Received uint64 `json:"received,omitempty"` // bytes target → client
	Refused  uint64 `json:"refused,omitempty"`  // users who were not served
}

// Rank is how near a claim is to serving users. Of several claims of one name, the one of the highest rank says how the service is.
type Rank int

// The ranks.
const (
	RankDenied Rank = iota
	RankRetrying
	RankAway
	RankUp // or drained by order: nobody has to look after it
)

// Rank returns the rank of the claim.
func (s Service) Rank() Rank {
	switch {
	case s.State == ServiceUp || s.Drained:
		return RankUp
	case s.State == ServiceAway:
		return RankAway
	case s.State == ServiceRetrying:
		return RankRetrying
	}
	return RankDenied
}

// States of a [Probe].
const (
	ProbeAnswered = "answered" // by the proxy
	ProbeFailed   = "failed"   // nobody answered, or somebody else
	ProbeNone     = "none"     // the port was not probed
)

// Probe is what came of an attempt to reach a public port as a user does.
type Probe struct {
	State string `json:"state"`
	Text  string `json:"text"` // where, and for ProbeFailed and ProbeNone why
}

// Check is one thing that `reverser doctor` looked at, as the process itself found it.
type Check struct {
	Name  string `json:"name"`
	State string `json:"state"` // ok, warn, fail or skip
	Found string `json:"found"`
	Hint  string `json:"hint"` // what to do; "" where nothing is to be done
}

// PublicTry is what came of a proxy's attempt to reach public ports of its own as users do.
type PublicTry struct {
	Host  string // under which others reach the proxy; "": it is not known
	Ports []PortTry
	Left  int // ports that were not tried, for want of time or because a sample is enough

	Doors            []PortTry // the ports that names share, each named by its option, where names are served
	Certificates     []CertificateTry
	CertificatesLeft int // hosts whose certificates were not tried, as Left
}

// States of a [PortTry] and a [CertificateTry].
const (
	TryAnswered = "answered" // by this proxy
	TrySilent   = "silent"   // nobody took the connection in time
	TryFailed   = "failed"   // no connection, for another reason
	TryOther    = "other"    // somebody took the connection, and it was not this proxy
	TryNone     = "none"     // it was not tried
	TryUnknown  = "unknown"  // of a certificate: it is for the host, and of an authority that this machine does not know
	TryAlone    = "alone"    // of a certificate: it is for the host, and was shown without that of its issuer, which this machine does not know
)

// PortTry is what came of one port.
type PortTry struct {
	Public string // canonical
	Addr   string // that was dialled
	State  string
	Text   string // why, unless it answered
	Bridge bool   // its bridge reached it when the service came up
}

// CertificateTry is what came of a TLS handshake for the host of a https/ name.
type CertificateTry struct {
	Host  string
	Addr  string    // that was dialled
	State string    // TryAnswered: a certificate was shown that is good for the host. TryOther: one that is not
	Text  string    // why, unless it answered
	Until time.Time // when the certificate that was shown ends; zero: none was
}

// States of the target of a [Service].
const (
	TargetAnswers     = "answers"
	TargetRefused     = "refused"     // it refused the last connection
	TargetUnreachable = "unreachable" // it did not answer the last connection in time, or there is no way to it
	TargetUnknown     = "unknown"     // nobody came yet
)

// States of a [Certificate].
const (
	CertificateValid   = "valid"   // there is one
	CertificatePending = "pending" // it is being asked for, or waits for its turn
	CertificateFailed  = "failed"  // there is none, it has expired, or it is not valid yet: Error says why
)

// Soon is how long before the end of a key or a certificate people are told of it.
const Soon = 7 * 24 * time.Hour

// renewalTime is how long a certificate may take to be renewed before it is late.
const renewalTime = time.Hour

// EndsSoon reports whether a certificate is valid, and ends soon without a newer one under way.
func (c Certificate) EndsSoon(now time.Time) bool {
	if c.State != CertificateValid || c.NotAfter.IsZero() || c.NotAfter.Sub(now) > Soon {
		return false
	}
	// One for an address is never valid for more than six days: what counts is whether its renewal is late.
	return c.RenewAt.IsZero() || now.Sub(c.RenewAt) >= renewalTime
}

// Certificate is the certificate of one name for which this process ends TLS.
type Certificate struct {
	Host     string    `json:"host"`
	Key      string    `json:"key,omitempty"` // whose service it is for, at the proxy
	State    string    `json:"state"`
	From     string    `json:"from"` // the directory of the authority, or the file
	NotAfter time.Time `json:"not_after,omitzero"`
	RenewAt  time.Time `json:"renew_at,omitzero"` // of one that comes by itself
	Error    string    `json:"error,omitempty"`   // of the last attempt to get one, or a newer one, in the authority's words
	Hint     string    `json:"hint,omitempty"`    // what to do about Error
	RetryAt  time.Time `json:"retry_at,omitzero"` // when it is tried again
}

// Key is what the services of one key carried since the process started, those that were removed included.
type Key struct {
	Key         string `json:"key"` // its name; its id when it was removed
	ID          string `json:"id"`
	Connections int    `json:"connections"` // at present
	Total       uint64 `json:"total"`       // connections
	Sent        uint64 `json:"sent"`        // bytes client → target
	Received    uint64 `json:"received"`    // bytes target → client
	Refused     uint64 `json:"refused"`     // users who were not served

	Expires time.Time `json:"expires,omitzero"`  // left out: never
	Expired bool      `json:"expired,omitempty"` // its time is over: nobody is let in with it
}

// Client is what one address, or network of 64 bits in IPv6, did at one service.
type Client struct {
	Client      string `json:"client"`
	Service     string `json:"service"` // canonical PUBLIC
	Key         string `json:"key"`
	Connections int    `json:"connections"` // at present, with those that wait for the bridge
	Total       uint64 `json:"total"`       // connections
	Sent        uint64 `json:"sent"`        // bytes client → target
	Received    uint64 `json:"received"`    // bytes target → client
	Refused     uint64 `json:"refused"`     // connections that were not served
}

// Pair is one user's connection, bound to its connection to the target.
type Pair struct {
	ID       string    `json:"id"`
	Service  string    `json:"service"`       // canonical PUBLIC
	Key      string    `json:"key,omitempty"` // whose connection it is: its name; the id of one that was removed, and at the bridge
	Client   string    `json:"client"`
	Target   string    `json:"target"`
	Sent     uint64    `json:"sent"`     // bytes client → target
	Received uint64    `json:"received"` // bytes target → client
	Since    time.Time `json:"since"`
	State    string    `json:"state"`
}

// MarshalJSON writes empty lists as [], never as null: a script that loops
// over .links[] must not have to ask first.
func (s Snapshot) MarshalJSON() ([]byte, error) {
	type plain Snapshot // without this method
	p := plain(s)
	if p.Links == nil {
		p.Links = []Link{}
	}
	if p.Services == nil {
		p.Services = []Service{}
	}
	if p.Pairs == nil {
		p.Pairs = []Pair{}
	}
	if p.Keys == nil {
		p.Keys = []Key{}
	}
	if p.Clients == nil {
		p.Clients = []Client{}
	}
	if p.Pressure == nil {
		p.Pressure = []Pressure{}
	}
	if p.Removed == nil {
		p.Removed = []Service{}
	}
	return json.Marshal(p)
}

// Usage says what became of the file that keeps what was counted.
type Usage struct {
	File     string    `json:"file"`
	Saved    time.Time `json:"saved,omitzero"`      // when it was written last; zero: not since the start
	Failures uint64    `json:"failures"`            // how often it could not be written since the start
	Error    string    `json:"error,omitempty"`     // why the last time
	PutAside string    `json:"put_aside,omitempty"` // as what a damaged file was put aside since the start
	Damage   string    `json:"damage,omitempty"`    // what was wrong with it
}

// Counted is what a service of a key counted since the process started. But for Open it only grows, also when the service is gone.
type Counted struct {
	Key         [16]byte
	Service     string // canonical PUBLIC
	Open        int64  // connections at present
	Connections uint64 // that were made
	Sent        uint64 // bytes client → target
	Received    uint64 // bytes target → client
	Refused     uint64 // users who were not served
}

// Tally is what one service, of one key, counted since the process started, reason by reason. But for Open it only grows.
type Tally struct {
	Service        string // canonical PUBLIC
	Open           int64  // connections at present
	Sent, Received uint64
	Ended          map[string]uint64 // connections, by the reason of their end
	Refused        map[string]uint64 // users who were not served, by the reason
}

// Measures is what a process measured of itself.
type Measures struct {
	BudgetUsed, BudgetSize int64             // bytes of memory for what is in flight
	Resumes                map[string]uint64 // by key; nil: they stand in the links
	Handshakes             *Histogram        // of bridges; nil: there are none
}

// Histogram counts durations.
type Histogram struct {
	Bounds []float64 // seconds, ascending
	Counts []uint64  // of durations up to each bound
	Count  uint64
	Sum    float64 // seconds
}
