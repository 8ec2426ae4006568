package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"reverser/internal/grammar"
)

// The keys of the source system. .NET compares them without regard to case, so
// we do too.
const (
	xmlWorkPort          = "WorkPort"
	xmlIcPort            = "IcPort"
	xmlTransferPort      = "TransferPort"
	xmlProxyServerIP     = "ProxyServerIP"
	xmlProxyIcPort       = "ProxyIcPort"
	xmlProxyTransferPort = "ProxyTransferPort"
	xmlRealServerIP      = "RealServerIP"
	xmlRealServerPort    = "RealServerPort"
)

var xmlKeys = []string{
	xmlWorkPort, xmlIcPort, xmlTransferPort,
	xmlProxyServerIP, xmlProxyIcPort, xmlProxyTransferPort, xmlRealServerIP, xmlRealServerPort,
}

// xmlOption is the option of ours that a key of the source system stands for. Two keys may share one.
var xmlOption = map[string]string{
	xmlWorkPort: "offer", xmlIcPort: "listen", xmlTransferPort: "transfer",
	xmlProxyServerIP: "proxy", xmlProxyIcPort: "proxy", xmlProxyTransferPort: "proxy_transfer",
	xmlRealServerIP: "expose", xmlRealServerPort: "expose",
}

// readXML takes the settings out of <configuration><appSettings>, out of <appSettings>, or out of a text that has nothing around
// them, as .NET does: elements hold in their order, and a later <add> of a key wins. Where .NET would not start, neither do we.
func (d *doc) readXML(text string) {
	top, err := parseXML(text)
	if err != nil {
		d.broken = true
		d.fail(err)
		return
	}
	s := appSettings{d: d, values: map[string]setting{}}
	if top.text != 0 {
		s.textIn(d.file, top.text)
	}
	roots := map[string]int{}
	for _, e := range top.children {
		if first, ok := roots[e.name]; ok && !isSettingElement(e) {
			d.fail(&Error{Line: e.line, Text: fmt.Sprintf("there is a second <%s>, and the first is on line %d", e.name, first), Hint: "keep one of the two"})
			continue
		}
		roots[e.name] = e.line
		switch {
		case e.name == "configuration":
			s.configuration(e)
		case e.name == "appSettings":
			s.section(d.file, e)
		case isSettingElement(e):
			s.apply(d.file, e)
		default:
			d.misspelt(e, "configuration", "appSettings", "add")
		}
	}
	s.finish()
	if len(d.options) == 0 && len(d.errs) == 0 {
		d.broken = true
		d.fail(&Error{Text: "there are no settings in it", Hint: `they are written as <add key="…" value="…"/> in <configuration><appSettings>`})
	}
}

// appSettings are the values of <appSettings>, while its elements are read one after the other.
type appSettings struct {
	d       *doc
	values  map[string]setting // by the lower case of the key, since .NET compares so
	foreign []setting          // keys that are none of ours
}

type setting struct {
	key, value string
	file       string
	line       int
}

func isSettingElement(e *element) bool {
	return e.name == "add" || e.name == "remove" || e.name == "clear"
}

// misspelt faults an element whose name is one of these but for case, which .NET does not know either.
func (d *doc) misspelt(e *element, names ...string) {
	for _, name := range names {
		if strings.EqualFold(e.name, name) {
			d.fail(&Error{Line: e.line, Text: fmt.Sprintf("there is no element <%s>", e.name), Hint: fmt.Sprintf("write <%s>: the case of letters counts in names of elements", name)})
		}
	}
}

func (s *appSettings) textIn(file string, line int) {
	s.d.fail(&Error{File: file, Line: line, Text: "there is text outside of the elements", Hint: "leave only the lines <add … />, or put the text between <!-- and -->"})
}

func (s *appSettings) configuration(c *element) {
	d, first := s.d, 0
	for _, e := range c.children {
		switch {
		case e.name == "appSettings" && first != 0:
			d.fail(&Error{Line: e.line, Text: fmt.Sprintf("there is a second <appSettings>, and the first is on line %d", first), Hint: "put all settings into one"})
		case e.name == "appSettings":
			first = e.line
			s.section(d.file, e)
		case isSettingElement(e):
			d.fail(&Error{Line: e.line, Text: fmt.Sprintf("a <%s> stands outside of <appSettings>", e.name), Hint: "move it into <appSettings>"})
		case e.name == "location" && e.contains("appSettings"):
			d.fail(&Error{Line: e.line, Text: "there is an <appSettings> in <location>", Hint: "move it out of <location>, directly into <configuration>"})
		default:
			d.misspelt(e, "appSettings")
		}
	}
}

// section reads an <appSettings> and the file that it names. file is where the element stands.
func (s *appSettings) section(file string, e *element) {
	d := s.d
	if d.cannotRead(file, e) {
		return
	}
	if name, ok := e.attr("configSource"); ok {
		_, both := e.attr("file")
		switch {
		case file != d.file:
			d.fail(&Error{File: file, Line: e.line, Key: "configSource", Text: "this file is one that configSource names already", Hint: "write the settings here"})
		case both || len(e.children) > 0:
			d.fail(&Error{File: file, Line: e.line, Key: "configSource", Text: "the section has settings or file= beside it", Hint: "move them to that file, or leave configSource out"})
		default:
			if at, root := d.include(file, e.line, "configSource", name); root != nil {
				s.section(at, root)
			}
		}
		return
	}
	s.elements(file, e)
	// The other file wins, wherever in the element the attribute stands.
	name, ok := e.attr("file")
	if !ok || name == "" {
		return
	}
	at, root := d.include(file, e.line, "file", name)
	if root == nil {
		return
	}
	if len(root.attrs) > 0 {
		d.fail(&Error{File: at, Line: root.line, Text: fmt.Sprintf("<appSettings> has the attribute %s", root.attrs[0].Name.Local), Hint: "in a file that file= names it has none"})
		return
	}
	s.elements(at, root)
}

// cannotRead faults a section whose values are not written in it in plain text.
func (d *doc) cannotRead(file string, e *element) bool {
	if _, ok := e.attr("configProtectionProvider"); ok || e.contains("EncryptedData") {
		d.fail(&Error{File: file, Line: e.line, Text: "the section is encrypted (configProtectionProvider)", Hint: "only Windows on that machine can read it: run aspnet_regiis -pdf appSettings FOLDER there, or write the values in plain text"})
		return true
	}
	if _, ok := e.attr("configBuilders"); ok {
		d.fail(&Error{File: file, Line: e.line, Text: "the section gets its values from a program (configBuilders)", Hint: "write the values themselves, and leave configBuilders out"})
		return true
	}
	return false
}

// include reads the file that an attribute of <appSettings> in file names. It returns its path and its root, nil if there is none.
func (d *doc) include(file string, line int, attr, name string) (at string, root *element) {
	fail := func(text, hint string, err error) (string, *element) {
		d.fail(&Error{File: file, Line: line, Key: attr, Text: text, Hint: hint, Err: err})
		return "", nil
	}
	path := name
	if runtime.GOOS != "windows" {
		if drive := len(path) > 1 && 'a' <= path[0]|0x20 && path[0]|0x20 <= 'z' && path[1] == ':'; drive || strings.HasPrefix(path, `\\`) {
			return fail(fmt.Sprintf("%q is a path of a Windows machine", name), "copy that file next to this one, and write its name alone", nil)
		}
		path = strings.ReplaceAll(path, `\`, "/")
	}
	switch {
	case strings.Contains(name, "rv1_"):
		return fail("the value is a token", "the token comes from --token-file or REVERSER_TOKEN", nil)
	case strings.ContainsRune(name, utf8.RuneError):
		return fail("the name of the file has letters in an encoding that cannot be read", saveAsUTF8, nil)
	case attr == "configSource" && !filepath.IsLocal(path):
		return fail(fmt.Sprintf("%q is not in the folder of this file", name), "move that file here: .NET takes no other place", nil)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(file), path)
	}
	d.others = append(d.others, path)
	text, notes, err := d.readOther(path, d.rules)
	for _, note := range notes {
		d.warnAt(path, 0, "%s", note)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && attr == "file":
		// It may be what another machine has, and .NET says nothing.
		d.warnAt(file, line, "the file %s that file= names is not there: .NET goes on without it, and so do we", path)
		return "", nil
	case err != nil:
		if e, ok := errors.AsType[*Error](err); ok {
			d.fail(e)
			return "", nil
		}
		return fail(fmt.Sprintf("read %s: %v", path, trimPath(err)), hintFor(err), err)
	}
	top, bad := parseXML(text)
	if bad != nil {
		bad.File = path
		d.fail(bad)
		return "", nil
	}
	if len(top.children) != 1 || top.children[0].name != "appSettings" || top.text != 0 {
		line := top.text
		if len(top.children) > 0 {
			line = top.children[len(top.children)-1].line
		}
		d.fail(&Error{File: path, Line: line, Text: fmt.Sprintf("this is not one <appSettings> and nothing else, as %s has it in %s", attr, filepath.Base(file)), Hint: "write <appSettings>, the <add> elements, and </appSettings>, without <configuration>"})
		return "", nil
	}
	return path, top.children[0]
}

// elements applies what stands in an <appSettings>.
func (s *appSettings) elements(file string, e *element) {
	if s.d.cannotRead(file, e) {
		return
	}
	if e.text != 0 {
		s.textIn(file, e.text)
	}
	for _, c := range e.children {
		s.apply(file, c)
	}
}

// apply takes one <add key value/>, <remove key/> or <clear/>.
func (s *appSettings) apply(file string, e *element) {
	d := s.d
	fail := func(text, hint string) { d.fail(&Error{File: file, Line: e.line, Text: text, Hint: hint}) }
	known := map[string][]string{"add": {"key", "value"}, "remove": {"key"}, "clear": {}}
	attrs, ok := known[e.name]
	if !ok {
		fail(fmt.Sprintf("<%s> is not understood", e.name), "only <add>, <remove> and <clear> stand in <appSettings>: the case of letters counts")
		return
	}
	for _, a := range e.attrs {
		if name := a.Name.Local; !slices.Contains(attrs, name) && !strings.HasPrefix(name, "lock") && name != "xmlns" && a.Name.Space != "xmlns" {
			if strings.Contains(name, "rv1_") {
				name = "(a token)"
			}
			fail(fmt.Sprintf("<%s> has the attribute %s", e.name, name), `write <add key="…" value="…"/>: the case of letters counts`)
			return
		}
	}
	if e.name == "clear" {
		clear(s.values)
		s.foreign = nil
		return
	}
	key, _ := e.attr("key")
	value, _ := e.attr("value")
	set := setting{strings.TrimSpace(key), strings.TrimSpace(value), file, e.line}
	if set.key == "" {
		fail(fmt.Sprintf("an <%s> has no key", e.name), `write <add key="…" value="…"/>`)
		return
	}
	i := slices.IndexFunc(xmlKeys, func(k string) bool { return strings.EqualFold(k, set.key) })
	if i < 0 {
		s.foreign = slices.DeleteFunc(s.foreign, func(f setting) bool { return strings.EqualFold(f.key, set.key) })
		if e.name == "add" {
			s.foreign = append(s.foreign, set)
		}
		return
	}
	set.key = xmlKeys[i]
	if e.name == "remove" {
		delete(s.values, set.key)
		return
	}
	if strings.ContainsRune(set.value, utf8.RuneError) {
		d.fail(&Error{File: file, Line: e.line, Key: set.key, Text: "the value has letters in an encoding that cannot be read", Hint: saveAsUTF8})
		set.value = ""
	}
	if first, ok := s.values[set.key]; ok && first.file == file {
		d.warnAt(file, e.line, "the key %s stands on line %d already: the last one holds, as in .NET", set.key, first.line)
	}
	s.values[set.key] = set
}

// finish hands the values over, and says which keys are nobody's.
func (s *appSettings) finish() {
	d := s.d
	for key, set := range s.values {
		d.options[key], d.lines[key] = set.value, set.line
		if set.file != d.file {
			d.elsewhere[key] = set.file
		}
	}
	required, optional := s.missing()
	for _, f := range s.foreign {
		key, hint := f.key, "it is none of the source system's"
		if strings.Contains(key, "rv1_") {
			key = "(a token)"
		}
		if near := nearest(f.key, required); near != "" {
			d.fail(&Error{File: f.file, Line: f.line, Key: key, Text: "there is no such key", Hint: "did you mean " + near + "?"})
			continue
		}
		if near := nearest(f.key, optional); near != "" {
			hint = "did you mean " + near + "?"
		} else if strings.Contains(strings.ToLower(f.key), "token") {
			hint = "the token comes from --token-file or REVERSER_TOKEN"
		}
		d.warnAt(f.file, f.line, "the key %q is ignored: %s", key, hint)
	}
}

// missing are the keys that are not there, of the role that the others tell. A file of an application has keys of its own, such as Port,
// that look like one of the other role's.
func (s *appSettings) missing() (required, optional []string) {
	roles := make(map[string]bool)
	for key := range s.values {
		roles[roleOf(key)] = true
	}
	for _, key := range xmlKeys {
		if _, there := s.values[key]; there || len(roles) > 0 && !roles[roleOf(key)] {
			continue
		}
		if key == xmlTransferPort || key == xmlProxyTransferPort {
			optional = append(optional, key)
		} else {
			required = append(required, key)
		}
	}
	return required, optional
}

func (d *doc) xmlProxy(p *proxyFile) {
	work := d.xmlPort(xmlWorkPort, "9000")
	ic := d.xmlPort(xmlIcPort, "3010")
	transfer := uint16(0)
	if _, ok := d.options[xmlTransferPort]; ok { // without it everything uses IcPort
		transfer = d.xmlPort(xmlTransferPort, "3020")
	}
	d.distinct(xmlIcPort, ic, xmlWorkPort, work)
	d.distinct(xmlTransferPort, transfer, xmlWorkPort, work)
	d.distinct(xmlTransferPort, transfer, xmlIcPort, ic)
	if work != 0 {
		p.Offer = []grammar.Public{{Kind: grammar.KindTCP, Port: work}}
	}
	p.Listen = xmlListen(ic)
	p.Transfer = xmlListen(transfer)
}

func (d *doc) xmlBridge(b *bridgeFile) {
	host := ""
	if s, ok := d.options[xmlProxyServerIP].(string); ok && strings.Contains(s, "*") && !strings.Contains(s, "rv1_") {
		_, err := grammar.CanonicalHost(s)
		b.NoProxy = &Error{File: d.place(xmlProxyServerIP).File, Line: d.line(xmlProxyServerIP), Key: xmlProxyServerIP, Text: err.Error(), Hint: "here, or with --proxy", Err: err}
	} else {
		host = d.xmlHost(xmlProxyServerIP, "the address of your server")
	}
	ic := d.xmlPort(xmlProxyIcPort, "3010")
	transfer := uint16(0)
	if _, ok := d.options[xmlProxyTransferPort]; ok {
		transfer = d.xmlPort(xmlProxyTransferPort, "3020")
	}
	// The same port twice is what a proxy without TransferPort has.
	if transfer == ic {
		transfer = 0
	}
	realHost := d.xmlHost(xmlRealServerIP, "127.0.0.1")
	realPort := d.xmlPort(xmlRealServerPort, "9904")
	if addr := xmlAddr(host, ic); addr != "" {
		b.Proxies = []string{addr}
	}
	b.ProxyTransfer = xmlAddr(host, transfer)
	b.TransferPort = transfer
	if addr := xmlAddr(realHost, realPort); addr != "" {
		b.Expose = []grammar.Expose{{
			Public: grammar.Public{Kind: grammar.KindOffered},
			Target: grammar.Target{Network: "tcp", Address: addr},
		}}
		b.exposed = []Place{d.place(xmlRealServerPort)}
	}
}

// xmlValue is the value of a key that must be there.
func (d *doc) xmlValue(key, example string) (string, bool) {
	v, ok := d.options[key]
	if !ok {
		d.fail(&Error{Key: key, Text: "this key is missing", Hint: fmt.Sprintf(`add <add key="%s" value="%s"/>`, key, example)})
		return "", false
	}
	s := v.(string)
	if strings.Contains(s, "rv1_") {
		d.fault(key, errors.New("the value is a token"), "the token comes from --token-file or REVERSER_TOKEN")
		return "", false
	}
	d.origin[xmlOption[key]] = d.place(key)
	return s, true
}

func (d *doc) xmlPort(key, example string) uint16 {
	s, ok := d.xmlValue(key, example)
	if !ok {
		return 0
	}
	port, err := grammar.ParsePort(s)
	if err != nil {
		d.fault(key, err, "")
	}
	return port
}

func (d *doc) xmlHost(key, example string) string {
	s, ok := d.xmlValue(key, example)
	if !ok {
		return ""
	}
	if s == "" {
		d.fault(key, errors.New("the value is empty"), "put "+example+" there")
		return ""
	}
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s = s[1 : len(s)-1]
	}
	host, err := grammar.CanonicalHost(s)
	if err != nil {
		hint := "put an IP address or a host name there, the port has a key of its own"
		if strings.Contains(s, "*") {
			hint = "" // the error has it
		}
		d.fault(key, err, hint)
	}
	return host
}

func (d *doc) distinct(key string, port uint16, other string, otherPort uint16) {
	if port != 0 && port == otherPort {
		d.fault(key, fmt.Errorf("%d is the port of %s too", port, other), "give each a port of its own")
	}
}

func xmlListen(port uint16) string {
	if port == 0 {
		return ""
	}
	return ":" + strconv.Itoa(int(port))
}

func xmlAddr(host string, port uint16) string {
	if host == "" || port == 0 {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
