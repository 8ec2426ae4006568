// Package grammar parses what people write: the names of services (PUBLIC), where they lead (TARGET), the two together
// (EXPOSE), what a key may publish (--allow), and the token that a user copies from the proxy to the bridge. Parsed values are
// canonical and comparable.
//
// It opens nothing, resolves nothing, and starts no goroutine.
package grammar

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Kind says how a public service is reached.
type Kind string

// The kinds. KindOffered is the public port that the proxy's own configuration
// owns (WorkPort in the source system's XML) and offers to a bridge whose file
// names no public port.
const (
	KindTCP     Kind = "tcp"
	KindUDP     Kind = "udp"
	KindHTTP    Kind = "http"
	KindHTTPS   Kind = "https"
	KindTLS     Kind = "tls"
	KindPrivate Kind = "private"
	KindOffered Kind = "offered"
)

// kindsHelp is what an error about an unknown kind lists.
const kindsHelp = "tcp/, udp/, http/, https/, tls/ and private/"

// Public is the public side of a service. It is comparable, and two values
// that mean the same are equal.
type Public struct {
	Kind Kind
	// Host is the bind address of tcp and udp ("" is every address, IPv4 and
	// IPv6; otherwise the canonical form of netip), the host name of http, https
	// and tls, or "*.example.com" for one label in front of example.com, or "*"
	// for any, or the IP address of http and https, and the name of a private
	// service.
	Host string
	Port uint16 // tcp and udp only
	// Path is for http and https the path whose requests it serves, with all
	// that is below: "/a/b". "" is every path.
	Path string
}

// ParsePublic parses the PUBLIC form: 9000, tcp/9000, tcp/127.0.0.1:9000,
// tcp/[::1]:9000, udp/53, http/app.example.com/path, https/…, tls/…,
// private/NAME, or offered. It knows kinds that this version does not serve: see Supported.
func ParsePublic(s string) (Public, error) {
	p, err := parsePublic(s)
	return p, explain("public", s, err, func(s string) bool { _, err := parsePublic(s); return err == nil }, meantPublic)
}

func parsePublic(s string) (Public, error) {
	if s == string(KindOffered) {
		return Public{Kind: KindOffered}, nil
	}
	kind, rest, err := cutKind(s)
	if err != nil {
		return Public{}, err
	}
	p := Public{Kind: kind}
	switch kind {
	case KindTCP, KindUDP:
		host, port, err := cutBind(kind, rest)
		if err != nil {
			return Public{}, fmt.Errorf("public %q: %w", s, err)
		}
		if p.Port, err = ParsePort(port); err != nil {
			if isRange(port) {
				err = cmp.Or(p.Supported(), errRange)
			}
			return Public{}, fmt.Errorf("public %q: %w", s, err)
		}
		p.Host = host
	case KindPrivate:
		if p.Host, err = parsePrivate(rest); err != nil {
			return Public{}, fmt.Errorf("public %q: %w", s, err)
		}
	default:
		if p.Host, p.Path, err = parseName(kind, rest); err != nil {
			return Public{}, fmt.Errorf("public %q: %w", s, err)
		}
	}
	return p, nil
}

var errRange = errors.New("a service is one port in this version: write one for each")

// isRange reports whether s is LOW-HIGH.
func isRange(s string) bool {
	low, high, found := strings.Cut(s, "-")
	_, noLow := ParsePort(low)
	_, noHigh := ParsePort(high)
	return found && noLow == nil && noHigh == nil
}

// String is the canonical form: "tcp/9000", "tcp/[::1]:9000", "offered". For a
// value that came from ParsePublic it parses to the same value.
func (p Public) String() string {
	switch p.Kind {
	case KindTCP, KindUDP:
		return string(p.Kind) + "/" + bindString(p.Host, strconv.Itoa(int(p.Port)))
	case KindOffered, "":
		return string(p.Kind)
	default:
		return string(p.Kind) + "/" + HostString(p.Host) + p.Path
	}
}

// MarshalText writes the canonical form.
func (p Public) MarshalText() ([]byte, error) {
	if p.Kind == "" {
		return nil, errors.New("an empty public has no text form")
	}
	return []byte(p.String()), nil
}

// UnmarshalText parses like ParsePublic.
func (p *Public) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePublic(string(b))
	return err
}

// At is p with the bind address host, where it is a port without an address of its own.
func (p Public) At(host string) Public {
	if p.Host == "" && (p.Kind == KindTCP || p.Kind == KindUDP) {
		p.Host = host
	}
	return p
}

// ListenAddr is the address to listen on for tcp and udp, such as ":9000" or
// "127.0.0.1:9000", and "" for the other kinds.
func (p Public) ListenAddr() string {
	switch p.Kind {
	case KindTCP, KindUDP:
		return net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
	}
	return ""
}

// ListenNetwork is the network to listen on for tcp and udp, as the function ListenNetwork says, and "" for the other kinds.
func (p Public) ListenNetwork() string {
	if p.Kind != KindTCP && p.Kind != KindUDP {
		return ""
	}
	return ListenNetwork(string(p.Kind), p.ListenAddr())
}

// Overlaps reports whether p and q cannot both be open on one proxy: they are
// the same, the bind address of one covers that of the other, or both want the
// TLS clients of one name: the proxy ends TLS for https, and does not for tls.
func (p Public) Overlaps(q Public) bool {
	if p == q {
		return true
	}
	if p.Kind == KindHTTPS && q.Kind == KindTLS || p.Kind == KindTLS && q.Kind == KindHTTPS {
		return p.Host == q.Host
	}
	if p.Kind != q.Kind || p.Port != q.Port || p.Kind != KindTCP && p.Kind != KindUDP {
		return false
	}
	return hostsOverlap(p.Host, q.Host)
}

// Supported returns an *UnsupportedKindError when this version cannot serve
// the kind of p.
func (p Public) Supported() error {
	switch p.Kind {
	case KindTCP, KindHTTP, KindHTTPS, KindTLS, KindOffered:
		return nil
	}
	return &UnsupportedKindError{Kind: p.Kind}
}

// UnsupportedKindError says that a kind of service is known by name but not in
// this version.
type UnsupportedKindError struct{ Kind Kind }

func (e *UnsupportedKindError) Error() string {
	remedy := "this version serves tcp/, http/, https/ and tls/ only"
	if e.Kind == KindPrivate {
		remedy += ": tcp/127.0.0.1:PORT opens a port that only the proxy's own machine reaches"
	}
	return fmt.Sprintf("%s/ services are not in this version: %s", e.Kind, remedy)
}

// Target is the real server on the LAN. Its two fields are what net.Dial takes.
type Target struct {
	Network string // "tcp" or "unix"
	Address string // "127.0.0.1:9904" or "/path"
}

// ParseTarget parses the TARGET form: 9904 (on 127.0.0.1), host:port,
// [::1]:9904 or unix:/path.
func ParseTarget(s string) (Target, error) {
	t, err := parseTarget(s)
	return t, explain("target", s, err, func(s string) bool { _, err := parseTarget(s); return err == nil }, func(s string) string { _, target, _ := strings.Cut(meantExpose("1="+s), "="); return target })
}

func parseTarget(s string) (Target, error) {
	if looksSecret(s) {
		return Target{}, errors.New("target is a token, which belongs in a token file or in front of the services")
	}
	if s == "" {
		return Target{}, errors.New("target is empty: give a port (9904), host:port, or unix:/path")
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if err := checkSocketPath(path); err != nil {
			return Target{}, fmt.Errorf("target %q: %w", s, err)
		}
		return Target{Network: "unix", Address: path}, nil
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		hint := "write host:port"
		if host, _, _ := strings.Cut(rest, "/"); strings.Contains(host, ":") {
			hint = fmt.Sprintf("write %q", host)
		}
		return Target{}, fmt.Errorf("target %q is a URL: leave out %s:// and the path, %s", s, scheme, hint)
	}
	if strings.HasPrefix(s, "/") {
		return Target{}, fmt.Errorf("target %q: write a socket as %q", s, "unix:"+s)
	}
	if !strings.Contains(s, ":") {
		port, err := ParsePort(s)
		if err == nil {
			return Target{Network: "tcp", Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))}, nil
		}
		if isLetter(s[0]) || strings.Contains(s, ".") {
			return Target{}, fmt.Errorf("target %q has no port: give a port (9904), host:port, or unix:/path", s)
		}
		return Target{}, fmt.Errorf("target %q: %w", s, err)
	}
	addr, err := parseHostPort(s)
	if err != nil {
		return Target{}, fmt.Errorf("target %w", err)
	}
	return Target{Network: "tcp", Address: addr}, nil
}

// String is the canonical TARGET form, "127.0.0.1:9904" or "unix:/path".
func (t Target) String() string {
	if t.Network == "unix" {
		return "unix:" + t.Address
	}
	return t.Address
}

// MarshalText writes the canonical form.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses like ParseTarget.
func (t *Target) UnmarshalText(b []byte) (err error) {
	*t, err = ParseTarget(string(b))
	return err
}

// Expose is one service of a bridge.
type Expose struct {
	Public  Public
	Target  Target
	Options Options
}

// ParseExpose parses PUBLIC=TARGET. A tcp port alone, 9000 or tcp/9000, means
// that port on 127.0.0.1 as the target. A kind that this version cannot serve
// is an *UnsupportedKindError.
func ParseExpose(s string) (Expose, error) {
	e, err := parseExpose(s)
	switch public, target, ok := strings.Cut(plain(s), "="); {
	case err == nil:
	case strings.Trim(s, " ") == "=", strings.HasPrefix(s, "=") && len(s) > 1, strings.HasSuffix(s, "=") && len(s) > 1 && !looksSecret(s):
		return e, fmt.Errorf("service %q: %w; PUBLIC=TARGET is one word, without spaces, such as 9000=9904", s, err)
	case manyPorts.MatchString(public):
		return e, fmt.Errorf("service %q: a service is one port: write one for each, such as 9000=9904 9001=9905", s)
	case ok && portWord.MatchString(public) && canTarget(target):
		return e, fmt.Errorf("service %q: %q is no port: write the one that users connect to, such as 9000=%s", s, public, target)
	}
	return e, explain("service", s, err, func(s string) bool { _, err := parseExpose(s); return err == nil }, meantExpose)
}

func canTarget(s string) bool { _, err := parseTarget(s); return err == nil }

func parseExpose(s string) (Expose, error) {
	public, target, hasTarget := strings.Cut(s, "=")
	if !hasTarget {
		return newExpose(public, "")
	}
	if target == "" {
		return Expose{}, errors.New("target is missing after \"=\": give a port (9904), host:port, or unix:/path")
	}
	return newExpose(public, target)
}

// NewExpose parses the two halves of an EXPOSE apart, as a configuration file
// has them. An empty target is the same port on 127.0.0.1, for a tcp port
// without a bind address only.
func NewExpose(public, target string) (Expose, error) {
	e, err := newExpose(public, target)
	if err == nil || target != "" {
		return e, err
	}
	// What is right on the command line, or would be there after a slip, is two values here.
	for _, meant := range []string{plain(public), meantExpose(plain(public))} {
		if _, wrong := parseExpose(meant); wrong == nil && strings.Contains(meant, "=") && !looksSecret(meant) {
			public, target, _ := strings.Cut(meant, "=")
			return e, fmt.Errorf("public %q has the target in it: write public = %q and target = %q", strings.TrimSpace(public), public, target)
		}
	}
	return e, err
}

func newExpose(public, target string) (Expose, error) {
	p, err := ParsePublic(public)
	if err != nil {
		return Expose{}, err
	}
	if err := p.Supported(); err != nil {
		return Expose{}, fmt.Errorf("public %q: %w", public, err)
	}
	if target == "" {
		if p.Kind != KindTCP || p.Host != "" {
			return Expose{}, fmt.Errorf("public %q: target is missing: only a port alone means the same port here; write %s=TARGET with a port (9904), host:port, or unix:/path", public, p)
		}
		target = strconv.Itoa(int(p.Port))
	}
	t, err := ParseTarget(target)
	if err != nil {
		return Expose{}, err
	}
	return Expose{Public: p, Target: t}, nil
}

// String is the canonical form, "tcp/9000=127.0.0.1:9904".
func (e Expose) String() string { return e.Public.String() + "=" + e.Target.String() }

// CheckExposes refuses two services that want one public place, the same or
// overlapping, such as tcp/9000 and tcp/127.0.0.1:9000.
func CheckExposes(exposes []Expose) error {
	var all ExposeSet
	for _, e := range exposes {
		if err := all.Add(e); err != nil {
			return err
		}
	}
	return nil
}

// ExposeSet is services of which no two want one public place. The zero value is empty.
type ExposeSet struct {
	at map[Public][]Expose // by place, or each service would be compared with all others
}

// Add adds e, or returns the error of CheckExpose.
func (s *ExposeSet) Add(e Expose) error {
	at := e.Public.place()
	if err := CheckExpose(s.at[at], e); err != nil {
		return err
	}
	if s.at == nil {
		s.at = make(map[Public][]Expose)
	}
	s.at[at] = append(s.at[at], e)
	return nil
}

// place is the same for any two that overlap.
func (p Public) place() Public {
	switch p.Kind {
	case KindTCP, KindUDP:
		return Public{Kind: p.Kind, Port: p.Port}
	case KindHTTPS, KindTLS:
		return Public{Kind: KindTLS, Host: p.Host}
	}
	return p
}

// CheckExpose refuses e when one of the earlier ones has its public name, or one that overlaps it.
func CheckExpose(earlier []Expose, e Expose) error {
	for _, other := range earlier {
		switch {
		case e.Public == other.Public:
			return fmt.Errorf("public %s is given twice, for target %s and for target %s: keep one", e.Public, other.Target, e.Target)
		case e.Public.Overlaps(other.Public):
			if e.Public.Kind.Named() {
				return fmt.Errorf("public %s and public %s overlap, both want the TLS clients of %s: keep one, or give one another name", other.Public, e.Public, e.Public.Host)
			}
			return fmt.Errorf("public %s and public %s overlap, one covers the bind address of the other: keep one, or give one another port", other.Public, e.Public)
		}
	}
	return nil
}

// ParsePort parses a port from 1 to 65535, in plain decimal digits: no sign,
// no leading zero, no space.
func ParsePort(s string) (uint16, error) {
	bad := fmt.Errorf("port %q is not a number from 1 to 65535", s)
	if len(s) == 0 || len(s) > 5 || s[0] == '0' {
		return 0, bad
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, bad
		}
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, bad
	}
	return uint16(n), nil
}

// PortOf returns the port of an address that has one, and otherwise where it has none.
func PortOf(addr string, otherwise uint16) uint16 {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return otherwise
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return otherwise
	}
	return uint16(n)
}

// ParseHostPort parses host:port, where host is a name, an IPv4 address or an
// IPv6 address in brackets, and returns it in canonical form.
func ParseHostPort(s string) (string, error) {
	addr, err := parseHostPort(s)
	return addr, explain("address", s, err, func(s string) bool { _, err := parseHostPort(s); return err == nil }, meantAddress)
}

func parseHostPort(s string) (string, error) {
	if looksSecret(s) {
		return "", errTokenAsAddress
	}
	if err := refuseURL(s); err != nil {
		return "", err
	}
	host, port, err := cutHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	if host == "" {
		return "", fmt.Errorf("%q: the host before the port is missing", s)
	}
	if host, err = CanonicalHost(host); err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	n, err := ParsePort(port)
	if err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	return net.JoinHostPort(host, strconv.Itoa(int(n))), nil
}

// ParseHost parses host or host:port, the form of --advertise, and returns the
// canonical host:port, with port where s has none.
func ParseHost(s string, port uint16) (string, error) {
	addr, err := parseHost(s, port)
	return addr, explain("address", s, err, func(s string) bool { _, err := parseHost(s, port); return err == nil }, meantAddress)
}

func parseHost(s string, port uint16) (string, error) {
	if looksSecret(s) {
		return "", errTokenAsAddress
	}
	if err := refuseURL(s); err != nil {
		return "", err
	}
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	if _, err := netip.ParseAddr(bare); err != nil && strings.ContainsAny(s, ":[]") {
		return parseHostPort(s)
	}
	host, err := CanonicalHost(bare)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// ParseAdvertise is ParseHost for an address that goes into tokens: one to listen on only is refused.
func ParseAdvertise(s string, port uint16) (string, error) {
	addr, err := ParseHost(s, port)
	if err != nil {
		return "", err
	}
	host, _, _ := net.SplitHostPort(addr)
	switch ip, err := netip.ParseAddr(host); {
	case err != nil:
	case ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "", fmt.Errorf("%s is an address of many machines, and nobody can connect to it: give the name or the public address of this server", host)
	case ip.Unmap().IsUnspecified():
		return "", fmt.Errorf("%s means every address of a machine, and nobody can connect to it: give the name or the public address of this server", host)
	}
	return addr, nil
}

// ParseListen parses an address to listen on: a port alone, :port, or
// host:port. It returns what net.Listen takes.
func ParseListen(s string) (string, error) {
	addr, err := parseListen(s)
	return addr, explain("address", s, err, func(s string) bool { _, err := parseListen(s); return err == nil }, meantListen)
}

func parseListen(s string) (string, error) {
	if looksSecret(s) {
		return "", errTokenAsAddress
	}
	port, ok := strings.CutPrefix(s, ":")
	if !ok && strings.Contains(s, ":") || strings.HasPrefix(port, ":") { // the latter is an IPv6 address
		return parseHostPort(s)
	}
	if !ok && s != "" && (isLetter(s[0]) || strings.Contains(s, ".")) {
		return "", fmt.Errorf("%q: the port is missing: write HOST:PORT or :PORT", s)
	}
	n, err := ParsePort(port)
	if err != nil {
		return "", err
	}
	return ":" + strconv.Itoa(int(n)), nil
}

// CanonicalHost checks a host to dial, a name or an IP address without
// brackets, and returns it in lower case or in the canonical form of netip. The
// trailing dot of a name stays: to a resolver it means "no search domain".
func CanonicalHost(s string) (string, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return canonicalIP(addr)
	}
	if strings.Contains(s, ":") {
		return "", fmt.Errorf("%q is not an IPv6 address", s)
	}
	// YOUR.SERVER stands in the line that the proxy prints where it does not know
	// its own address.
	if strings.Contains(s, "*") || strings.EqualFold(s, "your.server") {
		return "", fmt.Errorf("host %q is a placeholder: put the server's address there", s)
	}
	name, err := parseHostname(s)
	if err != nil {
		return "", err
	}
	// A name of digits and dots is an address with a slip in it (10.0.0.256):
	// no resolver is to be asked for that.
	if last := name[strings.LastIndexByte(name, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return "", fmt.Errorf("host %q is neither an IP address nor a host name", s)
	}
	if strings.HasSuffix(s, ".") {
		name += "."
	}
	return name, nil
}

// cutKind splits "tcp/9000" at the slash; a port alone is tcp.
func cutKind(s string) (Kind, string, error) {
	if s == "" {
		return "", "", errors.New("public is empty: give a port (9000) or tcp/9000")
	}
	if looksSecret(s) {
		return "", "", errors.New("public is a token, which belongs in a token file or in front of the services")
	}
	kind, rest, ok := strings.Cut(s, "/")
	if !ok {
		if strings.ContainsAny(s, ".:[*") || s[0] >= '0' && s[0] <= '9' || s[0] == '-' || s[0] == '+' {
			return KindTCP, s, nil
		}
		return "", "", fmt.Errorf("public %q is neither a port nor a kind of service with a name: give a port (9000) or tcp/9000", s)
	}
	switch k := Kind(kind); k {
	case KindTCP, KindUDP, KindHTTP, KindHTTPS, KindTLS, KindPrivate:
		return k, rest, nil
	}
	if rest, ok := strings.CutPrefix(rest, "/"); ok {
		hint := "give a port (9000) or tcp/9000"
		if kind == "http:" || kind == "https:" {
			hint += fmt.Sprintf(", or write %s/%s", kind[:len(kind)-1], rest)
		}
		return "", "", fmt.Errorf("public %q is a URL: %s", s, hint)
	}
	return "", "", fmt.Errorf("public %q: there is no kind %q: the kinds are %s", s, kind+"/", kindsHelp)
}

// cutBind splits "9000" or "127.0.0.1:9000" into a canonical bind address and
// the port, which it does not look at (--allow has ranges there).
func cutBind(kind Kind, s string) (host, port string, err error) {
	if !strings.ContainsAny(s, ":[]") {
		return "", s, nil
	}
	host, port, err = cutHostPort(s)
	if err != nil {
		return "", "", err
	}
	if host == "" || host == "*" {
		return "", "", fmt.Errorf("no bind address before the port: write %s/%s to bind every address", kind, port)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if _, notPort := ParsePort(host); notPort == nil {
			return "", "", fmt.Errorf("%q: the target stands behind \"=\": write %s=%s", s, host, port)
		}
		return "", "", fmt.Errorf("bind address %q is not an IP address of the proxy's machine", host)
	}
	host, err = canonicalIP(addr)
	return host, port, err
}

func bindString(host, port string) string {
	if host == "" {
		return port
	}
	return net.JoinHostPort(host, port)
}

// cutHostPort is net.SplitHostPort with errors for people, and without its
// leniency for brackets around what is no IPv6 address.
func cutHostPort(s string) (host, port string, err error) {
	if strings.HasPrefix(s, "[") {
		host, rest, ok := strings.Cut(s[1:], "]")
		if !ok {
			return "", "", errors.New("the bracket [ is not closed")
		}
		port, ok := strings.CutPrefix(rest, ":")
		if !ok {
			return "", "", errors.New("the port is missing: write [ADDRESS]:PORT")
		}
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() {
			return "", "", fmt.Errorf("brackets are for IPv6 addresses, and %q is none", host)
		}
		return host, port, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", errors.New("the port is missing: write HOST:PORT")
	}
	if strings.Contains(s[:i], ":") {
		return "", "", errors.New("an IPv6 address goes in brackets: write [ADDRESS]:PORT")
	}
	return s[:i], s[i+1:], nil
}

// refuseURL is for an address that was copied with what stands around it.
func refuseURL(s string) error {
	_, rest, ok := strings.Cut(s, "://")
	if !ok {
		return nil
	}
	hint := ""
	if host, _, _ := strings.Cut(rest, "/"); host != "" {
		hint = fmt.Sprintf(", %q", host)
	}
	return fmt.Errorf("%q is a URL: write the host without scheme and path%s", s, hint)
}

// canonicalIP writes an address the one way that net.Listen and net.Dial will
// report it. A zone is an interface name, so its letters are checked: it ends
// up in logs and on the wire.
func canonicalIP(addr netip.Addr) (string, error) {
	addr = addr.Unmap()
	for _, c := range []byte(addr.Zone()) {
		if !isNameByte(c) && (c < 'A' || c > 'Z') {
			return "", fmt.Errorf("the zone of address %q is not an interface name", addr)
		}
	}
	return addr.String(), nil
}

// parseHostname checks a DNS name and returns it in lower case without the
// trailing dot.
func parseHostname(s string) (string, error) {
	name := strings.TrimSuffix(s, ".")
	if name == "" {
		return "", errors.New("the host name is empty")
	}
	if len(name) > 253 {
		return "", fmt.Errorf("host name %q is longer than 253 bytes", s)
	}
	for i := range len(name) {
		if name[i] >= 0x80 {
			return "", fmt.Errorf("host name %q is not ASCII: write it in its xn-- form", s)
		}
	}
	name = strings.ToLower(name)
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "", fmt.Errorf("host name %q has an empty part", s)
		case len(label) > 63:
			return "", fmt.Errorf("host name %q has a part longer than 63 bytes", s)
		case label[0] == '-' || label[len(label)-1] == '-':
			return "", fmt.Errorf("host name %q has a part that starts or ends with -", s)
		}
		for _, c := range []byte(label) {
			if !isNameByte(c) {
				return "", fmt.Errorf("host name %q has %q in it", s, string(rune(c)))
			}
		}
	}
	return name, nil
}

// parsePrivate checks the name of a private service.
func parsePrivate(s string) (string, error) {
	name := strings.ToLower(s)
	if len(name) == 0 || len(name) > 63 {
		return "", fmt.Errorf("the name %q of a private service has 1 to 63 characters", s)
	}
	for _, c := range []byte(name) {
		if !isNameByte(c) && c != '.' {
			return "", fmt.Errorf("the name %q of a private service has letters, digits, . _ and - only", s)
		}
	}
	return name, nil
}

var errTokenAsAddress = errors.New("a token stands where an address belongs")

// looksSecret holds for a token that landed in the wrong place. The errors here
// quote what they refuse, and a secret must not stand in an error.
func looksSecret(s string) bool { return strings.Contains(s, "rv1_") }

// isNameByte holds for what a lower-case name is made of. The underscore is no
// part of a host name by the RFC, but container networks use it.
func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
