package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"

	"reverser/internal/access"
	"reverser/internal/via"
)

// noVia is what --via and via say for no way out, whatever the environment says.
const noVia = "none"

// parseVia parses --via and via. The result is nil for noVia.
func parseVia(s string) (*via.Way, error) {
	if s == noVia {
		return nil, nil
	}
	return via.Parse(s)
}

// viaVariables are those of the environment that name a way out to a TLS server, in the order in which they count. NO_PROXY names
// what is dialled directly all the same.
var viaVariables = []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"}

// joinVia finds the way out: that of the command line, or of the file, or of the environment.
func (s *BridgeSource) joinVia(file *bridgeFile, rules access.Rules) (c via.Choice, warnings []Warning, err error) {
	args := s.args
	word, path, from, fromFile := args.Via, args.ViaFile, "--via", "--via-file"
	if word != "" && path != "" {
		return c, nil, argError("keep one of the two", "--via and --via-file are both given")
	}
	if word == "" && path == "" {
		word, path, from, fromFile = file.Via, file.ViaFile, "via", "via_file"
	}
	switch {
	case path != "":
		c.From = fromFile
		if c.Way, warnings, err = readVia(path, rules); err != nil {
			if p, ok := file.origin["via_file"]; ok && args.ViaFile == "" {
				return c, nil, &Error{File: p.File, Line: p.Line, Key: p.Key, Text: err.Error(), Err: err}
			}
			return c, nil, argError("", "--via-file: %w", err)
		}
	case word != "":
		c.From = from
		if c.Way, err = parseVia(word); err != nil {
			return c, nil, argError("", "--via: %w", err)
		}
	case args.Environ != nil:
		if c, err = environmentVia(args.Environ); err != nil {
			return c, nil, argError("--via none dials the proxy directly, whatever the environment says", "%w", err)
		}
	}
	return c, warnings, nil
}

// environmentVia is the way out that the environment names.
func environmentVia(environ func(string) string) (c via.Choice, err error) {
	for _, name := range viaVariables {
		word := strings.TrimSpace(environ(name))
		if word == "" {
			continue
		}
		if !strings.Contains(word, "://") { // as other programs take it
			word = "http://" + word
		}
		if c.Way, err = via.Parse(word); err != nil {
			return c, fmt.Errorf("%s: %w", name, err)
		}
		c.From = name
		break
	}
	// The rules of NO_PROXY are those of net/http, loopback addresses included.
	rules := httpproxy.Config{HTTPSProxy: "http://there-is-one.invalid", NoProxy: cmp.Or(environ("NO_PROXY"), environ("no_proxy"))}
	proxyFor := rules.ProxyFunc()
	c.Except = func(addr string) bool {
		way, err := proxyFor(&url.URL{Scheme: "https", Host: addr})
		return err == nil && way == nil
	}
	return c, nil
}

// readVia reads the way out from a file, which may hold its password: it is held to the rules of a token file.
func readVia(path string, rules access.Rules) (*via.Way, []Warning, error) {
	text, file, err := readText(path, rules)
	if e, ok := errors.AsType[*Error](err); ok {
		return nil, nil, e
	}
	if err != nil {
		if hint := hintFor(err); hint != "" {
			return nil, nil, fmt.Errorf("read %s: %w: %s", path, trimPath(err), hint)
		}
		return nil, nil, fmt.Errorf("read %s: %w", path, trimPath(err))
	}
	var warnings []Warning
	for _, check := range []func() ([]string, *access.Fault){file.Private, file.Owned} {
		notes, fault := check()
		if fault != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, fault)
		}
		for _, note := range notes {
			warnings = append(warnings, Warning{File: path, Text: note})
		}
	}
	if text = strings.TrimSpace(text); text == "" {
		return nil, nil, fmt.Errorf("%s is empty: put the way out in it, http://USER:PASSWORD@HOST:PORT", path)
	}
	way, err := parseVia(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return way, warnings, nil
}

// viaFile is what a file says of the way out.
func (d *doc) via(b *bridgeFile) {
	b.Via = d.text("via")
	if b.Via != "" {
		way, err := parseVia(b.Via)
		if err != nil {
			d.fault("via", err, "")
		}
		if way.HasPassword() {
			notes, fault := d.private()
			if fault != nil {
				d.fault("via", errors.New(fault.Text), fault.Hint+", or put the way out into a file of its own and name it in via_file")
			}
			for _, note := range notes {
				d.warn(d.line("via"), "%s", note)
			}
		}
	}
	if b.ViaFile = d.text("via_file"); b.ViaFile != "" {
		b.ViaFile = d.relative(b.ViaFile)
		if b.Via != "" {
			d.fault("via_file", fmt.Errorf("via on line %d gives a way out already", d.line("via")), "keep one of the two")
		}
	}
}

// sayVia says what is different between two ways out.
func (c *changes) sayVia(old, next via.Choice) {
	switch {
	case old.String() != next.String():
		c.say("via is %s instead of %s", next, old)
	case !old.Way.Equal(next.Way):
		c.say("via has another password")
	}
}
