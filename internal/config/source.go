package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"reverser/internal/access"
	"reverser/internal/grammar"
	"reverser/internal/state"
)

const (
	defaultListen = ":3010"
	defaultPort   = 3010
)

// Source is where the settings of a process come from. Its methods may be called at the same time.
type Source interface {
	// Load reads the settings as they are now: all of them, or none and every fault.
	Load() (Settings, []Warning, error)
	// Watch calls changed whenever there is something new to load, until ctx ends. An error means that it cannot tell.
	Watch(ctx context.Context, changed func()) error
}

// ProxySource is the source of a proxy's settings.
type ProxySource struct {
	args ProxyArgs
	file watched

	mu     sync.Mutex
	stored func() ([]state.Key, error) // guarded by mu, as pin; nil before UseState
	pin    [32]byte
}

// NewProxySource returns the source for a proxy with that command line.
func NewProxySource(args ProxyArgs) *ProxySource {
	return &ProxySource{args: args, file: watched{path: args.Config}}
}

// UseState makes Load look at the keys of the state directory, for a proxy whose identity has that pin. The settings themselves
// say where the directory is, so it is not open at the first Load.
func (s *ProxySource) UseState(stored func() ([]state.Key, error), pin [32]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored, s.pin = stored, pin
}

// Load implements [Source].
func (s *ProxySource) Load() (Settings, []Warning, error) {
	file := &proxyFile{}
	var warnings []Warning
	again := s.file.begin()
	err := s.file.read(again, func(path string) (others []string, err error) {
		file, warnings, err = loadProxy(path, access.Rules{Trusted: s.args.TrustOwner, Regular: again, Opening: s.file.reads})
		return file.others, err
	})
	if err != nil {
		return Settings{}, nil, err
	}
	set, err := s.args.join(file, again)
	if err != nil {
		return Settings{}, nil, err
	}
	s.mu.Lock()
	stored, pin := s.stored, s.pin
	s.mu.Unlock()
	if stored != nil {
		keys, err := stored()
		if err != nil {
			return Settings{}, nil, err
		}
		if set, err = set.WithKeys(keys, pin); err != nil {
			return Settings{}, nil, err
		}
	}
	warnings = append(warnings, unusedCertificates(set.Proxy.HTTPS, set.Proxy.Given)...)
	if w, ok := uselessAddress(set); ok {
		warnings = append(warnings, w)
	}
	if w, ok := everybodyBalances(set); ok {
		warnings = append(warnings, w)
	}
	return set, append(warnings, openAdmin(set)...), nil
}

// uselessAddress warns of tokens that lead a bridge to itself.
func uselessAddress(set Settings) (Warning, bool) {
	if !isLoopback(set.Proxy.Advertise) || isLoopback(set.Proxy.Listen) {
		return Warning{}, false
	}
	at, ok := set.Origin["advertise"]
	if !ok {
		at.File = "--advertise"
	}
	return Warning{at.File, at.Line, fmt.Sprintf("tokens will carry %s, where every machine finds only itself: give the name or the public address of this server, unless the bridges are on this machine too", set.Proxy.Advertise)}, true
}

// everybodyBalances warns of a proxy that believes anybody.
func everybodyBalances(set Settings) (Warning, bool) {
	for _, p := range set.Proxy.ProxyProtocolFrom {
		if p.Bits() > 0 {
			continue
		}
		at, ok := set.Origin["proxy_protocol_from"]
		if !ok {
			at.File = "--proxy-protocol-from"
		}
		return Warning{at.File, at.Line, fmt.Sprintf("proxy_protocol_from has %s: whoever reaches a public port can pass for any user, unless a firewall lets only balancers in", p)}, true
	}
	return Warning{}, false
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip, _ := netip.ParseAddr(host)
	return err == nil && (host == "localhost" || ip.Unmap().IsLoopback())
}

// Reading returns the file that Load reads at this moment: its disk may not answer. "": none, or that is not known.
func (s *ProxySource) Reading() string { return s.file.reading() }

// Watch implements [Source]: it watches the file.
func (s *ProxySource) Watch(ctx context.Context, changed func()) error {
	return s.file.watch(ctx, changed)
}

func (args ProxyArgs) join(file *proxyFile, again bool) (set Settings, err error) {
	if set.Common, err = args.CommonArgs.join(file.CommonArgs, again); err != nil {
		return Settings{}, err
	}
	p := Proxy{Tables: file.Tables, Given: file.Given, Offer: file.Offer}
	if p.Listen, err = grammar.ParseListen(cmp.Or(args.Listen, file.Listen, defaultListen)); err != nil {
		return Settings{}, argError("", "--listen: %w", err)
	}
	if p.Transfer = cmp.Or(args.Transfer, file.Transfer); p.Transfer != "" {
		if p.Transfer, err = grammar.ParseListen(p.Transfer); err != nil {
			return Settings{}, argError("", "--transfer: %w", err)
		}
		if grammar.ListenOverlap(p.Listen, p.Transfer) {
			// A file that says so by itself is refused by its own lines.
			return Settings{}, argError("give --transfer another port, or leave it out: the data then uses the --listen port",
				"--listen %s and --transfer %s (in a file: listen or IcPort, transfer or TransferPort) are the same port", p.Listen, p.Transfer)
		}
	}
	if p.HTTP = cmp.Or(args.HTTP, file.HTTP); p.HTTP != "" {
		if p.HTTP, err = grammar.ParseListen(p.HTTP); err != nil {
			return Settings{}, argError("", "--http: %w", err)
		}
		if grammar.ListenOverlap(p.Listen, p.HTTP) || p.Transfer != "" && grammar.ListenOverlap(p.Transfer, p.HTTP) {
			return Settings{}, argError("give --http a port of its own, such as :80",
				"--http %s (in a file: http) is a port of the link, --listen %s or --transfer %s", p.HTTP, p.Listen, cmp.Or(p.Transfer, "none"))
		}
	}
	if p.HTTPS = cmp.Or(args.HTTPS, file.HTTPS); p.HTTPS != "" {
		if p.HTTPS, err = grammar.ParseListen(p.HTTPS); err != nil {
			return Settings{}, argError("", "--https: %w", err)
		}
		if p.HTTPS != p.Listen && grammar.ListenOverlap(p.Listen, p.HTTPS) || p.Transfer != "" && grammar.ListenOverlap(p.Transfer, p.HTTPS) {
			return Settings{}, argError("give --https a port of its own, such as :443, or the very address of --listen, for both to share it",
				"--https %s (in a file: https) is a port of the link, --listen %s or --transfer %s", p.HTTPS, p.Listen, cmp.Or(p.Transfer, "none"))
		}
	}
	if p.HTTP != "" && p.HTTPS != "" && grammar.ListenOverlap(p.HTTP, p.HTTPS) {
		return Settings{}, argError("give one of them another port, such as --http :80 --https :443",
			"--http %s and --https %s (in a file: http, https) are the same port", p.HTTP, p.HTTPS)
	}
	if p.Bind = cmp.Or(args.Bind, file.Bind); p.Bind != "" {
		if p.Bind, err = grammar.ParseBind(p.Bind); err != nil {
			return Settings{}, argError("", "--bind: %w", err)
		}
	}
	if p.Advertise = cmp.Or(args.Advertise, file.Advertise); p.Advertise != "" {
		if p.Advertise, err = grammar.ParseAdvertise(p.Advertise, grammar.PortOf(p.Listen, defaultPort)); err != nil {
			return Settings{}, argError("", "--advertise: %w", err)
		}
	}
	if p.SNI, err = joinSNI(args.SNI, file.SNI); err != nil {
		return Settings{}, err
	}
	words := args.ProxyProtocolFrom
	if len(words) == 0 {
		words = file.ProxyProtocolFrom
	}
	if p.ProxyProtocolFrom, err = parseBalancers(words); err != nil {
		return Settings{}, argError("", "--proxy-protocol-from: %w", err)
	}
	if err := set.Admin.overlaps(p); err != nil {
		return Settings{}, err
	}
	set.Role, set.Proxy, set.Origin = RoleProxy, p, file.origin
	args.override(set.Origin)
	override(set.Origin, "listen", args.Listen)
	override(set.Origin, "transfer", args.Transfer)
	override(set.Origin, "http", args.HTTP)
	override(set.Origin, "https", args.HTTPS)
	override(set.Origin, "bind", args.Bind)
	override(set.Origin, "advertise", args.Advertise)
	override(set.Origin, "sni", args.SNI)
	override(set.Origin, "proxy_protocol_from", strings.Join(args.ProxyProtocolFrom, ","))
	return set, nil
}

func joinSNI(arg, file string) (string, error) {
	word := cmp.Or(arg, file)
	if word == "" {
		return "", nil
	}
	name, err := grammar.ParseSNI(word)
	if err != nil {
		return "", argError("", "--sni: %w", err)
	}
	return name, nil
}

// BridgeSource is the source of a bridge's settings.
type BridgeSource struct {
	args BridgeArgs
	file watched

	mu   sync.Mutex
	once map[string]grammar.Token // guarded by mu; tokens that are read once, by their file
}

// NewBridgeSource returns the source for a bridge with that command line.
func NewBridgeSource(args BridgeArgs) *BridgeSource {
	return &BridgeSource{args: args, file: watched{path: args.Config}, once: make(map[string]grammar.Token)}
}

// Load implements [Source].
func (s *BridgeSource) Load() (Settings, []Warning, error) {
	file := &bridgeFile{}
	var warnings []Warning
	again := s.file.begin()
	err := s.file.read(again, func(path string) (others []string, err error) {
		file, warnings, err = loadBridge(path, access.Rules{Trusted: s.args.TrustOwner, Regular: again, Opening: s.file.reads})
		return file.others, err
	})
	if err != nil {
		return Settings{}, nil, err
	}
	set, notes, err := s.join(file, again)
	if err != nil {
		return Settings{}, nil, err
	}
	return set, slices.Concat(warnings, notes, openAdmin(set)), nil
}

// Reading is as of a [ProxySource].
func (s *BridgeSource) Reading() string { return s.file.reading() }

// Watch implements [Source]: it watches the file.
func (s *BridgeSource) Watch(ctx context.Context, changed func()) error {
	return s.file.watch(ctx, changed)
}

func (s *BridgeSource) join(file *bridgeFile, again bool) (set Settings, warnings []Warning, err error) {
	args := s.args
	if set.Common, err = args.CommonArgs.join(file.CommonArgs, again); err != nil {
		return Settings{}, nil, err
	}
	rules := access.Rules{Trusted: set.TrustOwner, Regular: again, Opening: s.file.reads}
	defer s.file.reads("")
	tok, warnings, err := s.token(file, rules)
	if err != nil {
		return Settings{}, nil, err
	}
	set.Bridge, err = s.bridge(file, tok)
	if err != nil {
		return Settings{}, nil, err
	}
	way, notes, err := s.joinVia(file, rules)
	if err != nil {
		return Settings{}, nil, err
	}
	set.Bridge.Via, warnings = way, append(warnings, notes...)
	set.Role, set.Origin = RoleBridge, file.origin
	args.override(set.Origin)
	override(set.Origin, "proxy", strings.Join(args.Proxies, ","))
	override(set.Origin, "proxy_transfer", args.ProxyTransfer)
	override(set.Origin, "sni", args.SNI)
	override(set.Origin, "via", cmp.Or(args.Via, args.ViaFile))
	override(set.Origin, "via_file", cmp.Or(args.Via, args.ViaFile))
	override(set.Origin, "keepalive", args.Keepalive)
	if args.AutoCert {
		delete(set.Origin, "auto_cert")
	}
	override(set.Origin, "source", strings.Join(args.Sources, ","))
	for _, option := range []string{"token", "token_file"} {
		override(set.Origin, option, cmp.Or(args.Token, args.TokenFile, args.TokenEnv))
	}
	return set, warnings, nil
}

// bridge joins what only a bridge has.
func (s *BridgeSource) bridge(file *bridgeFile, tok grammar.Token) (b Bridge, err error) {
	args := s.args
	b.Token = tok
	if b.Services, err = joinExposes(file, args); err != nil {
		return Bridge{}, err
	}
	if args.AutoCert || file.AutoCert == "true" {
		if err := autoCertificates(b.Services); err != nil {
			return Bridge{}, err
		}
	}
	b.Certificates = file.Certificates
	b.Proxies = file.Proxies
	if len(args.Proxies) > 0 {
		b.Proxies = nil
	}
	for _, arg := range args.Proxies {
		addr, err := grammar.ParseHost(arg, defaultPort)
		if err != nil {
			return Bridge{}, argError("", "--proxy: %w", err)
		}
		if slices.Contains(b.Proxies, addr) {
			return Bridge{}, argError("", "--proxy: %s is there twice", addr)
		}
		b.Proxies = append(b.Proxies, addr)
	}
	if len(args.Proxies) == 0 && file.NoProxy != nil {
		return Bridge{}, file.NoProxy
	}
	if len(b.Proxies) == 0 && b.Token.Addr() == "" {
		return Bridge{}, argError(fmt.Sprintf("--proxy YOUR.SERVER:%d", defaultPort), "the token carries no address of the proxy, and --proxy gives none")
	}
	if b.SNI, err = joinSNI(args.SNI, file.SNI); err != nil {
		return Bridge{}, err
	}
	if word := cmp.Or(args.Keepalive, file.Keepalive); word != "" {
		if b.Keepalive, err = ParseKeepalive(word); err != nil {
			return Bridge{}, argError("", "--keepalive: %w", err)
		}
	}
	words := args.Sources
	if len(words) == 0 {
		words = file.Sources
	}
	for _, word := range words {
		ip, err := ParseSource(word)
		if err != nil {
			return Bridge{}, argError("", "--source: %w", err)
		}
		if slices.Contains(b.Sources, ip) {
			return Bridge{}, argError("", "--source: %s is there twice", ip)
		}
		b.Sources = append(b.Sources, ip)
	}
	b.ProxyTransfer = cmp.Or(args.ProxyTransfer, file.ProxyTransfer)
	if len(args.Proxies) == 1 && args.ProxyTransfer == "" && file.TransferPort != 0 {
		// The XML has one host for both ports, and the flag names another.
		host, _, _ := net.SplitHostPort(b.Proxies[0])
		b.ProxyTransfer = net.JoinHostPort(host, strconv.Itoa(int(file.TransferPort)))
	}
	if len(args.Proxies) > 1 && args.ProxyTransfer == "" && file.TransferPort != 0 {
		b.ProxyTransfer = "" // each announces its own
	}
	if b.ProxyTransfer != "" {
		if b.ProxyTransfer, err = grammar.ParseHostPort(b.ProxyTransfer); err != nil {
			return Bridge{}, argError("", "--proxy-transfer: %w", err)
		}
		if len(b.Proxies) > 1 {
			return Bridge{}, argError("leave it out: each proxy announces its transfer port", "--proxy-transfer %s is of one proxy, and there are %d", b.ProxyTransfer, len(b.Proxies))
		}
	}
	return b, nil
}

// joinExposes adds the services of the command line to those of the file.
func joinExposes(file *bridgeFile, args BridgeArgs) ([]grammar.Expose, error) {
	exposes := slices.Clone(file.Expose)
	var given grammar.ExposeSet
	for _, arg := range args.Expose {
		e, err := grammar.ParseExpose(arg)
		if err != nil {
			return nil, argError("", "%w", err)
		}
		// The file is the one of the two that can be changed while the process runs.
		for i, p := range file.exposed {
			if err := grammar.CheckExpose(file.Expose[i:i+1], e); err != nil {
				return nil, &Error{File: p.File, Line: p.Line, Text: err.Error(), Hint: fmt.Sprintf("the second is %q on the command line", arg), Err: err}
			}
		}
		if err := given.Add(e); err != nil {
			return nil, argError("", "%w", err)
		}
		exposes = append(exposes, e)
	}
	if len(exposes) == 0 {
		where := ""
		if args.Config != "" {
			where = ", and " + args.Config + " has no [[expose]]"
		}
		return nil, argError("add 9000 for port 9000 on both sides, or 9000=192.168.1.5:9904 for another target; in a configuration it is [[expose]]",
			"nothing to expose: a bridge needs at least one EXPOSE%s", where)
	}
	return exposes, nil
}

// token looks where a token may be, and reads the first that is there.
func (s *BridgeSource) token(file *bridgeFile, rules access.Rules) (grammar.Token, []Warning, error) {
	args := s.args
	text, from := "", ""
	switch {
	case args.Token != "":
		text, from = args.Token, "the first argument"
	case args.TokenFile != "":
		return s.readOnce(args.TokenFile, rules)
	case args.TokenEnv != "":
		text, from = args.TokenEnv, TokenEnv
	case file.Token != "":
		text, from = file.Token, "the configuration"
	case file.TokenFile == "-":
		return s.readOnce(file.TokenFile, rules)
	case file.TokenFile != "":
		p := file.origin["token_file"]
		tok, warnings, err := s.readToken(file.TokenFile, rules, p)
		if err != nil {
			err = &Error{File: p.File, Line: p.Line, Key: p.Key, Text: err.Error(), Err: err}
		}
		return tok, warnings, err
	default:
		if len(args.Expose) > 0 {
			if _, err := grammar.ParseExpose(args.Expose[0]); err != nil && !isUnsupported(err) {
				return grammar.Token{}, nil, argError("reverser bridge TOKEN 9000: the proxy's first start prints the token, and `reverser key add` there makes one",
					"argument 1, %q, is neither a token (rv1_…) nor PUBLIC[=TARGET] (9000, 9000=192.168.1.5:80)", args.Expose[0])
			}
		}
		where := ""
		if args.Config != "" {
			where = ", and " + args.Config + " has no token_file"
		}
		return grammar.Token{}, nil, argError("the proxy's first start prints one, which begins with rv1_, and `reverser key add` there makes one; give it as the first argument, with --token-file FILE, or in "+TokenEnv,
			"the bridge has no token%s", where)
	}
	tok, err := grammar.ParseToken(text)
	if err != nil {
		return grammar.Token{}, nil, argError("", "token of %s: %w", from, err)
	}
	return tok, nil, nil
}

// readOnce reads a file that the command line names, or standard input. It may be gone the next time: then the token stays what it was. A
// file that is there is read again, for it may hold a newer token.
func (s *BridgeSource) readOnce(path string, rules access.Rules) (grammar.Token, []Warning, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, again := s.once[path]
	if again && !isFile(path) {
		return before, nil, nil
	}
	tok, warnings, err := s.readToken(path, rules, Place{})
	switch {
	case err == nil:
		s.once[path] = tok
	case again && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)):
		return before, nil, nil
	}
	return tok, warnings, err
}

// isFile reports whether a path names a file that can be read more than once. - is standard input.
func isFile(path string) bool {
	info, err := os.Stat(path)
	return path != "-" && err == nil && info.Mode().IsRegular()
}

// readToken reads a token file. Place is where a configuration file names it, if one does.
func (s *BridgeSource) readToken(path string, rules access.Rules, p Place) (grammar.Token, []Warning, error) {
	var stdin io.Reader = os.Stdin
	if s.args.Stdin != nil {
		stdin = s.args.Stdin
	}
	text, notes, err := readTokenFile(path, stdin, rules)
	if err != nil {
		return grammar.Token{}, nil, argError("", "%w", err)
	}
	tok, err := grammar.ParseToken(text)
	if err != nil {
		if path == "-" {
			path = "stdin"
		}
		return grammar.Token{}, nil, argError("", "token of %s: %w", path, err)
	}
	var warnings []Warning
	for _, note := range notes {
		if p.File == "" {
			warnings = append(warnings, Warning{File: "token file " + path, Text: note})
		} else {
			warnings = append(warnings, Warning{p.File, p.Line, "token file " + path + ": " + note})
		}
	}
	return tok, warnings, nil
}

func isUnsupported(err error) bool {
	_, ok := errors.AsType[*grammar.UnsupportedKindError](err)
	return ok
}
