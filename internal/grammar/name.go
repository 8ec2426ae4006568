package grammar

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// This file is about HOST and PATH of http, https and tls: names that share a port of the proxy.

// maxPath bounds PATH: a PUBLIC has 255 bytes in an OPEN.
const maxPath = 128

// parseName splits HOST[/PATH] into its canonical halves. Both PUBLIC and --allow have this form.
func parseName(kind Kind, s string) (host, path string, err error) {
	host, path, hasPath := strings.Cut(s, "/")
	if host, err = parsePattern(kind, host); err != nil || !hasPath {
		return host, "", err
	}
	if kind == KindTLS {
		return "", "", fmt.Errorf("%s/ services are found by the server name alone, before there is a path: write %s/%s", kind, kind, HostString(host))
	}
	path, err = parsePath("/" + path)
	return host, path, err
}

// parsePattern parses HOST: a name, a name behind "*." for any label, "*" for every host, or, where the Host of a request decides, an IP address.
func parsePattern(kind Kind, s string) (string, error) {
	if s == "*" {
		return s, nil
	}
	if ip, ok := literalIP(s); ok {
		if kind == KindTLS {
			return "", fmt.Errorf("%s is an IP address, and a TLS client sends no address as its server name: %s/ needs a host name", s, kind)
		}
		if ip.Zone() != "" {
			return "", fmt.Errorf("address %q has a zone, which means something on one machine only", s)
		}
		return canonicalIP(ip)
	}
	base, wild := strings.CutPrefix(s, "*.")
	switch {
	case strings.Contains(base, "*"):
		return "", fmt.Errorf("a wildcard stands for the first label: write %s/*.example.com, or %s/* for any host", kind, kind)
	case strings.ContainsAny(base, "[]"):
		return "", fmt.Errorf("brackets are for IPv6 addresses, and %q is none", s)
	}
	if host, port, ok := strings.Cut(base, ":"); ok {
		if _, err := ParsePort(port); err == nil {
			return "", fmt.Errorf("host name %q has \":\" in it: leave out the port, all %s/ services share one of the proxy's: write %s/%s", s, kind, kind, host)
		}
	}
	name, err := parseHostname(base)
	switch last := name[strings.LastIndexByte(name, '.')+1:]; {
	case err != nil:
		return "", err
	case strings.Trim(last, "0123456789") == "": // 10.0.0.256
		return "", fmt.Errorf("host %q is neither an IP address nor a host name", s)
	}
	for label := range strings.SplitSeq(name, ".") {
		if strings.HasSuffix(label, "_") {
			return "", fmt.Errorf("host name %q has a part that ends with _", s)
		}
	}
	if wild {
		name = "*." + name
	}
	return name, nil
}

// literalIP parses an IP address; one of IPv6 may stand in brackets.
func literalIP(s string) (netip.Addr, bool) {
	inner, bracket := strings.CutPrefix(s, "[")
	if bracket {
		if inner, bracket = strings.CutSuffix(inner, "]"); !bracket {
			return netip.Addr{}, false
		}
	}
	ip, err := netip.ParseAddr(inner)
	return ip, err == nil && (!bracket || ip.Is6())
}

// HostString is HOST, a name or an address, as people write it, an IPv6 address in brackets.
func HostString(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// parsePath checks a PATH, which begins with "/", and returns it in the form in which requests are compared with it: without the slash
// at its end, so that "/" is "". Everything that targets read in different ways is refused.
func parsePath(s string) (string, error) {
	path := strings.TrimSuffix(s, "/")
	if len(path) > maxPath {
		return "", fmt.Errorf("path %q is longer than %d bytes", s, maxPath)
	}
	if path == "" {
		return "", nil
	}
	var b strings.Builder
	for segment := range strings.SplitSeq(path[1:], "/") {
		switch segment {
		case "":
			return "", fmt.Errorf("path %q has an empty part", s)
		case ".", "..":
			return "", fmt.Errorf("path %q has %q in it: write where it leads", s, segment)
		}
		b.WriteByte('/')
		for i := 0; i < len(segment); i++ {
			c := segment[i]
			switch {
			case c == '%':
				high, low := unhex(segment, i+1), unhex(segment, i+2)
				if high < 8 || low < 0 {
					return "", fmt.Errorf("path %q has %q in it: only characters that are not ASCII are written so", s, segment[i:min(i+3, len(segment))])
				}
				b.WriteString(strings.ToUpper(segment[i : i+3]))
				i += 2
			case c >= 0x80:
				return "", fmt.Errorf("path %q is not ASCII: write it as browsers send it, with %%XX for each byte", s)
			case isPathByte(c):
				b.WriteByte(c)
			default:
				return "", fmt.Errorf("path %q has %q in it: letters, digits and - . _ ~ + : @ are possible", s, string(rune(c)))
			}
		}
	}
	return b.String(), nil
}

// unhex is the value of the hexadecimal digit at i, or -1.
func unhex(s string, i int) int {
	if i >= len(s) {
		return -1
	}
	n, err := strconv.ParseUint(s[i:i+1], 16, 8)
	if err != nil {
		return -1
	}
	return int(n)
}

// isPathByte holds for what stands for itself in a path, whoever reads it.
func isPathByte(c byte) bool {
	return isNameByte(c) || 'A' <= c && c <= 'Z' || strings.IndexByte(".~+:@", c) >= 0
}

// Named reports whether names of the kind share a port of the proxy.
func (k Kind) Named() bool { return k == KindHTTP || k == KindHTTPS || k == KindTLS }

// Covers reports whether a PATH is that of a request, or leads to it: /api covers /api and /api/x, but not /apix. "" covers every path.
func Covers(path, request string) bool {
	rest, ok := strings.CutPrefix(request, path)
	return ok && (rest == "" || path == "" || rest[0] == '/')
}

// RequestHost is the host that a client names in a request or as its server name, in the form of Public.Host: without the port, in lower
// case, without the dot at its end. It refuses what is no host.
func RequestHost(s string) (string, error) {
	if s == "" {
		return "", errors.New("no host is named")
	}
	host := s
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		if _, err := ParsePort(s[i+1:]); err != nil && s[i+1:] != "" { // RFC 3986, section 3.2.3: the port may be empty
			return "", err
		}
		host = s[:i]
	}
	ip, ok := literalIP(host)
	switch {
	case ok && (ip.Zone() != "" || ip.Is6() && host[0] != '['), host == "":
		return "", fmt.Errorf("%q is no host", s)
	case ok:
		return ip.Unmap().String(), nil
	}
	return parseHostname(host)
}
