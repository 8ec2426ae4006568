package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"reverser/internal/grammar"
)

var httpKinds = []grammar.Kind{grammar.KindHTTP, grammar.KindHTTPS}

// httpOptions are those of services that the proxy speaks HTTP for.
var httpOptions = []exposeOption{
	{"h2c", httpKinds, func(_ *doc, v any, e *grammar.Expose) (string, error) {
		yes, ok := v.(bool)
		if !ok {
			return "write true if the target speaks HTTP/2 without TLS", fmt.Errorf("%v is neither true nor false", v)
		}
		e.Options.Proxy.H2C = yes
		return "", nil
	}},
	{"inspect", httpKinds, func(_ *doc, v any, e *grammar.Expose) (string, error) {
		yes, ok := v.(bool)
		if !ok {
			return "write true if its last exchanges are to be kept for `reverser inspect`", fmt.Errorf("%v is neither true nor false", v)
		}
		e.Options.Proxy.Inspect = yes
		return "", nil
	}},
	{"host_header", httpKinds, func(_ *doc, v any, e *grammar.Expose) (string, error) {
		s, ok := v.(string)
		if !ok {
			return `write a host in quotes, such as "app.lan" or "app.lan:8080"`, fmt.Errorf("%v is no text", v)
		}
		if _, err := grammar.RequestHost(s); err != nil {
			return `write a host, such as "app.lan" or "app.lan:8080"`, err
		}
		e.Options.Proxy.HostHeader = s
		return "", nil
	}},
	{"set_header", httpKinds, func(_ *doc, v any, e *grammar.Expose) (string, error) {
		const hint = `write a table of texts, such as { X-Stage = "test" }`
		t, ok := v.(map[string]any)
		if !ok {
			return hint, fmt.Errorf("%v is no table", v)
		}
		e.Options.Proxy.SetHeader = make(map[string]string, len(t))
		said := make(map[string]string, len(t)) // in lower case
		for _, name := range slices.Sorted(maps.Keys(t)) {
			if other, twice := said[strings.ToLower(name)]; twice {
				return "write it once", fmt.Errorf("%q and %q are one header", other, name)
			}
			said[strings.ToLower(name)] = name
			s, ok := t[name].(string)
			if !ok {
				return hint, fmt.Errorf("the value of %q is no text", name)
			}
			if err := grammar.CheckHeader(name, s); err != nil {
				return "leave it out", err
			}
			e.Options.Proxy.SetHeader[name] = s
		}
		return "", nil
	}},
	{"remove_header", httpKinds, func(_ *doc, v any, e *grammar.Expose) (hint string, err error) {
		hint = `write a list of names, such as ["Cookie"]`
		e.Options.Proxy.RemoveHeader, err = textList(v, func(s string) error {
			for name := range e.Options.Proxy.SetHeader {
				if strings.EqualFold(name, s) {
					hint = "leave it out here"
					return fmt.Errorf("%q is in set_header too, which takes the place of what the client sends", s)
				}
			}
			return grammar.CheckHeader(s, "")
		})
		return hint, err
	}},
	{"trusted_proxies", httpKinds, func(_ *doc, v any, e *grammar.Expose) (hint string, err error) {
		var all []netip.Prefix
		_, err = textList(v, func(s string) error {
			p, err := grammar.ParsePrefix(s)
			all = append(all, p)
			return err
		})
		e.Options.Proxy.TrustedProxies = all
		return `write a list of addresses, such as ["192.0.2.0/24"]`, err
	}},
	{"basic_auth_file", httpKinds, func(d *doc, v any, e *grammar.Expose) (string, error) {
		path, ok := v.(string)
		if !ok || path == "" {
			return "name a file that `htpasswd -B` has made", fmt.Errorf("%v is no path", v)
		}
		return d.basicAuth(d.relative(path), e)
	}},
	{"answer_time", httpKinds, func(_ *doc, v any, e *grammar.Expose) (string, error) {
		t, err := durationOption(v, time.Millisecond, mostDuration, `"5m" or "30s"`)
		e.Options.Proxy.AnswerTime = grammar.Duration(t)
		return "", err
	}},
}

// textList is a list of texts, each of which check takes.
func textList(v any, check func(string) error) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("%v is no list", v)
	}
	var all []string
	for _, item := range list {
		s, ok := item.(string)
		if !ok {
			return nil, fmt.Errorf("%v is no text", item)
		}
		if err := check(s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// basicAuth reads the names and hashes of a file. It is read again with each reload.
func (d *doc) basicAuth(path string, e *grammar.Expose) (hint string, err error) {
	d.others = append(d.others, path)
	text, notes, err := d.readOther(path, d.rules)
	if err != nil {
		return "make it with `htpasswd -B -c " + path + " NAME`", err
	}
	for _, n := range notes {
		d.warnAt(path, 0, "%s", n)
	}
	names := make(map[string]bool)
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, err := grammar.ParseUser(line)
		if err == nil {
			err = grammar.UnusableUser(line)
		}
		if err == nil && names[name] {
			err = fmt.Errorf("user %q is there twice", name)
		}
		if err != nil {
			return "make a line with `htpasswd -nB NAME`", fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		names[name] = true
		e.Options.Proxy.BasicAuth = append(e.Options.Proxy.BasicAuth, line)
	}
	if len(names) == 0 {
		return "make it with `htpasswd -B -c " + path + " NAME`", fmt.Errorf("%s names nobody, and nobody could come in", path)
	}
	return "", nil
}
