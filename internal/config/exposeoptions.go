package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"reverser/internal/grammar"
)

// exposeOption is a key of [[expose]] besides public and target.
type exposeOption struct {
	key   string
	kinds []grammar.Kind // of the services for which it means something; none: all
	// read puts the value v into e. Its error names what is wrong; hint is the remedy.
	read func(d *doc, v any, e *grammar.Expose) (hint string, err error)
}

// exposeOptions are all of them, in the order in which they are read.
var exposeOptions = slices.Concat(secureOptions, targetOptions, tlsOptions, httpOptions)

// targetOptions are about what the target learns of a user.
var targetOptions = []exposeOption{
	{key: "proxy_protocol", read: func(_ *doc, v any, e *grammar.Expose) (hint string, err error) {
		switch v {
		case "v1":
			e.Options.ProxyProtocol = 1
		case "v2":
			e.Options.ProxyProtocol = 2
		default:
			return `write "v1" or "v2", as the target has it, or leave it out`, errors.New("this is no version of the PROXY protocol")
		}
		oneClient(e)
		return "", nil
	}},
	{key: "transparent", read: func(_ *doc, v any, e *grammar.Expose) (hint string, err error) {
		yes, ok := v.(bool)
		switch {
		case !ok:
			return "write one of the two, without quotes", errors.New("the value is neither true nor false")
		case yes && e.Target.Network == "unix":
			return "leave it out: proxy_protocol tells the address there", errors.New("connections to a unix socket come from no address")
		}
		if e.Options.Transparent = yes; yes {
			oneClient(e)
		}
		return "", nil
	}},
}

// durationOption is a length of time from least to most.
func durationOption(v any, least, most time.Duration, example string) (time.Duration, error) {
	s, err := scalar(v)
	if err != nil {
		return 0, err
	}
	if strings.Contains(s, "rv1_") { // the error quotes what it refuses
		return 0, errors.New("the value is a token, which goes into a file of its own")
	}
	return parseDuration(s, least, most, example)
}

// oneClient keeps the requests of several clients apart, where the target takes a connection for one client's.
func oneClient(e *grammar.Expose) {
	if e.Public.Kind == grammar.KindHTTP || e.Public.Kind == grammar.KindHTTPS {
		e.Options.Proxy.OneClient = true
	}
}

// exposeKeys are the keys that an [[expose]] may have.
func exposeKeys() []string {
	keys := []string{"public", "target"}
	for _, o := range exposeOptions {
		keys = append(keys, o.key)
	}
	return keys
}

// exposeOptions reads what the table t says besides public and target. at gives the path of a key.
func (d *doc) exposeOptions(t map[string]any, at func(string) string, e *grammar.Expose) {
	for _, o := range exposeOptions {
		v, ok := t[o.key]
		if !ok {
			continue
		}
		if len(o.kinds) > 0 && !slices.Contains(o.kinds, e.Public.Kind) {
			var kinds []string
			for _, k := range o.kinds {
				kinds = append(kinds, string(k)+"/")
			}
			d.fail(&Error{Line: d.line(at(o.key)), Key: o.key, Text: fmt.Sprintf("this is for services of %s, and %s is none", strings.Join(kinds, ", "), e.Public), Hint: "leave it out, or give the service another public name"})
			continue
		}
		if hint, err := o.read(d, v, e); err != nil {
			d.fail(&Error{Line: d.line(at(o.key)), Key: o.key, Text: err.Error(), Hint: hint, Err: err})
		}
	}
	d.fitProxy(at, e.Options.Proxy)
}

// fitProxy refuses options that are too long for what a bridge may tell the proxy of a service. It blames the longest of them.
func (d *doc) fitProxy(at func(string) string, o grammar.ProxyOptions) {
	all := o.Size()
	if all <= grammar.MaxProxyOptions {
		return
	}
	longest := struct {
		key, what, hint string
		size            int
	}{}
	blame := func(key, what, hint string, without grammar.ProxyOptions) {
		if size := all - without.Size(); size > longest.size {
			longest.key, longest.what, longest.hint, longest.size = key, what, hint, size
		}
	}
	less := o
	less.BasicAuth = nil
	blame("basic_auth_file", fmt.Sprintf("the %d users of this file", len(o.BasicAuth)), "keep some 30 users, or have the target ask for the passwords", less)
	less = o
	less.SetHeader = nil
	blame("set_header", "these headers", "shorten them, or have the target set some of them", less)
	less = o
	less.RemoveHeader = nil
	blame("remove_header", "these names", "leave some out, or have the target ignore some of them", less)
	less = o
	less.TrustedProxies = nil
	blame("trusted_proxies", "these addresses", "write networks in the place of single addresses", less)
	d.fail(&Error{Line: d.line(at(longest.key)), Key: longest.key, Hint: longest.hint,
		Text: fmt.Sprintf("what a service says to the proxy may be %d bytes long, and here it is %d: %s take %d of them", grammar.MaxProxyOptions, all, longest.what, longest.size)})
}
