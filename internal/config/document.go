package config

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"reverser/internal/access"
	"reverser/internal/grammar"
)

// Check reads a file of either role, tells the role from its keys, and looks
// into the files that it names. Files of trusted users are taken as one's own.
func Check(path string, trusted ...int) (role string, warnings []Warning, err error) {
	d, err := open(path, access.Rules{Trusted: trusted})
	if err != nil {
		return "", nil, err
	}
	if d.broken {
		return "", d.warnings, d.err()
	}
	switch role = d.role(); role {
	case RoleProxy:
		p := d.proxy()
		d.warnings = append(d.warnings, unusedCertificates(p.HTTPS, p.Given)...)
	case RoleBridge:
		b := d.bridge()
		if b.NoProxy != nil {
			d.errs = append(d.errs, b.NoProxy.(*Error))
		}
		if b.TokenFile != "" && b.TokenFile != "-" {
			if _, err := d.token(b.TokenFile, d.line("token_file")); err != nil {
				d.fault("token_file", err, "")
			}
		}
		if b.ViaFile != "" {
			_, notes, err := readVia(b.ViaFile, d.rules)
			if err != nil {
				d.fault("via_file", err, "")
			}
			d.warnings = append(d.warnings, notes...)
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
	rules   access.Rules     // for the files that it names
	private private          // of the file itself, for when it holds a secret
	lines   map[string]int   // key → line
	options map[string]any   // key → value
	origin  map[string]Place // option → where it was written

	elsewhere map[string]string // key → the file that has it, where that is another one (XML)
	others    []string          // files that this one names and that settings were read from, or would be if they were there

	// Seams for fuzzing, which must not open what it likes.
	readToken       func(path string, rules access.Rules) (grammar.Token, []string, error)
	readOther       func(path string, rules access.Rules) (string, []string, error)
	readCertificate func(chain, key string, rules access.Rules) (*tls.Certificate, []string, error)

	broken   bool // there is no use in looking at the options
	errs     []*Error
	warnings []Warning
}

// private returns a fault if somebody else can read or write a file.
type private func() (notes []string, fault *access.Fault)

// open reads a file. What it says itself about trusted users counts for the files that it names, and not for itself.
func open(path string, rules access.Rules) (*doc, error) {
	text, file, err := readText(path, rules)
	if e, ok := errors.AsType[*Error](err); ok {
		return nil, e
	}
	if fault, ok := errors.AsType[*access.Fault](err); ok {
		return nil, &Error{File: path, Text: fault.Text, Hint: fault.Hint, Err: err}
	}
	if err != nil {
		return nil, &Error{File: path, Text: trimPath(err).Error(), Hint: hintFor(err), Err: err}
	}
	d := newDoc(path, file.Private)
	d.rules = rules
	d.readText(text)
	notes, bad := checkWriters(path, file)
	if bad != nil {
		d.fail(bad)
	}
	for _, note := range notes {
		d.warn(0, "%s", note)
	}
	if len(rules.Trusted) == 0 {
		d.rules.Trusted = d.owners()
	}
	return d, nil
}

// readOther reads a file that a configuration file names.
func readOther(path string, rules access.Rules) (string, []string, error) {
	text, file, err := readText(path, rules)
	if err != nil {
		return "", nil, err
	}
	notes, bad := checkWriters(path, file)
	if bad != nil {
		return "", nil, bad
	}
	return text, notes, nil
}

// checkWriters refuses a file that others can write: whoever can decides what is opened to the world, also when no secret is in it.
func checkWriters(path string, file *access.File) (notes []string, bad *Error) {
	notes, fault := file.Unwritable()
	if fault != nil {
		return nil, &Error{File: path, Text: fault.Text, Hint: fault.Hint, Err: fault}
	}
	return notes, nil
}

// owners are the users of trust_owner: one, or a list of them.
func (d *doc) owners() (uids []int) {
	const key = "trust_owner"
	v, ok := d.options[key]
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, v := range list {
		n, ok := v.(int64)
		uid, err := access.ParseOwner(strconv.FormatInt(n, 10))
		if !ok || err != nil {
			d.fault(key, fmt.Errorf("%v is no user id", v), "write a number, trust_owner = 1000: `id -u NAME` prints it")
			continue
		}
		uids = append(uids, uid)
	}
	d.origin[key] = Place{d.file, d.line(key), key}
	return uids
}

// token reads a token file that is named on a line.
func (d *doc) token(path string, line int) (grammar.Token, error) {
	tok, notes, err := d.readToken(path, d.rules)
	for _, note := range notes {
		d.warn(line, "token file %s: %s", path, note)
	}
	return tok, err
}

func newDoc(path string, private private) *doc {
	return &doc{
		file: path, private: private,
		lines: map[string]int{}, options: map[string]any{}, origin: map[string]Place{},
		elsewhere: map[string]string{},
		readToken: readToken, readOther: readOther, readCertificate: ReadCertificate,
	}
}

// readText is the whole of this package that needs no file system, apart from
// the files that a value names.
func (d *doc) readText(text string) {
	if isXML(d.file, text) {
		d.xml = true
		d.readXML(text)
	} else {
		d.readTOML(text)
	}
}

func isXML(path, text string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".config", ".xml":
		return true
	}
	return strings.HasPrefix(strings.TrimSpace(text), "<")
}

func (d *doc) fail(e *Error) {
	e.File = cmp.Or(e.File, d.file)
	d.errs = append(d.errs, e)
}

// fault blames key for err.
func (d *doc) fault(key string, err error, hint string) {
	p := d.place(key)
	d.fail(&Error{File: p.File, Line: p.Line, Key: key, Text: err.Error(), Hint: hint, Err: err})
}

func (d *doc) warn(line int, format string, args ...any) { d.warnAt(d.file, line, format, args...) }

func (d *doc) warnAt(file string, line int, format string, args ...any) {
	d.warnings = append(d.warnings, Warning{file, line, fmt.Sprintf(format, args...)})
}

// place is where key stands.
func (d *doc) place(key string) Place {
	return Place{cmp.Or(d.elsewhere[key], d.file), d.line(key), key}
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
	slices.SortStableFunc(d.errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(d.rank(a.File), d.rank(b.File)), cmp.Compare(a.Line, b.Line))
	})
	var errs []error
	for i, e := range d.errs {
		if i == 0 || e.Error() != d.errs[i-1].Error() {
			errs = append(errs, e)
		}
	}
	return errors.Join(errs...)
}

// rank is the order in which files are spoken of.
func (d *doc) rank(file string) int { return slices.Index(d.others, file) }

// before reports whether one key stands before another.
func (d *doc) before(a, b string) bool {
	return cmp.Or(cmp.Compare(d.rank(d.place(a).File), d.rank(d.place(b).File)), cmp.Compare(d.line(a), d.line(b))) < 0
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
		if first[r] == "" || d.before(key, first[r]) {
			first[r] = key
		}
	}
	switch {
	case first[0] != "" && first[1] != "":
		later, earlier := first[1], first[0]
		laterRole, earlierRole := RoleBridge, RoleProxy
		if d.before(later, earlier) {
			later, earlier, laterRole, earlierRole = earlier, later, earlierRole, laterRole
		}
		d.fail(&Error{
			Line: d.line(later), Key: later,
			File: d.place(later).File,
			Text: fmt.Sprintf("this key is a %s's, and %s on line %d%s is a %s's", laterRole, earlier, d.line(earlier), inOther(d.elsewhere[earlier]), earlierRole),
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

func inOther(file string) string {
	if file == "" {
		return ""
	}
	return " of " + file
}

func roleOf(key string) string {
	switch key {
	case "listen", "transfer", "http", "https", "bind", "advertise", "proxy_protocol_from", "certificate", "key", xmlWorkPort, xmlIcPort, xmlTransferPort:
		return RoleProxy
	case "token", "token_file", "proxy", "proxy_transfer", "via", "via_file", "keepalive", "source", "auto_cert", "expose",
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

// failedAt reports a fault on the line of key, so that one slip is not told
// twice in different words.
func (d *doc) failedAt(key string) bool {
	line, ok := d.lines[key]
	return ok && slices.ContainsFunc(d.errs, func(e *Error) bool { return e.Line == line })
}

// common reads what both roles have.
func (d *doc) common() CommonArgs {
	var c CommonArgs
	if c.State = d.text("state"); c.State != "" {
		c.State = d.relative(c.State)
	}
	c.LogFormat = d.checked("log_format", checkLogFormat, `write "text" or "json"`)
	c.LogLevel = d.checked("log_level", func(s string) error { _, err := parseLogLevel(s); return err }, `write "debug", "info", "warn" or "error"`)
	if c.AccessLog = d.text("access_log"); c.AccessLog != "" && c.AccessLog != "-" {
		c.AccessLog = d.relative(c.AccessLog)
	}
	c.Pairs = d.yesNo("pairs")
	c.TrustOwner = d.rules.Trusted
	c.Drain = d.checked("drain", func(s string) error { _, err := ParseDrain(s); return err }, "")
	c.ResumeWithin = d.checked("resume_within", func(s string) error { _, err := ParseResumeWithin(s); return err }, "")
	c.ACMEEmail = d.checked("acme_email", checkEmail, `give an address, "admin@example.com", or leave the key out`)
	c.ACMEDirectory = d.checked("acme_directory", checkDirectory, `give the URL of the authority's directory, "https://HOST/PATH", or leave the key out`)
	if c.ACMERoot = d.text("acme_root"); c.ACMERoot != "" {
		c.ACMERoot = d.relative(c.ACMERoot)
		notes, err := d.acmeRoot(c.ACMERoot)
		if err != nil {
			d.fault("acme_root", err, "")
		}
		for _, note := range notes {
			d.warn(d.line("acme_root"), "%s", note)
		}
	}
	c.Notify = d.notify()
	c.Admin = d.admin()
	return c
}

// checked is the value of a key that parse accepts.
func (d *doc) checked(key string, parse func(string) error, hint string) string {
	s := d.text(key)
	if s != "" {
		if err := parse(s); err != nil {
			d.fault(key, err, hint)
		}
	}
	return s
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
	d.origin[key] = d.place(key)
	return s
}

// yesNo is the value of a key that is true or false; "" without the key.
func (d *doc) yesNo(key string) string {
	v, ok := d.options[key]
	if !ok {
		return ""
	}
	yes, ok := v.(bool)
	if !ok {
		d.fault(key, errors.New("the value is neither true nor false"), "write one of the two, without quotes")
		return ""
	}
	d.origin[key] = d.place(key)
	return strconv.FormatBool(yes)
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

func (d *doc) sni() string {
	return d.address("sni", grammar.ParseSNI, `give a host name, such as "tunnel.example.com"`)
}

// addresses is one address, or a list of them.
func (d *doc) addresses(key string, parse func(string) (string, error), hint string) (all []string) {
	list, ok := d.options[key].([]any)
	if !ok {
		if addr := d.address(key, parse, hint); addr != "" {
			all = append(all, addr)
		}
		return all
	}
	if len(list) == 0 {
		d.fault(key, errors.New("the list is empty"), "give one, or leave the key out")
	}
	for _, v := range list {
		s, err := scalar(v)
		switch {
		case err != nil:
		case strings.Contains(s, "rv1_"):
			err, hint = errors.New("the value is a token"), "a token goes into a file that token_file names"
		default:
			s, err = parse(s)
		}
		if err != nil {
			d.fault(key, err, hint)
			continue
		}
		if slices.Contains(all, s) {
			d.fault(key, fmt.Errorf("%s is there twice", s), "keep one of the two")
			continue
		}
		all = append(all, s)
	}
	d.origin[key] = Place{d.file, d.line(key), key}
	return all
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
var ports = []string{"listen", "transfer", "http", "https", "public", "target", "drain", "resume_within", "keepalive", "admin"}

var errNumber = errors.New("the value is a number: write a text, in quotes")

// scalar is a value as the command line would have it: a port may be a number.
func scalar(v any) (string, error) {
	switch v := v.(type) {
	case string:
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' || r == 0x7f }) || strings.ContainsAny(strings.TrimSpace(v), "\r\n") {
			return "", errors.New(`the value has a tab, a line break or the like in it, as "\t" and "\n" in double quotes are: write a path in single quotes, such as 'C:\temp\new.token'`)
		}
		return v, nil
	case int64:
		return fmt.Sprint(v), nil
	case []any, map[string]any:
		return "", errors.New("the value is a list or a table: write one text in quotes")
	}
	return "", errors.New("the value is no text: write it in quotes")
}
