package config

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"github.com/pelletier/go-toml/v2"

	"reverser/internal/access"
	"reverser/internal/grammar"
	"reverser/internal/state"
)

// proxyFile is what a file says to a proxy. What it does not say is empty. Addresses are canonical.
type proxyFile struct {
	CommonArgs
	Listen, Transfer, HTTP, HTTPS string
	Bind                          string
	Advertise                     string // host or host:port, for grammar.ParseHost
	SNI                           string
	ProxyProtocolFrom             []string
	Given                         []Given
	Tables                        []KeyTable
	Offer                         []grammar.Public // WorkPort of the source system's XML
	origin                        map[string]Place
	others                        []string // files that it names and that settings are read from; also with an error
}

// KeyTable is one [[key]] of a proxy's file.
type KeyTable struct {
	Name       string
	SecretFile string
	Token      grammar.Token // what SecretFile holds
	Allow      grammar.Policy
	state.Limits
	Expires time.Time // zero: never
	File    string    // that has the table
	Line    int       // of the table

	nameLine, secretLine int
}

// loadProxy reads the configuration of a proxy.
func loadProxy(path string, rules access.Rules) (*proxyFile, []Warning, error) {
	d, err := open(path, rules)
	if err != nil {
		return &proxyFile{}, nil, err
	}
	if d.broken {
		return &proxyFile{others: d.others}, d.warnings, d.err()
	}
	if role := d.role(); role == RoleBridge {
		return &proxyFile{others: d.others}, d.warnings, d.wrongRole(RoleBridge, RoleProxy)
	}
	p := d.proxy()
	if err := d.err(); err != nil {
		return &proxyFile{others: d.others}, d.warnings, err
	}
	p.others = d.others
	return p, d.warnings, nil
}

func (d *doc) proxy() *proxyFile {
	p := &proxyFile{origin: d.origin, others: d.others}
	if d.xml {
		d.xmlProxy(p)
		return p
	}
	p.Listen = d.listen("listen")
	p.Transfer = d.listen("transfer")
	if p.Transfer != "" && p.Transfer == cmp.Or(p.Listen, ":3010") {
		d.fault("transfer", fmt.Errorf("%s is the address of listen", p.Transfer), "give it another port, or leave transfer out: everything uses listen then")
	}
	if p.HTTP = d.listen("http"); p.HTTP != "" && (p.HTTP == p.Transfer || p.HTTP == cmp.Or(p.Listen, ":3010")) {
		d.fault("http", fmt.Errorf("%s is the address of listen or transfer", p.HTTP), "give it a port of its own, such as :80")
	}
	if p.HTTPS = d.listen("https"); p.HTTPS != "" && p.HTTPS == p.HTTP {
		d.fault("https", fmt.Errorf("%s is the address of http", p.HTTPS), "give it a port of its own, such as :443")
	} else if p.HTTPS != "" && p.HTTPS == p.Transfer {
		d.fault("https", fmt.Errorf("%s is the address of transfer", p.HTTPS), "give it a port of its own, such as :443, or the address of listen")
	}
	p.Bind = d.address("bind", grammar.ParseBind, "")
	if p.Advertise = d.text("advertise"); p.Advertise != "" {
		if _, err := grammar.ParseAdvertise(p.Advertise, 3010); err != nil {
			d.fault("advertise", err, "give the address under which bridges reach this proxy, HOST or HOST:PORT")
		}
	}
	p.SNI = d.sni()
	p.ProxyProtocolFrom = d.addresses("proxy_protocol_from", func(s string) (string, error) {
		prefix, err := grammar.ParsePrefix(s)
		return prefix.String(), err
	}, "")
	if len(p.ProxyProtocolFrom) > mostBalancers {
		_, err := parseBalancers(p.ProxyProtocolFrom)
		d.fault("proxy_protocol_from", err, "")
	}
	p.CommonArgs = d.common()
	d.keys(p)
	p.Given = d.given()
	return p
}

func (d *doc) keys(p *proxyFile) {
	for i, t := range d.tables("key", "name", "secret_file", "allow", "max_services", "max_connections", "expires") {
		at := func(k string) string { return fmt.Sprintf("key[%d].%s", i, k) }
		k := KeyTable{
			Name: d.inner(t, at("name"), "name"),
			File: d.file, Line: d.line(fmt.Sprintf("key[%d]", i)), nameLine: d.line(at("name")), secretLine: d.line(at("secret_file")),
		}
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
			if k.Token, err = d.token(k.SecretFile, d.line(at("secret_file"))); err != nil {
				d.fail(&Error{Line: d.line(at("secret_file")), Key: "secret_file", Text: err.Error(), Err: err})
			}
		}
		k.Allow = d.policy(t, at("allow"))
		k.MaxServices = d.limit(t, at("max_services"), "max_services", "services", 10)
		k.MaxConnections = d.limit(t, at("max_connections"), "max_connections", "connections", 100)
		k.Expires = d.moment(t, at("expires"), "expires")
		for _, earlier := range p.Tables {
			switch {
			case k.Name != "" && k.Name == earlier.Name:
				d.fail(&Error{Line: d.line(at("name")), Key: "name", Text: fmt.Sprintf("there are two keys with the name %q", k.Name), Hint: "give each its own"})
			case k.Token.KeyID != ([16]byte{}) && k.Token.KeyID == earlier.Token.KeyID:
				d.fail(&Error{Line: d.line(at("secret_file")), Key: "secret_file", Text: fmt.Sprintf("keys %q and %q have the same token", earlier.Name, k.Name), Hint: "one key is for one bridge: make another with `reverser key add`"})
			}
		}
		p.Tables = append(p.Tables, k)
	}
}

// moment is a time, as TOML has it or in quotes; zero without the key.
func (d *doc) moment(t map[string]any, path, key string) (at time.Time) {
	var s string
	switch v := t[key].(type) {
	case time.Time:
		s = v.Format(time.RFC3339)
	case toml.LocalDateTime, toml.LocalDate, toml.LocalTime:
		d.fail(&Error{Line: d.line(path), Key: key, Text: fmt.Sprintf("%v is no moment: it has no time zone, or is half of a time", v), Hint: fmt.Sprintf("write %s = 2027-01-31T00:00:00Z", key)})
		return at
	default:
		if s = d.inner(t, path, key); s == "" {
			return at
		}
	}
	at, err := grammar.ParseMoment(s)
	if err != nil {
		d.fail(&Error{Line: d.line(path), Key: key, Text: err.Error(), Hint: "a file has no now to count from: `reverser key add NAME --expires 30d` has"})
	}
	return at
}

// limit is how many of what a key may have at once.
func (d *doc) limit(t map[string]any, path, key, what string, example int) int {
	v, ok := t[key]
	if !ok {
		return 0
	}
	n, ok := v.(int64)
	if !ok || n < 1 || n > math.MaxInt32 {
		d.fail(&Error{Line: d.line(path), Key: key, Text: fmt.Sprintf("this is no number of %s, 1 or more", what), Hint: fmt.Sprintf("write %s = %d, or leave it out: the key then has no limit", key, example)})
		return 0
	}
	return int(n)
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
