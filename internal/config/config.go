// Package config reads what a file says about a proxy or a bridge: our own
// TOML, and the XML of the system that reverser replaces, which runs as it is.
// Its secret is those two formats. It hands out plain, checked values and knows
// where each was written; what a command line adds is not its business.
//
// A file is refused as a whole, and every fault in it is told at once, with
// file, line, key and remedy. No error holds a token. Nothing here starts a
// goroutine.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"reverser/internal/grammar"
	"reverser/internal/state"
)

// The roles that Check tells.
const (
	RoleProxy  = "proxy"
	RoleBridge = "bridge"
)

// Proxy is a proxy's configuration. An option that the file does not give is
// empty. Addresses are canonical, ":3010" or "127.0.0.1:3010".
type Proxy struct {
	Listen, Transfer string
	State            string
	Admin            string // empty so far: this version refuses the option by name
	Advertise        string // host or host:port, for grammar.ParseHost
	LogFormat        string
	Drain            string // for ParseDrain
	ResumeWithin     string // for ParseResumeWithin
	Keys             []Key
	Offer            []grammar.Public  // WorkPort of the source system's XML
	Source           map[string]string // option as in TOML, or its XML name → file:line
}

// Key is one [[key]] of a proxy.
type Key struct {
	Name       string
	SecretFile string
	Token      grammar.Token // what SecretFile holds
	Allow      grammar.Policy
}

// Bridge is a bridge's configuration. Of Token and TokenFile at most one is
// set; TokenFile is for ReadTokenFile, as a flag may make it needless.
type Bridge struct {
	Token, TokenFile     string
	Proxy, ProxyTransfer string // host:port
	// NoProxy is set where the file has a placeholder for the proxy's address: wrong, unless a flag gives one. Proxy and
	// ProxyTransfer are empty then.
	NoProxy error
	// TransferPort is the port alone of the XML's ProxyTransfer, for when a flag names another host; 0: none.
	TransferPort uint16
	State        string
	Admin        string // empty so far: this version refuses the option by name
	LogFormat    string
	Drain        string // for ParseDrain
	ResumeWithin string // for ParseResumeWithin
	Expose       []grammar.Expose
	Source       map[string]string // option as in TOML, or its XML name → file:line
}

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

// LoadProxy reads the configuration of a proxy.
func LoadProxy(path string) (*Proxy, []Warning, error) {
	d, err := open(path)
	if err != nil {
		return nil, nil, err
	}
	if d.broken {
		return nil, d.warnings, d.err()
	}
	if role := d.role(); role == RoleBridge {
		return nil, d.warnings, d.wrongRole(RoleBridge, RoleProxy)
	}
	p := d.proxy()
	if err := d.err(); err != nil {
		return nil, d.warnings, err
	}
	return p, d.warnings, nil
}

// LoadBridge reads the configuration of a bridge.
func LoadBridge(path string) (*Bridge, []Warning, error) {
	d, err := open(path)
	if err != nil {
		return nil, nil, err
	}
	if d.broken {
		return nil, d.warnings, d.err()
	}
	if role := d.role(); role == RoleProxy {
		return nil, d.warnings, d.wrongRole(RoleProxy, RoleBridge)
	}
	b := d.bridge()
	if err := d.err(); err != nil {
		return nil, d.warnings, err
	}
	return b, d.warnings, nil
}

// Check reads a file of either role, tells the role from its keys, and looks
// into the files that it names.
func Check(path string) (role string, warnings []Warning, err error) {
	d, err := open(path)
	if err != nil {
		return "", nil, err
	}
	if d.broken {
		return "", d.warnings, d.err()
	}
	switch role = d.role(); role {
	case RoleProxy:
		d.proxy()
	case RoleBridge:
		b := d.bridge()
		if b.NoProxy != nil {
			d.errs = append(d.errs, b.NoProxy.(*Error))
		}
		if b.TokenFile != "" && b.TokenFile != "-" {
			if _, err := d.readToken(b.TokenFile); err != nil {
				d.fault("token_file", err, "")
			}
		}
		if len(b.Expose) == 0 && d.err() == nil {
			d.warn(0, "no [[expose]]: the bridge needs its services as arguments then")
		}
	default:
		if d.err() == nil {
			d.fail(&Error{Text: "nothing in it tells a proxy from a bridge", Hint: "a proxy's file has listen or [[key]], a bridge's token_file, proxy or [[expose]]"})
		}
	}
	return role, d.warnings, d.err()
}

// doc is one file on its way from text to values. Both formats fill options;
// the values are judged in one place.
type doc struct {
	file    string
	xml     bool
	loose   error          // the file is readable by others: refused when it holds a secret
	lines   map[string]int // key → line
	options map[string]any // key → value
	used    map[string]string

	readToken func(path string) (grammar.Token, error) // a seam for fuzzing, which must not open what it likes

	broken   bool // there is no use in looking at the options
	errs     []*Error
	warnings []Warning
}

func open(path string) (*doc, error) {
	text, info, err := readText(path)
	if err != nil {
		return nil, &Error{File: path, Text: trimPath(err).Error(), Hint: hintFor(err), Err: err}
	}
	d := parse(path, text, looseMode(info))
	// Whoever can write it decides what is opened to the world, also when no secret is in it.
	if text, hint := writtenByOthers(path, info); text != "" {
		d.fail(&Error{Text: text, Hint: hint, Err: errWritable})
	}
	return d, nil
}

// parse reads the text of a file, and is the whole of this package that needs
// no file system, apart from the files that a value names.
func parse(path, text string, loose error) *doc {
	d := &doc{
		file: path, loose: loose,
		lines: map[string]int{}, options: map[string]any{}, used: map[string]string{},
		readToken: readToken,
	}
	if isXML(path, text) {
		d.xml = true
		d.readXML(text)
	} else {
		d.readTOML(text)
	}
	return d
}

func isXML(path, text string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".config", ".xml":
		return true
	}
	return strings.HasPrefix(strings.TrimSpace(text), "<")
}

func (d *doc) fail(e *Error) {
	e.File = d.file
	d.errs = append(d.errs, e)
}

// fault blames key for err.
func (d *doc) fault(key string, err error, hint string) {
	d.fail(&Error{Line: d.line(key), Key: key, Text: err.Error(), Hint: hint, Err: err})
}

func (d *doc) warn(line int, format string, args ...any) {
	d.warnings = append(d.warnings, Warning{d.file, line, fmt.Sprintf(format, args...)})
}

// line is where key stands, or where the table stands that should have it.
func (d *doc) line(key string) int {
	for {
		if n, ok := d.lines[key]; ok {
			return n
		}
		i := max(strings.LastIndexByte(key, '.'), strings.LastIndexByte(key, '['))
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
}

// err is every fault, in the order of the lines, without repetitions.
func (d *doc) err() error {
	slices.SortStableFunc(d.errs, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	var errs []error
	for i, e := range d.errs {
		if i == 0 || e.Error() != d.errs[i-1].Error() {
			errs = append(errs, e)
		}
	}
	return errors.Join(errs...)
}

// role tells the role from the keys, and is empty where they fit both. Keys of
// both roles are a fault.
func (d *doc) role() string {
	var first [2]string
	for key := range d.options {
		r := 0
		switch roleOf(key) {
		case RoleProxy:
		case RoleBridge:
			r = 1
		default:
			continue
		}
		if first[r] == "" || d.line(key) < d.line(first[r]) {
			first[r] = key
		}
	}
	switch {
	case first[0] != "" && first[1] != "":
		later, earlier := first[1], first[0]
		laterRole, earlierRole := RoleBridge, RoleProxy
		if d.line(later) < d.line(earlier) {
			later, earlier, laterRole, earlierRole = earlier, later, earlierRole, laterRole
		}
		d.fail(&Error{
			Line: d.line(later), Key: later,
			Text: fmt.Sprintf("this key is a %s's, and %s on line %d is a %s's", laterRole, earlier, d.line(earlier), earlierRole),
			Hint: "make two files, one for each machine",
		})
		if laterRole == RoleBridge {
			return RoleProxy
		}
		return RoleBridge
	case first[0] != "":
		return RoleProxy
	case first[1] != "":
		return RoleBridge
	}
	return ""
}

func roleOf(key string) string {
	switch key {
	case "listen", "transfer", "advertise", "key", xmlWorkPort, xmlIcPort, xmlTransferPort:
		return RoleProxy
	case "token", "token_file", "proxy", "proxy_transfer", "expose",
		xmlProxyServerIP, xmlProxyIcPort, xmlProxyTransferPort, xmlRealServerIP, xmlRealServerPort:
		return RoleBridge
	}
	return ""
}

// wrongRole is the answer to a file of the other machine. It comes alone: what
// else is wrong in the file matters there.
func (d *doc) wrongRole(is, wanted string) error {
	if err := d.err(); err != nil {
		return err
	}
	return &Error{File: d.file, Text: fmt.Sprintf("this is the configuration of a %s, not of a %s", is, wanted), Hint: fmt.Sprintf("start it with `reverser %s --config %s`", is, d.file)}
}

func (d *doc) proxy() *Proxy {
	p := &Proxy{Source: d.used}
	if d.xml {
		d.xmlProxy(p)
		return p
	}
	p.Listen = d.listen("listen")
	p.Transfer = d.listen("transfer")
	if p.Transfer != "" && p.Transfer == cmp.Or(p.Listen, ":3010") {
		d.fault("transfer", fmt.Errorf("%s is the address of listen", p.Transfer), "give it another port, or leave transfer out: everything uses listen then")
	}
	if p.Advertise = d.text("advertise"); p.Advertise != "" {
		if _, err := grammar.ParseAdvertise(p.Advertise, 3010); err != nil {
			d.fault("advertise", err, "give the address under which bridges reach this proxy, HOST or HOST:PORT")
		}
	}
	p.State, p.LogFormat = d.common()
	p.Drain, p.ResumeWithin = d.durations()
	d.keys(p)
	return p
}

func (d *doc) keys(p *Proxy) {
	for i, t := range d.tables("key", "name", "secret_file", "allow") {
		at := func(k string) string { return fmt.Sprintf("key[%d].%s", i, k) }
		k := Key{Name: d.inner(t, at("name"), "name")}
		switch {
		case k.Name == "":
			d.missing(at("name"), "name", "name the bridge that uses this key")
		default:
			if err := state.CheckKeyName(k.Name); err != nil {
				d.fail(&Error{Line: d.line(at("name")), Key: "name", Text: err.Error()})
			}
		}
		if k.SecretFile = d.inner(t, at("secret_file"), "secret_file"); k.SecretFile == "" {
			d.missing(at("secret_file"), "secret_file", "write the token into a file with mode 600 and name that file here")
		} else {
			k.SecretFile = d.relative(k.SecretFile)
			var err error
			if k.Token, err = d.readToken(k.SecretFile); err != nil {
				d.fail(&Error{Line: d.line(at("secret_file")), Key: "secret_file", Text: err.Error(), Err: err})
			}
		}
		k.Allow = d.policy(t, at("allow"))
		for _, earlier := range p.Keys {
			switch {
			case k.Name != "" && k.Name == earlier.Name:
				d.fail(&Error{Line: d.line(at("name")), Key: "name", Text: fmt.Sprintf("there are two keys with the name %q", k.Name), Hint: "give each its own"})
			case k.Token != (grammar.Token{}) && k.Token.KeyID == earlier.Token.KeyID:
				d.fail(&Error{Line: d.line(at("secret_file")), Key: "secret_file", Text: fmt.Sprintf("keys %q and %q have the same token", earlier.Name, k.Name), Hint: "one key is for one bridge: make another with `reverser key add`"})
			}
		}
		p.Keys = append(p.Keys, k)
	}
}

func (d *doc) policy(t map[string]any, path string) grammar.Policy {
	const example = `allow = ["tcp/9000"]`
	v, ok := t["allow"]
	if !ok {
		d.missing(path, "allow", "list what the bridge with this key may publish, such as "+example)
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		d.fail(&Error{Line: d.line(path), Key: "allow", Text: "this is no list", Hint: "write " + example})
		return nil
	}
	if len(list) == 0 {
		d.fail(&Error{Line: d.line(path), Key: "allow", Text: "the list is empty, so the key allows nothing", Hint: "write " + example})
	}
	var ps grammar.Policy
	for _, v := range list {
		s, err := scalar(v)
		if err == nil {
			var a grammar.Allow
			if a, err = grammar.ParseAllow(s); err == nil {
				ps = append(ps, a)
				continue
			}
		}
		d.fail(&Error{Line: d.line(path), Key: "allow", Text: err.Error(), Err: err})
	}
	return ps
}

func (d *doc) bridge() *Bridge {
	b := &Bridge{Source: d.used}
	if d.xml {
		d.xmlBridge(b)
		return b
	}
	if b.Token = strings.TrimSpace(d.text("token")); b.Token != "" {
		if _, err := grammar.ParseToken(b.Token); err != nil {
			d.fault("token", err, "")
		}
		if d.loose != nil {
			d.fault("token", d.loose, fmt.Sprintf("run chmod 600 %s, or put the token into a file of its own and name it in token_file", d.file))
		}
	}
	if b.TokenFile = d.text("token_file"); b.TokenFile != "" {
		if b.TokenFile != "-" {
			b.TokenFile = d.relative(b.TokenFile)
		}
		if b.Token != "" {
			d.fault("token_file", fmt.Errorf("token on line %d gives a token already", d.line("token")), "keep one of the two")
		}
	}
	b.Proxy = d.address("proxy", func(s string) (string, error) { return grammar.ParseHost(s, 3010) },
		`give the proxy's address, "server.example.com" or "server.example.com:3010"`)
	b.ProxyTransfer = d.address("proxy_transfer", grammar.ParseHostPort, `give host and port, such as "server.example.com:3020"`)
	b.State, b.LogFormat = d.common()
	b.Drain, b.ResumeWithin = d.durations()

	for i, t := range d.tables("expose", "public", "target") {
		at := func(k string) string { return fmt.Sprintf("expose[%d].%s", i, k) }
		public, target := d.inner(t, at("public"), "public"), d.inner(t, at("target"), "target")
		if _, ok := t["public"]; !ok {
			d.missing(at("public"), "public", `say where users reach the service, such as public = "tcp/9000"`)
			continue
		}
		if _, ok := t["target"]; ok && target == "" && !d.failedAt(at("target")) {
			d.fail(&Error{Line: d.line(at("target")), Key: "target", Text: "target is empty", Hint: "give a port (9904), host:port, or unix:/path"})
		}
		if d.failedAt(at("public")) || d.failedAt(at("target")) {
			continue
		}
		e, err := grammar.NewExpose(public, target)
		if err != nil {
			// The grammar's errors name the half themselves; the key is for the line.
			key := "public"
			if _, perr := grammar.ParsePublic(public); perr == nil && strings.HasPrefix(err.Error(), "target") {
				key = "target"
			}
			d.fail(&Error{Line: d.line(at(key)), Text: err.Error(), Err: err})
			continue
		}
		if err := grammar.CheckExposes(append(slices.Clone(b.Expose), e)); err != nil {
			d.fail(&Error{Line: d.line(at("public")), Text: err.Error(), Err: err})
			continue
		}
		b.Expose = append(b.Expose, e)
	}
	return b
}

// failedAt reports a fault on the line of key, so that one slip is not told
// twice in different words.
func (d *doc) failedAt(key string) bool {
	line, ok := d.lines[key]
	return ok && slices.ContainsFunc(d.errs, func(e *Error) bool { return e.Line == line })
}

// common reads what both roles have.
func (d *doc) common() (state, logFormat string) {
	if state = d.text("state"); state != "" {
		state = d.relative(state)
	}
	switch logFormat = d.text("log_format"); logFormat {
	case "", "text", "json":
	default:
		d.fault("log_format", fmt.Errorf("%q is no format", logFormat), `write "text" or "json"`)
	}
	return state, logFormat
}

// durations reads what both roles have of them.
func (d *doc) durations() (drain, resumeWithin string) {
	if drain = d.text("drain"); drain != "" {
		if _, err := ParseDrain(drain); err != nil {
			d.fault("drain", err, "")
		}
	}
	if resumeWithin = d.text("resume_within"); resumeWithin != "" {
		if _, err := ParseResumeWithin(resumeWithin); err != nil {
			d.fault("resume_within", err, "")
		}
	}
	return drain, resumeWithin
}

// mostDuration is what the wire's 32 bits of milliseconds hold, in round figures.
const mostDuration = 1000 * time.Hour

// ParseDrain parses how long a stopping process lets connections finish: "30s". Nothing is 0: they are reset at once.
func ParseDrain(s string) (time.Duration, error) { return parseDuration(s, 0, `"30s" or "2m"`) }

// ParseResumeWithin parses how long connections outlive a break of the link: "5m".
func ParseResumeWithin(s string) (time.Duration, error) {
	return parseDuration(s, time.Second, `"5m" or "90s"`)
}

func parseDuration(s string, least time.Duration, example string) (time.Duration, error) {
	v, err := time.ParseDuration(s)
	switch {
	case err != nil:
		if _, bare := strconv.ParseFloat(s, 64); bare == nil {
			return 0, fmt.Errorf("%q has no unit: write a number with ms, s, m or h, such as %s", s, example)
		}
		return 0, fmt.Errorf("%q is no length of time: write a number with ms, s, m or h, such as %s", s, example)
	case v < 0:
		return 0, fmt.Errorf("%q is negative: write a number with ms, s, m or h, such as %s", s, example)
	case v < least:
		return 0, fmt.Errorf("%q is less than %s: give the link time to come back, such as %s", s, least, example)
	case v > mostDuration:
		return 0, fmt.Errorf("%q is more than 1000h: give less, such as %s", s, example)
	}
	return v, nil
}

// text is the value of a key, and notes where it came from.
func (d *doc) text(key string) string {
	v, ok := d.options[key]
	if !ok {
		return ""
	}
	s, err := scalar(v)
	if _, number := v.(int64); number && !slices.Contains(ports, key) {
		err = errNumber
	}
	switch {
	case err != nil:
		d.fault(key, err, "")
		return ""
	case s == "":
		d.fault(key, errors.New("the value is empty"), "give one, or leave the key out")
	case key != "token" && strings.Contains(s, "rv1_"):
		// The checks that follow quote what they refuse.
		d.fault(key, errors.New("the value is a token"), "a token goes into a file that token_file names")
		return ""
	}
	d.used[key] = at(d.file, d.line(key))
	return s
}

func (d *doc) listen(key string) string {
	return d.address(key, grammar.ParseListen, `give a port, ":3010", or an address of this machine, "127.0.0.1:3010"`)
}

func (d *doc) address(key string, parse func(string) (string, error), hint string) string {
	s := d.text(key)
	if s == "" {
		return ""
	}
	addr, err := parse(s)
	if err != nil {
		d.fault(key, err, hint)
	}
	return addr
}

// inner is the value of a key in a table of a list.
func (d *doc) inner(t map[string]any, path, key string) string {
	v, ok := t[key]
	if !ok {
		return ""
	}
	s, err := scalar(v)
	if _, number := v.(int64); number && !slices.Contains(ports, key) {
		err = errNumber
	}
	if err == nil && strings.Contains(s, "rv1_") {
		err = errors.New("the value is a token, which goes into a file of its own")
		s = ""
	}
	if err != nil {
		d.fail(&Error{Line: d.line(path), Key: key, Text: err.Error()})
	}
	return s
}

func (d *doc) missing(path, key, hint string) {
	d.fail(&Error{Line: d.line(path), Key: key, Text: "this key is missing", Hint: hint})
}

// relative resolves a path against the folder of the file: a service has a
// working directory that nobody chose.
func (d *doc) relative(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(d.file), path)
}

// ports are the keys whose value may be a port alone, and so a number, and those for which a number is refused in better words.
var ports = []string{"listen", "transfer", "public", "target", "drain", "resume_within"}

var errNumber = errors.New("the value is a number: write a text, in quotes")

// scalar is a value as the command line would have it: a port may be a number.
func scalar(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case int64:
		return fmt.Sprint(v), nil
	case []any, map[string]any:
		return "", errors.New("the value is a list or a table: write one text in quotes")
	}
	return "", errors.New("the value is no text: write it in quotes")
}
