package config

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

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

// readXML takes the <add> elements out of <configuration><appSettings>, or out
// of a text that has nothing around them.
func (d *doc) readXML(text string) {
	dec := xml.NewDecoder(strings.NewReader(text))
	// readText made UTF-8 of it, whatever the first line still says.
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	var path []string
	for {
		tok, err := dec.Token()
		line, _ := dec.InputPos()
		if err == io.EOF {
			if len(d.options) == 0 && len(d.errs) == 0 {
				d.broken = true
				d.fail(&Error{Text: "there are no settings in it", Hint: `they are written as <add key="…" value="…"/> in <configuration><appSettings>`})
			}
			return
		}
		if err != nil {
			d.syntax(text, line, err)
			return
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			place := strings.Join(path, "/")
			inside := place == "" || place == "appSettings" || place == "configuration/appSettings"
			switch name := tok.Name.Local; {
			case name == "appSettings" && (place == "" || place == "configuration"):
				for _, a := range tok.Attr {
					if n := a.Name.Local; n == "file" || n == "configSource" {
						d.warn(line, "the settings in the other file that %s names are not read", n)
					}
				}
			case name == "add" && inside:
				d.add(line, tok.Attr)
			case name == "add" && place == "configuration":
				d.warn(line, "an <add> outside of <appSettings> is ignored")
			case (name == "clear" || name == "remove") && inside:
				d.fail(&Error{Line: line, Text: fmt.Sprintf("<%s> is not understood", name), Hint: "leave it out and write only the <add> elements that are to hold"})
			case inside && place != "":
				d.warn(line, "<%s> in <appSettings> is ignored", name)
			}
			path = append(path, tok.Name.Local)
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.CharData:
			if place := strings.Join(path, "/"); strings.TrimSpace(string(tok)) != "" && (place == "" || strings.HasSuffix(place, "appSettings")) {
				d.fail(&Error{Line: line, Text: "there is text outside of the elements", Hint: "leave only the lines <add … />, or put the text between <!-- and -->"})
			}
		}
	}
}

func (d *doc) syntax(text string, line int, err error) {
	e := &Error{Line: line, Text: "this is not XML", Hint: "look for a missing quote or />", Err: err}
	var se *xml.SyntaxError
	if errors.As(err, &se) {
		e.Line, e.Text = se.Line, "this is not XML: "+se.Msg
	}
	switch {
	case strings.ContainsAny(lineOf(text, e.Line), "“”„"):
		e.Hint = `a copy from a document has curly quotes: write straight ones, "`
	case strings.Contains(e.Text, "UTF-8"):
		e.Hint = "save the file as UTF-8"
	}
	d.broken = true
	d.fail(e)
}

// add takes one <add key value/>.
func (d *doc) add(line int, attrs []xml.Attr) {
	var key, value string
	for _, a := range attrs {
		switch a.Name.Local {
		case "key":
			key = strings.TrimSpace(a.Value)
		case "value":
			value = strings.TrimSpace(a.Value)
		}
	}
	if key == "" {
		d.fail(&Error{Line: line, Text: "an <add> has no key", Hint: `write <add key="…" value="…"/>`})
		return
	}
	i := slices.IndexFunc(xmlKeys, func(k string) bool { return strings.EqualFold(k, key) })
	if i < 0 {
		hint := "it is none of the source system's"
		if near := nearest(key, xmlKeys); near != "" {
			hint = "did you mean " + near + "?"
		} else if strings.Contains(strings.ToLower(key), "token") {
			hint = "the token comes from --token-file or REVERSER_TOKEN"
		}
		if strings.Contains(key, "rv1_") {
			key = "(a token)"
		}
		d.warn(line, "the key %q is ignored: %s", key, hint)
		return
	}
	key = xmlKeys[i]
	if first, ok := d.lines[key]; ok {
		d.fail(&Error{Line: line, Key: key, Text: fmt.Sprintf("this key stands on line %d already", first), Hint: "keep one of the two"})
		return
	}
	d.lines[key] = line
	d.options[key] = value
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
		b.NoProxy = &Error{File: d.file, Line: d.line(xmlProxyServerIP), Key: xmlProxyServerIP, Text: err.Error(), Hint: "here, or with --proxy", Err: err}
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
		b.exposed = []Place{{d.file, d.line(xmlRealServerPort), xmlRealServerPort}}
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
	d.origin[xmlOption[key]] = Place{d.file, d.line(key), key}
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
